# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Valkey or Redis servers for the tests: one, a primary with replica and sentinel, a cluster of three.

They listen on free loopback ports, keep nothing on disk, and end with the context that started them. The cluster that
tests share (it takes seconds to form) ends with the test process.
"""

from __future__ import annotations

import atexit
import datetime
import functools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import valkey
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from greylist_proxy.config_values import Endpoint, ServerAddress

from .peers import free_port, wait_until

HOST = "127.0.0.1"
SLOTS = 16384


def program() -> str:
    """The server of this machine: Valkey's, else Redis's."""
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    assert found, "these tests need valkey-server or redis-server"
    return found


class Server:
    """A server process; settings are those of its configuration file, with `_` for `-`."""

    def __init__(self, folder: Path, *, sentinel: bool = False, **settings: Any) -> None:
        self.port = free_port()
        self._folder = folder / str(self.port)
        self._folder.mkdir()
        self._sentinel = sentinel
        self.settings = {"bind": HOST, "dir": str(self._folder)} | settings
        if not sentinel:
            self.settings = {"save": '""', "appendonly": "no"} | self.settings
        self._tls: CertificateFiles | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.password: str | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(HOST, self.port)

    def with_tls(self, files: CertificateFiles) -> Server:
        """Speak TLS, and nothing else, on the port."""
        self._tls = files
        return self

    def start(self) -> Server:
        """Start, and wait until it answers; again after it was killed: on the same port, without its data."""
        assert self._process is None
        settings = dict(self.settings)
        if self._tls is None:
            settings["port"] = self.port
        else:
            settings |= {"port": 0, "tls_port": self.port, "tls_auth_clients": "no"}
            settings |= {"tls_cert_file": self._tls.certificate, "tls_key_file": self._tls.key}
            settings |= {"tls_ca_cert_file": self._tls.authority}
        config = self._folder / "server.conf"
        lines = (
            f"{name.replace('sentinel_', 'sentinel ', 1).replace('_', '-')} {value}\n"
            for name, value in settings.items()
        )
        config.write_text("".join(lines))
        command = [program(), str(config), *(["--sentinel"] if self._sentinel else [])]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._answers, f"the server on port {self.port}")
        return self

    def client(self) -> valkey.Valkey:
        """A plain client, of the library's other half, to look from outside and to set things up."""
        tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(self._tls.authority)} if self._tls else {}
        return valkey.Valkey(HOST, self.port, password=self.password, socket_timeout=10, **tls)

    def say(self, *words: Any) -> Any:
        """Put one command to it."""
        with self.client() as client:
            return client.execute_command(*words)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Make it silent, with its connections open, until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            with self.client() as client:
                client.ping()
        except (valkey.AuthenticationError, valkey.ResponseError):
            return True  # that is an answer
        except (valkey.ConnectionError, valkey.TimeoutError):
            return False
        return True


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Start them, and kill them at the end."""
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        yield


@contextmanager
def single(folder: Path, **settings: Any) -> Iterator[Server]:
    """One server."""
    server = Server(folder, **settings)
    with running(server):
        yield server


@dataclass
class Watched:
    """A primary, its replica, and the sentinels that make the replica primary when the primary is gone."""

    primary: Server
    replica: Server
    sentinels: list[Server]
    tls: bool = False

    @property
    def sentinel(self) -> Server:
        return self.sentinels[0]

    @property
    def address(self) -> ServerAddress:
        return ServerAddress("sentinel", self.tls, tuple(each.endpoint for each in self.sentinels), "mail")

    def named(self) -> int:
        """The port of the one that the first sentinel names."""
        return int(self.sentinel.say("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mail")[1])


@contextmanager
def watched(
    folder: Path, sentinels: int = 1, files: CertificateFiles | None = None, password: str = ""
) -> Iterator[Watched]:
    """Start them; the majority of the sentinels decides. They know each other, and the tests, by `password`."""
    shared: dict[str, Any] = {"requirepass": password} if password else {}
    if files is not None:
        shared["tls_replication"] = "yes"
    servers = shared | ({"masterauth": password} if password else {}) | {"repl_diskless_sync_delay": 0}
    primary = Server(folder, **servers)
    replica = Server(folder, replicaof=f"{HOST} {primary.port}", **servers)
    guards = [
        Server(
            folder,
            sentinel=True,
            sentinel_monitor=f"mail {HOST} {primary.port} {sentinels // 2 + 1}",
            sentinel_down_after_milliseconds="mail 300",
            sentinel_failover_timeout="mail 2000",
            **shared,
            **({"sentinel_auth_pass": f"mail {password}", "sentinel_sentinel_pass": password} if password else {}),
        )
        for _n in range(sentinels)
    ]
    for server in (primary, replica, *guards):
        server.password = password or None
        if files is not None:
            server.with_tls(files)
    with running(primary, replica, *guards):
        wait_until(lambda: replica.say("ROLE")[3] == b"connected", "the replica")
        for guard in guards:
            wait_until(functools.partial(_sees_all, guard, sentinels), "a sentinel to see the others")
        yield Watched(primary, replica, guards, files is not None)


def _sees_all(guard: Server, sentinels: int) -> bool:
    """Tell whether a sentinel knows the other ones, and a replica that it could make primary."""
    replicas = guard.say("SENTINEL", "REPLICAS", "mail")
    return (
        len(guard.say("SENTINEL", "SENTINELS", "mail")) == sentinels - 1
        and bool(replicas)
        and dict(zip(replicas[0][::2], replicas[0][1::2], strict=True))[b"master-link-status"] == b"ok"
    )


@dataclass
class ThreeNodes:
    """A cluster, its slots in three equal parts."""

    nodes: list[Server]

    @property
    def address(self) -> ServerAddress:
        return ServerAddress("cluster", False, tuple(node.endpoint for node in self.nodes))

    def ident(self, node: Server) -> str:
        return str(node.say("CLUSTER", "MYID").decode())


@contextmanager
def cluster(folder: Path) -> Iterator[ThreeNodes]:
    """Three primaries without replicas."""
    nodes = [
        Server(folder, cluster_enabled="yes", cluster_port=free_port(), cluster_node_timeout=2000) for _n in range(3)
    ]
    with running(*nodes):
        bounds = [SLOTS * part // len(nodes) for part in range(len(nodes) + 1)]
        for number, node in enumerate(nodes):
            node.say("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.say("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        for node in nodes[1:]:
            nodes[0].say("CLUSTER", "MEET", HOST, node.port, node.settings["cluster_port"])
        wait_until(lambda: all(_knows_all(node, len(nodes)) for node in nodes), "the nodes of the cluster to meet")
        yield ThreeNodes(nodes)


@functools.cache
def shared_cluster() -> ThreeNodes:
    """The cluster of this test process; each test has a prefix of its own there."""
    stack = ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return stack.enter_context(cluster(Path(folder)))


def _knows_all(node: Server, count: int) -> bool:
    info = node.say("CLUSTER", "INFO")
    text = info.decode() if isinstance(info, bytes) else "\n".join(f"{name}:{value}" for name, value in info.items())
    return "cluster_state:ok" in text and f"cluster_known_nodes:{count}" in text


@dataclass(frozen=True)
class CertificateFiles:
    """A certificate for loopback, its key, and the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path


def make_certificate(folder: Path, name: str, *addresses: str) -> CertificateFiles:
    """Make an authority of its own, and a certificate of it for these addresses."""
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _n in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (f"{name} authority", name)]
    certificates = []
    for number, is_authority in enumerate((True, False)):
        builder = x509.CertificateBuilder(
            issuer_name=names[0],
            subject_name=names[number],
            public_key=keys[number].public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=begin,
            not_valid_after=begin + datetime.timedelta(days=2),
        ).add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        if is_authority:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        else:
            subjects = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address)) for address in addresses])
            builder = builder.add_extension(subjects, critical=False)
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(keys[number].public_key()), critical=False
        ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        certificates.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    files = CertificateFiles(*(folder / f"{name}.{end}" for end in ("crt", "key", "ca")))
    files.authority.write_bytes(certificates[0])
    files.certificate.write_bytes(certificates[1])
    files.key.write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files
