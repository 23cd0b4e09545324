# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong on a test's behalf, as a client sees it, and what the host has done meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from winrm.exceptions import WinRMTransportError, WSManFaultError

import lab as package
from lab.contract.client import PARAMETERS, REGISTRY, SERVICE, Account, FaultSeen, WinRM, read_xml
from lab.faults import ALL, RequestSeen
from lab.hosts import Lab, LabHost
from lab.troubles import (
    ACCESS_DENIED,
    EMPTY_500,
    GARBAGE,
    Answer,
    Body,
    Cut,
    Hang,
    Misrelated,
    Padded,
    Refused,
    Slow,
    Spelled,
)

TESTS = Path(package.__file__).parents[1]


def set_value(client: WinRM, seconds: int = 5) -> str | None:
    return client.registry("SetDWORDValue", uValue=seconds)["ReturnValue"]


def value(client: WinRM) -> str | None:
    return client.registry("GetDWORDValue")["uValue"]


# -- which requests --


def test_the_next_one_of_a_name(lab_host: LabHost, client: WinRM) -> None:
    lab_host.faults.on("StopService", Answer(return_value=2))
    client.registry("GetDWORDValue")
    assert client.service("StopService") == {"ReturnValue": "2"}
    assert lab_host.backend.service_status("SMTPSVC").state == "Running"
    assert client.service("StopService") == {"ReturnValue": "0"}


@pytest.mark.parametrize("name", ["GetDWORDValue", "getdwordvalue tarpittime", ALL])
def test_names_are_the_first_words_of_the_journal(lab_host: LabHost, client: WinRM, name: str) -> None:
    lab_host.faults.on(name, Answer(5))
    assert client.registry("GetDWORDValue") == {"ReturnValue": "5"}


def test_half_a_word_is_no_name(lab_host: LabHost, client: WinRM) -> None:
    lab_host.faults.on("GetDWORD", Answer(5))
    assert client.registry("GetDWORDValue")["ReturnValue"] == "1"


def test_the_nth_and_so_many_or_all(lab_host: LabHost, client: WinRM) -> None:
    def codes(count: int) -> list[str | None]:
        return [client.registry("GetDWORDValue")["ReturnValue"] for _request in range(count)]

    lab_host.faults.on("GetDWORDValue", Answer(5), nth=2, times=2)
    assert codes(5) == ["1", "5", "5", "1", "1"]
    lab_host.faults.on("GetDWORDValue", Answer(6), times=None)
    assert codes(3) == ["6", "6", "6"]
    lab_host.faults.clear()
    assert codes(1) == ["1"]


def test_after_so_many_requests_of_any_kind(lab_host: LabHost, client: WinRM) -> None:
    client.get_service()
    lab_host.faults.after(2, Answer(8))
    assert set_value(client) == "0"
    assert value(client) == "5"
    assert client.service("StartService") == {"ReturnValue": "8"}


def test_the_oldest_rule_acts_and_all_count(lab_host: LabHost, client: WinRM) -> None:
    lab_host.faults.on("GetDWORDValue", Answer(5))
    lab_host.faults.on("GetDWORDValue", Answer(6), nth=2)
    lab_host.faults.on("GetDWORDValue", Answer(7), nth=2)
    assert [client.registry("GetDWORDValue")["ReturnValue"] for _request in range(3)] == ["5", "6", "1"]


@pytest.mark.parametrize("wrong", [{"nth": 0}, {"times": 0}])
def test_requests_are_counted_from_1(lab_host: LabHost, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="from 1"):
        lab_host.faults.on(ALL, EMPTY_500, **wrong)


def test_a_reset_forgets_all(lab_host: LabHost, client: WinRM) -> None:
    lab_host.faults.on(ALL, EMPTY_500, times=None)
    lab_host.services.fail_start("SMTPSVC")
    lab_host.reset()
    client.restart()


# -- what WMI may say --


def test_an_answer_may_be_a_lie_either_way(lab_host: LabHost, client: WinRM) -> None:
    lab_host.faults.on("SetDWORDValue", Answer(0))
    assert set_value(client) == "0"
    assert value(client) is None
    lab_host.faults.on("SetDWORDValue", Answer(5, carried_out=True))
    assert set_value(client) == "5"
    assert value(client) == "5"
    lab_host.faults.on("GetDWORDValue", Answer(0, {"uValue": 77}))
    assert value(client) == "77"


def fault_of(act: Callable[[], object]) -> FaultSeen:
    with pytest.raises(WSManFaultError) as raised:
        act()
    assert raised.value.code == 500
    return FaultSeen.of(raised.value)


@pytest.mark.parametrize("denied", ACCESS_DENIED, ids=lambda denied: str(denied.code))
def test_access_denied_in_three_forms(lab_host: LabHost, client: WinRM, denied: Refused) -> None:
    lab_host.faults.on("Get Win32_Service", denied)
    assert fault_of(client.get_service) == FaultSeen(denied.code, "AccessDenied", None)
    assert client.get_service()["State"] == "Running"


