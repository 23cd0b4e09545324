# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Kerberos realm of the lab's own: MIT's KDC in a folder, on loopback, for as long as the tests run.

    with Kdc.start(folder, users={"admin": "secret"}) as kdc, Lab.start(kerberos=kdc) as lab:
        subprocess.run(command, env={**os.environ, **kdc.client_environment()})

Kerberos is told all by environment variables, which belong to a process. So that a lab and its clients do
not disturb each other, each side has its own: the lab's process, which accepts logins, gets the keytab and
the advice to remember no replays on disk (KRB5_KTNAME, KRB5RCACHENAME); clients get the configuration and
a place for tickets (KRB5_CONFIG, KRB5CCNAME), and must be other processes. Nothing is read from or written
to the machine's own Kerberos.

Clients choose the service's name: pywinrm asks for HTTP/, pypsrp for host/ or what it is told, Windows
itself knows WSMAN/ too. The keytab has all three for each host name; one keytab serves all of a lab's hosts,
which differ by their ports.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from lab.ports import free_port, release_port

REALM: Final = "LAB.TEST"
SERVICES: Final = ("HTTP", "WSMAN", "host")
# The account that tests give a realm, and its password.
DOMAIN_USER: Final = ("alice", "secret-Word-1")
COMMAND_SECONDS: Final = 60.0
START_SECONDS: Final = 30.0

# Debian's package of each program. It has most of them in a folder that is not on every user's path.
_PROGRAMS: Final = {
    "krb5kdc": "krb5-kdc",
    "kdb5_util": "krb5-kdc",
    "kadmin.local": "krb5-admin-server",
    "kinit": "krb5-user",
}
# Python's package of each module: pyspnego and pypsrp need the first two, pywinrm the third.
_MODULES: Final = {"gssapi": "gssapi", "krb5": "krb5", "kerberos": "pykerberos"}
_SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"

_KRB5_CONF: Final = """\
[libdefaults]
    default_realm = {realm}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    # The KDC listens on TCP only.
    udp_preference_limit = 1
    default_ccache_name = FILE:{folder}/tickets
[realms]
    {realm} = {{
        kdc = 127.0.0.1:{port}
    }}
[domain_realm]
{domains}
"""
_KDC_CONF: Final = """\
[kdcdefaults]
    kdc_listen = ""
    kdc_tcp_listen = 127.0.0.1:{port}
[realms]
    {realm} = {{
        database_name = {folder}/principal
        key_stash_file = {folder}/stash
        acl_file = {folder}/kadm5.acl
        default_principal_flags = +preauth
    }}
[logging]
    kdc = FILE:{folder}/kdc.log
    admin_server = FILE:{folder}/kadmin.log
    default = FILE:{folder}/default.log
"""

_ACCEPTOR: Final = ("KRB5_KTNAME", "KRB5RCACHENAME")
_acceptor = threading.Lock()


def missing() -> list[str]:
    """What Kerberos needs and this machine lacks: Debian packages, and Python packages marked as such."""
    debian = {package for program, package in _PROGRAMS.items() if _find(program) is None}
    python = {package for module, package in _MODULES.items() if importlib.util.find_spec(module) is None}
    return [*sorted(debian), *(f"{package} (Python)" for package in sorted(python))]


