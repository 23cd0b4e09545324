# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory backend: a registry and a service control manager in pure Python.

It gives Windows' error codes from Windows' calls (see backend.py), keeps names as they were written and
finds them in any letter case. A service control is accepted first and carried out later, by a thread of
the service's own, so that a client sees Stop Pending and Start Pending as it may on Windows. Each start
gets a process id that was never there before. Services that depend on SMTPSVC do nothing but run.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from lab.backend import (
    ERROR_DEPENDENT_SERVICES_RUNNING,
    ERROR_FILE_NOT_FOUND,
    ERROR_INVALID_HANDLE,
    ERROR_SERVICE_ALREADY_RUNNING,
    ERROR_SERVICE_CANNOT_ACCEPT_CTRL,
    ERROR_SERVICE_DEPENDENCY_FAIL,
    ERROR_SERVICE_DISABLED,
    ERROR_SERVICE_DOES_NOT_EXIST,
    ERROR_SERVICE_NOT_ACTIVE,
    HKEY_LOCAL_MACHINE,
    REG_DWORD,
    SMTPSVC,
    SMTPSVC_DISPLAY_NAME,
    SMTPSVC_PARAMETERS,
    RegistryValue,
    ServiceStatus,
    Win32Error,
    dependent_names,
)
from lab.ports import free_port, release_port
from lab.smtpsvc import SmtpService

log = logging.getLogger(__name__)

TARPIT_TIME: Final = "TarpitTime"

ERROR_BAD_PATHNAME: Final = 161
ERROR_INVALID_PARAMETER: Final = 87
WSAEADDRINUSE: Final = 10048

_SERVICES_KEY: Final = r"SYSTEM\CurrentControlSet\Services"
_SOFTWARE_KEY: Final = "SOFTWARE"
# HKEY_CLASSES_ROOT to HKEY_USERS, HKEY_CURRENT_CONFIG: what RegOpenKeyEx takes without having opened it.
_HIVES: Final = frozenset({0x80000000, 0x80000001, HKEY_LOCAL_MACHINE, 0x80000003, 0x80000005})
# ChangeServiceConfig speaks of Automatic, Win32_Service of Auto.
_MODES: Final = {"Automatic": "Auto", "Manual": "Manual", "Disabled": "Disabled"}

_Values = dict[str, tuple[str, RegistryValue]]


class _Registry:
    """Keys by hive and lower-case path; each key's values by lower-case name."""

    def __init__(self) -> None:
        self._keys: dict[tuple[int, str], _Values] = {(hive, ""): {} for hive in _HIVES}
        self._lock = threading.Lock()

    def read(self, hive: int, key: str, name: str) -> RegistryValue:
        with self._lock:
            found = self._open(hive, key).get(name.lower())
        if found is None:
            raise Win32Error(ERROR_FILE_NOT_FOUND, "RegQueryValueEx")
        return found[1]

    def write(self, hive: int, key: str, name: str, value: RegistryValue) -> None:
        with self._lock:
            values = self._open(hive, key)
            # Windows keeps the spelling that a value was first written with.
            spelling = values.get(name.lower(), (name, value))[0]
            values[name.lower()] = (spelling, value)

    def delete(self, hive: int, key: str, name: str) -> None:
        with self._lock:
            if self._open(hive, key).pop(name.lower(), None) is None:
                raise Win32Error(ERROR_FILE_NOT_FOUND, "RegDeleteValue")

    def create(self, hive: int, key: str) -> None:
        path = _path(hive, key, "RegCreateKeyEx")
        with self._lock:
            parts = path.split("\\")
            for depth in range(1, len(parts) + 1):
                self._keys.setdefault((hive, "\\".join(parts[:depth])), {})

    def _open(self, hive: int, key: str) -> _Values:
        path = _path(hive, key, "RegOpenKeyEx")
        try:
            return self._keys[hive, path]
        except KeyError:
            raise Win32Error(ERROR_FILE_NOT_FOUND, "RegOpenKeyEx") from None


def _path(hive: int, key: str, call: str) -> str:
    if hive not in _HIVES:
        raise Win32Error(ERROR_INVALID_HANDLE, call)
    if key.startswith("\\"):
        raise Win32Error(ERROR_BAD_PATHNAME, call)
    return key.rstrip("\\").lower()


@dataclass
class _Service:
    """One entry of the service control manager's table."""

    name: str
    display_name: str
    start_mode: str = "Auto"
    state: str = "Stopped"
    process_id: int = 0
    exit_code: int = 0
    depends_on: tuple[str, ...] = ()
    program: SmtpService | None = None
    # Carries out the control that was accepted last; at most one at a time.
    worker: threading.Thread | None = None


def _cannot_start(service: _Service) -> bool:
    return service.state == "Stopped" and service.start_mode == "Disabled"


