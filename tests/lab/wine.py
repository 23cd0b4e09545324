# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wine backend: a registry and a service control manager that are Win32's own, in Wine.

Each host is a Wine prefix in the folder that the caller gives, with its own wineserver, and knows nothing
of other hosts. One Windows program in it, helper.exe, makes the calls: fast, because it is there already,
and with real error codes. It also keeps the host up: Wine ends a prefix's services when the last program
leaves, so when this process dies, however it dies, the host goes down by itself.

SMTPSVC is a Windows service too, started and stopped by the service control manager (windows/smtpsvc.c).
Its port is of this machine, not of the prefix, so the lab chooses it and puts it into the registry.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Final

from lab.backend import (
    HKEY_LOCAL_MACHINE,
    REG_DWORD,
    REG_SZ,
    RegistryValue,
    ServiceStatus,
    Win32Error,
)
from lab.ports import free_port, release_port
from lab.windows import prefix as prefixes
from lab.windows import programs as found
from lab.windows.helper import Helper
from lab.windows.programs import WineError, missing

__all__ = ["WineBackend", "WineError", "missing"]

SMTPSVC: Final = "SMTPSVC"
SMTPSVC_DISPLAY_NAME: Final = "Simple Mail Transfer Protocol (SMTP)"
SMTPSVC_PARAMETERS: Final = r"SYSTEM\CurrentControlSet\Services\SMTPSVC\Parameters"
# Read by windows/smtpsvc.c.
LAB_KEY: Final = r"SOFTWARE\Lab\SMTPSVC"
PORT: Final = "Port"

REG_EXPAND_SZ: Final = 2
REG_MULTI_SZ: Final = 7
REG_QWORD: Final = 11
_TEXTS: Final = frozenset({REG_SZ, REG_EXPAND_SZ, REG_MULTI_SZ})
_NUMBERS: Final = {REG_DWORD: 4, REG_QWORD: 8}

# winsvc.h's numbers and Win32_Service's words.
_STATES: Final = {1: "Stopped", 2: "Start Pending", 3: "Stop Pending", 4: "Running", 7: "Paused"}
_START_MODES: Final = {0: "Boot", 1: "System", 2: "Auto", 3: "Manual", 4: "Disabled"}
_CHANGE_MODES: Final = {"Automatic": 2, "Manual": 3, "Disabled": 4}
# No start type of Windows: its own refusal is the answer.
_NO_START_MODE: Final = 99

_STOP_SECONDS: Final = 10.0
_START_SECONDS: Final = 60.0


