# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Win32_OperatingSystem over the wire: Get of a singleton, Enumerate in its forms, Pull and Release."""

from __future__ import annotations

from typing import Any, Final

import pytest
from winrm.exceptions import WSManFaultError

from lab.contract.client import GET, SERVICE, WMI, Account, FaultSeen, WinRM, read_body
from lab.hosts import Lab, LabHost
from lab.machine import SYSTEMS

OS: Final = f"{WMI}/root/cimv2/Win32_OperatingSystem"
ENUMERATION: Final = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
ENUMERATE: Final = f"{ENUMERATION}/Enumerate"


def enumerate_body(**parts: Any) -> dict[str, Any]:
    return {"n:Enumerate": {"@xmlns:n": ENUMERATION, **{f"w:{name}": value for name, value in parts.items()}}}


def context_body(name: str, context: str | None, **parts: Any) -> dict[str, Any]:
    given = {f"n:{part}": value for part, value in parts.items()}
    return {f"n:{name}": {"@xmlns:n": ENUMERATION, "n:EnumerationContext": context, **given}}


def refused(client: WinRM, action: str, body: dict[str, Any], uri: str = OS, **selectors: str) -> FaultSeen:
    with pytest.raises(WSManFaultError) as raised:
        client.send(action, uri, body, **selectors)
    return FaultSeen.of(raised.value)


def test_a_singleton_is_got_without_its_key_and_with_it(client: WinRM) -> None:
    found = read_body(client.send(GET, OS))
    assert (found["Caption"], found["Version"]) == ("Microsoft Windows Server 2019 Standard", "10.0.17763")
    assert (found["BuildNumber"], found["CSName"], found["CSDVersion"]) == ("17763", "LAB1", None)
    assert read_body(client.send(GET, OS, Name=found["Name"] or "")) == found


def test_another_key_names_nothing(client: WinRM) -> None:
    assert refused(client, GET, {}, Name="Windows 3.11").code == 2150858752


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_host_may_play_any_windows(name: str, client: WinRM, lab_host: LabHost) -> None:
    played = lab_host.machine.system
    try:
        lab_host.machine.system = SYSTEMS[name]
        found = read_body(client.send(GET, OS))
    finally:
        lab_host.machine.system = played
    assert name.split()[0] in (found["Caption"] or "")
    assert (found["Version"] or "").endswith(found["BuildNumber"] or "none")


def test_a_lab_is_started_as_another_windows() -> None:
    with Lab.start(system="2025", smtpsvc=False) as lab:
        client = WinRM(lab.hosts[0], Account(lab.username, lab.password))
        assert read_body(client.send(GET, OS))["BuildNumber"] == "26100"


def test_an_unknown_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="2012 R2"):
        Lab.start(system="95")


def test_an_optimised_enumeration_is_one_request(client: WinRM) -> None:
    reply = client.send(ENUMERATE, OS, enumerate_body(OptimizeEnumeration=None, MaxElements=10))
    (item,) = reply.findall(".//{http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd}Items/*")
    assert item.tag == f"{{{OS}}}Win32_OperatingSystem"
    assert item.findtext("{*}Version") == "10.0.17763"
    assert reply.find(".//{http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd}EndOfSequence") is not None
    assert reply.findtext(f".//{{{ENUMERATION}}}EnumerationContext") == ""


def test_a_plain_enumeration_is_pulled(client: WinRM, lab_host: LabHost) -> None:
    opened = client.send(ENUMERATE, OS, enumerate_body())
    assert opened.find(".//{*}Items") is None
    assert opened.find(".//{*}EndOfSequence") is None
    context = opened.findtext(".//{*}EnumerationContext")
    pulled = client.send(f"{ENUMERATION}/Pull", OS, context_body("Pull", context, MaxElements=5))
    (item,) = pulled.findall(f".//{{{ENUMERATION}}}Items/*")
    assert item.findtext("{*}BuildNumber") == "17763"
    assert pulled.find(f".//{{{ENUMERATION}}}EndOfSequence") is not None
    seen = refused(client, f"{ENUMERATION}/Pull", context_body("Pull", context))
    assert (seen.code, seen.subcode) == (2150858779, "InvalidEnumerationContext")
    assert lab_host.traffic.journal[:2] == ["Enumerate Win32_OperatingSystem", "Pull Win32_OperatingSystem"]


def test_a_released_enumeration_is_gone(client: WinRM) -> None:
    context = client.send(ENUMERATE, OS, enumerate_body()).findtext(".//{*}EnumerationContext")
    client.send(f"{ENUMERATION}/Release", OS, context_body("Release", context))
    assert refused(client, f"{ENUMERATION}/Pull", context_body("Pull", context)).code == 2150858779


def test_a_context_belongs_to_its_resource(client: WinRM) -> None:
    context = client.send(ENUMERATE, OS, enumerate_body()).findtext(".//{*}EnumerationContext")
    assert refused(client, f"{ENUMERATION}/Pull", context_body("Pull", context), SERVICE).code == 2150858779


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, 2150858817),
        (enumerate_body(MaxElements=1), 2150858817),
        (enumerate_body(OptimizeEnumeration=None, MaxElements=0), 2150858817),
        (enumerate_body(OptimizeEnumeration=None, MaxElements="many"), 2150858817),
        (enumerate_body(EnumerationMode="EnumerateEPR"), 2150858817),
        (enumerate_body(Filter={"@Dialect": "http://schemas.microsoft.com/wbem/wsman/1/WQL"}), 2150858776),
    ],
)
def test_enumerations_without_sense(client: WinRM, body: dict[str, Any], code: int) -> None:
    assert refused(client, ENUMERATE, body).code == code


def test_an_enumeration_has_no_keys(client: WinRM) -> None:
    assert refused(client, ENUMERATE, enumerate_body(), Name="x").code == 2150859016
