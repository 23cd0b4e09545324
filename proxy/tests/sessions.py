# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions inside the test's own event loop, with a script where transactions would decide and relay.

For what the program as a process can't show: short timers, faults in our own code, a backend that waits for the test's
word. The loop is uvloop, as in the program.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from greylist_proxy.log import Log
from greylist_proxy.policy import Mode
from greylist_proxy.smtp import server
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.events import Hello, Limits, Mail, Offers
from greylist_proxy.smtp.limits import Connections
from greylist_proxy.smtp.replies import Reply, own_reply
from greylist_proxy.smtp.server import Session
from greylist_proxy.smtp.settings import SessionSettings
from greylist_proxy.smtp.shared import Services
from greylist_proxy.smtp.tarpit import Tarpit
from greylist_proxy.smtp.timers import Watch
from greylist_proxy.smtp.tls import Tls
from greylist_proxy.smtp.transaction import Visitor
from greylist_proxy.tasks import Tasks

__all__ = ["stage"]

ENVELOPE = (b"EHLO client.test", b"MAIL FROM:<a@far.test>", b"RCPT TO:<u@here.test>")
GO_ON = Reply(354, (b"go on",))
PERMANENT = own_reply(550, "5.1.1", "No such user")
TEMPORARY = own_reply(450, "4.7.1", "Not now")
ACCEPTED = own_reply(250, "2.0.0", "queued")
Answer = Reply | Exception | Callable[[], Any]


def run(dialogue: Coroutine[Any, Any, None]) -> None:
    """Run a dialogue to its end, in the loop that the program has."""

    async def limited() -> None:
        async with asyncio.timeout(30):
            await dialogue

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())


class Scripted:
    """Stands where a Transaction would; `stage.answers` says what becomes of it."""

    def __init__(
        self,
        stage: Stage,
        services: Services,
        visitor: Visitor,
        hello: Hello,
        mail: Mail,
        flow: Any,
        promised: Capabilities | None,
    ) -> None:
        self.stage = stage
        self.visitor = visitor
        self.hello = hello
        self.mail = mail
        self.flow = flow
        self.content = b""
        self.outcomes: list[str] = []
        self.is_trapped = False
        self.slow = visitor.early
        stage.transactions.append(self)

    async def _answer(self, point: str) -> Reply:
        answer = self.stage.answers[point]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Reply):
            return answer
        result = answer()
        return cast(Reply, await result if asyncio.iscoroutine(result) else result)

    async def rcpt(self, address: str, parameters: Sequence[object]) -> Reply:
        self.slow = self.slow or self.stage.slow
        return await self._answer("rcpt")

    async def data(self) -> Reply:
        return await self._answer("data")

    def write(self, piece: bytes, *, is_last: bool = False) -> None:
        answer = self.stage.answers["write"]
        if isinstance(answer, Exception):
            raise answer
        self.content += piece

    async def commit(self) -> Reply:
        reply = await self._answer("commit")
        self.outcomes.append("committed")
        return reply

    def fail(self) -> None:
        self.outcomes.append("failed")

    def abandon(self, outcome: str, reply: Reply | None = None) -> None:
        self.outcomes.append(outcome)


@dataclass
class Stage:
    """The settings of the next `open`, and what came of it."""

    answers: dict[str, Answer] = field(
        default_factory=lambda: {"rcpt": ACCEPTED, "data": GO_ON, "write": ACCEPTED, "commit": ACCEPTED}
    )
    slow: bool = False  # the client's refusals trickle
    mode: Mode = Mode.ENFORCE
    settings: SessionSettings = field(default_factory=SessionSettings)
    limits: Limits = field(default_factory=Limits)
    tarpit: Tarpit = field(default_factory=lambda: Tarpit(0, 0, 100))
    connections: Connections = field(default_factory=lambda: Connections(1000, 1000))
    tls: Tls = field(default_factory=Tls)
    sweep: float = 0.02  # seconds
    transactions: list[Scripted] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stream = io.StringIO()
        self.log = Log(self._stream)
        self.watch = Watch(self.sweep)
        self.tasks = Tasks(self.log)

    def services(self) -> Services:
        nobody = cast(Any, None)
        return Services(
            hostname="mx.test",
            acceptance=nobody,
            ipv4_prefix=24,
            ipv6_prefix=64,
            greylisted_reply="",
            identifier=nobody,
            backends=nobody,
            gate=cast(Any, SimpleNamespace(rules=SimpleNamespace(mode=self.mode))),
            log=self.log,
            tasks=self.tasks,
            tarpit=self.tarpit,
            offers=Offers("mx.test", 1 << 20, Capabilities(), self.tls.context is not None),
            connections=self.connections,
            limits=self.limits,
            settings=self.settings,
            tls=self.tls,
        )

    async def listen(self) -> tuple[str, int]:
        """Listen, and return where."""
        services = self.services()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Session(services, self.watch), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        self._address = (str(host), int(port))
        return self._address

    async def open(self) -> Talk:
        """Listen, and connect a first client. The same services serve those that `connect` brings."""
        await self.listen()
        return await self.connect()

    async def connect(self) -> Talk:
        return Talk(*await asyncio.open_connection(*self._address))

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return what was logged of a kind."""
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage, with its script in the place of transactions."""
    made = Stage()
    monkeypatch.setattr(server, "Transaction", lambda *arguments: Scripted(made, *arguments))
    return made


async def opened(services: Services) -> Talk:
    """Serve with these services, and connect a client."""
    watch = Watch()
    listener = await asyncio.get_running_loop().create_server(lambda: Session(services, watch), "127.0.0.1", 0)
    return Talk(*await asyncio.open_connection(*listener.sockets[0].getsockname()[:2]))


class Talk:
    """A client in the same loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> bytes:
        """Read one reply; what there is of it at the end of the connection."""
        text = b""
        while line := await self.reader.readline():
            text += line
            if line[3:4] == b" ":
                break
        return text

    async def ask(self, line: bytes) -> bytes:
        self.send(line + b"\r\n")
        return await self.reply()

    async def begin(self, *lines: bytes) -> None:
        """Take the banner, and say lines that are all accepted."""
        assert (await self.reply()).startswith(b"220 ")
        for line in lines:
            assert (await self.ask(line))[:1] in b"23"

    async def until_end(self) -> bytes:
        """Read to the end of the connection; a reset is an end too."""
        data = b""
        try:
            while piece := await self.reader.read(1 << 16):
                data += piece
        except ConnectionError:
            pass
        return data

    def reset(self) -> None:
        """Leave as a crashed client does: with a reset."""
        connection = self.writer.get_extra_info("socket")
        if connection is not None:  # else it is gone already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Make the client's half of a handshake."""
        await self.writer.start_tls(context, server_hostname="mx.test")


class Gate:
    """An answer that waits for the test."""

    def __init__(self, reply: Reply = ACCEPTED) -> None:
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.cancelled = False
        self._reply = reply

    async def __call__(self) -> Reply:
        self.asked.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return self._reply
