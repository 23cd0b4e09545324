#!/usr/bin/env bash
# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs all parts of the tests, each even where an earlier one failed, and says at the end which ran and passed.
# A part whose target exits with 3 could not run here (setup.sh has said what is missing).
#
# Exit status: 0 all ran and passed; 1 a part failed, or did not run while CI=true; 3 a part did not run.

set -uo pipefail
cd "$(dirname "$0")/.." || exit

parts=(lint unit integration molecule)
summary='' worst=0
for part in "${parts[@]}"; do
    printf '\n==== make %s\n' "$part"
    started=$SECONDS
    # make turns a recipe's exit status into 2, so the status that matters comes from a file.
    rm -f ".cache/not-run-$part"
    if "${MAKE:-make}" --no-print-directory "$part"; then
        result=passed
    elif [ -e ".cache/not-run-$part" ]; then
        result='not run' worst=$((worst == 1 ? 1 : 3))
        [ "${CI-}" = true ] && worst=1
    else
        result=FAILED worst=1
    fi
    summary+=$(printf '%-12s %-8s %4d s' "$part" "$result" $((SECONDS - started)))$'\n'
done
printf '\n==== summary\n%s' "$summary"
exit "$worst"
