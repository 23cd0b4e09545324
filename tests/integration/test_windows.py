# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Windows path as its users run it: ansible-playbook, over WinRM, against the lab on both backends."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.backend import HKEY_LOCAL_MACHINE, REG_SZ, RegistryValue, Win32Error
from lab.hosts import SMTPSVC_PARAMETERS, Lab, LabHost
from tools.ansible_runs import Controller, Run, play, windows_inventory
from tools.refusal_delay import measure

SITE = "mailops.tarpit.site"


def tarpit_time(host: LabHost) -> int | str | None:
    try:
        return host.backend.read_value(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS, "TarpitTime").data
    except Win32Error:
        return None


def refusal_delay(host: LabHost) -> float:
    assert host.smtp_port is not None
    return measure(host.address, host.smtp_port)["seconds"]


@pytest.fixture
def site(controller: Controller, inventory: Path, lab: Lab, win01: LabHost):
    def run(*arguments: str, **variables: object) -> Run:
        usual = {"windows_tarpit_verify_port": win01.smtp_port}
        return controller.playbook(SITE, inventory, lab.password, *arguments, **(usual | variables))

    return run


@pytest.fixture
def task(controller: Controller, inventory: Path, lab: Lab, tmp_path: Path):
    """Run the module as the only task of a play."""

    def run(*arguments: str, **options: object) -> dict[str, object]:
        playbook = play(tmp_path / "play.json", {"mailops.tarpit.win_smtp_tarpit": options})
        return controller.playbook(playbook, inventory, lab.password, *arguments).last("win01")

    return run


def test_site_sets_the_tarpit_and_then_changes_nothing(site, win01: LabHost) -> None:
    before = refusal_delay(win01)
    first = site(windows_tarpit_seconds=2)
    assert first.status == 0, first.printed
    assert first.last("win01", "win_smtp_tarpit")["changed"] is True
    assert tarpit_time(win01) == 2
    after = refusal_delay(win01)
    assert after >= 2
    assert before < after / 2

    process = win01.backend.service_status("SMTPSVC").process_id
    second = site(windows_tarpit_seconds=2)
    assert second.status == 0, second.printed
    assert second.last("win01", "win_smtp_tarpit")["changed"] is False
    assert win01.backend.service_status("SMTPSVC").process_id == process


def test_nothing_is_started_on_the_host_and_little_is_said(site, win01: LabHost) -> None:
    assert site(windows_tarpit_verify=False).status == 0
    # The three of the NTLM handshake among them. A slow service is asked more often than once for each of its states.
    asked = sum(entry.startswith("Get ") for entry in win01.traffic.journal)
    assert win01.traffic.requests - (asked - 3) <= 18
    win01.traffic.clear()
    assert site(windows_tarpit_verify=False).status == 0
    assert win01.traffic.requests <= 7
    assert [entry.split()[0] for entry in win01.traffic.journal] == ["Get", "GetDWORDValue", "GetDWORDValue"]


def test_check_mode_tells_what_would_be_done_and_does_nothing(task, win01: LabHost) -> None:
    process = win01.backend.service_status("SMTPSVC").process_id
    told = task("--check", "--diff", seconds=30)
    assert told["changed"] is True
    assert told["diff"] == {
        "before": {"tarpit_time": None, "service_state": "Running", "restart_pending": False},
        "after": {"tarpit_time": 30, "service_state": "Running", "restart_pending": False},
    }
    assert tarpit_time(win01) is None
    assert win01.backend.service_status("SMTPSVC").process_id == process

    done = task("--diff", seconds=30)
    assert {key: told[key] for key in ("before", "after", "diff", "steps", "restarted")} == {
        key: done[key] for key in ("before", "after", "diff", "steps", "restarted")
    }
    assert tarpit_time(win01) == 30


def test_absent_removes_the_value(task, win01: LabHost) -> None:
    task(seconds=1)
    assert refusal_delay(win01) >= 1
    gone = task(state="absent")
    assert gone["changed"] is True
    assert gone["before"]["tarpit_time"] == 1
    assert tarpit_time(win01) is None
    assert refusal_delay(win01) < 1
    assert task(state="absent")["changed"] is False


def test_a_restart_that_was_put_off_is_made_by_a_later_run(task, win01: LabHost) -> None:
    off = task(seconds=1, restart="never")
    assert (off["changed"], off["restarted"], off["restart_pending"]) == (True, False, True)
    assert refusal_delay(win01) < 1
    again = task(seconds=1, restart="never")
    assert (again["changed"], again["restart_pending"]) == (False, True)

    later = task(seconds=1)
    assert (later["changed"], later["restarted"], later["restart_pending"]) == (True, True, False)
    assert refusal_delay(win01) >= 1
    assert task(seconds=1)["changed"] is False


