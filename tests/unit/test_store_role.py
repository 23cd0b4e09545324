# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's entry point `store`, before it changes anything: which program on which distribution, and what it refuses.

Hosts are given facts as `setup` would find them there; the role's own tasks run on them.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from tools.ansible_runs import Controller, Run, local_play

PROGRAMS = {
    ("Debian", "12"): "redis",
    ("Debian", "13"): "valkey",
    ("Ubuntu", "24"): "redis",
    ("Ubuntu", "26"): "valkey",
    ("Linux Mint", "22"): "redis",
}
SECRET, ANOTHER = "proxies-secret-4711", "stores-secret-4711"
GOOD: dict[str, Any] = {
    "greylist_proxy_store_password": SECRET,
    "greylist_proxy_store_replication_password": ANOTHER,
    "greylist_proxy_store_tls_certificate": "store.crt",
    "greylist_proxy_store_tls_key": "store.key",
    "greylist_proxy_store_tls_authority": "authority.crt",
}
REFUSED = {
    "short": ({"greylist_proxy_store_password": "sesame"}, "openssl rand -hex 32"),
    "quoted": ({"greylist_proxy_store_replication_password": 'sixteen"letters"or"more'}, "openssl rand -hex 32"),
    "two-lines": ({"greylist_proxy_store_password": f"{SECRET}\nuser default on nopass"}, "openssl rand -hex 32"),
    "a-line-end": ({"greylist_proxy_store_password": f"{SECRET}\n"}, "openssl rand -hex 32"),
    "no-key": ({"greylist_proxy_store_tls_key": ""}, "greylist_proxy_store_tls_key"),
    "a-name": ({"greylist_proxy_store_address": "store.example.org"}, "must be an IP address"),
    "no-address": ({"greylist_proxy_store_address": ""}, "must be an IP address"),
}
ACCEPTED = {
    "no-tls": {"greylist_proxy_store_tls": False, "greylist_proxy_store_tls_key": ""},
    "ipv6": {"greylist_proxy_store_address": "2001:db8::7"},
}


def host(family: str, distribution: str, major: str, manager: str = "systemd", **variables: Any) -> dict[str, Any]:
    facts = {
        "os_family": family,
        "distribution": distribution,
        "distribution_major_version": major,
        "service_mgr": manager,
        "default_ipv4": {"address": "192.0.2.11"},
    }
    return {"facts": facts, **GOOD, **variables}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("store")
    (folder / "home").mkdir()
    stores = {f"{name}-{major}": host("Debian", name, major) for name, major in PROGRAMS}
    stores |= {name: host("Debian", "Debian", "13", **variables) for name, (variables, _said) in REFUSED.items()}
    stores |= {name: host("Debian", "Debian", "13", **variables) for name, variables in ACCEPTED.items()}
    stores |= {"fedora": host("RedHat", "Fedora", "43"), "container": host("Debian", "Debian", "13", "tini")}
    others = {"stranger": host("Debian", "Debian", "13")}
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps({"greylist_stores": {"hosts": stores}, "others": {"hosts": others}}))
    facts = host("", "", "")["facts"]
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.set_fact": {**{key: f"{{{{ facts.{key} }}}}" for key in facts}, "cacheable": True}},
        {"ansible.builtin.include_role": {"name": "mailops.tarpit.greylist_proxy", "tasks_from": "store_look"}},
        {"ansible.builtin.debug": {"var": "_greylist_proxy_store_program"}},
    ]
    playbook = folder / "play.json"
    playbook.write_text(local_play(tasks))
    return Controller(folder / "home").playbook(str(playbook), inventory, SECRET, "--forks=2")


def refusal(run: Run, name: str) -> str:
    """The one of the host's settings that was refused, as it is said."""
    [said] = [each["msg"] for each in run.last(name)["results"] if "assertion" in each]
    return str(said)


@pytest.mark.parametrize(("name", "major"), list(PROGRAMS))
def test_the_program_is_the_distributions_own(run: Run, name: str, major: str) -> None:
    assert run.last(f"{name}-{major}", "debug")["_greylist_proxy_store_program"] == PROGRAMS[name, major]


@pytest.mark.parametrize("name", list(ACCEPTED))
def test_what_is_accepted(run: Run, name: str) -> None:
    assert run.last(name)["_greylist_proxy_store_program"] == "valkey"


@pytest.mark.parametrize("name", list(REFUSED))
def test_settings_that_cannot_work_are_refused_with_the_way_to_mend_them(run: Run, name: str) -> None:
    said = refusal(run, name)
    assert REFUSED[name][1] in said
    assert said.endswith("Nothing was changed.")


def test_hosts_that_can_not_have_it(run: Run) -> None:
    assert "this host runs Fedora with systemd. Nothing was changed" in run.last("fedora")["msg"]
    assert "this host runs Debian with tini. Nothing was changed" in run.last("container")["msg"]
    assert "this one is in neither" in refusal(run, "stranger")


def test_no_password_is_printed(run: Run) -> None:
    assert ANOTHER not in run.printed
    assert "sixteen" not in run.printed
    assert "sesame" not in run.printed
