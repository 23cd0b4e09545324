# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that depend on SMTPSVC: what the service control manager does, and what WMI says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from xml.etree import ElementTree

import pytest
from winrm.exceptions import WSManFaultError

from lab.backend import Win32Error
from lab.contract.client import SERVICE, WMI, FaultSeen, WinRM
from lab.hosts import LabHost

ENUMERATION: Final = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
ANONYMOUS: Final = "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous"
DIALECT: Final = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter"
CIM_BINDING: Final = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd"
EVERYTHING: Final = f"{WMI}/root/cimv2/*"
BOTH: Final = ["LabDependent1", "LabDependent2"]


def refusal(call: Callable[..., object], *arguments: object) -> tuple[int, str]:
    with pytest.raises(Win32Error) as raised:
        call(*arguments)
    return raised.value.code, raised.value.call


def await_state(host: LabHost, name: str, state: str) -> None:
    host._await(name, state)


def stop(host: LabHost, *names: str) -> None:
    for name in names:
        host.backend.stop_service(name)
        await_state(host, name, "Stopped")


# -- the service control manager --


def test_dependents_are_listed_whatever_their_state(crowded_host: LabHost) -> None:
    backend = crowded_host.backend
    assert list(backend.dependents("smtpsvc")) == BOTH
    stop(crowded_host, "LabDependent2")
    assert list(backend.dependents("SMTPSVC")) == BOTH
    assert list(backend.dependents("LabDependent1")) == []
    assert refusal(backend.dependents, "NoSuchService") == (1060, "OpenService")


def test_what_others_need_does_not_stop(crowded_host: LabHost) -> None:
    backend = crowded_host.backend
    assert refusal(backend.stop_service, "SMTPSVC") == (1051, "ControlService")
    stop(crowded_host, "LabDependent1")
    assert refusal(backend.stop_service, "SMTPSVC") == (1051, "ControlService")
    stop(crowded_host, "LabDependent2", "SMTPSVC")


def test_what_a_service_needs_is_started_before_it(crowded_host: LabHost) -> None:
    assert crowded_host.stop_smtpsvc() == "Stopped"
    crowded_host.backend.start_service("LabDependent1")
    await_state(crowded_host, "LabDependent1", "Running")
    assert crowded_host.backend.service_status("SMTPSVC").state == "Running"
    assert crowded_host.backend.service_status("LabDependent2").state == "Stopped"


def test_what_a_service_needs_may_be_disabled(crowded_host: LabHost) -> None:
    crowded_host.stop_smtpsvc()
    crowded_host.backend.change_start_mode("SMTPSVC", "Disabled")
    assert refusal(crowded_host.backend.start_service, "LabDependent1") == (1068, "StartService")
    assert crowded_host.backend.service_status("LabDependent1").state == "Stopped"


def test_a_host_usually_has_none(lab_host: LabHost) -> None:
    assert list(lab_host.backend.dependents("SMTPSVC")) == []


def test_reset_starts_all_of_them(crowded_host: LabHost) -> None:
    crowded_host.stop_smtpsvc()
    crowded_host.backend.change_start_mode("LabDependent1", "Disabled")
    crowded_host.reset()
    for name in ("SMTPSVC", *BOTH):
        status = crowded_host.backend.service_status(name)
        assert (status.state, status.start_mode) == ("Running", "Auto")


# -- over the wire --


def test_stopping_is_3_while_dependents_run(crowded_client: WinRM, crowded_host: LabHost) -> None:
    assert crowded_client.service("StopService") == {"ReturnValue": "3"}
    for name in BOTH:
        assert crowded_client.service("StopService", name) == {"ReturnValue": "0"}
        await_state(crowded_host, name, "Stopped")
    assert crowded_client.service("StopService") == {"ReturnValue": "0"}


