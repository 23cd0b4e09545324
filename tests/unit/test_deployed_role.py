# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dry run of the role greylist_proxy makes of the word of the program that deploys it.

The program of each host is a shell that says a line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tools.ansible_runs import Controller, Run, local_play

SAID: dict[str, dict[str, Any]] = {
    "says-what": {"changed": True, "step": "reload", "release": "two", "msg": "it would be read again"},
    "says-less": {"changed": True, "step": "reload", "release": "one"},
    "fails": {"changed": False, "failed": True, "msg": "it is not deployed here"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("deployed")
    (folder / "home").mkdir()
    for name, word in SAID.items():
        program = folder / name / "venv/bin/python"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{json.dumps(word)}'\n")
        program.chmod(0o755)
    hosts = {name: {"_greylist_proxy_by": str(folder / name)} for name in SAID}
    inventory: Path = folder / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    role = {"name": "mailops.tarpit.greylist_proxy", "tasks_from": "deployed"}
    tasks = [{"ansible.builtin.include_role": role, "vars": {"_greylist_proxy_command": ["mode", "observe"]}}]
    playbook = folder / "play.json"
    playbook.write_text(local_play(tasks))
    controller = Controller(folder / "home")
    return controller.playbook(str(playbook), inventory, "no password is printed", "--check", "--forks=2")


def test_it_fails_with_the_programs_sentence(run: Run) -> None:
    assert run.last("fails")["msg"] == "fails: it is not deployed here"


@pytest.mark.parametrize("host", ["says-what", "says-less"])
def test_it_changes_what_the_program_changes(run: Run, host: str) -> None:
    assert run.last(host, "command")["changed"] is True
    # An older release, which is asked to go back or for another mode, says less.
    assert not run.last(host).get("failed"), run.printed


def test_it_says_what_would_be_done(run: Run) -> None:
    assert run.last("says-what")["msg"] == SAID["says-what"]["msg"]
