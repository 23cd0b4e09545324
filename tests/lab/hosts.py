# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab: one or several Windows hosts in this process, each on a port of its own.

    with Lab.start(backend="memory", hosts=2) as lab:
        first = lab.hosts[0]
        connect(first.address, first.winrm_port, lab.username, lab.password)

Each host has its own registry and services (a `Backend`), its own listener and its own counters. The
accounts are the lab's, and so is the authority behind the certificates of hosts that speak HTTPS.

What can be done to a host while it runs: `backend` is what an administrator at its console would reach,
`faults` and `services` make things go wrong, `machine` says which Windows it is, `exchange` is its Exchange.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Literal, Self, TypeVar

from lab.auth import Admission
from lab.backend import HKEY_LOCAL_MACHINE, SMTPSVC, SMTPSVC_PARAMETERS, Backend, Win32Error
from lab.cim import WMI, Cim
from lab.exchange import EXCHANGE, PATHS
from lab.exchange_host import ExchangeHost
from lab.exchange_organisation import Organisation
from lab.faults import Callback, Faults
from lab.kdc import Kdc
from lab.machine import DEFAULT_SYSTEM, SYSTEMS, Machine
from lab.memory import MemoryBackend
from lab.server import Traffic, WinRMServer
from lab.service_faults import FaultyServices
from lab.shell import CMD_SHELL, CmdShells
from lab.tls import Authority, Certificate
from lab.users import Users
from lab.wsman import Endpoint, Resource

BackendName = Literal["memory", "wine"]
# How many hosts start or end side by side: enough for a hundred of them, and not a hundred Wines at once.
AT_ONCE: Final = 8

Item = TypeVar("Item")
# Where the collection records what a run that broke off still owes.
MARK_KEY: Final = r"SOFTWARE\mailops.tarpit\SMTPSVC"
MARK_VALUES: Final = ("PendingRestart", "ProcessId", "Dependents")

BACKENDS: Final[tuple[BackendName, ...]] = ("memory", "wine")


@dataclass
class LabHost:
    """One Windows host: where it is, what it saw (`traffic`), and what is behind it (`backend`)."""

    name: str
    backend_name: BackendName
    backend: Backend
    traffic: Traffic
    server: WinRMServer
    faults: Faults
    services: FaultyServices
    machine: Machine
    shells: CmdShells
    scheme: Literal["http", "https"] = "http"
    exchange: ExchangeHost | None = None

    address: ClassVar[str] = "127.0.0.1"

    def close(self) -> None:
        """Close its connections, then what they talked to."""
        try:
            # First, so that no connection waits for a test.
            self.faults.close()
            if self.exchange is not None:
                self.exchange.close()
            self.server.close()
        finally:
            self.backend.close()

    def on_request(self, callback: Callback) -> None:
        """Have each request told (see `Faults.on_request`), until the host is reset."""
        self.faults.on_request(callback)

    @property
    def winrm_port(self) -> int:
        """The port of WinRM."""
        return self.server.port

    @property
    def endpoint(self) -> str:
        """The URL of WS-Management."""
        return f"{self.scheme}://{self.address}:{self.winrm_port}/wsman"

    @property
    def smtp_port(self) -> int | None:
        """The port of its SMTPSVC, None where it has none."""
        return self.backend.smtp_port or None

    def reset(self) -> None:
        """Make it as it was set up.

        SMTPSVC runs without a TarpitTime, and so do its dependents; there is no mark of a run; nothing goes
        wrong; Exchange's organisation is as new, on all hosts; the counters are at 0.
        """
        self.faults.clear()
        if self.exchange is not None:
            self.exchange.reset()
        self.services.clear()
        self.shells.expect()
        if self.smtp_port is not None:
            self._reset_smtpsvc()
        self.traffic.clear()

    def _reset_smtpsvc(self) -> None:
        # A test may end while its last control is being carried out.
        state = self._await(SMTPSVC, "Running", "Stopped")
        dependents = self.backend.dependents(SMTPSVC)
        for name in (SMTPSVC, *dependents):
            self.backend.change_start_mode(name, "Automatic")
        for name in MARK_VALUES:
            self._delete(MARK_KEY, name)
        if self._delete(SMTPSVC_PARAMETERS, "TarpitTime") and state == "Running":
            # It may have been started with the value.
            self.stop_smtpsvc()
        for name in (SMTPSVC, *dependents):
            if self._await(name, "Running", "Stopped") == "Stopped":
                self.backend.start_service(name)
                self._await(name, "Running")

    def stop_smtpsvc(self) -> str:
        """Stop SMTPSVC as an administrator would, what depends on it first, and wait until it has stopped."""
        for name in (*self.backend.dependents(SMTPSVC), SMTPSVC):
            if self._await(name, "Running", "Stopped") == "Running":
                self.backend.stop_service(name)
            self._await(name, "Stopped")
        return "Stopped"

    def _delete(self, key: str, name: str) -> bool:
        try:
            self.backend.delete_value(HKEY_LOCAL_MACHINE, key, name)
        except Win32Error:
            return False
        return True

    def _await(self, name: str, *wanted: str) -> str:
        deadline = time.monotonic() + 30
        while (state := self.backend.service_status(name).state) not in wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is {state}, not {' or '.join(wanted)}")
            time.sleep(0.01)
        return state


