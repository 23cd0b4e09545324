#!/usr/bin/env bash
# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# dev/pytest.sh VENV ARGUMENT…: runs pytest of .cache/venvs/VENV.
#
# With CI=true, up to three tests that failed run once more, one at a time: thousands of tests start programs
# that wait for one another, and one of them may find the machine too busy. Who passes then does not fail the run, and is
# not forgotten either: its first failure is printed, and .cache/unsteady names it for the summary of `make test`. A test
# that fails twice, or a fourth one, is a failure.

set -uo pipefail
cd "$(dirname "$0")/.." || exit

pytest=.cache/venvs/$1/bin/pytest
shift
memory=$(mktemp -d) # which tests failed
trap 'rm -rf "$memory"' EXIT

"$pytest" -o cache_dir="$memory" "$@"
status=$?
# 1 is pytest's word for tests that failed; any other says that they were not all run.
[ "$status" = 1 ] && [ "${CI-}" = true ] || exit "$status"
failed=$(python3 -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' "$memory/v/cache/lastfailed") ||
    exit "$status"
[ "$(wc -l <<<"$failed")" -le 3 ] || exit "$status"

printf '\n==== once more, one at a time: what failed\n%s\n' "$failed"
"$pytest" -o cache_dir="$memory" "$@" --last-failed -n 0 || exit
printf '%s\n' "$failed" >>.cache/unsteady
