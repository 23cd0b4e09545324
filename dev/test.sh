#!/usr/bin/env bash
# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs all parts of the tests, each even where an earlier one failed, and says at the end which ran and passed.
# A part whose target exits with 3 could not run here (setup.sh has said what is missing).
#
# With CI=true nobody waits: five minutes of soak and two of search for bad inputs are parts too. They judge memory and
# answers, not speed, so they run, with the linters and the tests without a network, beside the molecule scenarios, which
# wait much; what they print follows when all have ended. Before them, what all parts need is installed, while molecule
# waits for its own. Nothing runs beside `integration`, which has use for all processors.
#
# Exit status: 0 all ran and passed; 1 a part failed, or did not run while CI=true; 3 a part did not run.

set -uo pipefail
cd "$(dirname "$0")/.." || exit

results=$(mktemp -d) # two files a part: its result and seconds, and what it printed
beside=''             # what runs beside the others: a process group of its own, so that it ends as a whole
trap '[ -z "$beside" ] || kill -- "-$beside" 2>/dev/null; rm -rf "$results"' EXIT

# run PART [VARIABLE=VALUE…]
run() {
    local part=$1 started=$SECONDS result
    printf '\n==== make %s\n' "$*"
    # make turns a recipe's exit status into 2, so the status that matters comes from a file.
    rm -f ".cache/not-run-$part"
    if "${MAKE:-make}" --no-print-directory "$@" 2>&1 | tee "$results/$part.log"; then
        result=passed
    elif [ -e ".cache/not-run-$part" ]; then
        result='not run'
    else
        result=FAILED
    fi
    printf '%-12s %-8s %4d s\n' "$part" "$result" $((SECONDS - started)) >"$results/$part"
}

rm -f .cache/unsteady
parts=(lint molecule unit integration)
if [ "${CI-}" = true ]; then
    parts=(setup lint molecule soak fuzz unit integration)
    set -m
    (
        run setup
        run lint
        run soak SOAK_SECONDS=300
        run fuzz FUZZ_SECONDS=120
        run unit
    ) >"$results/printed" 2>&1 &
    beside=$!
    set +m
else
    run lint
fi
run molecule
if [ -n "$beside" ]; then
    wait "$beside"
    beside=''
    cat "$results/printed"
else
    run unit
fi
run integration

worst=0
printf '\n==== summary\n'
for part in "${parts[@]}"; do
    # A part that was killed has left no result.
    line=$(cat "$results/$part" 2>/dev/null) || line=$(printf '%-12s FAILED' "$part")
    printf '%s\n' "$line"
    case $line in
    *passed*) ;;
    *'not run'*) [ "${CI-}" = true ] && worst=1 || worst=$((worst == 1 ? 1 : 3)) ;;
    *) worst=1 ;;
    esac
done
# See dev/pytest.sh.
[ ! -e .cache/unsteady ] || sed 's/^/unsteady, passed only when run again: /' .cache/unsteady
# The end of what failed stands at the end: with some machines' CI it is all one gets to see.
for part in "${parts[@]}"; do
    grep -q passed "$results/$part" 2>/dev/null ||
        printf '\n==== %s: the end of what it printed\n%s\n' "$part" "$(tail -n 80 "$results/$part.log" 2>/dev/null)"
done
exit "$worst"