def query(name: str = "SMTPSVC", **changed: Any) -> dict[str, Any]:
    """The filter that asks for the dependents of a service."""
    reference = {
        "a:Address": ANONYMOUS,
        "a:ReferenceParameters": {
            "w:ResourceURI": SERVICE,
            "w:SelectorSet": {"w:Selector": {"@Name": "Name", "#text": name}},
        },
    }
    parts = {
        "Object": reference,
        "AssociationClassName": "Win32_DependentService",
        "Role": "Antecedent",
        "ResultClassName": "Win32_Service",
        "ResultRole": "Dependent",
        **changed,
    }
    return {"@xmlns:b": CIM_BINDING, **{f"b:{part}": value for part, value in parts.items() if value is not None}}


def enumerate_dependents(
    client: WinRM, asked: dict[str, Any], dialect: str = DIALECT, count: int | None = 100
) -> ElementTree.Element:
    body: dict[str, Any] = {"@xmlns:n": ENUMERATION}
    if count is not None:
        body |= {"w:OptimizeEnumeration": None, "w:MaxElements": count}
    body["w:Filter"] = {"@Dialect": dialect, "b:AssociatedInstances": asked}
    return client.send(f"{ENUMERATION}/Enumerate", EVERYTHING, {"n:Enumerate": body})


def names(envelope: ElementTree.Element) -> list[str | None]:
    items = envelope.findall(".//{*}Items/*")
    assert all(item.tag == f"{{{SERVICE}}}Win32_Service" for item in items)
    return [item.findtext("{*}Name") for item in items]


@pytest.mark.parametrize("dialect", [DIALECT, DIALECT.replace("association", "Association")])
def test_dependents_are_the_other_end_of_an_association(
    crowded_client: WinRM, crowded_host: LabHost, dialect: str
) -> None:
    stop(crowded_host, "LabDependent2")
    reply = enumerate_dependents(crowded_client, query("smtpsvc"), dialect)
    assert names(reply) == BOTH
    assert [item.findtext("{*}State") for item in reply.findall(".//{*}Items/*")] == ["Running", "Stopped"]
    assert reply.find(".//{*}EndOfSequence") is not None
    assert reply.findtext(".//{*}EnumerationContext") == ""
    assert crowded_host.traffic.journal == ["Enumerate * smtpsvc"]


def test_no_dependents_are_an_empty_sequence(client: WinRM) -> None:
    reply = enumerate_dependents(client, query())
    assert names(reply) == []
    assert reply.find(".//{*}EndOfSequence") is not None


@pytest.mark.parametrize("count", [None, 1])
def test_dependents_come_one_by_one(crowded_client: WinRM, count: int | None) -> None:
    reply = enumerate_dependents(crowded_client, query(), count=count)
    found = names(reply)
    while reply.find(".//{*}EndOfSequence") is None:
        context = reply.findtext(".//{*}EnumerationContext")
        pull = {"n:Pull": {"@xmlns:n": ENUMERATION, "n:EnumerationContext": context}}
        reply = crowded_client.send(f"{ENUMERATION}/Pull", EVERYTHING, pull)
        assert len(names(reply)) == 1
        found += names(reply)
    assert found == BOTH


@pytest.mark.parametrize(
    ("asked", "dialect", "code"),
    [
        (query("NoSuchService"), DIALECT, 2150858752),
        (query(), "http://schemas.microsoft.com/wbem/wsman/1/WQL", 2150858777),
        (query(Role="Dependent"), DIALECT, 2150858778),
        (query(ResultClassName="Win32_Process"), DIALECT, 2150858778),
        (query(Role=None), DIALECT, 2150859015),
        (query(Object=None), DIALECT, 2150859015),
        (query(Object={"a:Address": ANONYMOUS}), DIALECT, 2150859015),
        (query(Extra="1"), DIALECT, 2150859015),
    ],
)
def test_other_questions_are_refused(client: WinRM, asked: dict[str, Any], dialect: str, code: int) -> None:
    with pytest.raises(WSManFaultError) as raised:
        enumerate_dependents(client, asked, dialect)
    seen = FaultSeen.of(raised.value)
    assert (seen.code, seen.names_service) == (code, None)
