# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the roles use their variables.

Whatever their types are by the argument specs, `-e name=false` and an INI inventory give texts, and the text "false" is
true where it is not converted, or ends the run.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
CONDITIONS = {"when", "that", "until", "failed_when", "changed_when"}
JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
# A module converts what it is given whole, and whether a variable is there is no question of its value.
CONVERTED = r"\s*(?:\| default\(\w+\)\s*)?\| bool\b"
HANDED_ON = r"\{\{ NAME(?: \| default\(omit\))? \}\}"


def booleans(role: Path) -> set[str]:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    return {name for spec in specs.values() for name, option in spec["options"].items() if option["type"] == "bool"}


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
        for name in booleans(role):
            if re.fullmatch(HANDED_ON.replace("NAME", name), expression):
                used.add(name)
                continue
            for found in re.finditer(rf"\b{name}\b(?! is (?:not )?defined)(.*)", expression, re.DOTALL):
                used.add(name)
                assert re.match(CONVERTED, found[1]), expression
    assert used == booleans(role)


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
