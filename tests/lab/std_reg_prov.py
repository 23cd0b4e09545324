# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""StdRegProv: the registry through WMI.

Its codes: 0 done; 1 the value of a Get is missing; 2147749893 (0x80041005, WBEM_E_TYPE_MISMATCH) the value
is not of the type asked for; anything else is the Win32 error itself: 2 the key is missing (for
DeleteValue the value too), 5 access denied, 6 a bad handle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lab.backend import ERROR_FILE_NOT_FOUND, REG_DWORD, REG_SZ, Backend, RegistryValue, Win32Error
from lab.cim_class import Arguments, CimClass, Method, Output, Parameters

VALUE_MISSING: Final = 1
TYPE_MISMATCH: Final = 2147749893


def _reading(kind: int, output: str) -> Callable[[Backend, str, Arguments], Output]:
    """A Get of values of one type, which answers by one output parameter."""

    def call(backend: Backend, key: str, given: Arguments) -> Output:
        try:
            found = backend.read_value(*_place(given))
        except Win32Error as error:
            # Both are error 2; only the call that failed tells the value from its key.
            no_value = error.code == ERROR_FILE_NOT_FOUND and error.call == "RegQueryValueEx"
            return VALUE_MISSING if no_value else error.code, {output: None}
        if found.type != kind:
            return TYPE_MISMATCH, {output: None}
        return 0, {output: found.data}

    return call


def _set_string(backend: Backend, given: Arguments) -> None:
    backend.write_value(*_place(given), RegistryValue(REG_SZ, str(given["sValue"])))


def _set_dword(backend: Backend, given: Arguments) -> None:
    backend.write_value(*_place(given), RegistryValue(REG_DWORD, int(given["uValue"])))


def _delete_value(backend: Backend, given: Arguments) -> None:
    backend.delete_value(*_place(given))


def _create_key(backend: Backend, given: Arguments) -> None:
    backend.create_key(int(given["hDefKey"]), str(given["sSubKeyName"]))


def _place(given: Arguments) -> tuple[int, str, str]:
    return int(given["hDefKey"]), str(given["sSubKeyName"]), str(given["sValueName"])


def _writing(change: Callable[[Backend, Arguments], None]) -> Callable[[Backend, str, Arguments], Output]:
    def call(backend: Backend, key: str, given: Arguments) -> Output:
        try:
            change(backend, given)
        except Win32Error as error:
            return error.code, {}
        return 0, {}

    return call


_KEY: Final[Parameters] = {"hDefKey": int, "sSubKeyName": str}
_VALUE: Final[Parameters] = {**_KEY, "sValueName": str}

STD_REG_PROV: Final = CimClass(
    "StdRegProv",
    {
        "getdwordvalue": Method(_VALUE, _reading(REG_DWORD, "uValue")),
        "getstringvalue": Method(_VALUE, _reading(REG_SZ, "sValue")),
        "setstringvalue": Method({**_VALUE, "sValue": str}, _writing(_set_string)),
        "setdwordvalue": Method({**_VALUE, "uValue": int}, _writing(_set_dword)),
        "deletevalue": Method(_VALUE, _writing(_delete_value)),
        "createkey": Method(_KEY, _writing(_create_key)),
    },
)