@pytest.mark.parametrize(("method", "code"), [("StopService", 2), ("SetDWORDValue", 5)])
def test_access_denied_as_a_return_code(lab_host: LabHost, client: WinRM, method: str, code: int) -> None:
    lab_host.faults.on(method, Answer(code))
    act = client.service if method == "StopService" else client.registry
    assert act(method)["ReturnValue"] == str(code)


def test_any_fault_with_the_service_that_it_names(lab_host: LabHost, client: WinRM) -> None:
    refused = Refused(2150858752, "a:DestinationUnreachable", "gone", service="SMTPSVC")
    lab_host.faults.on("Get", refused)
    named = 'Win32_Service.Name="SMTPSVC"'
    assert fault_of(client.get_service) == FaultSeen(2150858752, "DestinationUnreachable", named)


@pytest.mark.parametrize("gone", ["RelatesTo", "Detail", "Code", "Subcode", "Reason"])
def test_a_fault_without_one_of_its_parts(lab_host: LabHost, account: Account, gone: str) -> None:
    # Over Basic, where the reply can be read whatever the client makes of it.
    client = WinRM(lab_host, account, "basic")
    seen: list[bytes] = []
    session = client.protocol.transport.build_session()
    session.hooks["response"].append(lambda response, **_options: seen.append(response.content))
    lab_host.faults.on("Get", Refused(2150858752, without=frozenset({gone})))
    with contextlib.suppress(WinRMTransportError, WSManFaultError, AttributeError):
        client.get_service()
    envelope = read_xml(seen[-1])
    assert envelope.find(".//{*}Fault") is not None
    assert envelope.find(f".//{{*}}{gone}") is None


def test_a_fault_without_a_number(lab_host: LabHost, client: WinRM) -> None:
    lab_host.faults.on("Get", Refused(None))
    assert fault_of(client.get_service).code is None


# -- other forms of the reply --


@pytest.mark.parametrize(
    ("spelled", "tag"),
    [
        (Spelled("{method}_output"), f"{{{SERVICE}}}StopService_output"),
        (Spelled("{method}"), f"{{{SERVICE}}}StopService"),
        (Spelled(namespace="urn:other"), "{urn:other}StopService_OUTPUT"),
        (Spelled(prefix="n1"), f"{{{SERVICE}}}StopService_OUTPUT"),
        (Spelled(prefix=""), f"{{{SERVICE}}}StopService_OUTPUT"),
    ],
)
def test_another_spelling_of_the_output(lab_host: LabHost, client: WinRM, spelled: Spelled, tag: str) -> None:
    lab_host.faults.on("StopService", spelled)
    envelope = client.send(
        f"{SERVICE}/StopService", SERVICE, {"r:StopService_INPUT": {"@xmlns:r": SERVICE}}, Name="SMTPSVC"
    )
    (output,) = envelope.findall("{*}Body/*")
    assert output.tag == tag
    assert output.findtext("{*}ReturnValue") == "0"
    client.wait_for_state("Stopped")


@pytest.mark.parametrize("other", ["uuid:ANOTHER", None])
def test_a_reply_to_something_else(lab_host: LabHost, client: WinRM, other: str | None) -> None:
    lab_host.faults.on("GetDWORDValue", Misrelated(other))
    with pytest.raises(AssertionError, match="another request"):
        client.registry("GetDWORDValue")


def test_a_reply_that_is_far_too_large(lab_host: LabHost, client: WinRM) -> None:
    lab_host.faults.on("GetDWORDValue", Padded(2_000_000))
    assert client.registry("GetDWORDValue")["ReturnValue"] == "1"
    assert lab_host.traffic.bytes_out > 2_000_000


def test_an_empty_500(lab_host: LabHost, client: WinRM) -> None:
    lab_host.faults.on("SetDWORDValue", EMPTY_500)
    with pytest.raises(WinRMTransportError) as raised:
        set_value(client)
    assert raised.value.code == 500
    assert value(client) == "5", "it was carried out"


def test_garbage(lab_host: LabHost, client: WinRM) -> None:
    lab_host.faults.on("SetDWORDValue", GARBAGE)
    with pytest.raises(SyntaxError):
        set_value(client)
    lab_host.faults.on("SetDWORDValue", Body(b"<html>", 502, "text/html", sealed=False, carried_out=False))
    with pytest.raises(WinRMTransportError) as raised:
        set_value(client, 6)
    assert raised.value.code == 502
    assert value(client) == "5", "the second was not carried out"


# -- the connection --


@pytest.mark.parametrize("transport", ["basic", "ntlm"])
@pytest.mark.parametrize("cut", [Cut(carried_out=False), Cut(), Cut(part=0.5)], ids=["before", "after", "middle"])
def test_a_connection_is_cut(lab_host: LabHost, account: Account, transport: str, cut: Cut) -> None:
    client = WinRM(lab_host, account, transport)  # type: ignore[arg-type]
    value(client)
    lab_host.faults.on("SetDWORDValue", cut)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        set_value(client)
    assert value(WinRM(lab_host, account)) == ("5" if cut.carried_out else None)
    assert lab_host.traffic.journal.count("SetDWORDValue TarpitTime") == 1


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_request_hangs_until_released(lab_host: LabHost, client: WinRM, account: Account, carried_out: bool) -> None:
    lab_host.faults.on("SetDWORDValue", Hang(carried_out=carried_out))
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(set_value, client)
        lab_host.faults.wait_until_hanging()
        assert value(WinRM(lab_host, account)) == ("5" if carried_out else None), "others are served"
        lab_host.faults.release()
        assert hanging.result(timeout=30) == "0"
    assert value(client) == "5"


