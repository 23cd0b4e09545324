# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection to the mail server behind: a small SMTP client that changes nothing.

Mail libraries rewrite what they send (line ends, dots, parameters), so this is our own: commands out, one reply
in, bytes through. Each command must find the input empty: a backend that talks out of turn would have its
words taken for the answer to the next command, and a message be confirmed that nobody took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from greylist_proxy.config_values import Endpoint
from greylist_proxy.smtp.replies import (
    MAX_REPLY_LINE,
    MAX_REPLY_LINES,
    Reply,
    ReplyError,
    own_reply,
    take_reply,
)

MAX_INPUT = MAX_REPLY_LINE * MAX_REPLY_LINES
UNREACHABLE = own_reply(451, "4.4.1", "The mail server does not answer, try again later")
GONE = own_reply(451, "4.4.2", "The connection to the mail server was lost, try again later")
TROUBLE = own_reply(451, "4.3.5", "The mail server is not ready for this mail, try again later")


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait for the backend: RFC 5321 section 4.5.3.2, but for the opening.

    The client waits 5 minutes for the answer to its RCPT, and all hosts together must fit into that: connecting,
    greeting and EHLO share `opening`, in equal parts among the hosts.
    """

    connect: float = 30
    opening: float = 240
    command: float = 300
    data: float = 120
    block: float = 180
    end_of_data: float = 600
    quit: float = 5


class BackendError(Exception):
    """The backend failed: `reply` is what the client is told, the text is for the operator."""

    def __init__(self, reply: Reply, text: str) -> None:
        super().__init__(text)
        self.reply = reply


class Connection(asyncio.Protocol):
    """A connection that has been greeted; `extensions` are the EHLO keywords in upper case."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.extensions: frozenset[str] = frozenset()
        self._transport: asyncio.Transport | None = None
        self._input = bytearray()
        self._lost: str = ""
        self._news = asyncio.Event()  # set whenever something below changes
        self._paused = False

    # -- asyncio's side --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Keep what came, up to the largest reply."""
        self._input += data
        if len(self._input) > MAX_INPUT:
            self._lost = "it sent more than any reply has"
            self.abort()
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note why; who waits is woken."""
        self._lost = self._lost or (f"connection lost: {exc}" if exc else "it closed the connection")
        self._news.set()

    def pause_writing(self) -> None:
        """The backend reads more slowly than the client sends."""
        self._paused = True

    def resume_writing(self) -> None:
        """The backend has caught up."""
        self._paused = False
        self._news.set()

    # -- ours --

    async def reply(self, seconds: float) -> Reply:
        """Wait for a whole reply. BackendError: none came, or what came is none."""
        while True:
            try:
                reply = take_reply(self._input)
            except ReplyError as error:
                raise BackendError(TROUBLE, str(error)) from error
            if reply is not None:
                return reply
            await self._wait(seconds, "a reply")

    async def command(self, line: bytes, seconds: float) -> Reply:
        """Send a command line (without CRLF) and wait for its reply."""
        self._expect_silence()
        await self.write(line + b"\r\n", seconds)
        return await self.reply(seconds)

    async def write(self, data: bytes, seconds: float) -> None:
        """Send bytes; returns once the backend has taken most of what is under way."""
        if self._lost or self._transport is None:
            raise BackendError(GONE, self._lost)
        self._transport.write(data)
        while self._paused:
            await self._wait(seconds, "it to take data")

    async def end_data(self, seconds: float) -> None:
        """Send the final dot: from here on the message may be the backend's."""
        self._expect_silence()
        await self.write(b".\r\n", seconds)

    def has_spoken(self) -> bool:
        """Tell whether something came that nobody has asked for yet."""
        return bool(self._input)

    async def quit(self, seconds: float) -> None:
        """Leave politely; never raises."""
        try:
            await self.command(b"QUIT", seconds)
        except BackendError:
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave at once; what was not sent yet is not sent any more."""
        if self._transport is not None:
            self._transport.abort()

    def _expect_silence(self) -> None:
        if self._input:
            raise BackendError(TROUBLE, f"it talks out of turn: {bytes(self._input[:80])!r}")

    async def _wait(self, seconds: float, what: str) -> None:
        if self._lost:
            raise BackendError(GONE, self._lost)
        self._news.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            self._lost = f"waited {seconds:g} seconds for {what}"
            self.abort()
            raise BackendError(GONE, self._lost) from None


async def connect(
    hosts: Sequence[Endpoint], hostname: str, timeouts: Timeouts, report: Callable[[Endpoint, BackendError], None]
) -> Connection:
    """Open a connection to the first host that greets us; `report` hears of each that does not.

    BackendError, with the reply for the client: none did. A host that refuses us (any reply but 220 and 250) is
    in trouble, and is passed over like one that is down.
    """
    reply = UNREACHABLE
    for host in hosts:
        connection = Connection(host)
        try:
            async with asyncio.timeout(timeouts.opening / len(hosts)):
                await _open(connection, hostname, timeouts)
        except TimeoutError:
            error = BackendError(UNREACHABLE, "no greeting in time")
        except OSError as failure:
            error = BackendError(UNREACHABLE, str(failure))
        except BackendError as failure:
            error = failure
        except BaseException:
            connection.abort()
            raise
        else:
            return connection
        connection.abort()
        report(host, error)
        if error.reply is TROUBLE:
            reply = TROUBLE
    raise BackendError(reply, "no host took the connection")


async def _open(connection: Connection, hostname: str, timeouts: Timeouts) -> None:
    host, port = connection.endpoint
    try:
        async with asyncio.timeout(timeouts.connect):
            await asyncio.get_running_loop().create_connection(lambda: connection, host, port)
    except TimeoutError:
        raise BackendError(UNREACHABLE, f"no connection within {timeouts.connect:g} seconds") from None
    greeting = await connection.reply(timeouts.opening)
    if greeting.code != 220:
        raise BackendError(TROUBLE, f"greeted with {greeting}")
    answer = await connection.command(b"EHLO " + hostname.encode("ascii"), timeouts.opening)
    if answer.code != 250:
        raise BackendError(TROUBLE, f"answered EHLO with {answer}")
    words = (line.split(None, 1) for line in answer.lines[1:])
    connection.extensions = frozenset(word[0].decode("ascii", "replace").upper() for word in words if word)
