# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ansible-playbook as a user would, and reads what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.hosts import LabHost
from tools.processes import children, family, waits

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PASSWORD_VARIABLE = "TARPIT_TEST_PASSWORD"
# A host that is this machine, with Ansible's own Python: which one Ansible would find is nobody's to know.
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
PATIENCE = 240.0  # seconds; a busy machine takes ten times as long as a calm one


class Deadlock(Exception):
    """ansible-core stands still by itself."""


def is_deadlocked(worker: int) -> bool:
    """Tell whether a worker waits for a lock, and for no process: so it does in no action or module of anybody's.

    ansible-core forks its workers while other threads run. A lock that one of these holds at that moment is never
    released in the worker; its `worker.py` says that this is still to be dealt with. A run that never ended was seen
    twice among some thousand.
    """
    return not children(worker) and all("futex" in wait for wait in waits(worker))


def local_play(tasks: list[dict[str, Any]]) -> str:
    """A playbook that does these tasks on all hosts, each of which is this machine."""
    return json.dumps([{"hosts": "all", "gather_facts": False, "vars": LOCAL, "tasks": tasks}])


@dataclass(frozen=True)
class Run:
    """A finished run: exit status, all that it printed, and what each task said of each host."""

    status: int
    printed: str
    results: list[dict[str, Any]]

    def last(self, host: str, action: str = "") -> dict[str, Any]:
        """The result of the host's last task, or of its last one with a module of that name."""
        found = [
            entry["result"]
            for entry in self.results
            if entry["host"] == host and (not action or entry["action"].rpartition(".")[2] == action)
        ]
        assert found, f"no such task ran on {host}:\n{self.printed}"
        return dict(found[-1])


@dataclass(frozen=True)
class Controller:
    """A controller with a home of its own, and the collection from `collections`."""

    home: Path
    collections: Path = ROOT / ".ansible/collections"
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def _results(self) -> Path:
        return self.home / "results.jsonl"

    def environment(self, password: str) -> dict[str, str]:
        """No setting of the machine or of its user takes part; `more` is the controller's own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "KRB5"))}
        return kept | {
            "ANSIBLE_HOME": str(self.home),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "task_results",
            "ANSIBLE_NOCOLOR": "1",
            "TARPIT_RESULTS": str(self._results),
            "PATH": f"{BIN}:{kept['PATH']}",
            PASSWORD_VARIABLE: password,
            **self.more,
        }

    def start(
        self, playbook: str, inventory: Path, password: str, *arguments: str, **variables: object
    ) -> subprocess.Popen[str]:
        """Start a playbook (a path, or a name such as mailops.tarpit.site) in a process group of its own."""
        self._results.unlink(missing_ok=True)
        return subprocess.Popen(
            [
                BIN / "ansible-playbook",
                f"--inventory={inventory}",
                *arguments,
                *(["--extra-vars", json.dumps(variables)] if variables else []),
                playbook,
            ],
            env=self.environment(password),
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def playbook(self, playbook: str, inventory: Path, password: str, *arguments: str, **variables: object) -> Run:
        """Run a playbook to its end; once more where ansible-core itself stands still (`is_deadlocked`)."""
        try:
            process, printed = self._run(playbook, inventory, password, *arguments, **variables)
        except Deadlock as error:
            warnings.warn(str(error), stacklevel=2)
            process, printed = self._run(playbook, inventory, password, *arguments, **variables)
        assert password not in printed, "a run printed the password"
        lines = self._results.read_text().splitlines() if self._results.exists() else []
        return Run(process.returncode, printed, [json.loads(line) for line in lines])

    def _run(
        self, playbook: str, inventory: Path, password: str, *arguments: str, **variables: object
    ) -> tuple[subprocess.Popen[str], str]:
        with self.start(playbook, inventory, password, *arguments, **variables) as process:
            try:
                printed, _nothing = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired as late:
                workers = children(process.pid)
                deadlocked = [worker for worker in workers if is_deadlocked(worker)]
                where = f"{late.output!r}; what it has started: {family(process.pid)}"
                late.add_note(where)
                os.killpg(process.pid, signal.SIGKILL)
                for worker in workers:  # each in a session of its own
                    os.kill(worker, signal.SIGKILL)
                if deadlocked:
                    raise Deadlock(f"a worker of ansible-playbook waits for a lock for ever: {where}") from late
                raise
        return process, printed


def play(path: Path, *tasks: dict[str, Any], hosts: str = "win01") -> str:
    """Write a playbook of these tasks, and return its path."""
    path.write_text(json.dumps([{"hosts": hosts, "gather_facts": False, "tasks": tasks}]))
    return str(path)


def windows_inventory(
    folder: Path, hosts: dict[str, dict[str, object]], username: str, connection: str = "winrm"
) -> Path:
    """An inventory of Windows hosts with the collection's usual settings, and what each host has of its own."""
    usual = {
        "ansible_connection": connection,
        "ansible_psrp_protocol": "http",
        "ansible_psrp_auth": "ntlm",
        "ansible_winrm_scheme": "http",
        "ansible_winrm_transport": "ntlm",
        "ansible_user": username,
        "ansible_password": f"{{{{ lookup('ansible.builtin.env', '{PASSWORD_VARIABLE}') }}}}",
    }
    path = folder / "inventory.json"
    path.write_text(json.dumps({"windows_smtp": {"hosts": hosts, "vars": usual}}))
    return path


def one_windows_host(folder: Path, host: LabHost, username: str, connection: str) -> Path:
    """An inventory of the lab's host, by the name win01."""
    addresses: dict[str, object] = {"ansible_host": host.address, "ansible_port": host.winrm_port}
    return windows_inventory(folder, {"win01": addresses}, username, connection)
