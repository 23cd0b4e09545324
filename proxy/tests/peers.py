# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the proxy is tested between: mail servers behind it, and the real program itself.

`Sink` is a real SMTP server (aiosmtpd) that keeps what it gets. `ScriptedPeer` is one that does what a test
says, however wrong. Both listen on a free loopback port. `Proxy` is `greylist-proxy serve` as a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

DEADLINE = 20.0  # seconds for anything that a test waits for
LOWEST_PORT = 20_000
PORTS_EACH = 750  # of each of pytest's processes
_given_ports: set[int] = set()


def free_port() -> int:
    """Return a port for a server that can't be told to take a free one, or that must come back on its own.

    It lies below those that the system gives to outgoing connections, of which tests make thousands. While a server
    starts, or starts anew, its port is free for all: so each of pytest's processes has ports of its own, and gives none
    again soon.
    """
    lowest = LOWEST_PORT + PORTS_EACH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 16)
    if len(_given_ports) > PORTS_EACH // 2:
        _given_ports.clear()
    while True:
        port = lowest + secrets.randbelow(PORTS_EACH)
        if port in _given_ports:
            continue
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            _given_ports.add(port)
            return port


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something that another thread or process does, and return what the condition gave."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError(f"waited {DEADLINE:g} seconds for {what}")


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something in the same event loop."""
    for _n in range(int(DEADLINE / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited for too long")


@contextlib.asynccontextmanager
async def the_loop_is_free() -> AsyncIterator[None]:
    """Require that other tasks get their turns while something is waited for.

    They are counted, not timed: a machine that is busy makes all turns late, but what waits in a call that blocks the
    loop leaves the others next to none.
    """
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    others = asyncio.create_task(take_turns())
    try:
        yield
    finally:
        others.cancel()
    assert turns > 100


@dataclass
class Mail:
    sender: str
    recipients: list[str]
    content: bytes
    options: list[str]


class _SinkProtocol(SMTP):
    line_length_limit = 1 << 20


class Sink:
    """A mail server that takes everything, but unknown users (`nobody@`), and says what it is told to say."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.senders: list[str] = []
        self.connections = 0
        self.final_reply = "250 2.0.0 Ok: queued as 4X7Z"
        self.before_reply = threading.Event()  # set: the final reply may go out
        self.before_reply.set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(self._loop.create_server(self._protocol, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _protocol(self) -> SMTP:
        self.connections += 1
        return _SinkProtocol(self, hostname="backend.test", data_size_limit=1 << 26, loop=self._loop)

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.senders.append(address)
        envelope.mail_from = address
        envelope.mail_options = options
        return "250 2.1.0 sender ok"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("nobody@"):
            return "550 5.1.1 <nobody>: no such user"
        envelope.rcpt_tos.append(address)
        return f"250 2.1.5 {address} ok here"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        await until(self.before_reply.is_set)
        content = envelope.original_content or b""
        self.mails.append(Mail(envelope.mail_from or "", list(envelope.rcpt_tos), content, envelope.mail_options))
        return self.final_reply

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)


CLOSE = object()  # as a reply: close the connection
SILENCE = object()  # as a reply: say nothing, until the other side leaves

POLITE: dict[str, Any] = {
    "connect": b"220 peer.test ESMTP\r\n",
    "EHLO": b"250-peer.test\r\n250-SIZE 99999999\r\n250 8BITMIME\r\n",
    "MAIL": b"250 sender ok\r\n",
    "RCPT": b"250 recipient ok\r\n",
    "DATA": b"354 go on\r\n",
    "body": b"",  # sent in the middle of the message, when its first bytes are there
    ".": b"250 taken\r\n",
    "RSET": b"250 reset\r\n",
    "QUIT": b"221 bye\r\n",
}


class ThreadedServer:
    """Takes connections on a loopback port of its own, each in a thread."""

    def listen(self) -> None:
        """Begin, once all is there that `_serve` needs."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        # shutdown wakes accept(), close alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ignored = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        raise NotImplementedError


@dataclass
class ScriptedPeer(ThreadedServer):
    """A mail server by script: what it says at each point, and what it heard.

    With a `context` it goes over to TLS once it has said its 220 to STARTTLS. Replies may be changed while it runs.
    """

    replies: dict[str, Any] = field(default_factory=dict)
    context: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self.lines: list[bytes] = []  # the commands of all connections
        self.conversations: list[list[bytes]] = []  # the commands of each connection
        self.tls: list[str] = []  # the TLS versions that were agreed upon
        self.messages: list[bytes] = []  # whole messages on the wire, with their final dot
        self.fragments: list[bytes] = []  # what came of messages whose final dot never did
        self.listen()

    def verbs(self) -> list[str]:
        return [line.split()[0].split(b":")[0].decode().upper() for line in self.lines]

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(DEADLINE)
        lines: list[bytes] = []
        self.conversations.append(lines)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, EOFError):
            stack.enter_context(connection)
            self._say(connection, "connect")
            stream = connection.makefile("rb")
            while line := stream.readline():
                self.lines.append(line)
                lines.append(line)
                verb = line.split()[0].decode().upper()
                said = self._say(connection, verb)
                if verb == "DATA" and said.startswith(b"354"):
                    self._take_message(connection, stream)
                if verb == "STARTTLS" and self.context is not None and said.startswith(b"220"):
                    connection = stack.enter_context(self.context.wrap_socket(connection, server_side=True))
                    stream = connection.makefile("rb")
                    self.tls.append(connection.version() or "")
                if verb == "QUIT":
                    return

    def _take_message(self, connection: socket.socket, stream: Any) -> None:
        message = b""
        try:
            while not (message == b".\r\n" or message.endswith(b"\r\n.\r\n")):
                line = stream.readline()
                if not line:
                    raise EOFError
                message += line
                if message == line:
                    self._say(connection, "body")
        except (OSError, EOFError):
            self.fragments.append(message)
            raise
        self.messages.append(message)
        self._say(connection, ".")

    def _reply(self, point: str) -> Any:
        return {**POLITE, **self.replies}.get(point, b"500 what?\r\n")

    def _say(self, connection: socket.socket, point: str) -> bytes:
        reply = self._reply(point)
        if reply is CLOSE:
            raise EOFError
        if reply is SILENCE:
            connection.recv(1)
            raise EOFError
        if callable(reply):
            reply = reply()
        if isinstance(reply, bytes):
            connection.sendall(reply)
            return reply
        for piece in reply:  # an iterable of pieces: to be sent apart, or without an end
            connection.sendall(piece)
        return b""


# systemd's way: the sockets from descriptor 3 on, in order, and the process that they are for.
ACTIVATION = """
import fcntl, os, sys
given = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",")]
for number, descriptor in enumerate(given, 3):
    os.dup2(descriptor, number)
