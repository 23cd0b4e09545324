# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Win32_Service: the service control manager through WMI.

Its methods answer 0 when a control was *accepted*; what becomes of it is in the State that Get gives. A
service that does not exist has no instance, and that is a fault, not a code: the one whose
`__ExtendedStatus` names the service, so that clients can tell it from a missing class or namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final
from xml.sax.saxutils import escape

from lab.backend import (
    ERROR_ACCESS_DENIED,
    ERROR_DEPENDENT_SERVICES_RUNNING,
    ERROR_FILE_NOT_FOUND,
    ERROR_SERVICE_ALREADY_RUNNING,
    ERROR_SERVICE_CANNOT_ACCEPT_CTRL,
    ERROR_SERVICE_DEPENDENCY_FAIL,
    ERROR_SERVICE_DISABLED,
    ERROR_SERVICE_DOES_NOT_EXIST,
    ERROR_SERVICE_NOT_ACTIVE,
    ERROR_SERVICE_REQUEST_TIMEOUT,
    Backend,
    Win32Error,
)
from lab.cim_class import Arguments, CimClass, Method, Output, Value
from lab.machine import Machine
from lab.wsman import RESOURCE_NOT_FOUND, SCHEMA_INSTANCE, Fault, clean

EXTENDED_STATUS: Final = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/__ExtendedStatus"
CIM_COMMON: Final = "http://schemas.dmtf.org/wbem/wscim/1/common"

UNKNOWN_FAILURE: Final = 8
BAD_PARAMETER: Final = 21

RETURN_CODES: Final[Mapping[int, int]] = {
    ERROR_ACCESS_DENIED: 2,
    ERROR_DEPENDENT_SERVICES_RUNNING: 3,
    1052: 4,  # ERROR_INVALID_SERVICE_CONTROL
    ERROR_SERVICE_CANNOT_ACCEPT_CTRL: 5,
    # Not 6, "not started": WMI looks at the state first, and a stopped service cannot take a control.
    ERROR_SERVICE_NOT_ACTIVE: 5,
    ERROR_SERVICE_REQUEST_TIMEOUT: 7,
    ERROR_FILE_NOT_FOUND: 9,  # the program of the service
    3: 9,  # ERROR_PATH_NOT_FOUND
    ERROR_SERVICE_ALREADY_RUNNING: 10,
    1055: 11,  # ERROR_SERVICE_DATABASE_LOCKED
    1075: 12,  # ERROR_SERVICE_DEPENDENCY_DELETED
    ERROR_SERVICE_DEPENDENCY_FAIL: 13,
    ERROR_SERVICE_DISABLED: 14,
    1069: 15,  # ERROR_SERVICE_LOGON_FAILED
    1072: 16,  # ERROR_SERVICE_MARKED_FOR_DELETE
    1054: 17,  # ERROR_SERVICE_NO_THREAD
    1059: 18,  # ERROR_CIRCULAR_DEPENDENCY
    1078: 19,  # ERROR_DUPLICATE_SERVICE_NAME
    123: 20,  # ERROR_INVALID_NAME
    87: BAD_PARAMETER,  # ERROR_INVALID_PARAMETER
    1057: 22,  # ERROR_INVALID_SERVICE_ACCOUNT
    1073: 23,  # ERROR_SERVICE_EXISTS
}
_START_MODES: Final = {"automatic": "Automatic", "manual": "Manual", "disabled": "Disabled"}


def _stop(backend: Backend, name: str, given: Arguments) -> int:
    backend.stop_service(name)
    return 0


def _start(backend: Backend, name: str, given: Arguments) -> int:
    backend.start_service(name)
    return 0


def _change_start_mode(backend: Backend, name: str, given: Arguments) -> int:
    mode = _START_MODES.get(str(given["StartMode"]).lower())
    if mode is None:
        # The instance is looked up before the parameters are: a missing service stays a fault.
        backend.service_status(name)
        return BAD_PARAMETER
    backend.change_start_mode(name, mode)
    return 0


def _control(act: Callable[[Backend, str, Arguments], int]) -> Callable[[Backend, str, Arguments], Output]:
    def call(backend: Backend, name: str, given: Arguments) -> Output:
        try:
            return act(backend, name, given), {}
        except Win32Error as error:
            if error.code == ERROR_SERVICE_DOES_NOT_EXIST:
                raise no_such_service(name) from error
            return RETURN_CODES.get(error.code, UNKNOWN_FAILURE), {}

    return call


def _properties(backend: Backend, name: str, machine: Machine) -> Mapping[str, Value]:
    try:
        status = backend.service_status(name)
    except Win32Error as error:
        if error.code == ERROR_SERVICE_DOES_NOT_EXIST:
            raise no_such_service(name) from error
        raise
    return {
        "AcceptPause": False,
        "AcceptStop": status.state == "Running",
        "Caption": status.display_name,
        "CheckPoint": 0,
        "CreationClassName": "Win32_Service",
        "DelayedAutoStart": False,
        "Description": None,
        "DesktopInteract": False,
        "DisplayName": status.display_name,
        "ErrorControl": "Normal",
        "ExitCode": status.exit_code,
        "InstallDate": None,
        "Name": status.name,
        "PathName": rf"C:\Windows\system32\{status.name}.exe",
        "ProcessId": status.process_id,
        "ServiceSpecificExitCode": 0,
        "ServiceType": "Own Process",
        "Started": status.state not in ("Stopped", "Start Pending"),
        "StartMode": status.start_mode,
        "StartName": "LocalSystem",
        "State": status.state,
        "Status": "OK",
        "SystemCreationClassName": "Win32_ComputerSystem",
        "SystemName": machine.name,
        "TagId": 0,
        "WaitHint": 0,
    }


def extended_status(name: str) -> str:
    """What the CIMWin32 provider says of a service that does not exist."""
    instance = escape(clean(f'Win32_Service.Name="{name}"'))
    return (
        f'<e:__ExtendedStatus xmlns:xsi="{SCHEMA_INSTANCE}" xmlns:e="{EXTENDED_STATUS}" '
        f'xmlns:cim="{CIM_COMMON}" xsi:type="e:__ExtendedStatus_Type">'
        '<e:Description xsi:nil="true" xsi:type="cim:cimString"/>'
        '<e:Operation xsi:type="cim:cimString">GetObject</e:Operation>'
        f'<e:ParameterInfo xsi:type="cim:cimString">{instance}</e:ParameterInfo>'
        '<e:ProviderName xsi:type="cim:cimString">CIMWin32</e:ProviderName>'
        '<e:StatusCode xsi:nil="true" xsi:type="cim:cimUnsignedInt"/></e:__ExtendedStatus>'
    )


def no_such_service(name: str) -> Fault:
    """Build the fault of an instance that does not exist."""
    return Fault(
        RESOURCE_NOT_FOUND,
        "a:DestinationUnreachable",
        "The service cannot find the resource identified by the resource URI and selectors.",
        detail="InvalidResourceURI",
        provider=True,
        extended=extended_status(name),
    )


WIN32_SERVICE: Final = CimClass(
    "Win32_Service",
    {
        "stopservice": Method({}, _control(_stop)),
        "startservice": Method({}, _control(_start)),
        "changestartmode": Method({"StartMode": str}, _control(_change_start_mode)),
    },
    key="Name",
    properties=_properties,
)