class MemoryBackend:
    """A Windows host of plain objects. Implements `lab.backend.Backend`."""

    def __init__(self, *, smtpsvc: bool = True, dependents: int = 0) -> None:
        self._registry = _Registry()
        for key in (_SOFTWARE_KEY, _SERVICES_KEY):
            self._registry.create(HKEY_LOCAL_MACHINE, key)
        self._lock = threading.Lock()
        self._services: dict[str, _Service] = {}
        # Windows' process ids are multiples of four.
        self._process_ids = itertools.count(1204, 4)
        self._smtp_port = 0
        if smtpsvc:
            self._smtp_port = free_port()
            self._registry.create(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS)
            services = [_Service(SMTPSVC, SMTPSVC_DISPLAY_NAME)]
            services += [_Service(name, name, depends_on=(SMTPSVC,)) for name in dependent_names(dependents)]
            for service in services:
                self._services[service.name.lower()] = service
                self.start_service(service.name)
                self._wait(service)

    # -- registry --

    def read_value(self, hive: int, key: str, name: str) -> RegistryValue:
        """See `Backend`."""
        return self._registry.read(hive, key, name)

    def write_value(self, hive: int, key: str, name: str, value: RegistryValue) -> None:
        """See `Backend`."""
        self._registry.write(hive, key, name, value)

    def delete_value(self, hive: int, key: str, name: str) -> None:
        """See `Backend`."""
        self._registry.delete(hive, key, name)

    def create_key(self, hive: int, key: str) -> None:
        """See `Backend`."""
        self._registry.create(hive, key)

    # -- services --

    def service_status(self, name: str) -> ServiceStatus:
        """See `Backend`."""
        with self._lock:
            service = self._find(name)
            return ServiceStatus(
                service.name,
                service.display_name,
                service.state,
                service.start_mode,
                service.process_id,
                service.exit_code,
            )

    def stop_service(self, name: str) -> None:
        """See `Backend`."""
        with self._lock:
            service = self._find(name)
            if service.state == "Stopped":
                raise Win32Error(ERROR_SERVICE_NOT_ACTIVE, "ControlService")
            if any(one.state != "Stopped" for one in self._dependents(service)):
                raise Win32Error(ERROR_DEPENDENT_SERVICES_RUNNING, "ControlService")
            if service.state != "Running":
                raise Win32Error(ERROR_SERVICE_CANNOT_ACCEPT_CTRL, "ControlService")
            service.state = "Stop Pending"
            self._carry_out(service, self._stop)

    def start_service(self, name: str) -> None:
        """See `Backend`."""
        with self._lock:
            service = self._find(name)
            if service.state != "Stopped":
                raise Win32Error(ERROR_SERVICE_ALREADY_RUNNING, "StartService")
            if service.start_mode == "Disabled":
                raise Win32Error(ERROR_SERVICE_DISABLED, "StartService")
            for antecedent in map(self._find, service.depends_on):
                if antecedent.state == "Stop Pending" or _cannot_start(antecedent):
                    raise Win32Error(ERROR_SERVICE_DEPENDENCY_FAIL, "StartService")
                if antecedent.state == "Stopped":
                    self._begin_to_start(antecedent)
            self._begin_to_start(service)

    def change_start_mode(self, name: str, mode: str) -> None:
        """See `Backend`."""
        with self._lock:
            service = self._find(name)
            if mode not in _MODES:
                raise Win32Error(ERROR_INVALID_PARAMETER, "ChangeServiceConfig")
            service.start_mode = _MODES[mode]

    def dependents(self, name: str) -> Sequence[str]:
        """See `Backend`."""
        with self._lock:
            return sorted(service.name for service in self._dependents(self._find(name)))

    def _dependents(self, service: _Service) -> list[_Service]:
        return [one for one in self._services.values() if service.name in one.depends_on]

    def _begin_to_start(self, service: _Service) -> None:
        service.state, service.process_id, service.exit_code = "Start Pending", next(self._process_ids), 0
        self._carry_out(service, self._start)

    def _find(self, name: str) -> _Service:
        try:
            return self._services[name.lower()]
        except KeyError:
            raise Win32Error(ERROR_SERVICE_DOES_NOT_EXIST, "OpenService") from None

    def _carry_out(self, service: _Service, control: Callable[[_Service], None]) -> None:
        service.worker = threading.Thread(target=control, args=(service,), name=f"scm-{service.name}", daemon=True)
        service.worker.start()

    def _start(self, service: _Service) -> None:
        program = None
        for antecedent in map(self._find, service.depends_on):
            self._wait(antecedent)
            if antecedent.state != "Running":
                self._stopped(service, ERROR_SERVICE_DEPENDENCY_FAIL)
                return
        if service.name == SMTPSVC:
            program = SmtpService(self._smtp_port, self._tarpit_seconds())
            try:
                program.start()
            except OSError:
                log.exception("%s cannot listen on port %d", service.name, self._smtp_port)
                self._stopped(service, WSAEADDRINUSE)
                return
        with self._lock:
            service.program, service.state = program, "Running"

    def _stop(self, service: _Service) -> None:
        if service.program is not None:
            service.program.stop()
        self._stopped(service, 0)

    def _stopped(self, service: _Service, exit_code: int) -> None:
        with self._lock:
            service.program, service.state, service.process_id = None, "Stopped", 0
            service.exit_code = exit_code

    def _tarpit_seconds(self) -> int:
        """TarpitTime as SMTPSVC reads it: off where it is missing or no number."""
        try:
            value = self.read_value(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS, TARPIT_TIME)
        except Win32Error:
            return 0
        return int(value.data) if value.type == REG_DWORD else 0

    def _wait(self, service: _Service) -> None:
        with self._lock:
            worker = service.worker
        if worker is not None:
            worker.join()

    # -- the lab's own --

    @property
    def smtp_port(self) -> int:
        """See `Backend`; 0 on a host without SMTPSVC."""
        return self._smtp_port

    def close(self) -> None:
        """See `Backend`. Twice is harmless."""
        for service in self._services.values():
            self._wait(service)
            if service.program is not None:
                service.program.stop()
        release_port(self._smtp_port)
