# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wine backend: a registry and a service control manager that are Win32's own, in Wine.

Each host is a Wine prefix in the folder that the caller gives, with its own wineserver, and knows nothing
of other hosts. One Windows program in it, helper.exe, makes the calls: fast, because it is there already,
and with real error codes. It also keeps the host up: Wine ends a prefix's services when the last program
leaves, so when this process dies, however it dies, the host goes down by itself.

SMTPSVC is a Windows service too, started and stopped by the service control manager (windows/smtpsvc.c).
Its port is of this machine, not of the prefix, so the lab chooses it and puts it into the registry.

Wine's service control manager records what a service depends on and does nothing about it. So that is done
here, before the calls, as Windows does it: what others need does not stop (1051), and what a service needs
is started before it.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lab.backend import (
    ERROR_DEPENDENT_SERVICES_RUNNING,
    ERROR_INTERNAL_ERROR,
    ERROR_SERVICE_DEPENDENCY_FAIL,
    HKEY_LOCAL_MACHINE,
    REG_DWORD,
    REG_SZ,
    RPC_S_SERVER_UNAVAILABLE,
    SMTPSVC,
    SMTPSVC_DISPLAY_NAME,
    SMTPSVC_PARAMETERS,
    RegistryValue,
    ServiceStatus,
    Win32Error,
    dependent_names,
)
from lab.ports import free_port, release_port
from lab.windows import prefix as prefixes
from lab.windows import programs as found
from lab.windows.helper import Helper
from lab.windows.programs import WineError, missing

__all__ = ["WineBackend", "WineError", "missing"]

SERVICES_KEY: Final = r"SYSTEM\CurrentControlSet\Services"
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
_START_ATTEMPTS: Final = 3


class WineBackend:
    """A Windows host in Wine. Implements `lab.backend.Backend`."""

    def __init__(self, folder: Path, *, smtpsvc: bool = True, dependents: int = 0) -> None:
        """Boot a host in `folder`, which exists and stays the caller's."""
        self._depends_on_smtpsvc = frozenset(map(str.lower, dependent_names(dependents if smtpsvc else 0)))
        self._programs = found.find()
        self._prefix = folder.resolve() / "prefix"
        self._smtp_port = 0
        self._cleanup = contextlib.ExitStack()
        try:
            self._boot()
            if smtpsvc:
                self._install_smtpsvc()
                for name in dependent_names(dependents):
                    self._install(name, name, prefixes.IDLE, SMTPSVC)
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
        for _attempt in range(_START_ATTEMPTS):
            self._helper = Helper(
                [self._programs.wine, f"C:\\{prefixes.PROGRAM_FOLDER}\\{prefixes.HELPER}"],
                found.environment(self._programs, self._prefix),
                log=self._prefix / "helper.log",
            )
            if self._has_service_manager():
                break
            self._helper.close()
            prefixes.end_processes(self._programs, self._prefix)
        else:
            raise WineError("Wine's service control manager does not come")
        self._cleanup.callback(self._helper.close)

    def _has_service_manager(self) -> bool:
        # It is a process of Wine's, and may end in its first milliseconds as any (see `start_service`).
        try:
            self.service_status(SMTPSVC)
        except Win32Error as error:
            return error.code != RPC_S_SERVER_UNAVAILABLE
        return True

    def _install_smtpsvc(self) -> None:
        self._smtp_port = free_port()
        self._cleanup.callback(release_port, self._smtp_port)
        self.create_key(HKEY_LOCAL_MACHINE, LAB_KEY)
        self.write_value(HKEY_LOCAL_MACHINE, LAB_KEY, PORT, RegistryValue(REG_DWORD, self._smtp_port))
        self.create_key(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS)
        self._install(SMTPSVC, SMTPSVC_DISPLAY_NAME, prefixes.SMTPSVC, "")

    def _install(self, name: str, display_name: str, program: str, antecedent: str) -> None:
        command = f"C:\\{prefixes.PROGRAM_FOLDER}\\{program}"
        self._helper.ask("install", name, display_name, command, antecedent)
        self._cleanup.callback(self._stop_in_order, name)
        self.start_service(name)
        self._wait_for(name, "Running", _START_SECONDS)

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
        true_name, display_name, state, start_mode, process_id, exit_code = self._helper.ask("status", name)
        return ServiceStatus(
            _string(bytes.fromhex(true_name[1:])),
            _string(bytes.fromhex(display_name[1:])),
            _STATES[int(state)],
            _START_MODES[int(start_mode)],
            int(process_id),
            # Wine says of a service that was never started what Windows says of it: ERROR_SERVICE_NEVER_STARTED.
            int(exit_code),
        )

    def stop_service(self, name: str) -> None:
        """See `Backend`."""
        if any(self.service_status(one).state != "Stopped" for one in self.dependents(name)):
            raise Win32Error(ERROR_DEPENDENT_SERVICES_RUNNING, "ControlService")
        self._helper.ask("stop", name)

    def start_service(self, name: str) -> None:
        """See `Backend`."""
        if name.lower() in self._depends_on_smtpsvc and self.service_status(name).state == "Stopped":
            self._start_antecedent(self.service_status(SMTPSVC))
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                self._helper.ask("start", name)
            except Win32Error as error:
                # Wine's word where the new process ended in its first milliseconds, which once in thousands of starts
                # it does: nothing was begun, and the service is stopped as it was.
                if error.code != ERROR_INTERNAL_ERROR or attempt == _START_ATTEMPTS:
                    raise
            else:
                return

    def _start_antecedent(self, antecedent: ServiceStatus) -> None:
        disabled = antecedent.state == "Stopped" and antecedent.start_mode == "Disabled"
        if antecedent.state == "Stop Pending" or disabled:
            raise Win32Error(ERROR_SERVICE_DEPENDENCY_FAIL, "StartService")
        if antecedent.state == "Stopped":
            self.start_service(antecedent.name)
            self._wait_for(antecedent.name, "Running", _START_SECONDS)

    def dependents(self, name: str) -> Sequence[str]:
        """See `Backend`."""
        return sorted(_string(bytes.fromhex(word[1:])) for word in self._helper.ask("dependents", name))

    def change_start_mode(self, name: str, mode: str) -> None:
        """See `Backend`."""
        self._helper.ask("mode", name, _CHANGE_MODES.get(mode, _NO_START_MODE))
        if name.lower() in self._depends_on_smtpsvc:
            # Wine's ChangeServiceConfig takes it away.
            antecedents = RegistryValue(REG_MULTI_SZ, f"{SMTPSVC}\0")
            self.write_value(HKEY_LOCAL_MACHINE, rf"{SERVICES_KEY}\{name}", "DependOnService", antecedents)

    # -- the lab's own --

    @property
    def smtp_port(self) -> int:
        """See `Backend`."""
        return self._smtp_port

    def close(self) -> None:
        """See `Backend`; what else is in the folder stays."""
        self._cleanup.close()

    def _stop_in_order(self, name: str) -> None:
        """Let a service close its sockets; where that fails, its process is ended with the rest."""
        with contextlib.suppress(Win32Error, WineError):
            self.stop_service(name)
            self._wait_for(name, "Stopped", _STOP_SECONDS)

    def _wait_for(self, name: str, wanted: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (state := self.service_status(name).state) != wanted:
            if time.monotonic() > deadline:
                raise WineError(f"{name} is {state}, and not {wanted} after {seconds:g} s")
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