def test_a_stopped_service_gets_its_value_and_stays_stopped(task, win01: LabHost) -> None:
    win01.stop_smtpsvc()
    done = task(seconds=30)
    assert (done["changed"], done["restarted"], done["restart_pending"]) == (True, False, False)
    assert done["after"] == {"tarpit_time": 30, "service_state": "Stopped"}
    assert win01.backend.service_status("SMTPSVC").state == "Stopped"


def test_a_value_of_another_type_is_replaced_with_a_warning(task, win01: LabHost) -> None:
    win01.backend.write_value(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS, "TarpitTime", RegistryValue(REG_SZ, "30"))
    done = task(seconds=30)
    assert done["changed"] is True
    assert "another type" in done["warnings"][0]
    assert tarpit_time(win01) == 30


@pytest.mark.parametrize(
    ("host", "options", "said"),
    [
        (
            {"ansible_password": "wrong"},
            {},
            "win01: cannot reach WinRM at http://{address}/wsman (ntlm: the host refused the user name or password:"
            " check ansible_user and ansible_password, and that its WinRM service allows this authentication)",
        ),
        (
            {"ansible_port": 1},
            {},
            "win01: cannot reach WinRM at http://127.0.0.1:1/wsman (ntlm: no connection (Failed to establish a new"
            " connection: [Errno 111] Connection refused): check address and port, and that WinRM runs on the host)",
        ),
        (
            {"ansible_host": "win01.invalid", "ansible_port": 5985},
            {},
            "win01: cannot reach WinRM at http://win01.invalid:5985/wsman (ntlm: no connection (Failed to resolve"
            " 'win01.invalid' ([Errno -",
        ),
        (
            {"ansible_connection": "local"},
            {},
            "win01: ansible_connection is 'local', which has no WS-Management to ask Windows over: set"
            " ansible_connection: winrm or psrp for this host",
        ),
        (
            {"ansible_become": True},
            {},
            "win01: become does not apply: WinRM works with the rights of the account that logs on. Set become:"
            " false, and name an administrator in ansible_user",
        ),
        (
            {},
            {"seconds": -1},
            "win01: 'seconds' must be 0 to 86400, not -1: 30 is a usual start, 0 turns the tarpit off",
        ),
        (
            {},
            {"seconds": None},
            "win01: 'seconds' is required with state: present (0 turns the tarpit off)",
        ),
        (
            {},
            {"service": "NOSUCH"},
            "win01: the service NOSUCH is not installed: install the Windows feature SMTP Server (gone since Windows"
            " Server 2025), name another service, or take the host out of the group",
        ),
        ({}, {"timeout": 0}, "win01: 'timeout' must be 1 second or more, not 0"),
    ],
)
def test_what_goes_wrong_is_one_sentence_with_the_host_and_the_mend(
    host: dict[str, object],
    options: dict[str, object],
    said: str,
    memory_lab: Lab,
    controller: Controller,
    tmp_path: Path,
) -> None:
    (machine,) = memory_lab.hosts
    variables = {"ansible_host": machine.address, "ansible_port": machine.winrm_port, **host}
    inventory = windows_inventory(tmp_path, {"win01": variables}, memory_lab.username)
    playbook = play(tmp_path / "play.json", {"mailops.tarpit.win_smtp_tarpit": {"seconds": 1, **options}})

    run = controller.playbook(playbook, inventory, memory_lab.password)

    assert run.status != 0
    message = run.last("win01")["msg"]
    expected = said.replace("{address}", f"{machine.address}:{machine.winrm_port}")
    assert message.removeprefix("Task failed: ").startswith(expected), message
    assert "Traceback" not in run.printed


def test_a_host_without_the_service_fails_the_site_playbook(controller: Controller, tmp_path: Path) -> None:
    with Lab.start(backend="memory", smtpsvc=False) as lab:
        (host,) = lab.hosts
        inventory = windows_inventory(
            tmp_path, {"win01": {"ansible_host": host.address, "ansible_port": host.winrm_port}}, lab.username
        )
        run = controller.playbook(SITE, inventory, lab.password)
    assert run.status == 2
    assert "win01: the service SMTPSVC is not installed" in run.last("win01")["msg"]


@pytest.mark.parametrize("transport", ["basic", "plaintext"])
def test_basic_authentication(transport: str, memory_lab: Lab, controller: Controller, tmp_path: Path) -> None:
    (host,) = memory_lab.hosts
    variables = {
        "ansible_host": host.address,
        "ansible_port": host.winrm_port,
        "ansible_winrm_transport": transport,
    }
    inventory = windows_inventory(tmp_path, {"win01": variables}, memory_lab.username)
    assert controller.playbook(SITE, inventory, memory_lab.password, "--check").status == 0