@dataclass(frozen=True)
class _Setup:
    """What the hosts of a lab have in common."""

    backend: BackendName
    folder: Path
    admission: Admission
    smtpsvc: bool
    dependents: int
    system: str
    allow_unencrypted: bool
    authority: Authority | None
    organisation: Organisation | None


class Lab:
    """Hosts and the accounts that may log in to them. Use it with `with`, or call close()."""

    def __init__(self, users: Users, folder: Path) -> None:
        self._users = users
        self._folder = folder
        self._closed = False
        self._authority: Authority | None = None
        self.hosts: list[LabHost] = []

    @classmethod
    def start(
        cls,
        backend: BackendName = "memory",
        *,
        hosts: int = 1,
        users: Mapping[str, str] | None = None,
        smtpsvc: bool = True,
        dependents: int = 0,
        system: str = DEFAULT_SYSTEM,
        allow_unencrypted: bool = False,
        https: bool = False,
        kerberos: Kdc | None = None,
        exchange: Sequence[str] | None = None,
    ) -> Self:
        """Start hosts and return when all of them answer; without `users`, one account is made up.

        `dependents` services LabDependent1, … run beside SMTPSVC and depend on it. `system` is a name of
        `machine.SYSTEMS`. With `kerberos`, its users may log in too. `exchange` names the servers of one Exchange
        organisation: the first host is the first of them, and so on.
        """
        if users is None:
            users = {f"lab-{secrets.token_hex(4)}": secrets.token_urlsafe(24)}
        if system not in SYSTEMS:
            raise ValueError(f"the lab knows no Windows {system!r}, but {', '.join(SYSTEMS)}")
        if exchange and hosts > len(exchange):
            raise ValueError(f"{hosts} hosts need as many names of Exchange servers, not {len(exchange)}")
        organisation = Organisation(exchange) if exchange else None
        accounts = Users(users)
        accounts.open()
        lab = cls(accounts, Path(tempfile.mkdtemp(prefix="lab-")))
        try:
            lab._authority = Authority(lab._folder) if https else None
            setup = _Setup(
                backend,
                lab._folder,
                Admission(accounts, kerberos.principals if kerberos else frozenset()),
                smtpsvc=smtpsvc,
                dependents=dependents,
                system=system,
                allow_unencrypted=allow_unencrypted,
                authority=lab._authority,
                organisation=organisation,
            )
            _at_once(lambda number: lab.hosts.append(_start_host(number, setup)), range(1, hosts + 1))
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

    @property
    def ca_file(self) -> Path | None:
        """The authority that signed the certificates of hosts with HTTPS; None without."""
        return self._authority.ca_file if self._authority else None

    def client_certificate(self) -> Certificate:
        """A new certificate by which the first account may log in over HTTPS."""
        if self._authority is None:
            raise ValueError("a certificate is for HTTPS")
        return self._authority.client(self.username)

    def traffic(self) -> Traffic:
        """What all hosts have seen together, up to now."""
        return Traffic.total(host.traffic for host in self.hosts)

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


def _start_host(number: int, setup: _Setup) -> LabHost:
    name = f"lab{number}"
    machine = Machine(name.upper(), SYSTEMS[setup.system])
    traffic = Traffic()
    backend = _start_backend(setup, setup.folder / name)
    exchange = None
    try:
        services, faults, shells = FaultyServices(backend), Faults(traffic.note), CmdShells()
        resources: dict[str, Resource] = {WMI: Cim(services, machine), CMD_SHELL: shells}
        endpoint = Endpoint(resources, machine=machine.name, interference=faults)
        endpoints = {"/wsman": endpoint}
        if setup.organisation is not None:
            exchange = ExchangeHost(setup.organisation, setup.organisation.servers[number - 1])
            powershell = Endpoint({EXCHANGE: exchange.shells}, machine=machine.name, interference=faults)
            endpoints |= dict.fromkeys(PATHS, powershell)
        tls = setup.authority.host(name) if setup.authority else None
        server = WinRMServer(
            endpoints,
            replace(setup.admission, bindings=tls.bindings if tls else None),
            traffic,
            allow_unencrypted=setup.allow_unencrypted,
            tls=tls,
        )
    except BaseException:
        if exchange is not None:
            exchange.close()
        backend.close()
        raise
    scheme: Literal["http", "https"] = "https" if tls else "http"
    return LabHost(name, setup.backend, backend, traffic, server, faults, services, machine, shells, scheme, exchange)


def _at_once(act: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Do it for all, side by side: hosts mostly wait when they start and end. The first error is raised."""
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        done = [pool.submit(act, item) for item in items]
    for one in done:
        one.result()


def _start_backend(setup: _Setup, folder: Path) -> Backend:
    if setup.backend == "memory":
        return MemoryBackend(smtpsvc=setup.smtpsvc, dependents=setup.dependents)
    # Imported here: the memory backend must work where there is no Wine.
    from lab.wine import WineBackend

    folder.mkdir()
    return WineBackend(folder, smtpsvc=setup.smtpsvc, dependents=setup.dependents)
