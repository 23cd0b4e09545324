# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Win32_Service over the wire, and the faults of things that are not there."""

from __future__ import annotations

import pytest
from winrm.exceptions import WSManFaultError

from lab.contract.client import GET, REGISTRY, SERVICE, WMI, FaultSeen, WinRM
from lab.hosts import LabHost

ENUMERATE = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/Enumerate"


def fault_of(client: WinRM, action: str, uri: str, body: object = None, **selectors: str) -> FaultSeen:
    with pytest.raises(WSManFaultError) as raised:
        client.send(action, uri, body, **selectors)  # type: ignore[arg-type]
    assert raised.value.code == 500
    return FaultSeen.of(raised.value)


def test_get_tells_all_about_a_running_service(client: WinRM) -> None:
    found = client.get_service()
    assert int(found["ProcessId"] or 0) > 0
    expected = {
        "Name": "SMTPSVC",
        "State": "Running",
        "StartMode": "Auto",
        "Started": "true",
        "Status": "OK",
        "ExitCode": "0",
        "ServiceType": "Own Process",
        "AcceptStop": "true",
        "InstallDate": None,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["DisplayName"]
    assert found["PathName"]


def test_the_name_of_a_service_ignores_case(client: WinRM) -> None:
    assert (client.get_service("smtpsvc")["Name"] or "").upper() == "SMTPSVC"


def test_stop_and_start_are_accepted_and_seen_in_the_state(client: WinRM) -> None:
    before = client.get_service()
    assert client.service("StopService") == {"ReturnValue": "0"}
    stopped = client.wait_for_state("Stopped")
    assert (stopped["ProcessId"], stopped["Started"], stopped["AcceptStop"]) == ("0", "false", "false")
    assert client.service("StartService") == {"ReturnValue": "0"}
    after = client.wait_for_state("Running")
    assert after["ProcessId"] not in ("0", before["ProcessId"]), "a restart gives another process"


def test_starting_a_running_service_is_10(client: WinRM) -> None:
    assert client.service("StartService") == {"ReturnValue": "10"}


def test_stopping_a_stopped_service_is_5(client: WinRM) -> None:
    client.service("StopService")
    client.wait_for_state("Stopped")
    assert client.service("StopService") == {"ReturnValue": "5"}


def test_starting_a_disabled_service_is_14(client: WinRM) -> None:
    assert client.service("ChangeStartMode", StartMode="Disabled") == {"ReturnValue": "0"}
    client.service("StopService")
    client.wait_for_state("Stopped")
    assert client.service("StartService") == {"ReturnValue": "14"}
    assert client.get_service()["State"] == "Stopped"


@pytest.mark.parametrize(("asked", "given"), [("Disabled", "Disabled"), ("Manual", "Manual"), ("Automatic", "Auto")])
def test_the_start_mode_has_two_vocabularies(client: WinRM, asked: str, given: str) -> None:
    assert client.service("ChangeStartMode", StartMode=asked) == {"ReturnValue": "0"}
    assert client.get_service()["StartMode"] == given


def test_an_unknown_start_mode_is_21(client: WinRM) -> None:
    assert client.service("ChangeStartMode", StartMode="Auto") == {"ReturnValue": "21"}
    assert client.get_service()["StartMode"] == "Auto"


def test_a_missing_service_is_named_in_the_fault(client: WinRM) -> None:
    seen = fault_of(client, GET, SERVICE, Name="NoSuchSvc")
    assert seen == FaultSeen(2150858752, "DestinationUnreachable", 'Win32_Service.Name="NoSuchSvc"')


@pytest.mark.parametrize("method", ["StopService", "StartService"])
def test_a_missing_service_has_no_methods(client: WinRM, method: str) -> None:
    body = {f"r:{method}_INPUT": {"@xmlns:r": SERVICE}}
    seen = fault_of(client, f"{SERVICE}/{method}", SERVICE, body, Name="NoSuchSvc")
    assert seen == FaultSeen(2150858752, "DestinationUnreachable", 'Win32_Service.Name="NoSuchSvc"')


@pytest.mark.parametrize("mode", ["Manual", "nonsense"])
def test_a_missing_service_has_no_start_mode(client: WinRM, mode: str) -> None:
    body = {"r:ChangeStartMode_INPUT": {"@xmlns:r": SERVICE, "r:StartMode": mode}}
    seen = fault_of(client, f"{SERVICE}/ChangeStartMode", SERVICE, body, Name="NoSuchSvc")
    assert (seen.code, seen.names_service) == (2150858752, 'Win32_Service.Name="NoSuchSvc"')


@pytest.mark.parametrize(
    "uri",
    [
        f"{WMI}/root/cimv2/Win32_NoSuchClass",
        f"{WMI}/root/nosuchnamespace/Win32_Service",
        f"{WMI}/root/default/Win32_Service",
    ],
)
def test_a_missing_class_or_namespace_looks_alike_but_names_no_service(client: WinRM, uri: str) -> None:
    seen = fault_of(client, GET, uri, Name="SMTPSVC")
    assert seen == FaultSeen(2150858752, "DestinationUnreachable", None)


def test_get_without_keys(client: WinRM) -> None:
    assert fault_of(client, GET, SERVICE) == FaultSeen(2150859002, "DestinationUnreachable", None)
    assert fault_of(client, GET, REGISTRY).code == 2150859002


def test_get_by_what_is_no_key(client: WinRM) -> None:
    seen = fault_of(client, GET, SERVICE, DisplayName="Simple Mail Transfer Protocol (SMTP)")
    assert seen == FaultSeen(2150858813, "InvalidSelectors", None)


@pytest.mark.parametrize(
    ("action", "uri"),
    [
        (f"{SERVICE}/PauseService", SERVICE),
        (f"{REGISTRY}/StopService", SERVICE),
        (ENUMERATE, SERVICE),
        (f"{REGISTRY}/SetMultiStringValue", REGISTRY),
    ],
)
def test_what_the_lab_cannot_do_is_not_supported(client: WinRM, action: str, uri: str) -> None:
    assert fault_of(client, action, uri, Name="SMTPSVC") == FaultSeen(2150858771, "ActionNotSupported", None)


def test_the_journal_names_the_service(client: WinRM, lab_host: LabHost) -> None:
    client.get_service()
    client.service("StopService")
    assert lab_host.traffic.journal == ["Get Win32_Service SMTPSVC", "StopService SMTPSVC"]
