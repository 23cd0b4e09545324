# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Books on both sides of the proxy, for tests in which something breaks.

Every message has a number, from which its content follows. Clients note what they were told about it, and the
mail server behind notes what it took, and in which transaction of the proxy's (the id in our `Received` field).
`Ledger.mistakes` compares both, and the log:

- what a client was told is delivered must be there, whole, to the byte;
- what is there twice, or is there although its client was told otherwise, must be explained: by a client that
  heard no answer to its final dot, or by the log's `outcome=unknown` for that very transaction (RFC 1047).
"""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from .peers import CLOSE, DEADLINE, SILENCE, free_port, wait_until

SIZES = (10, 700, 9_000, 70_000)  # bytes of a message, about; by its number


def content(number: int) -> bytes:
    """Return the message of this number as it goes over the wire, with its dots doubled, without the final one."""
    line = b"..%d is the number, and this line begins with a dot\r\n" % number
    return b"X-Ledger: %d\r\n\r\n" % number + line * (1 + SIZES[number % len(SIZES)] // len(line))


class Told(Enum):
    """What an attempt to deliver came to, as the client sees it."""

    DELIVERED = auto()  # 250 to the final dot
    REFUSED = auto()  # 4xx or 5xx, at whichever step
    NOTHING = auto()  # the final dot was sent, and no answer came
    UNSENT = auto()  # the connection was lost before the final dot


class Ledger:
    """The books of one test."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.delivered: set[int] = set()
        self.unanswered: Counter[int] = Counter()
        self.taken: dict[int, list[str]] = {}
        self.damaged: list[bytes] = []

    def new(self) -> int:
        """Return the next message's number."""
        return next(self._numbers)

    def told(self, number: int, what: Told) -> None:
        """The client's side."""
        if what is Told.DELIVERED:
            self.delivered.add(number)
        elif what is Told.NOTHING:
            self.unanswered[number] += 1

    def take(self, wire: bytes) -> None:
        """The backend's side: it takes this message, and will say so, or leave."""
        match = re.match(rb"Received: .*?\bid ([0-9A-F]+)\b.*?\r\n(?=X-Ledger: ([0-9]+)\r\n)", wire, re.DOTALL)
        with self._lock:
            if match is None or wire[match.end() :] != content(int(match[2])):
                self.damaged.append(wire)
            else:
                self.taken.setdefault(int(match[2]), []).append(match[1].decode())

    def mistakes(self, log: Iterable[dict[str, Any]]) -> list[str]:
        """Return a sentence for each thing that should not be: what was lost, told wrongly, or is there twice."""
        unknown = {each["id"] for each in log if each["event"] == "relay" and each["outcome"] == "unknown"}
        found = [f"a message came damaged: {wire[:300]!r}" for wire in self.damaged]
        found += [f"{number} was acknowledged and is missing" for number in sorted(self.delivered - set(self.taken))]
        for number, transactions in self.taken.items():
            known = [each for each in transactions if each not in unknown]
            if len(known) > (number in self.delivered) + self.unanswered[number]:
                found.append(
                    f"{number} was taken in {transactions}, known are {known}; its client was told "
                    f"{'that it is delivered' if number in self.delivered else 'otherwise'}, "
                    f"and {self.unanswered[number]} times nothing"
                )
        return found


@dataclass(frozen=True)
class Slowly:
    """As a reply: these bytes, with this time between two."""

    data: bytes
    seconds: float


TAKE_AND_CLOSE = object()  # as a reply to the final dot: take the message, and close the connection without a word

EHLO = (
    b"250-backend.test\r\n250-PIPELINING\r\n250-SIZE 50000000\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 DSN\r\n"
)
POLITE: dict[str, Any] = {
    "connect": b"220 backend.test ESMTP\r\n",
    "EHLO": EHLO,
    "MAIL": b"250 2.1.0 ok\r\n",
    "RCPT": b"250 2.1.5 ok\r\n",
    "DATA": b"354 go on\r\n",
    "body": b"",  # in the middle of the message
    ".": b"250 2.0.0 taken\r\n",
    "RSET": b"250 2.0.0 ok\r\n",
    "NOOP": b"250 2.0.0 ok\r\n",
    "QUIT": b"221 2.0.0 bye\r\n",
}


