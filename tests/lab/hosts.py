# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab: one or several Windows hosts in this process, each on a port of its own.

    with Lab.start(backend="memory", hosts=2) as lab:
        first = lab.hosts[0]
        connect(first.address, first.winrm_port, lab.username, lab.password)

Each host has its own registry and services (a `Backend`), its own listener and its own counters. The
accounts are the lab's.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Literal, Self, TypeVar

from lab.backend import HKEY_LOCAL_MACHINE, Backend, Win32Error
from lab.cim import WMI, Cim
from lab.memory import MemoryBackend
from lab.server import Traffic, WinRMServer
from lab.shell import CMD_SHELL, CmdShells
from lab.users import Users
from lab.wsman import Endpoint

BackendName = Literal["memory", "wine"]
# How many hosts start or end side by side: enough for a hundred of them, and not a hundred Wines at once.
AT_ONCE: Final = 8

Item = TypeVar("Item")
SMTPSVC: Final = "SMTPSVC"
SMTPSVC_PARAMETERS: Final = r"SYSTEM\CurrentControlSet\Services\SMTPSVC\Parameters"
# Where the collection records what a run that broke off still owes.
MARK_KEY: Final = r"SOFTWARE\mailops.tarpit\SMTPSVC"
MARK_VALUES: Final = ("PendingRestart", "ProcessId")

BACKENDS: Final[tuple[BackendName, ...]] = ("memory", "wine")


@dataclass
class LabHost:
    """One Windows host: where it is, what it saw (`traffic`), and what is behind it (`backend`)."""

    name: str
    backend_name: BackendName
    backend: Backend
    traffic: Traffic
    server: WinRMServer

    address: ClassVar[str] = "127.0.0.1"

    def close(self) -> None:
        """Close its connections, then what they talked to."""
        try:
            self.server.close()
        finally:
            self.backend.close()

    @property
    def winrm_port(self) -> int:
        """The port of WinRM over HTTP."""
        return self.server.port

    @property
    def endpoint(self) -> str:
        """The URL of WS-Management."""
        return f"http://{self.address}:{self.winrm_port}/wsman"

    @property
    def smtp_port(self) -> int | None:
        """The port of its SMTPSVC, None where it has none."""
        return self.backend.smtp_port or None

    def reset(self) -> None:
        """Make it as it was set up: SMTPSVC runs without a TarpitTime, no mark of a run, counters at 0."""
        # A test may end while its last control is being carried out.
        state = self._await_smtpsvc("Running", "Stopped")
        self.backend.change_start_mode(SMTPSVC, "Automatic")
        for name in MARK_VALUES:
            self._delete(MARK_KEY, name)
        if self._delete(SMTPSVC_PARAMETERS, "TarpitTime") and state == "Running":
            # It may have been started with the value.
            state = self.stop_smtpsvc()
        if state == "Stopped":
            self.backend.start_service(SMTPSVC)
            self._await_smtpsvc("Running")
        self.traffic.clear()

    def stop_smtpsvc(self) -> str:
        """Stop SMTPSVC as an administrator would, and wait until it has stopped."""
        self.backend.stop_service(SMTPSVC)
        return self._await_smtpsvc("Stopped")

    def _delete(self, key: str, name: str) -> bool:
        try:
            self.backend.delete_value(HKEY_LOCAL_MACHINE, key, name)
        except Win32Error:
            return False
        return True

    def _await_smtpsvc(self, *wanted: str) -> str:
        deadline = time.monotonic() + 30
        while (state := self.backend.service_status(SMTPSVC).state) not in wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{SMTPSVC} is {state}, not {' or '.join(wanted)}")
            time.sleep(0.01)
        return state


class Lab:
    """Hosts and the accounts that may log in to them. Use it with `with`, or call close()."""

    def __init__(self, users: Users, folder: Path) -> None:
        self._users = users
        self._folder = folder
        self._closed = False
        self.hosts: list[LabHost] = []

    @classmethod
    def start(
        cls,
        backend: BackendName = "memory",
        *,
        hosts: int = 1,
        users: Mapping[str, str] | None = None,
        smtpsvc: bool = True,
        allow_unencrypted: bool = False,
    ) -> Self:
        """Start hosts and return when all of them answer; without `users`, one account is made up."""
        if users is None:
            users = {f"lab-{secrets.token_hex(4)}": secrets.token_urlsafe(24)}
        accounts = Users(users)
        accounts.open()
        lab = cls(accounts, Path(tempfile.mkdtemp(prefix="lab-")))

        def add(number: int) -> None:
            name, options = f"lab{number}", {"smtpsvc": smtpsvc, "allow_unencrypted": allow_unencrypted}
            lab.hosts.append(_start_host(name, backend, lab._folder, accounts, **options))

        try:
            _at_once(add, range(1, hosts + 1))
        except BaseException:
            lab.close()
            raise
        lab.hosts.sort(key=lambda host: int(host.name.removeprefix("lab")))
        return lab

    @property
    def username(self) -> str:
        """The name of the first account."""
        return self._users.accounts()[0][0]

    @property
    def password(self) -> str:
        """The password of the first account."""
        return self._users.accounts()[0][1]

    def close(self) -> None:
        """End all hosts and remove what they left on disk. What they counted can still be read."""
        if self._closed:
            return
        self._closed = True
        try:
            _at_once(LabHost.close, self.hosts)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._users.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _start_host(
    name: str, backend_name: BackendName, folder: Path, users: Users, *, smtpsvc: bool, allow_unencrypted: bool
) -> LabHost:
    machine = name.upper()
    traffic = Traffic()
    backend = _start_backend(backend_name, folder / name, smtpsvc=smtpsvc)
    try:
        endpoint = Endpoint({WMI: Cim(backend, machine=machine), CMD_SHELL: CmdShells()}, machine=machine)
        server = WinRMServer({"/wsman": endpoint}, users, traffic, allow_unencrypted=allow_unencrypted)
    except BaseException:
        backend.close()
        raise
    return LabHost(name, backend_name, backend, traffic, server)


def _at_once(act: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Do it for all, side by side: hosts mostly wait when they start and end. The first error is raised."""
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        done = [pool.submit(act, item) for item in items]
    for one in done:
        one.result()


def _start_backend(name: BackendName, folder: Path, *, smtpsvc: bool) -> Backend:
    if name == "memory":
        return MemoryBackend(smtpsvc=smtpsvc)
    # Imported here: the memory backend must work where there is no Wine.
    from lab.wine import WineBackend

    folder.mkdir()
    return WineBackend(folder, smtpsvc=smtpsvc)
