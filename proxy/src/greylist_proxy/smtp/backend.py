# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection to a mail server behind: a small SMTP client that changes nothing.

Mail libraries rewrite what they send (line ends, dots, parameters), so this is our own: commands out, replies in,
bytes through. Commands are sent only while the input is empty: a backend that talks out of turn would have its
words taken for the answer to the next command, and a message be confirmed that nobody took.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol, cast

from greylist_proxy.config_values import Endpoint
from greylist_proxy.errand import Bell
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.forwarding import Introduction
from greylist_proxy.smtp.replies import (
    BACKEND_TROUBLE,
    MAX_REPLY_LINE,
    MAX_REPLY_LINES,
    TEMPORARY_STATUS,
    Reply,
    ReplyError,
    own_reply,
    take_reply,
)

MAX_INPUT = MAX_REPLY_LINE * MAX_REPLY_LINES
# What may wait here for a backend that reads slowly, and one piece from the client's side: far below 256 KiB a message.
HIGH_WATER = 16 << 10
LOW_WATER = 0
# And in the system's buffer (which takes twice as much, half of it for its own use): left alone it grows to 4 MiB.
SEND_BUFFER = 64 << 10
PATIENCE = 2  # how often a reply that comes in pieces may use up the time it has

UNREACHABLE = own_reply(451, "4.4.1", "The mail server does not answer, try again later")
GONE = own_reply(451, "4.4.2", "The connection to the mail server was lost, try again later")
TROUBLE = own_reply(451, "4.3.5", "The mail server is not ready for this mail, try again later")
BUSY = own_reply(451, "4.3.2", "The mail server has too much to do, try again later")


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait for the backend: RFC 5321 section 4.5.3.2, but for the opening.

    The client waits 5 minutes for the answer to its RCPT, and all hosts together must fit into that: waiting until the
    client has given back one of its own connections has `share`, waiting for a free one has `slot`, and connecting,
    greeting and EHLO share `opening`, in equal parts among the hosts.
    """

    share: float = 15
    slot: float = 30
    connect: float = 30
    opening: float = 240
    command: float = 300
    data: float = 120
    block: float = 180
    end_of_data: float = 600
    quit: float = 5


class Flow(Protocol):
    """The client's side of a message: it can be told to stop sending for a while. Both may be called twice."""

    def pause(self) -> None:
        """Read no more."""

    def resume(self) -> None:
        """Read again."""


class BackendError(Exception):
    """The backend failed: `reply` is what the client is told, the text is for the operator."""

    def __init__(self, reply: Reply, text: str) -> None:
        super().__init__(text)
        self.reply = reply

    @property
    def outcome(self) -> str:
        """The word for the log: `trouble`, which somebody has to look after, `failed`, or `refused` by its own word."""
        if self.reply is TROUBLE:
            return "trouble"
        return "failed" if self.reply in (UNREACHABLE, GONE, BUSY) else "refused"


def for_client(answer: Reply) -> Reply:
    """Return the backend's own reply, or TROUBLE where it is none that a client could use.

    That is what says that backend and proxy don't get along, and what is out of place: 1xx and 3xx, and a 5xx that
    calls itself temporary. RFC 2034 section 4 has the two agree; one that does not must cost nobody his mail.
    """
    if answer.code in BACKEND_TROUBLE or not (answer.is_positive or answer.code >= 400):
        return TROUBLE
    if answer.code >= 500 and TEMPORARY_STATUS.match(answer.lines[0]):
        return TROUBLE
    return answer