class LedgerBackend:
    """A mail server that keeps the ledger. `fault(stage)` may replace what it says at each; None: be polite."""

    def __init__(self, ledger: Ledger, fault: Callable[[str], Any] = lambda stage: None) -> None:
        self.ledger = ledger
        self.fault = fault
        self.stages: Counter[str] = Counter()
        self.port = free_port()
        self._connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.listen()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    def listen(self) -> None:
        """Take connections (again)."""

        async def start() -> None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self.port, limit=1 << 20, backlog=1000, reuse_address=True
            )

        self._run(start())

    def refuse(self) -> None:
        """Have connections refused, and end those that are there."""

        async def end() -> None:
            if self._server is not None:
                self._server.close()
            for writer in self._connections:
                writer.transport.abort()

        self._run(end())

    def hang_up(self, words: bytes = b"") -> None:
        """Say something out of turn, and end the connections that are there."""

        async def end() -> None:
            for writer in self._connections:
                writer.write(words)
                writer.close()

        self._run(end())
        wait_until(lambda: not self._connections, "the connections' end")

    def open_connections(self) -> int:
        """Return how many there are."""
        return len(self._connections)

    def close(self) -> None:
        """End."""
        self.refuse()
        wait_until(lambda: not self._connections, "the connections' end")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            await self._converse(reader, writer)
        except (OSError, EOFError, ValueError):
            pass  # the proxy left, or the fault was to leave
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._say("connect", reader, writer)
        while line := await reader.readline():
            verb = line.split()[0].decode().upper()
            said = await self._say(verb, reader, writer)
            if verb == "DATA" and said.startswith(b"354"):
                wire, last = b"", b""
                while last != b".\r\n":
                    wire += last
                    last = await reader.readline()
                    if not last.endswith(b"\r\n"):
                        raise EOFError
                    if not wire and await self._say("body", reader, writer):
                        # Who has spoken here has no other word after the final dot.
                        while await reader.readline() not in (b".\r\n", b""):
                            pass
                        raise EOFError
                await self._say(".", reader, writer, wire)
            if verb == "QUIT":
                return

    async def _say(
        self, stage: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: bytes | None = None
    ) -> bytes:
        self.stages[stage] += 1
        reply = self.fault(stage)
        if reply is None:
            reply = POLITE.get(stage, b"502 5.5.1 what?\r\n")
        if reply is CLOSE:
            raise EOFError
        if reply is SILENCE:
            while await reader.read(1 << 16):
                pass
            raise EOFError
        if wire is not None and (reply is TAKE_AND_CLOSE or _text(reply).startswith(b"2")):
            self.ledger.take(wire)
        if reply is TAKE_AND_CLOSE:
            raise EOFError
        if isinstance(reply, Slowly):
            for byte in reply.data:
                if writer.is_closing() or reader.at_eof():
                    raise EOFError
                writer.write(bytes([byte]))
                await asyncio.sleep(reply.seconds)
        else:
            writer.write(reply)
        await writer.drain()
        return _text(reply)


def _text(reply: Any) -> bytes:
    return reply.data if isinstance(reply, Slowly) else reply  # type: ignore[no-any-return]


class LedgerClient:
    """A client that keeps the ledger: one connection, made when it is first needed."""

    def __init__(self, port: int, ledger: Ledger, source: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._ledger = ledger
        self._source = source
        self._tls = tls  # if there is one, everything goes over TLS
        self.answer = b""  # the last line that was heard
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def offer(
        self, number: int, recipients: Sequence[str] = ("u@here.test",), patience: float = DEADLINE
    ) -> Told:
        """Send a message once, and note what came of it."""
        told = Told.UNSENT
        try:
            async with asyncio.timeout(patience):
                if self._streams is None:
                    await self._connect()
                for line in (f"MAIL FROM:<a{number}@far.test>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA"):
                    if not (await self._ask(line.encode())).startswith((b"2", b"354")):
                        told = Told.REFUSED
                        break
                else:
                    told = Told.NOTHING
                    answer = await self._ask(content(number) + b".")
                    told = Told.DELIVERED if answer.startswith(b"250") else Told.REFUSED
                if told is Told.REFUSED:
                    answer = self.answer
                    await self._ask(b"RSET")
                    self.answer = answer
        except (OSError, EOFError, TimeoutError):
            await self.leave()
        self._ledger.told(number, told)
        return told

    async def deliver(self, number: int, pause: float = 0.05) -> None:
        """Send a message until it is delivered, as a queueing client does."""
        async with asyncio.timeout(4 * DEADLINE):
            while await self.offer(number) is not Told.DELIVERED:
                await self.leave()
                await asyncio.sleep(pause)

    async def _connect(self) -> None:
        self._streams = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._source, 0))
        steps = [b"EHLO client.test"] if self._tls is None else [b"EHLO client.test", b"STARTTLS", b"EHLO client.test"]
        answer = await self._reply()
        for step in steps:
            if not answer.startswith(b"2"):
                raise EOFError
            answer = await self._ask(step)
            if step == b"STARTTLS" and self._tls is not None:
                await self._streams[1].start_tls(self._tls)

    async def _ask(self, line: bytes) -> bytes:
        assert self._streams is not None
        self._streams[1].write(line + b"\r\n")
        await self._streams[1].drain()
        return await self._reply()

    async def _reply(self) -> bytes:
        assert self._streams is not None
        while True:
            line = self.answer = await self._streams[0].readline()
            if not line.endswith(b"\n"):
                raise EOFError
            if line.startswith(b"421"):
                raise EOFError  # the session is over
            if line[3:4] != b"-":
                return line

    async def leave(self) -> None:
        """Close the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def deliver_all(port: int, ledger: Ledger, count: int, at_once: int) -> None:
    """Deliver that many new messages over several connections, whatever happens meanwhile."""
    numbers = iter([ledger.new() for _n in range(count)])

    async def client() -> None:
        sender = LedgerClient(port, ledger)
        for number in numbers:
            await sender.deliver(number)
        await sender.leave()

    async with asyncio.TaskGroup() as group:
        for _n in range(at_once):
            group.create_task(client())
