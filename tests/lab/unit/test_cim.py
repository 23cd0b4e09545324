# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from xml.etree import ElementTree

import pytest

from lab.backend import HKEY_LOCAL_MACHINE, REG_DWORD, REG_SZ, RegistryValue, ServiceStatus, Win32Error
from lab.cim import WMI, Cim
from lab.machine import Machine
from lab.win32_service import RETURN_CODES
from lab.wsman import Fault, Request, parse_xml

REGISTRY = f"{WMI}root/default/StdRegProv"
SERVICE = f"{WMI}root/cimv2/Win32_Service"
GET = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Get"


class Scripted:
    """A backend whose every call gives the same: a value, or a Win32 error."""

    smtp_port = 0

    def __init__(self, result: RegistryValue | Win32Error | None = None, state: str = "Running") -> None:
        self.calls: list[tuple[object, ...]] = []
        self._result = result
        self._state = state

    def _do(self, *call: object) -> None:
        self.calls.append(call)
        if isinstance(self._result, Win32Error):
            raise self._result

    def read_value(self, hive: int, key: str, name: str) -> RegistryValue:
        self._do("read", hive, key, name)
        assert isinstance(self._result, RegistryValue)
        return self._result

    def write_value(self, hive: int, key: str, name: str, value: RegistryValue) -> None:
        self._do("write", hive, key, name, value)

    def delete_value(self, hive: int, key: str, name: str) -> None:
        self._do("delete", hive, key, name)

    def create_key(self, hive: int, key: str) -> None:
        self._do("create", hive, key)

    def service_status(self, name: str) -> ServiceStatus:
        self._do("status", name)
        return ServiceStatus(name, "Mail <&> \x00", self._state, "Manual", 4 if self._state == "Running" else 0)

    def stop_service(self, name: str) -> None:
        self._do("stop", name)

    def start_service(self, name: str) -> None:
        self._do("start", name)

    def change_start_mode(self, name: str, mode: str) -> None:
        self._do("mode", name, mode)

    def dependents(self, name: str) -> list[str]:
        self._do("dependents", name)
        return []

    def close(self) -> None:
        pass


def request(action: str, uri: str, body: ElementTree.Element | None = None, key: str | None = None) -> Request:
    return Request(action, uri, "uuid:1", {} if key is None else {"name": key}, body)


def call(backend: Scripted, uri: str, method: str, key: str | None = None, **given: str) -> dict[str, str | None]:
    body = ElementTree.Element(f"{{{uri}}}{method}_INPUT")
    for name, text in given.items():
        ElementTree.SubElement(body, f"{{{uri}}}{name}").text = text
    output = Cim(backend, Machine("LAB1")).answer(request(f"{uri}/{method}", uri, body, key))
    root = parse_xml(output.encode())
    assert root.tag == f"{{{uri}}}{method}_OUTPUT"
    nil = "{http://www.w3.org/2001/XMLSchema-instance}nil"
    return {child.tag.rpartition("}")[2]: None if child.get(nil) else child.text for child in root}


PLACE = {"hDefKey": str(HKEY_LOCAL_MACHINE), "sSubKeyName": r"A\B", "sValueName": "V"}
OPEN, QUERY = "RegOpenKeyEx", "RegQueryValueEx"


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (RegistryValue(REG_DWORD, 30), ("0", "30")),
        (RegistryValue(REG_DWORD, 0), ("0", "0")),
        (RegistryValue(REG_SZ, "30"), ("2147749893", None)),
        (Win32Error(2, QUERY), ("1", None)),
        (Win32Error(2, OPEN), ("2", None)),
        (Win32Error(5, OPEN), ("5", None)),
        (Win32Error(5, QUERY), ("5", None)),
        (Win32Error(6, OPEN), ("6", None)),
        (Win32Error(161, OPEN), ("161", None)),
    ],
    ids=str,
)
def test_reading(result: RegistryValue | Win32Error, expected: tuple[str, str | None]) -> None:
    found = call(Scripted(result), REGISTRY, "GetDWORDValue", **PLACE)
    assert (found["ReturnValue"], found["uValue"]) == expected


