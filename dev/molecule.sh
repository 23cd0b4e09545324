#!/usr/bin/env bash
# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# dev/molecule.sh [SCENARIO…] [-- MOLECULE-ARGUMENT…]: runs molecule's scenarios, all of them by default, with what
# they need from this checkout; exits with 3 where one cannot run here. `dev/molecule.sh greylist -- converge` runs one step of one scenario.

set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.cache/venvs/dev/bin:$PATH
export ANSIBLE_HOME=$PWD/.ansible
export CONTAINERS_CONF=$PWD/dev/podman/containers.conf
export TARPIT_ROOT=$PWD
export TARPIT_RUN_ID=${TARPIT_RUN_ID:-$(printf %s "$PWD" | sha256sum | cut -c1-8)}

scenarios=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    scenarios+=("$1")
    shift
done
[ $# -eq 0 ] || shift
[ ${#scenarios[@]} -gt 0 ] || scenarios=(greylist cluster windows exchange)
[ $# -gt 0 ] || set -- test

status=0
printed=$(mktemp -d)
declare -A beside=() # scenario: process
trap 'kill "${beside[@]}" 2>/dev/null || true; rm -rf "$printed"' EXIT
for scenario in "${scenarios[@]}"; do
    if ! [[ $scenario =~ ^(greylist|cluster)$ ]]; then
        molecule "$@" --scenario-name "$scenario" || status=$?
    elif [ "$(id -u)" != 0 ]; then
        echo "setup: the scenario $scenario needs root, for containers that run systemd" >&2
        status=3
    elif [ ${#scenarios[@]} = 1 ]; then
        molecule "$@" --scenario-name "$scenario" || status=$?
    else
        # They wait for packages and programs most of the time, so they run side by side; what they print follows.
        molecule "$@" --scenario-name "$scenario" >"$printed/$scenario" 2>&1 &
        beside[$scenario]=$!
    fi
done
for scenario in "${!beside[@]}"; do
    wait "${beside[$scenario]}" || status=1
    unset "beside[$scenario]"
    cat "$printed/$scenario"
done
exit "$status"
