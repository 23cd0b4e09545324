# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# All that the tools keep stays in the checkout, so that two checkouts do not see each other.
export ANSIBLE_HOME := $(CURDIR)/.ansible
export ANSIBLE_LOCALHOST_WARNING := false
# Compiled once, and not beside the source: tests start the proxy hundreds of times. Who forbids to write what was compiled
# would wait three times as long for each start.
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache
unexport PYTHONDONTWRITEBYTECODE
# Container names are global to a machine: this makes them the checkout's own.
export TARPIT_RUN_ID ?= $(shell printf %s '$(CURDIR)' | sha256sum | cut -c1-8)

TEST := .cache/venvs/test/bin
DEV := .cache/venvs/dev/bin
FUZZ := .cache/venvs/fuzz/bin
# Of the proxy's tests, two a processor: many wait for a program, a delay or a timer.
AT_ONCE := $(shell echo $$((2 * $$(nproc))))
# Of the others, one more than there are processors.
LAB_AT_ONCE := $(shell echo $$((1 + $$(nproc))))
# Who has nothing more to do takes from the others; what took longest is told, so that it can be seen where time goes.
PARALLEL := --dist worksteal --durations 15
NEWEST_ONLY := bench_* preflight in_front_of haproxy monitoring greylist end_to_end smuggling commands_running real_clients
FUZZ_SECONDS := 600
SOAK_SECONDS := 3600
WINE_PACKAGES := wine64 gcc-mingw-w64-x86-64
KERBEROS_PACKAGES := krb5-kdc krb5-admin-server krb5-user libkrb5-dev gcc libc6-dev python3-dev
# The greylist's server store, and the greylisters whose state can be taken over.
GREYLIST_PACKAGES := redis-server postgrey db5.3-util sqlgrey libdbd-sqlite3-perl
# promtool, which reads metrics and alert rules as Prometheus does. Debian has it with the server only.
MONITORING_PACKAGES := prometheus
# Mail servers and clients on both sides of the proxy.
MAIL_PACKAGES := postfix swaks openssl haproxy
PODMAN_PACKAGES := podman runc netavark aardvark-dns iptables mmdebstrap

# Runs set-up; where it says that something is missing (3), notes that the part cannot run here.
setup = dev/setup.sh $(1) || { s=$$?; [ $$s != 3 ] || touch .cache/not-run-$@; exit $$s; }

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: ## Set the tarpit of a lab Windows host, and mail through the proxy: no root, no Wine
	@$(call setup,python test)
	@$(TEST)/python dev/demo.py

.PHONY: test
test: ## Everything: lint, molecule, unit, integration; with CI=true also soak and fuzz
	@mkdir -p .cache && dev/test.sh

.PHONY: setup
setup: ## Install what the parts would each install by themselves
	@mkdir -p .cache
	@$(call setup,packages $(WINE_PACKAGES) $(PODMAN_PACKAGES) $(KERBEROS_PACKAGES) $(GREYLIST_PACKAGES) \
	    $(MONITORING_PACKAGES) $(MAIL_PACKAGES))
	@$(call setup,python integration); $(call setup,python test); $(call setup,python test oldest)
	@$(call setup,python fuzz); $(call setup,python dev)

.PHONY: lint
lint: ## Linters, type checker, ansible-test sanity
	@mkdir -p .cache; $(call setup,python dev)
	@dev/lint.sh

.PHONY: unit
unit: ## Tests without a network: plug-ins, proxy, lab
	@mkdir -p .cache; $(call setup,python test)
	dev/pytest.sh test tests/unit

