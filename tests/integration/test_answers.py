# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every answer that Windows may give, and what a user reads then: one line a case, add yours.

The lab is told to answer so; the sentence must name the host, what was tried, what Windows said (its number and
what that means), what to do where there is something to do, and what was done before it failed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.hosts import Lab, LabHost
from lab.troubles import (
    ACCESS_DENIED,
    EMPTY_500,
    GARBAGE,
    Answer,
    Cut,
    Hang,
    Misrelated,
    Padded,
    Refused,
    Slow,
    Spelled,
    Trouble,
)
from tools.ansible_runs import Controller, Run, play, windows_inventory

RIGHTS = (
    "the account must be a member of the host's Administrators group, and a local account other than the built-in one"
    " also needs LocalAccountTokenFilterPolicy = 1 on the host"
)
VALUE = r"HKLM\SYSTEM\CurrentControlSet\Services\SMTPSVC\Parameters\TarpitTime"
MARK = r"HKLM\SOFTWARE\mailops.tarpit\SMTPSVC"
BEFORE_STOP = "Before that this run did: record that a restart is owed, set TarpitTime, record that a start is owed"
GOES_ON = "The next run goes on from there"
STOPPED = f"{BEFORE_STOP}, stop the service. {GOES_ON}"


@pytest.fixture
def host(memory_lab: Lab) -> LabHost:
    (machine,) = memory_lab.hosts
    machine.reset()
    return machine


@pytest.fixture(params=["winrm", "psrp"])
def run(request: pytest.FixtureRequest, memory_lab: Lab, host: LabHost, controller: Controller, tmp_path: Path):
    variables: dict[str, object] = {
        "ansible_host": host.address,
        "ansible_port": host.winrm_port,
        "ansible_winrm_operation_timeout_sec": 2,
        "ansible_winrm_read_timeout_sec": 5,
        "ansible_psrp_read_timeout": 5,
        "ansible_psrp_operation_timeout": 3,
    }
    inventory = windows_inventory(tmp_path, {"win01": variables}, memory_lab.username, request.param)

    def once(**options: object) -> Run:
        task = {"mailops.tarpit.win_smtp_tarpit": {"seconds": 1, "timeout": 2, **options}}
        return controller.playbook(play(tmp_path / "play.json", task), inventory, memory_lab.password)

    return once


def said(result: dict[str, object]) -> str:
    return str(result["msg"]).removeprefix("Task failed: ")


REGISTRY = [
    ("GetDWORDValue TarpitTime", 5, f"refused to read {VALUE}: access denied (StdRegProv returned 5): {RIGHTS}"),
    ("GetDWORDValue TarpitTime", 6, f"refused to read {VALUE}: the key's name or handle is not valid"),
    ("GetDWORDValue TarpitTime", 1450, "an error that StdRegProv does not document (StdRegProv returned 1450)"),
    ("CreateKey", 5, f"refused to create {MARK}: access denied (StdRegProv returned 5): {RIGHTS}"),
    ("SetDWORDValue PendingRestart", 5, rf"refused to set {MARK}\PendingRestart: access denied"),
    ("SetDWORDValue TarpitTime", 5, f"refused to set {VALUE}: access denied (StdRegProv returned 5): {RIGHTS}"),
    ("SetDWORDValue TarpitTime", 2, f"refused to set {VALUE}: the key or value does not exist"),
]
SERVICE = [
    (1, "the request is not supported"),
    (2, f"access denied (Win32_Service returned 2): {RIGHTS}"),
    (3, "other services that depend on it are running"),
    (4, "the control code is not valid"),
    (8, "unknown failure"),
    (9, "the service's program was not found"),
    (11, "the service database is locked"),
    (12, "a service it depends on was removed"),
    (13, "a service it depends on failed to start"),
    (14, "the service is disabled"),
    (15, "the service's account could not log on"),
    (16, "the service is marked for deletion"),
    (17, "the service has no thread to run in"),
    (18, "the service depends on itself"),
    (19, "a service of that name is running"),
    (20, "the service's name is not valid"),
    (21, "a parameter is not valid"),
    (22, "the service's account is not valid or lacks a right"),
    (23, "the service exists already"),
    (24, "the service is paused"),
    (99, "an answer that Win32_Service does not document"),
]


ONCE = pytest.mark.parametrize("run", ["winrm"], indirect=True)  # where the connection makes no difference


@ONCE
@pytest.mark.parametrize(("request_", "code", "words"), REGISTRY)
def test_return_codes_of_the_registry(run, host: LabHost, request_: str, code: int, words: str) -> None:
    host.faults.on(request_, Answer(code))
    result = run().last("win01")
    assert said(result).startswith("win01: Windows ")
    assert words in said(result)
    assert (RIGHTS in said(result)) is (code == 5)


