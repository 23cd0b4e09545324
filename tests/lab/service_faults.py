# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that do not do what they accepted, above any backend: `host.services`.

    host.services.hang_stop("SMTPSVC")              the next stop is accepted and stays Stop Pending
    host.services.hang_stop("SMTPSVC", seconds=0.5) for so long; `finish` ends it earlier
    host.services.fail_start("SMTPSVC", times=2)    the next two starts are accepted and end in Stopped

The backend itself knows nothing of it. A stop that hangs has been carried out there, and only what WMI
tells of the service lags behind; a start that fails never reaches the backend.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lab.backend import (
    ERROR_SERVICE_ALREADY_RUNNING,
    ERROR_SERVICE_CANNOT_ACCEPT_CTRL,
    Backend,
    RegistryValue,
    ServiceStatus,
    Win32Error,
)

# ERROR_PROCESS_ABORTED: how the service control manager explains a service whose process went away.
ERROR_PROCESS_ABORTED = 1067


@dataclass
class _Pending:
    """What is told of a service until a moment of the monotonic clock, or until somebody says so."""

    state: str
    process_id: int
    until: float | None


class FaultyServices:
    """A backend with services that may fail. Implements `lab.backend.Backend`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.RLock()
        self._stops: dict[str, float | None] = {}
        self._starts: dict[str, tuple[int, float]] = {}
        self._pending: dict[str, _Pending] = {}
        self._failed: dict[str, int] = {}

    # -- what tests say --

    def hang_stop(self, name: str, *, seconds: float | None = None) -> None:
        """Let the next stop of the service stay pending, for ever where no time is given."""
        with self._lock:
            self._stops[name.lower()] = seconds

    def fail_start(self, name: str, *, times: int = 1, seconds: float = 0.0) -> None:
        """Let the next starts of the service be accepted, stay pending for so long, and fail."""
        with self._lock:
            self._starts[name.lower()] = (times, seconds)

    def finish(self, name: str) -> None:
        """End what is pending."""
        with self._lock:
            self._pending.pop(name.lower(), None)

    def clear(self) -> None:
        """Let all services tell the truth and do as they are told."""
        with self._lock:
            for plan in (self._stops, self._starts, self._pending, self._failed):
                plan.clear()

    # -- services --

    def service_status(self, name: str) -> ServiceStatus:
        """See `Backend`."""
        with self._lock:
            found = self._backend.service_status(name)
            if pending := self._is_pending(name):
                return replace(found, state=pending.state, process_id=pending.process_id)
            if found.state == "Stopped" and (code := self._failed.get(name.lower())):
                return replace(found, exit_code=code)
            return found

    def stop_service(self, name: str) -> None:
        """See `Backend`."""
        with self._lock:
            if self._is_pending(name):
                raise Win32Error(ERROR_SERVICE_CANNOT_ACCEPT_CTRL, "ControlService")
            before = self._backend.service_status(name)
            self._backend.stop_service(name)
            if name.lower() in self._stops:
                seconds = self._stops.pop(name.lower())
                until = None if seconds is None else time.monotonic() + seconds
                self._pending[name.lower()] = _Pending("Stop Pending", before.process_id, until)

    def start_service(self, name: str) -> None:
        """See `Backend`."""
        with self._lock:
            if self._is_pending(name):
                raise Win32Error(ERROR_SERVICE_ALREADY_RUNNING, "StartService")
            times, seconds = self._starts.get(name.lower(), (0, 0.0))
            status = self._backend.service_status(name)
            if times and status.state == "Stopped" and status.start_mode != "Disabled":
                self._starts[name.lower()] = (times - 1, seconds)
                self._pending[name.lower()] = _Pending("Start Pending", 0, time.monotonic() + seconds)
                self._failed[name.lower()] = ERROR_PROCESS_ABORTED
                return
            self._backend.start_service(name)
            self._failed.pop(name.lower(), None)

    def change_start_mode(self, name: str, mode: str) -> None:
        """See `Backend`."""
        self._backend.change_start_mode(name, mode)

    def dependents(self, name: str) -> Sequence[str]:
        """See `Backend`."""
        return self._backend.dependents(name)

    def _is_pending(self, name: str) -> _Pending | None:
        pending = self._pending.get(name.lower())
        if pending and pending.until is not None and time.monotonic() >= pending.until:
            del self._pending[name.lower()]
            return None
        return pending

    # -- registry --

    def read_value(self, hive: int, key: str, name: str) -> RegistryValue:
        """See `Backend`."""
        return self._backend.read_value(hive, key, name)

    def write_value(self, hive: int, key: str, name: str, value: RegistryValue) -> None:
        """See `Backend`."""
        self._backend.write_value(hive, key, name, value)

    def delete_value(self, hive: int, key: str, name: str) -> None:
        """See `Backend`."""
        self._backend.delete_value(hive, key, name)

    def create_key(self, hive: int, key: str) -> None:
        """See `Backend`."""
        self._backend.create_key(hive, key)

    # -- the lab's own --

    @property
    def smtp_port(self) -> int:
        """See `Backend`."""
        return self._backend.smtp_port

    def close(self) -> None:
        """See `Backend`."""
        self._backend.close()