class Kdc:
    """A running realm. One a process: the acceptor's variables are the process's."""

    def __init__(self, folder: Path, users: Mapping[str, str]) -> None:
        self.folder = folder.resolve()
        self.realm = REALM
        self.users = dict(users)
        self.keytab = self.folder / "hosts.keytab"
        self._cleanup = contextlib.ExitStack()

    @classmethod
    def start(
        cls, folder: Path, *, users: Mapping[str, str] | None = None, hosts: Iterable[str] = ("localhost",)
    ) -> Self:
        """Make a realm in an empty folder with these users and hosts, and return when it gives out tickets."""
        if absent := missing():
            raise OSError(f"Kerberos needs these packages: {', '.join(absent)}")
        kdc = cls(folder, users or {f"user-{secrets.token_hex(4)}": secrets.token_urlsafe(24)})
        try:
            kdc._start(list(hosts))
        except BaseException:
            kdc.close()
            raise
        return kdc

    @property
    def principals(self) -> frozenset[str]:
        """The users by their full names, as clients name them and the lab sees them."""
        return frozenset(f"{name}@{self.realm}" for name in self.users)

    def client_environment(self, tickets: Path | None = None) -> dict[str, str]:
        """What a client's environment needs beside the rest; `tickets` is where it keeps them, if not here."""
        cache = tickets or self.folder / "tickets"
        return {"KRB5_CONFIG": str(self.folder / "krb5.conf"), "KRB5CCNAME": f"FILE:{cache}"}

    def kinit(self, user: str, tickets: Path | None = None) -> dict[str, str]:
        """Log a user in; the environment of clients that are to use the ticket."""
        environment = self.client_environment(tickets)
        self._run("kinit", f"{user}@{self.realm}", said=f"{self.users[user]}\n", environment=environment)
        return environment

    def close(self) -> None:
        """End the KDC; once is enough, twice is harmless. The folder is the caller's."""
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, hosts: list[str]) -> None:
        if not _acceptor.acquire(blocking=False):
            raise OSError("this process has a realm already, and the environment names one keytab")
        self._cleanup.callback(_acceptor.release)
        port = free_port()
        self._cleanup.callback(release_port, port)
        self._configure(port, hosts)
        self._run("kdb5_util", "create", "-s", "-r", self.realm, "-P", secrets.token_urlsafe(24))
        self._add_principals(hosts)
        self._start_program(port)
        for name, value in zip(_ACCEPTOR, (f"FILE:{self.keytab}", "none:"), strict=True):
            self._cleanup.callback(_restore, name, os.environ.get(name))
            os.environ[name] = value

    def _configure(self, port: int, hosts: list[str]) -> None:
        domains = "\n".join(f"    {host} = {self.realm}" for host in hosts)
        values = {"realm": self.realm, "folder": self.folder, "port": port, "domains": domains}
        for name, text in {"krb5.conf": _KRB5_CONF, "kdc.conf": _KDC_CONF}.items():
            (self.folder / name).write_text(text.format(**values), "utf-8")
        (self.folder / "kadm5.acl").touch()

    def _add_principals(self, hosts: list[str]) -> None:
        lines = []
        for user, password in self.users.items():
            if not {'"', "\n"}.isdisjoint(user + password):
                raise ValueError(f"user {user!r}: quotes and line breaks do not go through kadmin")
            lines.append(f'addprinc -pw "{password}" "{user}@{self.realm}"')
        for service in (f"{service}/{host}" for host in hosts for service in SERVICES):
            lines += [f"addprinc -randkey {service}@{self.realm}", f"ktadd -k {self.keytab} {service}@{self.realm}"]
        self._run("kadmin.local", "-r", self.realm, said="\n".join(lines) + "\n")
        # kadmin.local reports what it could not do, and ends as if it had.
        if not self.keytab.is_file():
            raise OSError("kadmin.local made no keytab")

    def _start_program(self, port: int) -> None:
        command = [_find("krb5kdc") or "krb5kdc", "-n", "-r", self.realm, "-P", str(self.folder / "kdc.pid")]
        # It has no reason of its own to end when this process is killed.
        if setpriv := shutil.which("setpriv", path=_SYSTEM_PATH):
            command = [setpriv, "--pdeathsig", "TERM", *command]
        with (self.folder / "kdc.out").open("wb") as output:
            process = subprocess.Popen(
                command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._cleanup.callback(_end, process)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "kdc.out").read_text("utf-8", "replace")
                raise OSError(f"krb5kdc does not listen (status {process.returncode}): {said[-500:]}")
            time.sleep(0.005)

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": _SYSTEM_PATH,
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.folder),
            "KRB5_CONFIG": str(self.folder / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf"),
        }

    def _run(self, program: str, *arguments: str, said: str = "", environment: Mapping[str, str] | None = None) -> None:
        done = subprocess.run(
            [_find(program) or program, *arguments],
            env={**self._environment(), **(environment or {})},
            input=said,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise OSError(f"{program} failed with status {done.returncode}: {done.stderr.strip()}")


def _find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=_SYSTEM_PATH)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
