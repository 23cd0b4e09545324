# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Windows service: ask for its state, stop it, start it, and wait until that is true."""

from __future__ import annotations

import time
import typing as t
from dataclasses import dataclass

from ansible_collections.mailops.tarpit.plugins.plugin_utils._wsman import (
    Association,
    CimClass,
    CimFault,
    CimSession,
)

WIN32_SERVICE = CimClass("root/cimv2", "Win32_Service")
DEPENDENCY = "Win32_DependentService"

# SOAP subcodes by which a host says that it knows no association filter (WinRM before 2.0).
NO_SUCH_FILTER = (
    "FilterDialectRequestedUnavailable",
    "FilteringNotSupported",
    "CannotProcessFilter",
    "ActionNotSupported",
)

STOPPED = "Stopped"
RUNNING = "Running"
START_MODE_DISABLED = "Disabled"

# WSManFault code of a Get that names no instance; other causes (no such class, no such namespace) share it.
NO_SUCH_INSTANCE = 2150858752

ACCEPTED = 0
NOT_STARTED = (5, 6)  # answers of StopService for a service that has stopped meanwhile
ALREADY_RUNNING = 10
TIMED_OUT = 7  # the request may have had its effect all the same
DISABLED = 14
DOES_NOT_EXIST = -1  # no code of Windows: the request itself is a fault

# Win32_Service, return values of StopService and StartService.
MEANINGS = {
    1: "the request is not supported",
    2: "access denied",
    3: "other services that depend on it are running",
    4: "the control code is not valid",
    5: "the service cannot take that request now",
    6: "the service has not been started",
    7: "the service did not answer in time",
    8: "unknown failure",
    9: "the service's program was not found",
    10: "the service is already running",
    11: "the service database is locked",
    12: "a service it depends on was removed",
    13: "a service it depends on failed to start",
    14: "the service is disabled",
    15: "the service's account could not log on",
    16: "the service is marked for deletion",
    17: "the service has no thread to run in",
    18: "the service depends on itself",
    19: "a service of that name is running",
    20: "the service's name is not valid",
    21: "a parameter is not valid",
    22: "the service's account is not valid or lacks a right",
    23: "the service exists already",
    24: "the service is paused",
}

# The first polls come quickly, since most services stop and start within a fraction of a second.
FIRST_POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 1.0


class ServiceError(Exception):
    """Windows refused a request to a service (`code` is its ReturnValue), or did not carry it out (None)."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class ServiceState:
    """A service as Win32_Service describes it: `state` (Running, Stopped, Stop Pending …), `start_mode`
    (Auto, Manual, Disabled) and the id of its process, 0 where it has none.
    """

    name: str
    state: str
    start_mode: str
    process_id: int


class ServiceControl:
    """Queries and controls the services of one host."""

    def __init__(
        self,
        session: CimSession,
        clock: t.Callable[[], float] = time.monotonic,
        sleep: t.Callable[[float], None] = time.sleep,
    ) -> None:
        self._session = session
        self._clock = clock
        self._sleep = sleep

    def query(self, name: str) -> ServiceState | None:
        """The service's state now, or None where the host has no such service."""
        try:
            fields = self._session.get(WIN32_SERVICE, {"Name": name})
        except CimFault as fault:
            if _names_no_instance(fault, name):
                return None
            raise
        process_id = fields.get("ProcessId") or "0"
        return ServiceState(
            name=name,
            state=fields.get("State") or "Unknown",
            start_mode=fields.get("StartMode") or "Unknown",
            process_id=int(process_id) if process_id.isdigit() else 0,
        )

    def running_dependents(self, name: str) -> list[str]:
        """The running services that depend on this one, each before those that it depends on itself.

        Empty also where an old host cannot tell: Windows then refuses the stop with code 3 if there are any.
        """
        found: list[str] = []
        self._collect_dependents(name, found, [name.lower()])
        return found

    def _collect_dependents(self, name: str, found: list[str], seen: list[str]) -> None:
        association = Association(WIN32_SERVICE, {"Name": name}, DEPENDENCY, "Antecedent", WIN32_SERVICE, "Dependent")
        try:
            instances = self._session.associated(association)
        except CimFault as fault:
            if fault.subcode not in NO_SUCH_FILTER:
                raise
            return
        for instance in instances:
            dependent = instance.get("Name") or ""
            # A dependency may be circular, and a service that is stopped keeps nobody from stopping.
            if dependent and dependent.lower() not in seen and instance.get("State") != STOPPED:
                seen.append(dependent.lower())
                self._collect_dependents(dependent, found, seen)
                found.append(dependent)

    def settle(self, found: ServiceState, timeout: float) -> ServiceState:
        """Wait until a service that is just starting or stopping has done so."""
        if not found.state.endswith("Pending"):
            return found
        wanted = RUNNING if found.state.startswith(("Start", "Continue")) else STOPPED
        return self._wait(found.name, wanted, timeout)

    def stop(self, name: str, timeout: float) -> None:
        """Stop the service and wait, up to `timeout` seconds, until it has stopped."""
        code = self._request("StopService", name)
        if code not in (ACCEPTED, TIMED_OUT, *NOT_STARTED):
            raise _refused("stop", name, code)
        self._wait(name, STOPPED, timeout)

    def start(self, name: str, timeout: float) -> None:
        """Start the service and wait, up to `timeout` seconds, until it runs."""
        code = self._request("StartService", name)
        if code not in (ACCEPTED, TIMED_OUT, ALREADY_RUNNING):
            raise _refused("start", name, code)
        self._wait(name, RUNNING, timeout)

    def _request(self, method: str, name: str) -> int:
        try:
            return int(self._session.invoke(WIN32_SERVICE, method, {}, {"Name": name})["ReturnValue"] or "")
        except CimFault as fault:
            if _names_no_instance(fault, name):
                raise ServiceError(f"the host has no service {name}", DOES_NOT_EXIST) from None
            raise

    def _wait(self, name: str, wanted: str, timeout: float) -> ServiceState:
        deadline = self._clock() + timeout
        pause = FIRST_POLL_SECONDS
        while True:
            found = self.query(name)
            if found is None:
                raise ServiceError(f"the service {name} was removed while it was waited for")
            if found.state == wanted:
                return found
            if wanted == RUNNING and found.state == STOPPED:
                # The service control manager says Start Pending as soon as it has accepted a start.
                raise ServiceError(f"the service {name} stopped again while it was starting: see the host's event log")
            if self._clock() >= deadline:
                raise ServiceError(
                    f"the service {name} is {found.state} and not {wanted} after {timeout:g} seconds:"
                    " look at it on the host, or raise the option 'timeout'"
                )
            self._sleep(pause)
            pause = min(pause * 2, LONGEST_POLL_SECONDS)


def _names_no_instance(fault: CimFault, name: str) -> bool:
    # Only WMI's own word about this very service means that it is not installed.
    return fault.code == NO_SUCH_INSTANCE and name.lower() in fault.extended_status.lower()


def _refused(tried: str, name: str, code: int) -> ServiceError:
    meaning = MEANINGS.get(code, "an answer that Win32_Service does not document")
    return ServiceError(
        f"Windows refused to {tried} the service {name}: {meaning} (Win32_Service returned {code})", code
    )