def test_what_hangs_is_cut_off_by_a_reset_and_never_carried_out(
    lab_host: LabHost, client: WinRM, account: Account
) -> None:
    lab_host.faults.on("SetDWORDValue", Hang())
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(set_value, client)
        lab_host.faults.wait_until_hanging()
        lab_host.reset()
        with pytest.raises(requests.ConnectionError):
            hanging.result(timeout=30)
    assert value(WinRM(lab_host, account)) is None


@pytest.mark.parametrize("trouble", [Hang(), Hang(carried_out=True), Slow(10)])
def test_closing_a_lab_waits_for_no_test(trouble: Hang | Slow) -> None:
    with Lab.start() as lab, ThreadPoolExecutor(1) as pool:
        (host,) = lab.hosts
        client = WinRM(host, Account(lab.username, lab.password))
        value(client)
        reached = threading.Event()
        host.on_request(lambda seen: reached.set() if seen.moment == "received" else None)
        host.faults.on(ALL, trouble)
        waiting = pool.submit(value, client)
        assert reached.wait(30)
        started = time.monotonic()
        lab.close()
        assert time.monotonic() - started < 10
        with pytest.raises(requests.RequestException):
            waiting.result(timeout=30)


def test_a_slow_reply_arrives_whole(lab_host: LabHost, client: WinRM) -> None:
    lab_host.faults.on("SetDWORDValue", Slow(10_000))
    started = time.monotonic()
    assert set_value(client) == "0"
    assert time.monotonic() - started > 0.05


# -- moments --


def test_each_request_is_told_three_times(lab_host: LabHost, client: WinRM) -> None:
    seen: list[RequestSeen] = []
    states: list[str] = []

    def note(request: RequestSeen) -> None:
        seen.append(request)
        if request.note.startswith("SetDWORDValue"):
            try:
                lab_host.backend.read_value(0x80000002, PARAMETERS, "TarpitTime")
                states.append("done")
            except Exception:  # noqa: BLE001
                states.append("not yet")

    lab_host.on_request(note)
    set_value(client)
    value(client)
    # The last moment comes after the reply, and the client may be faster.
    deadline = time.monotonic() + 30
    while len(seen) < 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [(one.number, one.moment) for one in seen] == [
        (number, moment) for number in (1, 2) for moment in ("received", "answered", "sent")
    ]
    assert states == ["not yet", "done", "done"]


CLIENT = """
import os, sys
from lab.contract.client import Account, WinRM
class Host: endpoint = sys.argv[1]
client = WinRM(Host, Account(sys.argv[2], os.environ["LAB_PASSWORD"]))
for seconds in range(1, 6):
    print(client.registry("SetDWORDValue", uValue=seconds)["ReturnValue"], flush=True)
"""


@pytest.mark.parametrize(("moment", "carried_out"), [("received", 2), ("answered", 3), ("sent", 3)])
def test_a_client_is_killed_at_an_exact_moment(
    lab_host: LabHost, lab: Lab, client: WinRM, moment: str, carried_out: int
) -> None:
    environment = {**os.environ, "LAB_PASSWORD": lab.password, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", CLIENT, lab_host.endpoint, lab.username]
    started = threading.Event()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:

        def kill(seen: RequestSeen) -> None:
            started.wait(30)
            if (seen.number, seen.moment) == (3, moment):
                process.send_signal(signal.SIGKILL)
                process.wait(30)

        lab_host.on_request(kill)
        # What is cut: the request itself, or the next one, which may be on its way when the client dies.
        lab_host.faults.after(2 if moment == "received" else 3, Cut(carried_out=False), times=None)
        started.set()
        assert process.wait(60) == -signal.SIGKILL
    lab_host.faults.clear()
    assert value(client) == str(carried_out)
    assert lab_host.traffic.journal.count("SetDWORDValue TarpitTime") in (3, 4)


# -- a lab of many --


def test_counters_add_up() -> None:
    with Lab.start(hosts=3, smtpsvc=False) as lab:
        account = Account(lab.username, lab.password)
        for host in lab.hosts:
            WinRM(host, account, "basic").call(REGISTRY, "CreateKey", {"sSubKeyName": r"SOFTWARE\x"})
        whole = lab.traffic()
        assert whole.requests == sum(host.traffic.requests for host in lab.hosts) >= 3
        assert whole.bytes_out == sum(host.traffic.bytes_out for host in lab.hosts) > 1000
        assert whole.journal == [r"CreateKey SOFTWARE\x"] * 3
