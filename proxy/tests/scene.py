# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of faults play in: a mail server and clients that keep the ledger, and the program between them."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from . import altered
from .ledger import Ledger, LedgerBackend, LedgerClient, Told, deliver_all
from .peers import Proxy, Wire, closing


class Scene:
    """The program before a backend with the ledger; it defers nobody, unless the settings say so.

    `patience`: seconds for each timer of the backend's side. `prefix`: a command that starts the program. `clock`: a
    file by which the program's clock is wrong.
    """

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        *,
        patience: float | None = None,
        clock: Path | None = None,
        prefix: list[str] | None = None,
        **settings: dict[str, Any],
    ) -> None:
        self.ledger = Ledger()
        self.backend: LedgerBackend = stack.enter_context(closing(LedgerBackend(self.ledger)))
        settings = {"greylist": {"delay": 0}, **settings}
        self.proxy: Proxy = stack.enter_context(closing(Proxy(folder, [self.backend.port], **settings)))
        self.proxy.prefix = prefix or []
        if patience is not None:
            self.proxy.environment["ALTERED_PATIENCE"] = str(patience)
        if clock is not None:
            self.proxy.environment["ALTERED_CLOCK"] = str(clock)
        if self.proxy.environment:
            self.proxy.program = [str(Path(altered.__file__))]
        self.proxy.start()

    # -- clients --

    def connect(self) -> Wire:
        """Return a client that has its banner."""
        wire = Wire(self.proxy.port)
        assert wire.reply().startswith(b"220 ")
        return wire

    def in_data(self) -> Wire:
        """Return a client that may send a message."""
        wire = self.connect()
        for line in (b"EHLO client.test", b"MAIL FROM:<a@far.test>", b"RCPT TO:<u@here.test>", b"DATA"):
            assert wire.ask(line)[:1] in (b"2", b"3")
        return wire

    def offer(self) -> tuple[int, Told, bytes]:
        """Send a new message once; return its number, what came of it, and the last answer."""
        number = self.ledger.new()
        client = LedgerClient(self.proxy.port, self.ledger)

        async def once() -> Told:
            told = await client.offer(number)
            await client.leave()
            return told

        return number, asyncio.run(once()), client.answer

    def deliver(self, number: int) -> None:
        """Send a message until it is there."""

        async def often() -> None:
            client = LedgerClient(self.proxy.port, self.ledger)
            await client.deliver(number)
            await client.leave()

        asyncio.run(often())

    def deliver_new(self, count: int = 1, at_once: int = 1) -> None:
        """Send new messages until they are there."""
        asyncio.run(deliver_all(self.proxy.port, self.ledger, count, at_once))

    # -- the program --

    def descriptors(self) -> int:
        """Return how many files and sockets the program has open."""
        return len(list(Path(f"/proc/{self.proxy.process.pid}/fd").iterdir()))

    def memory(self) -> int:
        """Return the program's resident memory in bytes."""
        pages = int(Path(f"/proc/{self.proxy.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def end(self) -> None:
        """See that it still takes mail, stop it, and compare the books."""
        self.deliver_new(2)
        assert self.proxy.stop() == 0
        assert self.ledger.mistakes(self.proxy.events) == []
        # Alarms there may be, but no exception that nobody thought of.
        assert [each for each in self.proxy.errors() if "traceback" in each] == []


MakeScene = Callable[..., Scene]


@pytest.fixture
def make_scene(tmp_path: Path) -> Iterator[MakeScene]:
    """Make one with these settings."""
    with ExitStack() as stack:

        def make(**options: Any) -> Scene:
            return Scene(tmp_path, stack, **options)

        yield make


def reset(wire: Wire) -> None:
    """Leave with a reset, as a crashed machine does."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()
