# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the roles use their variables.

Whatever their types are by the argument specs, `-e name=false` and an INI inventory give texts, and the text "false" is
true where it is not converted, or ends the run. A text that is taken for a list is one of single letters.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.ansible_runs import LOCAL, Controller, Run

ROLES = Path(__file__).resolve().parents[2] / "roles"
CONDITIONS = {"when", "that", "until", "failed_when", "changed_when"}
JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
# A module converts what it is given whole, and whether a variable is there is no question of its value.
CONVERTED = r"\s*(?:\| default\(\w+\)\s*)?\| bool\b"
HANDED_ON = r"\{\{ NAME(?: \| default\(omit\))? \}\}"


def of_type(kind: str, role: Path) -> set[str]:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    return {name for spec in specs.values() for name, option in spec["options"].items() if option["type"] == kind}


def expressions(value: Any, *, condition: bool = False) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from expressions(each, condition=key in CONDITIONS)
    elif isinstance(value, list):
        for each in value:
            yield from expressions(each, condition=condition)
    elif isinstance(value, str):
        yield from [value] if condition else JINJA.findall(value)


def all_expressions(role: Path) -> Iterator[str]:
    for folder in ("tasks", "handlers", "vars"):
        for path in role.glob(f"{folder}/*.yml"):
            yield from expressions(yaml.safe_load(path.read_text()))
    for path in role.glob("templates/*"):
        yield from JINJA.findall(path.read_text())


@pytest.mark.parametrize("role", sorted(ROLES.iterdir()), ids=lambda role: role.name)
def test_what_is_yes_or_no_is_converted(role: Path) -> None:
    used = set()
    for expression in all_expressions(role):
        for name in of_type("bool", role):
            if re.fullmatch(HANDED_ON.replace("NAME", name), expression):
                used.add(name)
                continue
            for found in re.finditer(rf"\b{name}\b(?! is (?:not )?defined)(.*)", expression, re.DOTALL):
                used.add(name)
                assert re.match(CONVERTED, found[1]), expression
    assert used == of_type("bool", role)


LISTS = {name: role.name for role in sorted(ROLES.iterdir()) for name in sorted(of_type("list", role))}
CREDENTIALS = {
    "colon": ({"a:b": "secret"}, '"a:b"'),
    "specifier": ({"good": "secret", "x%n": "secret"}, '"x%n"'),
    "folder": ({"..": "secret", "a/b": "secret"}, '"..", "a/b"'),
    "line-end": ({"name\n": "secret"}, '"name\\n"'),
    "the-roles-own": ({"tls_key": "secret", "tls_certificate": "secret"}, '"tls_key", "tls_certificate"'),
}


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Have the roles look at their variables, each host of which has one that can't be used."""
    folder = tmp_path_factory.mktemp("variables")
    (folder / "home").mkdir()
    groups: dict[str, Any] = {role: {"hosts": {f"good-{role}": {}}} for role in sorted({*LISTS.values()})}
    for name, role in LISTS.items():
        groups[role]["hosts"][name] = {name: "one, another"}
    proxies = groups["greylist_proxy"]["hosts"]
    proxies |= {name: {"greylist_proxy_credentials": each} for name, (each, _said) in CREDENTIALS.items()}
    proxies |= {"for-ever": {"greylist_proxy_ready_timeout": "0"}}
    proxies["good-greylist_proxy"] = {
        "greylist_proxy_credentials": {"bridge.token-2_x": "secret"},
        "greylist_proxy_domains": ["example.org"],
        "greylist_proxy_ready_timeout": "1",
    }
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps(groups | {"all": {"vars": {"greylist_proxy_hostname": "mx.example.org"}}}))
    plays = [
        {
            "hosts": role,
            "gather_facts": False,
            "vars": LOCAL,
            "tasks": [
                {"ansible.builtin.include_role": {"name": f"mailops.tarpit.{role}", "tasks_from": "variables"}},
                {"ansible.builtin.debug": {"msg": "went on"}},
            ],
        }
        for role in groups
    ]
    playbook = folder / "plays.json"
    playbook.write_text(json.dumps(plays))
    # Of a play in which all hosts have failed, no other follows: one of each is good.
    return Controller(folder / "home").playbook(str(playbook), inventory, "no password is printed", "--forks=2")


@pytest.mark.parametrize("name", LISTS)
def test_a_text_is_no_list(looked: Run, name: str) -> None:
    said = looked.last(name)["msg"]
    assert said.startswith(f'{name}: {name} must be a list, and is a text: write -e \'{{"{name}": [')
    assert said.endswith("Nothing was changed.")


@pytest.mark.parametrize("host", CREDENTIALS)
def test_a_name_that_no_credential_can_have(looked: Run, host: str) -> None:
    said = looked.last(host)["msg"]
    assert f"greylist_proxy_credentials must not have {CREDENTIALS[host][1]}:" in said
    assert "secret" not in looked.printed


def test_nobody_waits_for_ever(looked: Run) -> None:
    assert "greylist_proxy_ready_timeout must be at least 1" in looked.last("for-ever")["msg"]


@pytest.mark.parametrize("role", sorted({*LISTS.values()}))
def test_variables_that_can_be_used(looked: Run, role: str) -> None:
    assert looked.last(f"good-{role}")["msg"] == "went on", looked.printed


@pytest.mark.parametrize(
    "entry", ["exchange_tarpit/tasks/main", "greylist_proxy/tasks/present", "greylist_proxy/tasks/preflight"]
)
def test_nothing_comes_before_the_look_at_the_variables(entry: str) -> None:
    first = yaml.safe_load((ROLES / f"{entry}.yml").read_text())[0]
    while "block" in first:
        first = first["block"][0]
    assert first["ansible.builtin.include_tasks"] == "variables.yml"


def test_what_is_installed_is_for_all_to_read_whatever_the_umask(tmp_path: Path) -> None:
    variables = yaml.safe_load((ROLES / "greylist_proxy/vars/main.yml").read_text())
    command = [*variables["_greylist_proxy_for_all"], "mkdir", "with blanks"]
    before = os.umask(0o077)
    try:
        subprocess.run(command, cwd=tmp_path, check=True)
    finally:
        os.umask(before)
    assert (tmp_path / "with blanks").stat().st_mode & 0o777 == 0o755


def test_everything_that_is_run_to_install_runs_so() -> None:
    tasks = yaml.safe_load((ROLES / "greylist_proxy/tasks/install.yml").read_text())
    on_host = [task for task in tasks if "ansible.builtin.command" in task and "delegate_to" not in task]
    assert len(on_host) == 3
    for task in on_host:
        assert "_greylist_proxy_for_all" in task["ansible.builtin.command"]["argv"]
