# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands behind the lab's WinRM: a registry and a service control manager.

Two backends implement `Backend`: `memory` (pure Python, anywhere) and `wine` (a real Win32 registry and
service control manager). Both speak Win32: a call that Windows would refuse raises `Win32Error` with
Windows' own error code and the name of the call that failed, because StdRegProv and Win32_Service tell
some cases apart only by that ("the key is missing" and "the value is missing" are both error 2, from
RegOpenKeyEx and from RegQueryValueEx). Turning these into WMI's return codes is the job of `cim.py`,
once for both backends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

HKEY_LOCAL_MACHINE: Final = 0x80000002
REG_SZ: Final = 1
REG_DWORD: Final = 4

SMTPSVC: Final = "SMTPSVC"
SMTPSVC_DISPLAY_NAME: Final = "Simple Mail Transfer Protocol (SMTP)"
SMTPSVC_PARAMETERS: Final = r"SYSTEM\CurrentControlSet\Services\SMTPSVC\Parameters"

# The Win32 error codes that the backends raise (winerror.h).
ERROR_FILE_NOT_FOUND: Final = 2
ERROR_ACCESS_DENIED: Final = 5
ERROR_INVALID_HANDLE: Final = 6
ERROR_DEPENDENT_SERVICES_RUNNING: Final = 1051
ERROR_SERVICE_REQUEST_TIMEOUT: Final = 1053
ERROR_SERVICE_ALREADY_RUNNING: Final = 1056
ERROR_SERVICE_DISABLED: Final = 1058
ERROR_SERVICE_DOES_NOT_EXIST: Final = 1060
ERROR_SERVICE_CANNOT_ACCEPT_CTRL: Final = 1061
ERROR_SERVICE_NOT_ACTIVE: Final = 1062
ERROR_SERVICE_DEPENDENCY_FAIL: Final = 1068
ERROR_INTERNAL_ERROR: Final = 1359
RPC_S_SERVER_UNAVAILABLE: Final = 1722


def dependent_names(count: int) -> list[str]:
    """The names of a host's services that depend on SMTPSVC."""
    return [f"LabDependent{number}" for number in range(1, count + 1)]


class Win32Error(Exception):
    """A Win32 call failed: `code` is Windows' error number, `call` the function that returned it."""

    def __init__(self, code: int, call: str) -> None:
        super().__init__(f"{call} failed with Windows error {code}")
        self.code = code
        self.call = call


@dataclass(frozen=True)
class RegistryValue:
    """One registry value: its REG_* type and its data (int for REG_DWORD, str for REG_SZ)."""

    type: int
    data: int | str


@dataclass(frozen=True)
class ServiceStatus:
    """What the service control manager says of a service.

    `state` is Win32_Service's word: Stopped, Start Pending, Stop Pending, Running, Paused.
    `start_mode` is Win32_Service's word: Auto, Manual, Disabled. `process_id` is 0 unless running.
    `exit_code` tells why a service that was started is not running.
    """

    name: str
    display_name: str
    state: str
    start_mode: str
    process_id: int
    exit_code: int = 0


class Backend(Protocol):
    """One Windows host. Calls block; callers come from several threads, the backend does the locking."""

    # -- registry: `hive` is a predefined HKEY number, `key` a path with backslashes, names ignore case --

    def read_value(self, hive: int, key: str, name: str) -> RegistryValue:
        """Raise Win32Error 2 by RegOpenKeyEx (no key) or RegQueryValueEx (no value)."""

    def write_value(self, hive: int, key: str, name: str, value: RegistryValue) -> None:
        """Set a value of an existing key; Win32Error 2 by RegOpenKeyEx where the key is missing."""

    def delete_value(self, hive: int, key: str, name: str) -> None:
        """Win32Error 2 by RegOpenKeyEx (no key) or RegDeleteValue (no value)."""

    def create_key(self, hive: int, key: str) -> None:
        """Create a key with all of its parents; no error where it exists (RegCreateKeyEx)."""

    # -- services: raise Win32Error 1060 by OpenService where there is no such service --

    def service_status(self, name: str) -> ServiceStatus:
        """Ask the service control manager now (QueryServiceStatusEx, QueryServiceConfig)."""

    def stop_service(self, name: str) -> None:
        """Ask it to stop and return once that was accepted (ControlService).

        1062 where it does not run, 1051 where a service that depends on it does.
        """

    def start_service(self, name: str) -> None:
        """Ask it to start, and return once that was accepted (StartService): 1056 running, 1058 disabled.

        What it depends on is started before; 1068 where that cannot be.
        """

    def change_start_mode(self, name: str, mode: str) -> None:
        """Set Automatic, Manual or Disabled (ChangeServiceConfig)."""

    def dependents(self, name: str) -> Sequence[str]:
        """The services that were installed to depend on it directly, whatever their state, sorted by name."""

    # -- the lab's own --

    @property
    def smtp_port(self) -> int:
        """The loopback port of the lab's SMTPSVC, the same across restarts; 0 on a host without SMTPSVC.

        SMTPSVC reads TarpitTime of HKLM\\SYSTEM\\CurrentControlSet\\Services\\SMTPSVC\\Parameters when it
        starts and delays each of its 5xx replies by that many seconds until it starts again.
        """

    def close(self) -> None:
        """End the host with all of its processes, sockets and files."""
