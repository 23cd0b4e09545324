# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients, the proxy and a mail server in one event loop that goes one round at a time, when the test says so.

All of the proxy is real between the two transports (`rounds.py`) and the store: sessions, transactions, the pool.

`Client` and `Server` know the rules of SMTP, and say (`AssertionError`) where the proxy breaks one: a reply too many or
the wrong one, a message that nobody sent or that is not whole, a connection that is used again and must not be.
"""

from __future__ import annotations

import asyncio
import io
import json
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from greylist_proxy import gate as gate_module
from greylist_proxy.client import Identifier
from greylist_proxy.config_sections import AllowSection, TrapSection
from greylist_proxy.config_values import Endpoint
from greylist_proxy.exemptions import Exemptions
from greylist_proxy.gate import Gate
from greylist_proxy.log import Log
from greylist_proxy.policy import Found, Identity, Record, Rules
from greylist_proxy.smtp import conversation
from greylist_proxy.smtp.capabilities import Capabilities, Promises
from greylist_proxy.smtp.events import Offers
from greylist_proxy.smtp.host import BackendSettings
from greylist_proxy.smtp.limits import Connections
from greylist_proxy.smtp.pool import Backends
from greylist_proxy.smtp.recipients import Acceptance
from greylist_proxy.smtp.server import Session
from greylist_proxy.smtp.settings import SessionSettings
from greylist_proxy.smtp.shared import Services
from greylist_proxy.smtp.tarpit import Tarpit
from greylist_proxy.smtp.timers import Watch
from greylist_proxy.smtp.turns import Shares
from greylist_proxy.store import Sighting
from greylist_proxy.tasks import Tasks

from .rounds import Loop, Pipe

SERVER = Endpoint("192.0.2.25", 25)


class Client:
    """One that keeps to the rules, but for when it leaves. It knows what each reply belongs to."""

    def __init__(self, town: Town, number: int, host: str) -> None:
        self.town = town
        self.number = number
        self.messages = 0
        self.awaited: deque[str] = deque(["banner"])
        self.is_open = True  # it may send commands
        self.in_transaction = False  # MAIL was sent
        self.ready = 0  # recipients that were accepted
        self.in_body = False
        self.body = b""  # as far as it was sent
        self.said_goodbye = False  # the proxy has
        self.is_gone = False
        self._heard = b""
        session = Session(town.services, town.watch)
        self.session = weakref.ref(session)
        self.pipe = Pipe(town.loop, session, host, self._hear)
        town.loop.call_soon(session.connection_made, self.pipe)

    @property
    def may_send(self) -> bool:
        return self.is_open and not self.in_body and "DATA" not in self.awaited and "." not in self.awaited

    def send(self, *commands: str) -> None:
        """Send commands at once; what they are for is what comes before the colon."""
        for command in commands:
            verb = command.split()[0].partition(":")[0]
            self.awaited.append(command if verb == "RCPT" else verb)
            if verb == "MAIL":
                self.in_transaction, self.ready = True, 0
            elif verb in ("RSET", "EHLO", "QUIT"):
                self.in_transaction = False
        self.pipe.bring("".join(f"{command}\r\n" for command in commands).encode())

    def send_body(self, size: int) -> None:
        """Send a piece of the message."""
        if not self.body:
            self.body = f"Subject: {self.number}-{self.messages}\r\n\r\n".encode()
            start = self.body
        else:
            start = b""
        line = b"x" * 70 + b"\r\n"
        piece = start + line * (size // len(line)) + b"y" * max(0, size % len(line) - 2) + b"\r\n"
        self.body += piece[len(start) :]
        self.pipe.bring(piece)

    def end_body(self) -> None:
        """Send the final dot."""
        if not self.body:
            self.send_body(1)
        self.in_body = False
        self.awaited.append(".")
        self.town.sent[f"{self.number}-{self.messages}"] = self.body
        self.pipe.bring(b".\r\n")

    def half_close(self) -> None:
        self.is_open = False
        self.pipe.bring(None)

    def leave(self) -> None:
        self.is_open, self.is_gone = False, True
        self.pipe.reset()

    def _hear(self, data: bytes) -> None:
        self._heard += data
        while (end := self._heard.find(b"\r\n")) >= 0:
            line, self._heard = self._heard[:end].decode(), self._heard[end + 2 :]
            if line[3:4] != "-":
                self._take(line)

    def _take(self, reply: str) -> None:
        assert not self.said_goodbye, f"after the last word came {reply}"
        if reply.startswith("421 "):  # the only one that may come unasked
            self.said_goodbye, self.is_open = True, False
            return
        assert self.awaited, f"nobody asked: {reply}"
        what = self.awaited.popleft()
        code = reply[:3]
        if what == "banner":
            assert code == "220"
        elif what in ("EHLO", "RSET", "NOOP"):
            assert code == "250", (what, reply)
        elif what == "QUIT":
            assert code == "221", reply
            self.said_goodbye = True
        elif what == "MAIL":
            assert code == "250", reply
        elif what.startswith("RCPT"):
            address = what.partition("<")[2].partition(">")[0]
            if code == "250":
                assert reply.endswith(address), f"{what} was answered by {reply}"
                self.ready += 1
            else:
                assert code[0] in "45", reply
        elif what == "DATA":
            assert code[0] in "345", reply
            self.in_body = code == "354"
            self.in_transaction = code == "503"
            assert not self.in_body or self.ready
        else:
            name = f"{self.number}-{self.messages}"
            if code == "250":
                assert name in self.town.taken, f"{name} was acknowledged and nobody has it"
                assert reply.endswith(name), f"{name} was answered by {reply}"
            else:
                assert code[0] in "45", reply
            self.messages += 1
            self.body = b""


class Server:
    """One connection at the mail server behind: what was said there, and what is to be answered."""

    def __init__(self, town: Town, protocol: Any) -> None:
        self.town = town
        self.asked: deque[str] = deque()
        self.in_transaction = False
        self.in_body = False
        self.begun = 0  # transactions
        self.is_spoiled = False  # it said something after which it must not be used again
        self._data = b""
        self.pipe = Pipe(town.loop, protocol, "192.0.2.25", self._hear)
        town.servers.append(self)
        protocol.connection_made(self.pipe)
        self.pipe.bring(b"220 server.test\r\n")

    def _hear(self, data: bytes) -> None:
        self._data += data
        while self._data:
            if self.in_body:
                end = self._data.find(b"\r\n.\r\n")
                if end < 0:
                    return
                content, self._data = self._data[: end + 2], self._data[end + 5 :]
                self.in_body = False
                self._message(content)
                continue
            end = self._data.find(b"\r\n")
            if end < 0:
                return
            line, self._data = self._data[:end].decode(), self._data[end + 2 :]
            self._command(line)

    def _command(self, line: str) -> None:
        verb = line.split()[0].partition(":")[0]
        assert verb in ("EHLO", "MAIL", "RCPT", "DATA", "RSET", "QUIT"), line
        assert "." not in self.asked, "a command while the final dot is not answered"
        if verb == "EHLO":
            self.pipe.bring(b"250-server.test\r\n%b250 8BITMIME\r\n" % self.town.offer)
            return
        if verb == "MAIL":
            assert not self.in_transaction, "a transaction within a transaction"
            assert not self.is_spoiled, "used again after it had refused something"
            self.in_transaction = True
            self.begun += 1
        elif verb in ("RSET", "QUIT"):
            self.in_transaction = False
        self.asked.append(line if verb == "RCPT" else verb)

    def _message(self, content: bytes) -> None:
        body = content[content.index(b"Subject: ") :]
        name = body[9:].partition(b"\r\n")[0].decode()
        assert content.startswith(b"Received: from ")
        assert self.town.sent.get(name) == body, f"{name} is not what was sent, or not all of it was"
        assert name not in self.town.taken, f"{name} came again after it was taken"
        self.asked.append(f". {name}")

    def answer(self, code: int, *, cut: bool = False) -> None:
        """Answer the oldest command; `cut`: in two pieces."""
        if not self.asked:
            return
        what = self.asked.popleft()
        verb, _blank, rest = what.partition(" ")
        verb = verb.partition(":")[0]
        subject = what.partition("<")[2].partition(">")[0] or rest or verb
        if verb == "DATA" and code == 250:
            code = 354
            self.in_body = True
        if code == 250 and verb == ".":
            self.town.taken.add(rest)
        if verb == "." or (verb == "MAIL" and code >= 400):
            self.in_transaction = False
        refuses_more = self.begun > 1 and code >= 400 and verb in ("MAIL", "DATA", ".")
        if code >= 500 or code == 421 or refuses_more:
            self.is_spoiled = True
        reply = f"{code} {subject}\r\n".encode()
        if cut:
            self.pipe.bring(reply[:2])
            reply = reply[2:]
        self.pipe.bring(reply)


class Memory:
    """Stands where a store would: knows all but `new@`, and notes deliveries at once or when the test says so."""

    rules = Rules()
    is_quick = True

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.noting: list[asyncio.Future[None]] = []

    def _sighting(self, identities: Sequence[Identity], recipient: str) -> Sighting:
        now = self._loop.now
        record = None if recipient.startswith("new") else Record(now - 7200, now - 3600)
        return Sighting(now, (Found(record),) * len(identities))

    def observe_now(self, identities: Sequence[Identity], sender: str, recipient: str) -> Sighting | None:
        return self._sighting(identities, recipient) if self.is_quick else None

    async def observe(self, identities: Sequence[Identity], sender: str, recipient: str, *, record: bool) -> Sighting:
        await asyncio.sleep(0)
        return self._sighting(identities, recipient)

    def delivered_now(self, *_what: Any, counts: bool) -> bool:
        return self.is_quick

    async def delivered(self, *_what: Any, counts: bool) -> None:
        future = self._loop.create_future()
        self.noting.append(future)
        await future

    async def flush(self) -> None:
        """What is noted is there for good."""

    def end_noting(self) -> None:
        """Let what is being noted be noted."""
        for future in self.noting:
            if not future.done():
                future.set_result(None)
        self.noting.clear()

    def note(self, _decision: Any) -> None:
        """Nobody will ask."""


class Town:
    """Everything together. `close` ends it, and asks whether anything is left."""

    def __init__(
        self,
        *,
        share: int = 2,
        connections: int = 2,
        wait: float = 0.0,
        session: float = 3600.0,
        pipelining: bool = True,
        verify: bool = False,
    ) -> None:
        self.loop = loop = Loop()
        self.offer = b"250-PIPELINING\r\n" if pipelining else b""
        self.clients: list[Client] = []
        self.servers: list[Server] = []
        self.sent: dict[str, bytes] = {}  # messages that clients ended with a dot
        self.taken: set[str] = set()  # those of them that the mail server took
        self.refuses = False  # the mail server takes no connections
        self._patches = ExitStack()
        # The clocks are the loop's, so that an order of events can be had again.
        self._patches.enter_context(mock.patch.object(conversation, "monotonic", loop.time))
        clock = SimpleNamespace(monotonic=loop.time, time=loop.time)
        self._patches.enter_context(mock.patch.object(gate_module, "time", clock))
        self._stream = io.StringIO()
        log = Log(self._stream)
        self.tasks = Tasks(log)
        self.store = Memory(loop)
        self.watch = Watch()
        loop.answer = self._connected

        async def make() -> None:
            rules = self.store.rules
            allow, trap = AllowSection(well_known=False), TrapSection()
            gate = Gate(
                cast("Any", self.store),
                Exemptions(allow, trap, None, loop.time),
                rules,
                "accept",
                log,
                self.tasks,
                clock=loop.time,
            )
            settings = BackendSettings(hosts=[SERVER], starttls="never", max_connections=connections)
            self.services = Services(
                hostname="mx.test",
                acceptance=Acceptance.load(["here.test"]),
                ipv4_prefix=24,
                ipv6_prefix=64,
                greylisted_reply="Greylisted",
                identifier=Identifier(None, None, "network", 5, log),
                backends=Backends(settings, "mx.test", Promises(None), log, self.tasks),
                gate=gate,
                log=log,
                tasks=self.tasks,
                tarpit=Tarpit(wait, wait, 100),
                settings=SessionSettings(greet_delay=wait, session_timeout=session),
                offers=Offers("mx.test", 1 << 20, Capabilities(pipelining=True), starttls=False),
                connections=Connections(100, 100),
                shares=Shares(share),
                verify_recipient_first=verify,
            )

        loop.run_until_complete(make())

    def _connected(self, protocol: Any) -> None:
        if self.refuses:
            raise ConnectionRefusedError("nobody is there")
        Server(self, protocol)

    def arrives(self, host: str) -> Client:
        client = Client(self, len(self.clients), host)
        self.clients.append(client)
        return client

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    def check(self) -> None:
        """Nothing is taken twice, and nothing failed that was not made to."""
        assert not self.loop.faults, self.loop.faults
        faults = [line for line in self.log if "traceback" in line or line["event"] == "error"]
        assert not faults, faults

    def finish(self) -> None:
        """Let everything come to its end, and see that nothing is left of it."""
        self.loop.step(2000)
        for client in self.clients:
            # Half an hour is more than all that the proxy waits for, but for a client that is to say something.
            open_still = not (client.is_gone or client.pipe.is_over or client.pipe.stalled)
            assert not (open_still and client.awaited), f"client {client.number} waits for {client.awaited}"
            client.pipe.reset()
        self.store.end_noting()
        self.loop.step(1000)
        self._see_that_nothing_is_left()

    def give_up(self) -> None:
        """End as the program does where something is still under way after its patience, and see that nothing is left.

        Last comes what `asyncio.run` does with tasks.
        """
        for session in self.watch:
            session.abort()
        self.loop.call_soon(self.tasks.give_up)
        self.loop.rest()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.rest()
        self._see_that_nothing_is_left()

    def _see_that_nothing_is_left(self) -> None:
        services = self.services
        left = {
            "connections": services.connections.total,
            "sessions": len(self.watch),
            "shares": services.shares.taken,
            "clients with shares": len(services.shares),
            "callouts": services.callouts.taken,
            "tarpitted": services.tarpit.waiting,
            "tasks and errands": len(self.tasks),
        }
        for host in services.backends._known.values():
            left["places"] = host._turns.taken + host._turns.waiting
            left["in use"] = len(host._current)
        assert not any(left.values()), left
        self.check()

    def close(self) -> None:
        self.loop.close()
        self._patches.close()
