# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of HKEY_LOCAL_MACHINE, by the WMI class StdRegProv."""

from __future__ import annotations

from ansible_collections.mailops.tarpit.plugins.plugin_utils._wsman import (
    CimClass,
    CimError,
    CimSession,
    Fields,
)

STD_REG_PROV = CimClass("root/default", "StdRegProv")
HKEY_LOCAL_MACHINE = 0x80000002
DWORD_MAX = 0xFFFFFFFF

DONE = 0
VALUE_MISSING = 1  # by a Get only
NOT_FOUND = 2  # the key; for DeleteValue also the value
WRONG_TYPE = 0x80041005  # WBEM_E_TYPE_MISMATCH: the value has another type than was asked for

MEANINGS = {
    VALUE_MISSING: "the value does not exist",
    NOT_FOUND: "the key or value does not exist",
    5: "access denied",
    6: "the key's name or handle is not valid",
    WRONG_TYPE: "the value has another type",
}


class RegistryError(Exception):
    """Windows refused to read or write a value: `code` is StdRegProv's ReturnValue."""

    def __init__(self, code: int, tried: str, path: str) -> None:
        meaning = MEANINGS.get(code, "an error that StdRegProv does not document")
        super().__init__(f"Windows refused to {tried} HKLM\\{path}: {meaning} (StdRegProv returned {code})")
        self.code = code


class WrongTypeError(RegistryError):
    """The value is there, with another type."""


class Registry:
    """Reads and writes values below HKEY_LOCAL_MACHINE of one host."""

    def __init__(self, session: CimSession) -> None:
        self._session = session

    def read_dword(self, key: str, name: str) -> int | None:
        """The value, or None where the value or its key is missing. Raise WrongTypeError for no DWORD."""
        fields = self._read("GetDWORDValue", key, name)
        if fields is None:
            return None
        value = fields.get("uValue") or ""
        if not value.isdigit():
            raise CimError(f"the answer to GetDWORDValue for HKLM\\{key}\\{name} has no number in it")
        return int(value)

    def read_string(self, key: str, name: str) -> str | None:
        """The text of a REG_SZ, or None where the value or its key is missing. Raise WrongTypeError for others."""
        fields = self._read("GetStringValue", key, name)
        return None if fields is None else fields.get("sValue") or ""

    def write_dword(self, key: str, name: str, value: int) -> None:
        """Set the value of an existing key, whatever type it had, and read it back.

        Read back, because a server was seen to accept a number that it did not understand and to store 0.
        """
        if not 0 <= value <= DWORD_MAX:
            raise ValueError(f"{value} does not fit into a DWORD")
        path = f"{key}\\{name}"
        self._demand_done("SetDWORDValue", "set", key, name, uValue=value)
        found = self.read_dword(key, name)
        if found != value:
            raise CimError(f"Windows accepted {value} for HKLM\\{path}, but has {found} there now")

    def note_dword(self, key: str, name: str, value: int) -> None:
        """Set a value of our own bookkeeping: as `write_dword`, without reading it back."""
        self._demand_done("SetDWORDValue", "set", key, name, uValue=value)

    def note_string(self, key: str, name: str, value: str) -> None:
        """Set a text of our own bookkeeping."""
        self._demand_done("SetStringValue", "set", key, name, sValue=value)

    def delete_value(self, key: str, name: str) -> None:
        """Remove the value; done where it is missing already."""
        self._demand_done("DeleteValue", "delete", key, name, also=(NOT_FOUND,))

    def create_key(self, key: str) -> None:
        """Create the key with its parents; done where it exists."""
        code = int(self._call("CreateKey", key)["ReturnValue"] or "")
        if code != DONE:
            raise RegistryError(code, "create", key)

    def _read(self, method: str, key: str, name: str) -> Fields | None:
        fields = self._call(method, key, sValueName=name)
        code = int(fields["ReturnValue"] or "")
        if code in (VALUE_MISSING, NOT_FOUND):
            return None
        if code == DONE:
            return fields
        kind = WrongTypeError if code == WRONG_TYPE else RegistryError
        raise kind(code, "read", f"{key}\\{name}")

    def _demand_done(
        self, method: str, tried: str, key: str, name: str, *, also: tuple[int, ...] = (), **parameters: int | str
    ) -> None:
        code = int(self._call(method, key, sValueName=name, **parameters)["ReturnValue"] or "")
        if code != DONE and code not in also:
            raise RegistryError(code, tried, f"{key}\\{name}")

    def _call(self, method: str, key: str, **parameters: str | int) -> Fields:
        return self._session.invoke(
            STD_REG_PROV, method, {"hDefKey": HKEY_LOCAL_MACHINE, "sSubKeyName": key, **parameters}
        )