class WineBackend:
    """A Windows host in Wine. Implements `lab.backend.Backend`."""

    def __init__(self, folder: Path, *, smtpsvc: bool = True) -> None:
        """Boot a host in `folder`, which exists and stays the caller's."""
        self._programs = found.find()
        self._prefix = folder.resolve() / "prefix"
        self._smtp_port = 0
        self._cleanup = contextlib.ExitStack()
        try:
            self._boot()
            if smtpsvc:
                self._install_smtpsvc()
        except BaseException:
            self.close()
            raise

    def _boot(self) -> None:
        pristine = prefixes.pristine_prefix(self._programs)
        windows_programs = prefixes.windows_programs(self._programs)
        if self._prefix.exists():
            raise WineError(f"{self._prefix} is there already: a host needs a folder of its own")
        self._cleanup.callback(shutil.rmtree, self._prefix, ignore_errors=True)
        prefixes.copy_prefix(pristine, self._prefix, windows_programs)
        self._cleanup.callback(prefixes.end_processes, self._programs, self._prefix)
        self._helper = Helper(
            [self._programs.wine, f"C:\\{prefixes.PROGRAM_FOLDER}\\{prefixes.HELPER}"],
            found.environment(self._programs, self._prefix),
            log=self._prefix / "helper.log",
        )
        self._cleanup.callback(self._helper.close)

    def _install_smtpsvc(self) -> None:
        self._smtp_port = free_port()
        self._cleanup.callback(release_port, self._smtp_port)
        self.create_key(HKEY_LOCAL_MACHINE, LAB_KEY)
        self.write_value(HKEY_LOCAL_MACHINE, LAB_KEY, PORT, RegistryValue(REG_DWORD, self._smtp_port))
        command = f"C:\\{prefixes.PROGRAM_FOLDER}\\{prefixes.SMTPSVC}"
        self._helper.ask("install", SMTPSVC, SMTPSVC_DISPLAY_NAME, command)
        self.create_key(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS)
        self._cleanup.callback(self._stop_smtpsvc)
        self.start_service(SMTPSVC)
        self._wait_for("Running", _START_SECONDS)

    # -- registry --

    def read_value(self, hive: int, key: str, name: str) -> RegistryValue:
        """See `Backend`. Data that is neither text nor a number is given in hexadecimal."""
        kind, data = self._helper.ask("read", hive, key, name)
        return _registry_value(int(kind), bytes.fromhex(data[1:]))

    def write_value(self, hive: int, key: str, name: str, value: RegistryValue) -> None:
        """See `Backend`."""
        self._helper.ask("write", hive, key, name, value.type, _registry_data(value))

    def delete_value(self, hive: int, key: str, name: str) -> None:
        """See `Backend`."""
        self._helper.ask("delete", hive, key, name)

    def create_key(self, hive: int, key: str) -> None:
        """See `Backend`."""
        self._helper.ask("create", hive, key)

    # -- services --

    def service_status(self, name: str) -> ServiceStatus:
        """See `Backend`."""
        true_name, display_name, state, start_mode, process_id = self._helper.ask("status", name)
        return ServiceStatus(
            _string(bytes.fromhex(true_name[1:])),
            _string(bytes.fromhex(display_name[1:])),
            _STATES[int(state)],
            _START_MODES[int(start_mode)],
            int(process_id),
        )

    def stop_service(self, name: str) -> None:
        """See `Backend`."""
        self._helper.ask("stop", name)

    def start_service(self, name: str) -> None:
        """See `Backend`."""
        self._helper.ask("start", name)

    def change_start_mode(self, name: str, mode: str) -> None:
        """See `Backend`."""
        self._helper.ask("mode", name, _CHANGE_MODES.get(mode, _NO_START_MODE))

    # -- the lab's own --

    @property
    def smtp_port(self) -> int:
        """See `Backend`."""
        return self._smtp_port

    def close(self) -> None:
        """See `Backend`; what else is in the folder stays."""
        self._cleanup.close()

    def _stop_smtpsvc(self) -> None:
        """Let it close its sockets in order; where that fails, its process is ended with the rest."""
        with contextlib.suppress(Win32Error, WineError):
            self.stop_service(SMTPSVC)
            self._wait_for("Stopped", _STOP_SECONDS)

    def _wait_for(self, wanted: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (state := self.service_status(SMTPSVC).state) != wanted:
            if time.monotonic() > deadline:
                raise WineError(f"{SMTPSVC} is {state}, and not {wanted} after {seconds:g} s")
            time.sleep(0.005)


def _registry_value(kind: int, data: bytes) -> RegistryValue:
    if kind in _NUMBERS:
        return RegistryValue(kind, int.from_bytes(data, "little"))
    return RegistryValue(kind, _string(data) if kind in _TEXTS else data.hex())


def _registry_data(value: RegistryValue) -> bytes:
    if isinstance(value.data, int):
        return value.data.to_bytes(_NUMBERS.get(value.type, 4), "little")
    if value.type in _TEXTS:
        return f"{value.data}\0".encode("utf-16-le", "surrogatepass")
    return bytes.fromhex(value.data)


def _string(data: bytes) -> str:
    # Half a character at the end, and any number of NULs, are in Windows' registries too.
    return data[: len(data) // 2 * 2].decode("utf-16-le", "surrogatepass").rstrip("\0")
