#!/usr/bin/env bash
# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Sets up what a part of the tests needs, says what it installs, and does nothing where all is there.
#
#   dev/setup.sh python NAME           a virtual environment with exactly the locked versions, newest Python
#   dev/setup.sh python NAME oldest    another one, NAME-oldest, with the oldest Python, if there are two
#   dev/setup.sh python NAME system    another one, NAME-system, with the distribution's Python, as hosts have it
#   dev/setup.sh packages PACKAGE…     Debian packages, as root with apt
#
# Exit status: 0 all is there; 3 something is missing that this user cannot install (named on stderr); else an error.

set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# The newest (or oldest) Python from 3.11 on that can make virtual environments. ansible-core's newest release line
# that the lock files name runs on 3.14 at most.
find_python() {
    local which=$1 found='' best=0 candidate minor
    for candidate in python3 python3.{11..14} /usr/local/bin/python3.{11..14} \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3; do
        candidate=$(command -v "$candidate" 2>/dev/null) || continue
        minor=$("$candidate" -c 'import ensurepip, venv, sys; print(sys.version_info[1])' 2>/dev/null) || continue
        [ "$minor" -ge 11 ] && [ "$minor" -le 14 ] || continue
        if [ "$best" = 0 ] || { [ "$which" = newest ] && [ "$minor" -gt "$best" ]; } ||
            { [ "$which" = oldest ] && [ "$minor" -lt "$best" ]; }; then
            found=$candidate best=$minor
        fi
    done
    printf '%s' "$found"
}

python_environment() {
    local name=$1 folder=.cache/venvs/$1 lock=dev/requirements/$1.txt python wanted
    python=$(find_python newest)
    if [ -z "$python" ] && can_install; then
        packages python3 python3-venv
        python=$(find_python newest)
    fi
    if [ -z "$python" ]; then
        say "no Python from 3.11 on with venv and ensurepip: install python3 and python3-venv"
        exit 3
    fi
    if [ "${2-}" = oldest ]; then
        name=$1-oldest folder=.cache/venvs/$1-oldest
        if [ "$("$(find_python oldest)" -V)" = "$("$python" -V)" ]; then
            rm -rf "$folder"
            return
        fi
        python=$(find_python oldest)
    fi
    if [ "${2-}" = system ]; then
        # Compilers' settings make a difference of a fifth: what is measured is to be what hosts run.
        name=$1-system folder=.cache/venvs/$1-system
        ! can_install || packages python3 python3-venv
        python=$(PYENV_ROOT=/nonexistent PATH=/usr/bin:/bin find_python newest)
        [ -n "$python" ] || python=$(find_python newest)
    fi
    wanted="$("$python" -c 'import sys; print(sys.version, sys.prefix)' | tr '\n' ' ') $PWD $(sha256sum <"$lock")"
    mkdir -p .cache/venvs
    (
        flock 9 # two parts that start at once must not build the same environment
        if [ "$(cat "$folder/.complete" 2>/dev/null)" != "$wanted" ]; then
            say "installing $(grep -c '==' "$lock") locked Python packages ($lock) with $("$python" -V) into $folder"
            rm -rf "$folder"
            "$python" -m venv "$folder"
            # Most of what is installed is never imported: compiling all of it took two thirds of the time.
            "$folder/bin/pip" install --quiet --disable-pip-version-check --require-hashes --no-compile --requirement "$lock"
            "$folder/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation \
                --editable ./proxy
            printf '%s\n' "$wanted" >"$folder/.complete"
        fi
    ) 9>".cache/venvs/$name.lock"
    # The collection as Ansible looks for it: a link to this checkout.
    mkdir -p .ansible/collections/ansible_collections/mailops
    ln -sfn ../../../.. .ansible/collections/ansible_collections/mailops/tarpit
}

packages() {
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! can_install; then
        say "these Debian packages are missing: ${missing[*]}"
        say "install them as root: apt-get install --no-install-recommends ${missing[*]}"
        exit 3
    fi
    say "installing Debian packages: ${missing[*]}"
    # Another checkout may be installing at this moment: wait for apt's lock.
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
    (
        flock 9
        "${apt[@]}" update
        DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >&2
    ) 9>"${TMPDIR:-/tmp}/mailops-tarpit-apt.$(id -u).lock"
}

case ${1-} in
python) python_environment "$2" "${3-}" ;;
packages)
    shift
    packages "$@"
    ;;
*)
    sed -n '5,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