.PHONY: integration
integration: ## Real programs against the lab on both backends
	@mkdir -p .cache; $(call setup,packages $(WINE_PACKAGES) $(KERBEROS_PACKAGES) $(GREYLIST_PACKAGES) $(MONITORING_PACKAGES) \
	    $(MAIL_PACKAGES))
	@$(call setup,python integration); $(call setup,python dev)
	dev/pytest.sh integration $(PARALLEL) -n $(AT_ONCE) proxy/tests
	dev/pytest.sh integration $(PARALLEL) -n $(LAB_AT_ONCE) tests/lab tests/integration
	@# The oldest ansible-core that is supported goes with the oldest Python, where this machine has two. Benchmarks, and
	@# the longest of what is about the whole program among others, run with the newest only: in the scenario
	@# `greylist` it runs with Debian 12's.
	@$(call setup,python test oldest)
	if [ -d .cache/venvs/test-oldest ]; then \
	    dev/pytest.sh test-oldest $(PARALLEL) -n $(LAB_AT_ONCE) tests/unit tests/integration/test_windows.py \
	        tests/integration/test_exchange.py -k 'not wine' && \
	    dev/pytest.sh test-oldest $(PARALLEL) -n $(AT_ONCE) $(NEWEST_ONLY:%=--ignore-glob='*/test_%.py') proxy/tests; fi

.PHONY: fuzz
fuzz: ## Search for inputs that break what the proxy reads (FUZZ_SECONDS=600)
	@mkdir -p .cache; $(call setup,python fuzz)
	@$(FUZZ)/python fuzz/search.py --seconds $(FUZZ_SECONDS)

.PHONY: soak
soak: ## The proxy at half its maximum load: memory and descriptors stay flat (SOAK_SECONDS=3600)
	@mkdir -p .cache; $(call setup,python test)
	@$(TEST)/python dev/soak.py --seconds $(SOAK_SECONDS)

.PHONY: molecule
molecule: ## Scenarios: the Windows path on Wine, the Linux path in containers with systemd
	@mkdir -p .cache; $(call setup,packages $(WINE_PACKAGES) $(PODMAN_PACKAGES)); $(call setup,python dev)
	@dev/molecule.sh || { s=$$?; [ $$s != 3 ] || touch .cache/not-run-$@; exit $$s; }

.PHONY: bench
bench: bench-fleet bench-stores bench-smtp ## What a fleet of Windows hosts, the greylist's stores and SMTP cost

.PHONY: bench-fleet
bench-fleet: ## What a fleet costs, compared with ansible.windows (BENCH=--help)
	@mkdir -p .cache; $(call setup,python dev)
	@$(DEV)/python bench/fleet.py $(BENCH)

.PHONY: bench-stores
bench-stores: ## What the stores cost with 10,000 and 10,000,000 triplets (STORES=--help)
	@mkdir -p .cache; $(call setup,python dev)
	@command -v valkey-server >/dev/null || { $(call setup,packages redis-server); }
	@$(DEV)/python bench/stores.py $(STORES)

.PHONY: bench-smtp
bench-smtp: ## What a session and a message cost the proxy, and others (SMTP=--help)
	@mkdir -p .cache; $(call setup,packages $(MAIL_PACKAGES)); $(call setup,python test system)
	@.cache/venvs/test-system/bin/python bench/smtp.py $(SMTP)

.PHONY: dialogues
dialogues: ## Hold the SMTP dialogues with any server (SERVER=host:port, DIALOGUES=--help)
	@mkdir -p .cache; $(call setup,python test)
	@$(TEST)/python dev/dialogues.py $(if $(SERVER),--server '$(SERVER)') $(DIALOGUES)

.PHONY: build
build: ## The collection's tarball, in dist/
	@$(call setup,python test)
	$(TEST)/ansible-galaxy collection build --force --output-path dist .

.PHONY: lock
lock: ## Resolve the lock files anew (needs uv)
	for lock in proxy/requirements dev/requirements/test dev/requirements/integration dev/requirements/dev \
	    dev/requirements/fuzz; do \
	    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	        --no-emit-find-links --custom-compile-command 'make lock' $$lock.in --output-file $$lock.txt; \
	done

.PHONY: clean
clean: ## Remove all that set-up and tests made in this checkout
	rm -rf .ansible .cache dist
