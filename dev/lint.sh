#!/usr/bin/env bash
# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Every check that reads the code without running it. All of them run, then the failed ones are named.

set -uo pipefail
cd "$(dirname "$0")/.." || exit

bin=$PWD/.cache/venvs/dev/bin
export PATH=$bin:$PATH
export ANSIBLE_HOME=${ANSIBLE_HOME:-$PWD/.ansible}
failed=()

check() {
    local name=$1
    shift
    printf -- '---- %s\n' "$name"
    "$@" || failed+=("$name")
}

types() {
    MYPYPATH=.ansible/collections mypy --explicit-package-bases \
        -p ansible_collections.mailops.tarpit.plugins.plugin_utils \
        -p ansible_collections.mailops.tarpit.plugins.filter &&
        mypy -p greylist_proxy &&
        (cd tests && mypy --config-file ../pyproject.toml -p lab --exclude contract) &&
        MYPYPATH=bench:tests:proxy mypy bench/*.py
}

# ansible-test insists on a folder ansible_collections/mailops/tarpit that is no link, and keeps its own
# environments below HOME: both are given a place in this checkout.
sanity() {
    local root=$PWD/.cache/sanity
    local collection=$root/ansible_collections/mailops/tarpit version path
    rm -rf "$collection" && mkdir -p "$collection" "$root/home/.ansible/test/cache"
    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
        [ ! -e "$file" ] || printf '%s\0' "$file" # deleted here, and not committed yet
    done | tar --null --files-from=- -cf - | tar -C "$collection" -xf -
    # ansible-test fetches pip's installer from the network unless it lies here: Python brings pip along.
    for version in $(python -c 'import re, ansible_test._internal.python_requirements as requirements
print(*set(re.findall(r"\bpip=.([0-9.]+)", open(requirements.__file__).read())))'); do
        cp dev/get_pip.py "$root/home/.ansible/test/cache/get_pip_${version//./_}.py"
    done
    # A repository of its own: in this one's, the whole folder is ignored.
    git -C "$collection" init --quiet && git -C "$collection" add --all
    # pyenv's shims answer for versions that they cannot run, which ansible-test takes for broken Pythons.
    path=$(tr : '\n' <<<"$PATH" | grep -v '/shims$' | paste -sd :)
    (cd "$collection" && PATH=$path HOME=$root/home ANSIBLE_HOME=$root/home/.ansible ansible-test sanity --color no)
}

changelog() {
    antsibull-changelog lint
}

check 'ruff' ruff check --quiet
check 'ruff format' ruff format --check --quiet
check 'types (mypy)' types
check 'yamllint' yamllint --strict .
check 'ansible-lint' ansible-lint --offline --strict -q
check 'documentation (antsibull-docs)' \
    antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=self .
check 'changelog fragments' changelog
check 'ansible-test sanity' sanity

if [ ${#failed[@]} -gt 0 ]; then
    printf 'lint: failed: %s\n' "$(IFS=,; echo "${failed[*]}")" >&2
    exit 1
fi
printf 'lint: all checks passed\n'