@pytest.mark.parametrize(
    ("method", "given", "done"),
    [
        ("SetDWORDValue", {**PLACE, "uValue": "7"},
         ("write", HKEY_LOCAL_MACHINE, r"A\B", "V", RegistryValue(REG_DWORD, 7))),
        ("DeleteValue", PLACE, ("delete", HKEY_LOCAL_MACHINE, r"A\B", "V")),
        ("CreateKey", {"hDefKey": "2147483651", "sSubKeyName": "K"}, ("create", 0x80000003, "K")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("error", [None, 2, 5, 6])
def test_writing(method: str, given: dict[str, str], done: tuple[object, ...], error: int | None) -> None:
    backend = Scripted(None if error is None else Win32Error(error, OPEN))
    assert call(backend, REGISTRY, method, **given) == {"ReturnValue": str(error or 0)}
    assert backend.calls == [done]


CONTROLS = [("StopService", {}), ("StartService", {}), ("ChangeStartMode", {"StartMode": "Manual"})]


@pytest.mark.parametrize(("method", "given"), CONTROLS)
@pytest.mark.parametrize(("error", "code"), [*RETURN_CODES.items(), (1, 8), (0x7FFF, 8)])
def test_controls_that_fail(method: str, given: dict[str, str], error: int, code: int) -> None:
    backend = Scripted(Win32Error(error, "ControlService"))
    assert call(backend, SERVICE, method, "svc", **given) == {"ReturnValue": str(code)}


def test_every_documented_code_can_be_reached_but_two() -> None:
    # 1 (not supported), 6 (not started) and 24 (paused) come from states that the lab does not have.
    assert set(RETURN_CODES.values()) | {0, 8} == set(range(24)) - {1, 6}


@pytest.mark.parametrize(
    ("asked", "code", "done"),
    [
        ("Automatic", "0", [("mode", "svc", "Automatic")]),
        ("disabled", "0", [("mode", "svc", "Disabled")]),
        ("Auto", "21", [("status", "svc")]),
        ("", "21", [("status", "svc")]),
    ],
)
def test_start_modes(asked: str, code: str, done: list[tuple[str, ...]]) -> None:
    backend = Scripted()
    assert call(backend, SERVICE, "ChangeStartMode", "svc", StartMode=asked) == {"ReturnValue": code}
    assert backend.calls == done


@pytest.mark.parametrize(
    ("state", "started", "accepts"),
    [
        ("Running", "true", "true"),
        ("Stop Pending", "true", "false"),
        ("Start Pending", "false", "false"),
        ("Stopped", "false", "false"),
        ("Paused", "true", "false"),
    ],
)
def test_get(state: str, started: str, accepts: str) -> None:
    output = Cim(Scripted(state=state), Machine("LAB1")).answer(request(GET, SERVICE, key="svc"))
    root = parse_xml(output.encode())
    assert root.tag == f"{{{SERVICE}}}Win32_Service"
    found = {child.tag.rpartition("}")[2]: child.text for child in root}
    assert (found["State"], found["Started"], found["AcceptStop"]) == (state, started, accepts)
    assert (found["Name"], found["StartMode"], found["SystemName"]) == ("svc", "Manual", "LAB1")
    assert found["DisplayName"] == "Mail <&> �"


def refused(backend: Scripted, asked: Request) -> Fault:
    with pytest.raises(Fault) as raised:
        Cim(backend, Machine("LAB1")).answer(asked)
    return raised.value


def element(tag: str, *children: str) -> ElementTree.Element:
    root = ElementTree.Element(tag)
    for child in children:
        ElementTree.SubElement(root, child).text = "1"
    return root


I = f"{{{REGISTRY}}}"  # noqa: E741
CREATE = f"{REGISTRY}/CreateKey"


@pytest.mark.parametrize(
    ("asked", "code", "subcode"),
    [
        (request(GET, f"{WMI}root/cimv2/Nope", key="x"), 2150858752, "a:DestinationUnreachable"),
        (request(GET, f"{WMI}root/cimv2/Win32_Service/", key="x"), 2150858752, "a:DestinationUnreachable"),
        (request(GET, SERVICE), 2150859002, "a:DestinationUnreachable"),
        (request(GET, REGISTRY), 2150859002, "a:DestinationUnreachable"),
        (request(f"{SERVICE}/StopService", SERVICE), 2150859002, "a:DestinationUnreachable"),
        (Request(GET, SERVICE, "1", {"name": "a", "x": "b"}, None), 2150858813, "w:InvalidSelectors"),
        (Request(GET, SERVICE, "1", {"x": "b"}, None), 2150858813, "w:InvalidSelectors"),
        (request(f"{SERVICE}/Nope", SERVICE, key="x"), 2150858771, "a:ActionNotSupported"),
        (request(f"{REGISTRY}/StopService", SERVICE, key="x"), 2150858771, "a:ActionNotSupported"),
        (request(CREATE, REGISTRY), 2150858817, "w:SchemaValidationError"),
        (request(CREATE, REGISTRY, element("CreateKey_INPUT")), 2150858817, "w:SchemaValidationError"),
        (request(CREATE, REGISTRY, element(f"{I}DeleteValue_INPUT")), 2150858817, "w:SchemaValidationError"),
        (request(CREATE, REGISTRY, element(f"{I}CreateKey_INPUT")), 2150858839, "w:InvalidParameter"),
        (request(CREATE, REGISTRY, element(f"{I}CreateKey_INPUT", f"{I}x")), 2150858837, "w:InvalidParameter"),
        (
            request(CREATE, REGISTRY, element(f"{I}CreateKey_INPUT", f"{I}hDefKey", f"{I}hDefKey")),
            2150858837,
            "w:InvalidParameter",
        ),
        (
            request(CREATE, REGISTRY, element(f"{I}CreateKey_INPUT", "sSubKeyName")),
            2150858837,
            "w:InvalidParameter",
        ),
    ],
)
def test_requests_without_sense(asked: Request, code: int, subcode: str) -> None:
    backend = Scripted()
    fault = refused(backend, asked)
    assert (fault.code, fault.subcode, fault.extended, backend.calls) == (code, subcode, "", [])


def test_a_missing_service_is_named() -> None:
    fault = refused(Scripted(Win32Error(1060, "OpenService")), request(GET, SERVICE, key='a"<b'))
    assert fault.code == 2150858752
    status = parse_xml(fault.extended.encode())
    assert status.findtext("{*}ParameterInfo") == 'Win32_Service.Name="a"<b"'


@pytest.mark.parametrize(
    ("error", "code", "subcode"),
    [(5, 2150859013, "w:AccessDenied"), (1722, 0x80070000 + 1722, "w:InternalError")],
)
def test_get_that_fails(error: int, code: int, subcode: str) -> None:
    fault = refused(Scripted(Win32Error(error, "OpenSCManager")), request(GET, SERVICE, key="svc"))
    assert (fault.code, fault.subcode, fault.extended) == (code, subcode, "")


def test_names_of_wmi_ignore_case() -> None:
    found = call(
        Scripted(), SERVICE.replace("root/cimv2/Win32_Service", "ROOT/CIMV2/win32_service"), "stopservice", "x"
    )
    assert found == {"ReturnValue": "0"}


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (request(GET, SERVICE, key="SMTPSVC"), "Get Win32_Service SMTPSVC"),
        (request(GET, SERVICE), "Get Win32_Service"),
        (request(f"{SERVICE}/StopService", SERVICE, key="SMTPSVC"), "StopService SMTPSVC"),
        (request(CREATE, REGISTRY, element("x", f"{I}sSubKeyName")), "CreateKey 1"),
        (request(CREATE, REGISTRY), "CreateKey"),
    ],
)
def test_the_journal(asked: Request, line: str) -> None:
    assert Cim(Scripted(), Machine("LAB1")).describe(asked) == line
