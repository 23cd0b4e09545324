# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ansible-playbook as a user would, and reads its JSON output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PASSWORD_VARIABLE = "TARPIT_TEST_PASSWORD"


@dataclass(frozen=True)
class Run:
    """A finished run: exit status, all that it printed, and what each task said of each host."""

    status: int
    printed: str
    tasks: list[dict[str, Any]]

    def results(self, host: str) -> list[dict[str, Any]]:
        return [task["hosts"][host] for task in self.tasks if host in task["hosts"]]

    def last(self, host: str) -> dict[str, Any]:
        return self.results(host)[-1]


@dataclass(frozen=True)
class Controller:
    """A controller with a home of its own, and the collection from `collections`."""

    home: Path
    collections: Path = ROOT / ".ansible/collections"

    def environment(self, password: str) -> dict[str, str]:
        """No setting of the machine or of its user takes part."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        return kept | {
            "ANSIBLE_HOME": str(self.home),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.json",
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{BIN}:{kept['PATH']}",
            PASSWORD_VARIABLE: password,
        }

    def playbook(
        self, playbook: str, inventory: Path, password: str, *arguments: str, **variables: object
    ) -> Run:
        """Run a playbook (a path, or a name such as mailops.tarpit.site)."""
        done = subprocess.run(
            [
                BIN / "ansible-playbook",
                f"--inventory={inventory}",
                *arguments,
                *(["--extra-vars", json.dumps(variables)] if variables else []),
                playbook,
            ],
            env=self.environment(password),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=100,
        )
        printed = done.stdout + done.stderr
        assert password not in printed, "a run printed the password"
        try:
            plays = json.loads(done.stdout[done.stdout.index("{") :])["plays"]
        except ValueError:
            plays = []
        return Run(done.returncode, printed, [task for play in plays for task in play["tasks"]])


def windows_inventory(folder: Path, hosts: dict[str, dict[str, object]], username: str) -> Path:
    """An inventory of Windows hosts with the collection's usual settings, and what each host has of its own."""
    usual = {
        "ansible_connection": "winrm",
        "ansible_winrm_scheme": "http",
        "ansible_winrm_transport": "ntlm",
        "ansible_user": username,
        "ansible_password": f"{{{{ lookup('ansible.builtin.env', '{PASSWORD_VARIABLE}') }}}}",
    }
    path = folder / "inventory.json"
    path.write_text(json.dumps({"windows_smtp": {"hosts": hosts, "vars": usual}}))
    return path
