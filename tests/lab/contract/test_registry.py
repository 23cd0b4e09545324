# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""StdRegProv over the wire."""

from __future__ import annotations

import pytest
from winrm.exceptions import WSManFaultError

from lab.backend import HKEY_LOCAL_MACHINE, REG_SZ, RegistryValue
from lab.contract.client import PARAMETERS, REGISTRY, WMI, FaultSeen, WinRM
from lab.hosts import LabHost

IN_CIMV2 = f"{WMI}/root/cimv2/StdRegProv"


def test_a_missing_value_is_1_and_null(client: WinRM) -> None:
    assert client.registry("GetDWORDValue") == {"ReturnValue": "1", "uValue": None}


def test_a_missing_key_is_2_and_null(client: WinRM) -> None:
    found = client.registry("GetDWORDValue", sSubKeyName=r"SOFTWARE\no\such\key")
    assert found == {"ReturnValue": "2", "uValue": None}


@pytest.mark.parametrize("seconds", [0, 1, 30, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_what_was_set_is_read(client: WinRM, seconds: int) -> None:
    assert client.registry("SetDWORDValue", uValue=seconds) == {"ReturnValue": "0"}
    assert client.registry("GetDWORDValue") == {"ReturnValue": "0", "uValue": str(seconds)}


def test_both_namespaces_are_one_registry(client: WinRM) -> None:
    assert client.registry("SetDWORDValue", IN_CIMV2, uValue=7) == {"ReturnValue": "0"}
    assert client.registry("GetDWORDValue", REGISTRY)["uValue"] == "7"


def test_names_ignore_case(client: WinRM) -> None:
    client.registry("SetDWORDValue", uValue=9)
    found = client.registry("GetDWORDValue", sSubKeyName=PARAMETERS.lower(), sValueName="TARPITTIME")
    assert found == {"ReturnValue": "0", "uValue": "9"}


def test_the_hive_is_local_machine_unless_said_otherwise(client: WinRM) -> None:
    client.registry("SetDWORDValue", uValue=5)
    found = client.call(REGISTRY, "GetDWORDValue", {"sSubKeyName": PARAMETERS, "sValueName": "TarpitTime"})
    assert found["uValue"] == "5"


def test_setting_a_value_of_a_missing_key_is_2(client: WinRM) -> None:
    assert client.registry("SetDWORDValue", sSubKeyName=r"SOFTWARE\no\such", uValue=1) == {"ReturnValue": "2"}


def test_a_handle_that_is_no_hive_is_6(client: WinRM) -> None:
    assert client.registry("GetDWORDValue", hDefKey=1)["ReturnValue"] == "6"


def test_a_string_is_another_type(client: WinRM, lab_host: LabHost) -> None:
    text = RegistryValue(REG_SZ, "30")
    lab_host.backend.write_value(HKEY_LOCAL_MACHINE, PARAMETERS, "TarpitTime", text)
    assert client.registry("GetDWORDValue") == {"ReturnValue": "2147749893", "uValue": None}


def test_setting_a_number_replaces_a_string(client: WinRM, lab_host: LabHost) -> None:
    text = RegistryValue(REG_SZ, "30")
    lab_host.backend.write_value(HKEY_LOCAL_MACHINE, PARAMETERS, "TarpitTime", text)
    client.registry("SetDWORDValue", uValue=30)
    assert client.registry("GetDWORDValue") == {"ReturnValue": "0", "uValue": "30"}


def test_a_deleted_value_is_gone_and_cannot_be_deleted_again(client: WinRM) -> None:
    client.registry("SetDWORDValue", uValue=1)
    assert client.registry("DeleteValue") == {"ReturnValue": "0"}
    assert client.registry("GetDWORDValue")["ReturnValue"] == "1"
    assert client.registry("DeleteValue") == {"ReturnValue": "2"}


def test_deleting_a_value_of_a_missing_key_is_2(client: WinRM) -> None:
    assert client.registry("DeleteValue", sSubKeyName=r"SOFTWARE\no\such") == {"ReturnValue": "2"}


def test_a_key_is_created_with_its_parents_and_may_be_there(client: WinRM) -> None:
    key = r"SOFTWARE\lab contract\a\b"
    for _n in range(2):
        given = {"hDefKey": HKEY_LOCAL_MACHINE, "sSubKeyName": key}
        assert client.call(REGISTRY, "CreateKey", given) == {"ReturnValue": "0"}
    name = "PendingRestart"
    written = client.registry("SetDWORDValue", sSubKeyName=key, sValueName=name, uValue=2)
    assert written == {"ReturnValue": "0"}
    assert client.registry("GetDWORDValue", sSubKeyName=key, sValueName=name)["uValue"] == "2"
    assert client.registry("DeleteValue", sSubKeyName=key, sValueName=name) == {"ReturnValue": "0"}


@pytest.mark.parametrize("text", ["-1", " 5", "5 ", "+5", "0x5", "", "4294967296", "1e3", "9" * 5000])
def test_a_number_that_is_no_uint32_is_refused_and_nothing_is_written(client: WinRM, text: str) -> None:
    with pytest.raises(WSManFaultError) as raised:
        client.registry("SetDWORDValue", uValue=text)
    assert FaultSeen.of(raised.value) == FaultSeen(2150858836, "InvalidParameter", None)
    assert client.registry("GetDWORDValue")["ReturnValue"] == "1"


def test_a_missing_number_is_refused(client: WinRM) -> None:
    with pytest.raises(WSManFaultError) as raised:
        client.registry("SetDWORDValue")
    assert FaultSeen.of(raised.value) == FaultSeen(2150858839, "InvalidParameter", None)


def test_the_journal_tells_what_was_asked(client: WinRM, lab_host: LabHost) -> None:
    client.registry("SetDWORDValue", uValue=1)
    client.registry("GetDWORDValue")
    assert lab_host.traffic.journal == ["SetDWORDValue TarpitTime", "GetDWORDValue TarpitTime"]


@pytest.mark.parametrize("text", ["", "POP3SVC", "A/B & <C>", "grün"])
def test_a_string_that_was_set_is_read(client: WinRM, text: str) -> None:
    place = {"sValueName": "Dependents"}
    assert client.registry("SetStringValue", **place, sValue=text) == {"ReturnValue": "0"}
    assert client.registry("GetStringValue", **place)["sValue"] in (text, None if text == "" else text)
    assert client.registry("DeleteValue", **place) == {"ReturnValue": "0"}
    assert client.registry("GetStringValue", **place) == {"ReturnValue": "1", "sValue": None}


def test_a_number_is_no_string(client: WinRM) -> None:
    client.registry("SetDWORDValue", uValue=30)
    assert client.registry("GetStringValue")["ReturnValue"] == "2147749893"