os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = str(len(given)), str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Proxy:
    """The real program. `events` grows as it logs."""

    def __init__(self, folder: Path, backend_ports: list[int], **settings: dict[str, Any]) -> None:
        config: dict[str, dict[str, Any]] = {
            "smtp": {"listen": ["127.0.0.1:0"], "hostname": "mx.test"},
            "backend": {"hosts": [f"127.0.0.1:{port}" for port in backend_ports], "domains": ["here.test"]},
            # No DNS, unless a test brings a server of its own.
            "greylist": {"delay": "1s", "client_key": "network"},
            "allow": {"well_known": False},
            # A disk that is busy with other tests must not look like a store that fails.
            "store": {"url": f"sqlite:///{folder}/greylist.db", "timeout": "10s"},
            "admin": {"listen": "", "socket": "off"},
        }
        for section, keys in settings.items():
            config.setdefault(section, {}).update(keys)
        self.config = folder / "config.toml"
        self.config.write_text(
            "".join(
                f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
                for section, keys in config.items()
            )
        )
        self.events: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self.environment: dict[str, str] = {}
        self.prefix: list[str] = []  # a command that starts the program, such as prlimit
        self.program = ["-m", "greylist_proxy"]  # what Python is given
        self._given: list[int] = []  # descriptors that it inherits

    def activated(self, *sockets: socket.socket, names: str = "") -> Proxy:
        """Have it get listening sockets as systemd gives them, with these FileDescriptorNames (`a:b:c`)."""
        self._given = [each.fileno() for each in sockets]
        self.prefix = [sys.executable, "-c", ACTIVATION, ",".join(map(str, self._given))]
        self.environment["LISTEN_FDNAMES"] = names
        return self

    def start(self) -> Proxy:
        """Start it (again), and wait until it takes connections."""
        starts = len(self.select("listening")) + 1
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, *self.program, "serve", "--config", str(self.config)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
            pass_fds=self._given,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        listening = self.wait_for("listening", starts)[-1]
        self.addresses: list[str] = listening["addresses"]
        self.port = int(self.addresses[0].rpartition(":")[2])
        return self

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if not line.endswith("\n"):
                return  # killed in the middle of it
            self.raw.append(line)
            self.events.append(json.loads(line))

    def select(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the events of a kind with these values."""
        return [
            each
            for each in list(self.events)
            if each["event"] == event and all(each[key] == value for key, value in fields.items())
        ]

    def wait_for(self, event: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Wait until there are that many such events, and return them."""

        def enough() -> list[dict[str, Any]]:
            assert self.process.poll() is None or len(self.select(event, **fields)) >= count, self.raw
            found = self.select(event, **fields)
            return found if len(found) >= count else []

        return wait_until(enough, f"{count} {event} {fields}, have {self.raw[-5:]}")  # type: ignore[no-any-return]

    def stop(self) -> int:
        """SIGTERM; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return status

    def kill(self) -> None:
        """Clean up, whatever the test left."""
        if hasattr(self, "process"):
            self.process.kill()
            self.wait()

    def errors(self) -> list[dict[str, Any]]:
        return self.select("error")


class Wire:
    """A client that sends what it is told, byte by byte if need be."""

    def __init__(self, port: int, host: str = "127.0.0.1", source: str = "") -> None:
        # Loopback has 16 million addresses: a client comes from any of them that it likes.
        self.socket = socket.create_connection((host, port), DEADLINE, (source, 0))
        self._stream = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> bytes:
        """Read one whole reply; b"" at the end of the connection."""
        lines = b""
        while line := self._stream.readline():
            lines += line
            if line[3:4] != b"-":
                break
        return lines

    def ask(self, line: bytes) -> bytes:
        self.send(line + b"\r\n")
        return self.reply()

    def hello(self) -> Wire:
        assert self.reply().startswith(b"220 ")
        assert self.ask(b"EHLO client.test").startswith(b"250")
        return self

    def until_end(self) -> bytes:
        """Read to the end of the connection; a reset is an end too."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := self._stream.read(1):
                data += piece
        return data

    def close(self) -> None:
        self._stream.close()
        self.socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def closing(thing: Any) -> Iterator[Any]:
    """Like contextlib.closing, for what has `close` or `kill`."""
    try:
        yield thing
    finally:
        (thing.kill if hasattr(thing, "kill") else thing.close)()
