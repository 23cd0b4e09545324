# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is killed leaves a host from which the next run finishes the job.

The run is killed (SIGKILL to all of its processes) at one request after another: when the host has carried it
out, and nothing of the reply is sent. That is also the state of a run killed before the following request.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.backend import HKEY_LOCAL_MACHINE, REG_DWORD, REG_SZ, RegistryValue
from lab.hosts import MARK_KEY, SMTPSVC_PARAMETERS, BackendName, Lab, LabHost
from tools.ansible_runs import Controller, one_windows_host, play
from tools.killed_runs import run_until_killed
from tools.refusal_delay import measure

SET = {"mailops.tarpit.win_smtp_tarpit": {"seconds": 1}}
# See docs/windows-wire.md: the requests of a change, the login not among them.
REQUESTS_OF_A_CHANGE = 15


def in_force(host: LabHost) -> bool:
    assert host.smtp_port is not None
    return measure(host.address, host.smtp_port)["seconds"] >= 1


@pytest.fixture
def by_turns(position: int, backend_name: BackendName, lab: Lab, win01: LabHost, tmp_path: Path) -> Path:
    """An inventory with one of the connections: at each request both have their turn, one with each backend."""
    connection = ("winrm", "psrp")[(position + (backend_name == "wine")) % 2]
    return one_windows_host(tmp_path, win01, lab.username, connection)


@pytest.mark.parametrize("position", range(1, REQUESTS_OF_A_CHANGE + 1))
def test_the_next_run_finishes_it(
    position: int, controller: Controller, by_turns: Path, lab: Lab, win01: LabHost, tmp_path: Path
) -> None:
    run_until_killed(controller, play(tmp_path / "once.json", SET), by_turns, lab, win01, position)

    run = controller.playbook(play(tmp_path / "twice.json", SET, SET), by_turns, lab.password)

    assert run.status == 0, run.printed
    assert win01.backend.service_status("SMTPSVC").state == "Running"
    assert in_force(win01)
    assert run.last("win01")["changed"] is False
    assert run.last("win01")["restart_pending"] is False


def test_a_change_makes_no_more_requests_than_are_killed_here(
    controller: Controller, inventory: Path, lab: Lab, win01: LabHost, tmp_path: Path
) -> None:
    playbook = play(tmp_path / "play.json", SET)
    assert controller.playbook(playbook, inventory, lab.password).status == 0
    waiting = [entry for entry in win01.traffic.journal if entry.startswith("Get ")]
    # One Get at the start, one after the stop and one after the start; a slow service costs more of them.
    assert len(win01.traffic.journal) - len(waiting) + 3 == REQUESTS_OF_A_CHANGE


def mark(host: LabHost, stage: RegistryValue, process_id: int | None, value: int = 1) -> None:
    """What a run leaves that dies after it has written these."""
    host.backend.create_key(HKEY_LOCAL_MACHINE, MARK_KEY)
    host.backend.write_value(HKEY_LOCAL_MACHINE, MARK_KEY, "PendingRestart", stage)
    if process_id is not None:
        process = RegistryValue(REG_DWORD, process_id)
        host.backend.write_value(HKEY_LOCAL_MACHINE, MARK_KEY, "ProcessId", process)
    wanted = RegistryValue(REG_DWORD, value)
    host.backend.write_value(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS, "TarpitTime", wanted)


OWED, OTHER, TEXT = RegistryValue(REG_DWORD, 1), RegistryValue(REG_DWORD, 7), RegistryValue(REG_SZ, "1")


@pytest.mark.parametrize(
    ("stage", "same_process", "restarted"),
    [
        pytest.param(OWED, True, True, id="a restart is owed"),
        pytest.param(OWED, None, True, id="no process beside it: owed, to be safe"),
        pytest.param(OWED, False, False, id="another process: restarted since, by a reboot"),
        pytest.param(OTHER, True, False, id="a stage that is none of ours"),
        pytest.param(TEXT, True, False, id="a type that is none of ours"),
    ],
)
def test_marks(
    stage: RegistryValue,
    same_process: bool | None,
    restarted: bool,
    controller: Controller,
    inventory: Path,
    lab: Lab,
    win01: LabHost,
    tmp_path: Path,
) -> None:
    process_id = win01.backend.service_status("SMTPSVC").process_id
    mark(win01, stage, {True: process_id, False: process_id + 1, None: None}[same_process])
    run = controller.playbook(play(tmp_path / "play.json", SET), inventory, lab.password)
    assert run.status == 0, run.printed
    assert run.last("win01")["changed"] is run.last("win01")["restarted"] is restarted
    assert (win01.backend.service_status("SMTPSVC").process_id != process_id) is restarted
