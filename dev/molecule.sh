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
failed=()
for scenario in "${scenarios[@]}"; do
    if [[ $scenario =~ ^(greylist|cluster)$ ]] && [ "$(id -u)" != 0 ]; then
        echo "setup: the scenario $scenario needs root, for containers that run systemd" >&2
        status=3
    elif [[ $scenario =~ ^(greylist|cluster)$ ]] && [ ${#scenarios[@]} -gt 1 ]; then
        # They wait for packages and programs most of the time, so they run side by side; what they print follows.
        molecule "$@" --scenario-name "$scenario" >"$printed/$scenario" 2>&1 &
        beside[$scenario]=$!
    else
        molecule "$@" --scenario-name "$scenario" 2>&1 | tee "$printed/$scenario" || failed+=("$scenario")
    fi
done
for scenario in "${!beside[@]}"; do
    wait "${beside[$scenario]}" || failed+=("$scenario")
    unset "beside[$scenario]"
    cat "$printed/$scenario"
done
# What failed stands at the end, where it is found: the scenario goes on for pages after it.
for scenario in "${failed[@]}"; do
    status=1
    printf '\n==== what failed in the scenario %s\n' "$scenario"
    sed -E 's/\x1b\[[0-9;]*m//g; s/^ *│ ?//' "$printed/$scenario" | cut -c -1000 | awk '
        /^TASK / { task = $0 }
        /^(fatal|failed): |ERROR|CRITICAL|Traceback/ { if (more <= 0 && task != told) print told = task; more = 15 }
        more-- > 0' | tail -n 60
done
exit "$status"
