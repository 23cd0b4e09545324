# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Win32_OperatingSystem: which Windows does the host say it is?

The class is a singleton of WMI (its qualifiers in Microsoft's reference), so Get works without selectors,
with the key too, and Enumerate gives the one instance. Which Windows a lab host plays is free, and nothing
else of the host depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from lab.backend import Backend
from lab.cim_class import CimClass, Value
from lab.machine import Machine, OperatingSystem
from lab.wsman import RESOURCE_NOT_FOUND, Fault


def _name(system: OperatingSystem) -> str:
    return rf"{system.caption}|C:\Windows|\Device\Harddisk0\Partition2"


def _keys(backend: Backend, machine: Machine) -> Sequence[str]:
    return [_name(machine.system)]


def _properties(backend: Backend, key: str, machine: Machine) -> Mapping[str, Value]:
    system = machine.system
    name = _name(system)
    if key and key.lower() != name.lower():
        reason = "The service cannot find the resource identified by the resource URI and selectors."
        detail = "InvalidResourceURI"
        raise Fault(RESOURCE_NOT_FOUND, "a:DestinationUnreachable", reason, detail=detail, provider=True)
    return {
        "BuildNumber": system.build_number,
        "BuildType": "Multiprocessor Free",
        "Caption": system.caption,
        "CreationClassName": "Win32_OperatingSystem",
        "CSCreationClassName": "Win32_ComputerSystem",
        "CSDVersion": f"Service Pack {system.service_pack}" if system.service_pack else None,
        "CSName": machine.name,
        "Description": "",
        "Manufacturer": "Microsoft Corporation",
        "Name": name,
        "OSArchitecture": "64-bit",
        "OSType": 18,
        "OtherTypeDescription": system.other_type,
        # 3: a server that is no domain controller.
        "ProductType": 3,
        "ServicePackMajorVersion": system.service_pack,
        "ServicePackMinorVersion": 0,
        "Status": "OK",
        "SystemDirectory": r"C:\Windows\system32",
        "Version": system.version,
        "WindowsDirectory": r"C:\Windows",
    }


WIN32_OPERATING_SYSTEM: Final = CimClass(
    "Win32_OperatingSystem", {}, key="Name", properties=_properties, keys=_keys, singleton=True
)