@pytest.mark.parametrize(("method", "verb"), [("StopService", "stop"), ("StartService", "start")])
def test_return_codes_of_the_service(controller: Controller, tmp_path: Path, method: str, verb: str) -> None:
    """One run, over as many hosts as there are codes: each host gives another one."""
    with Lab.start(hosts=len(SERVICE)) as lab:
        addresses: dict[str, dict[str, object]] = {}
        for (code, _meaning), host in zip(SERVICE, lab.hosts, strict=True):
            host.faults.on(method, Answer(code))
            addresses[f"win{code}"] = {"ansible_host": host.address, "ansible_port": host.winrm_port}
        inventory = windows_inventory(tmp_path, addresses, lab.username)
        playbook = play(tmp_path / "play.json", {"mailops.tarpit.win_smtp_tarpit": {"seconds": 1}}, hosts="all")
        done = controller.playbook(playbook, inventory, lab.password, "--forks=4")
    for code, meaning in SERVICE:
        result = done.last(f"win{code}")
        assert said(result).startswith(f"win{code}: Windows refused to {verb} the service SMTPSVC: {meaning}")
        assert f"(Win32_Service returned {code})" in said(result)
        assert (RIGHTS in said(result)) is (code == 2)
        assert said(result).endswith(STOPPED if verb == "start" else f"{BEFORE_STOP}. {GOES_ON}")
        assert result["changed"] is True


@pytest.mark.parametrize("fault", ACCESS_DENIED, ids=lambda fault: str(fault.code))
def test_wmi_denies_access(run, host: LabHost, fault: Refused) -> None:
    host.faults.on("", fault)
    assert said(run().last("win01")).endswith(f"(Windows error {fault.code}, 0x{fault.code:08X}): {RIGHTS}")


NO_ANSWERS: list[tuple[Trouble, str]] = [
    (EMPTY_500, "win01: the host answered with HTTP status 500 and nothing"),
    (GARBAGE, "win01: "),
    (Misrelated(), "win01: the answer belongs to another request"),
    (Misrelated(None), "win01: the answer belongs to another request"),
    (Padded(), "win01: the answer has"),
    (Refused(2150858752), "win01: The lab was told to refuse this. (Windows error 2150858752, 0x80338000)"),
    (Refused(None), "win01: The lab was told to refuse this."),
    (Refused(5, without=frozenset({"RelatesTo", "Detail", "Subcode", "Code"})), "win01: The lab was told"),
    (Cut(), "win01: cannot reach WinRM at http://"),
    (Cut(0.5), "win01: cannot reach WinRM at http://"),
]


@pytest.mark.parametrize(("trouble", "words"), NO_ANSWERS, ids=lambda value: str(value)[:40])
def test_what_is_no_answer_is_said_to_be_none(run, host: LabHost, trouble: Trouble, words: str) -> None:
    host.faults.on("Get Win32_Service", trouble)
    done = run()
    assert done.status != 0
    assert said(done.last("win01")).startswith(words), said(done.last("win01"))
    assert "Traceback" not in done.printed


@ONCE
@pytest.mark.parametrize(
    "spelling",
    [
        Spelled("{method}_output"),
        Spelled("{method}"),
        Spelled(namespace="urn:another"),
        Spelled(prefix=""),
        Spelled("answer", "urn:another", "q"),
    ],
    ids=str,
)
def test_an_answer_in_another_spelling_is_an_answer(run, host: LabHost, spelling: Spelled) -> None:
    for method in ("GetDWORDValue", "SetDWORDValue", "CreateKey", "StopService", "StartService", "DeleteValue"):
        host.faults.on(method, spelling, times=None)
    assert run().last("win01")["changed"] is True
    assert run().last("win01")["changed"] is False


def test_a_slow_answer_is_an_answer(run, host: LabHost) -> None:
    host.faults.on("Get Win32_Service", Slow(2000))
    assert run().last("win01")["changed"] is True


def test_a_reply_that_is_lost_after_the_deed_tells_what_was_done(run, host: LabHost) -> None:
    host.faults.on("StartService", Cut())
    result = run().last("win01")
    assert result["unreachable"] is True
    assert said(result).endswith(STOPPED)
    assert run().last("win01")["restarted"] is False  # it had started all the same
    assert run().last("win01")["changed"] is False


def test_a_stop_that_hangs(run, host: LabHost) -> None:
    host.services.hang_stop("SMTPSVC")
    words = said(run().last("win01"))
    assert words.startswith("win01: the service SMTPSVC is Stop Pending and not Stopped after 2 seconds")
    assert words.endswith(f"{BEFORE_STOP}. {GOES_ON}")
    host.services.finish("SMTPSVC")
    assert run().last("win01")["restarted"] is True


def test_a_start_that_fails(run, host: LabHost) -> None:
    host.services.fail_start("SMTPSVC", times=1)
    words = said(run().last("win01"))
    assert words.startswith("win01: the service SMTPSVC stopped again while it was starting: see the host's event log")
    assert words.endswith(STOPPED)
    assert run().last("win01")["restarted"] is True
    assert run().last("win01")["changed"] is False


@ONCE
def test_a_service_that_would_not_start_again_is_not_stopped(run, host: LabHost) -> None:
    host.backend.change_start_mode("SMTPSVC", "Disabled")
    result = run().last("win01")
    assert said(result).startswith("win01: the service SMTPSVC runs and is disabled")
    assert result["changed"] is False
    assert host.backend.service_status("SMTPSVC").state == "Running"
    assert [line for line in host.traffic.journal if not line.startswith(("Get", "Enumerate"))] == []
    # What needs no stop is done all the same.
    assert run(restart="never").last("win01")["restart_pending"] is True


def test_a_host_that_does_not_answer(run, host: LabHost) -> None:
    host.faults.on("Get Win32_Service", Hang())
    result = run().last("win01")
    assert result["unreachable"] is True
    assert "no answer in time" in said(result)