class Connection(asyncio.Protocol):
    """A connection to `endpoint`, and what it has been through.

    `reused` is set by the pool once it has served a transaction; `spoiled` once a reply was a 5xx or a 421, none came,
    or it refuses messages and has been used before: such a connection is not used again.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.capabilities = Capabilities()
        self.xclient: tuple[str, ...] = ()  # the attributes that it offered before the first XCLIENT
        self.reused = False
        self.spoiled = False
        self.transactions = 0
        self.octets = 0  # of all messages together
        self.idle_since: float | None = None  # the loop's time; None while in use
        self._loop = asyncio.get_running_loop()
        self.opened = self._loop.time()
        self._transport: asyncio.Transport | None = None
        self._input = bytearray()
        self._output: list[bytes] = []  # what goes out at the end of this round of the loop
        self._output_size = 0
        self._looked = 0  # where in it the line begins that was not all there at the last look
        self._lost = ""
        self._bell = Bell()  # what came, or happened, is news to who waits
        self._deadline = 0.0  # the loop's time, while somebody waits
        self._awaited = 0.0, ""  # for how many seconds, and what for
        self._timer: asyncio.TimerHandle | None = None
        self._rings = 0.0  # when the timer does
        self._paused = False
        self._flow: Flow | None = None
        self._block = 0.0
        self._stuck: asyncio.TimerHandle | None = None
        self._queued = 0

    # -- asyncio's side --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def data_received(self, data: bytes) -> None:
        """Keep what came, up to the largest reply."""
        if self._output:
            self._flush()  # it was said before this was heard
        self._input += data
        if len(self._input) > MAX_INPUT:
            self._fail("it sent more than any reply has")
        elif self.idle_since is not None:
            self._fail("it talks while nobody asks")
        else:
            self._unstick()
            self._bell.ring()

    def eof_received(self) -> None:
        """Leave at once: who says no more can't answer, and must not be sent what still waits here."""
        self._fail("it closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note why; who waits is woken."""
        self._fail(f"connection lost: {exc}" if exc else "it closed the connection")

    def pause_writing(self) -> None:
        """The backend reads more slowly than the client sends: the client has to wait."""
        self._paused = True
        if self._flow is not None:
            self._flow.pause()
            self._watch_it_take()

    def resume_writing(self) -> None:
        """The backend has caught up."""
        self._paused = False
        self._news()

    # -- ours --

    @property
    def is_lost(self) -> bool:
        """Tell whether nothing more can be sent."""
        return bool(self._lost)

    def itself(self, hostname: str) -> Introduction:
        """Return who speaks where it speaks for nobody: this host. BackendError: the connection is gone."""
        if self._lost or self._transport is None:
            raise self.loss()
        own, other = (self._transport.get_extra_info(key) for key in ("sockname", "peername"))
        return Introduction(
            ip_address(own[0].partition("%")[0]), own[1], other[0], other[1], None, hostname, esmtp=True
        )

    def loss(self) -> BackendError:
        """Return the error of a connection that is lost."""
        return BackendError(GONE, self._lost)

    def has_spoken(self) -> bool:
        """Tell whether something came that nobody has asked for yet."""
        return bool(self._input)

    async def reply(self, seconds: float) -> Reply:
        """Wait for a whole reply. BackendError: none came, or what came is none.

        Each piece of it starts the time anew, but all of it takes at most PATIENCE times as long.
        """
        end = 0.0
        while (reply := self.take() if self._input else None) is None:
            now = self._loop.time()
            end = end or now + PATIENCE * seconds
            await self._wait(min(seconds, end - now), "a reply")
        return reply

    async def command(self, line: bytes, seconds: float) -> Reply:
        """Send a command line (without CRLF) and wait for its reply."""
        self._expect_silence()
        self.send(line + b"\r\n")
        return await self.reply(seconds)

    async def commands(self, lines: Sequence[bytes], seconds: float) -> list[Reply]:
        """Send commands (without CRLF) at once where the backend offers PIPELINING (RFC 2920), and read each reply.

        Where it does not, they go one by one, up to the first that is not answered with 2xx.
        """
        if self.capabilities.pipelining:
            self._expect_silence()
            self.send(b"\r\n".join(lines) + b"\r\n")
        replies: list[Reply] = []
        for line in lines:
            if self.capabilities.pipelining:
                if replies and replies[-1].code == 421:
                    break  # its last word
                replies.append(self.take() or await self.reply(seconds))  # they often come together
            else:
                if replies and not replies[-1].is_positive:
                    break
                replies.append(await self.command(line, seconds))
        return replies

    def send(self, data: bytes) -> None:
        """Send bytes, at the end of this round of the event loop, or at once where it is much.

        All that goes to a server in a round goes together: a write wakes it up, which takes the processor away from us.
        BackendError: the connection is gone.
        """
        if self._lost or self._transport is None:
            raise self.loss()
        if not self._output:
            self._loop.call_soon(self._flush)
        self._output.append(data)
        self._output_size += len(data)
        if self._output_size > HIGH_WATER:
            self._flush()

    def _flush(self) -> None:
        output, self._output, self._output_size = self._output, [], 0
        if output and self._transport is not None and not self._lost:
            self._transport.write(output[0] if len(output) == 1 else b"".join(output))

    def stream(self, flow: Flow, block: float) -> None:
        """From here on a message is sent, and `flow` waits where the backend does not take it.

        One that takes nothing for `block` seconds is given up. The next word of the backend, or its end, ends this.
        """
        self._flow = flow
        self._block = block

    async def end_data(self, last: bytes = b"") -> None:
        """Send the last piece and the final dot: from here on the message may be the backend's."""
        self._unstick()
        self._flow = None
        if len(last) > HIGH_WATER:
            self.send(last)
            last = b""
        while self._paused and not self._input:
            # The dot follows only what has been taken: until then it is certain that there was none. As before it, who
            # takes something has the whole time anew.
            self._watch_it_take()
            await self._wait(math.inf, "it to take data")
        self._expect_silence()
        # With a short piece, which would not be waited for: that saves both sides a system call.
        self.send(last + b".\r\n")

    async def start_tls(self, context: ssl.SSLContext, seconds: float) -> None:
        """Ask for TLS and go over to it. BackendError: it would not, or could not.

        Bytes behind its consent came before the encryption, from anybody, and end the connection.
        """
        answer = await self.command(b"STARTTLS", seconds)
        if answer.code != 220 or self._transport is None:
            raise BackendError(TROUBLE, f"answered STARTTLS with {answer}")
        self._expect_silence()
        try:
            transport = await self._loop.start_tls(
                self._transport, self, context, server_hostname=self.endpoint.host, ssl_handshake_timeout=seconds
            )
        except OSError as error:  # ssl.SSLError is one too
            self.abort()
            raise BackendError(TROUBLE, f"TLS failed: {error}") from error
        if transport is None:  # the connection was lost meanwhile
            raise self.loss()
        self.connection_made(transport)
        self.capabilities = Capabilities()

    async def quit(self, seconds: float) -> None:
        """Leave politely; never raises BackendError."""
        try:
            await self.command(b"QUIT", seconds)
        except BackendError:
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave at once; what was not sent yet is not sent any more."""
        self._fail("given up")

    def take(self) -> Reply | None:
        """Take a reply that is all there; None: there is none yet. BackendError: what came is none."""
        if self._input.find(b"\n", self._looked) < 0 and len(self._input) - self._looked < MAX_REPLY_LINE:
            return None  # a long reply that comes octet by octet is not read anew for each of them
        try:
            reply = take_reply(self._input)
        except ReplyError as error:
            self.spoiled = True
            raise BackendError(TROUBLE, str(error)) from error
        self._looked = 0 if reply is not None else self._input.rfind(b"\n") + 1
        if reply is not None and (reply.code >= 500 or reply.code == 421):
            self.spoiled = True
        return reply

    def _expect_silence(self) -> None:
        if self._input:
            self.spoiled = True
            raise BackendError(TROUBLE, f"it talks out of turn: {bytes(self._input[:80])!r}")

    def _fail(self, why: str) -> None:
        self._lost = self._lost or why
        self.spoiled = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        self._news()

    def _news(self) -> None:
        # Not at once: this may have been brought about by who would go on.
        self._bell.ring_soon()
        self._unstick()

    def _unstick(self) -> None:
        """Let the client go on: the backend has taken its data, or said something, or is gone."""
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
            if self._flow is not None:
                self._flow.resume()

    def _waiting_here(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _watch_it_take(self) -> None:
        self._queued = self._waiting_here()
        self._stuck = self._loop.call_later(self._block, self._still_stuck)

    def _still_stuck(self) -> None:
        size = self._waiting_here()
        if size < self._queued:
            self._queued = size
            self._stuck = self._loop.call_later(self._block, self._still_stuck)
            return
        self._fail(f"waited {self._block:g} seconds for it to take data")

    async def _wait(self, seconds: float, what: str) -> None:
        if self._lost:
            raise self.loss()
        self._deadline = self._loop.time() + seconds
        self._awaited = seconds, what
        # Nearly every wait ends long before its time, so a timer is not taken back: the next one may do with it.
        if self._timer is None or self._rings > self._deadline:
            self._ring_at(self._deadline)
        await self._bell

    def _ring_at(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings = deadline
        self._timer = self._loop.call_at(deadline, self._ring) if deadline < math.inf else None

    def _ring(self) -> None:
        self._timer = None
        if not self._bell.is_awaited:
            return
        # A timer may ring a little early.
        if self._loop.time() < self._deadline - 0.01:
            self._ring_at(self._deadline)
        else:
            seconds, what = self._awaited
            self._fail(f"waited {seconds:g} seconds for {what}")
