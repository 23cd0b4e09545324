# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The SMTP side of the memory backend's SMTPSVC: what a probe from outside sees.

`Conversation` is the protocol, without I/O: a line in, a reply out. It relays nothing and keeps nothing;
mail for a local domain is accepted and dropped. `SmtpService` is the server around it, one event loop in a
thread of its own, from start to stop. It is told the TarpitTime once, as the service reads it once, and
holds every 5xx reply back that long (2xx, 3xx and 4xx go out at once). A reply that is held back waits
for the service's end too, so stopping never waits for a tarpit.

Exchange's listener is the same one with two questions in place of the number, asked for the client's address at
each reply: how long it is held back, and whether this client may send to other domains (exchange_host.py).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

BANNER: Final = "220 lab Microsoft ESMTP MAIL Service ready"
# RFC 5321 4.5.3.1.4 asks for 512 octets; extensions add to it. Longer lines end the session.
MAX_LINE: Final = 4096
MAX_MESSAGE: Final = 2 * 1024 * 1024
MAX_SESSIONS: Final = 200
IDLE_SECONDS: Final = 300.0

_EXTENSIONS: Final = (f"SIZE {MAX_MESSAGE}", "PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "OK")
_PATH = re.compile(r"\s*<(?P<address>[^<>\s]*)>(?:\s.*)?")


@dataclass
class Conversation:
    """One SMTP session's state: what was said so far decides what the next command gets."""

    local_domains: frozenset[str] = frozenset({"lab.test"})
    # May this client send to other domains? Asked at each recipient.
    relays: Callable[[], bool] = lambda: False
    helo: str | None = None
    sender: str | None = None
    recipients: list[str] = field(default_factory=list)
    # After 354: lines are the message's until a single dot, and go to `message_line`.
    in_message: bool = False
    closed: bool = False
    _size: int = 0

    def reply(self, line: str) -> str:
        """Answer one command; several lines for EHLO, without the last line's end."""
        verb, _ignored, argument = line.partition(" ")
        match verb.upper():
            case "EHLO":
                return self._hello(argument, extended=True)
            case "HELO":
                return self._hello(argument, extended=False)
            case "MAIL":
                return self._mail(argument)
            case "RCPT":
                return self._rcpt(argument)
            case "DATA":
                return self._data()
            case "RSET":
                self._forget()
                return "250 2.0.0 Resetting"
            case "NOOP":
                return "250 2.0.0 OK"
            case "VRFY":
                return f"252 2.1.5 Cannot VRFY user, but will take message for <{argument.strip()}>"
            case "QUIT":
                self.closed = True
                return "221 2.0.0 lab Service closing transmission channel"
            case _:
                return "500 5.3.3 Unrecognized command"

    def message_line(self, line: str) -> str | None:
        """Take one line of a message; a reply comes with the last one."""
        if line != ".":
            self._size += len(line) + 2
            return None
        too_large = self._size > MAX_MESSAGE
        self._forget()
        if too_large:
            return "552 5.3.4 Message size exceeds fixed maximum message size"
        return f"250 2.6.0 <{uuid.uuid4()}@lab> Queued mail for delivery"

    def _hello(self, argument: str, *, extended: bool) -> str:
        if not argument.strip():
            return "501 5.5.4 Invalid domain name"
        self._forget()
        self.helo = argument.strip()
        lines = ("lab Hello", *_EXTENSIONS) if extended else ("lab Hello",)
        marks = "-" * (len(lines) - 1) + " "
        return "\r\n".join(f"250{mark}{line}" for mark, line in zip(marks, lines, strict=True))

    def _mail(self, argument: str) -> str:
        if self.helo is None:
            return "503 5.5.2 Send hello first"
        if self.sender is not None:
            return "503 5.5.2 Sender already specified"
        address = _path(argument, "FROM:")
        if address is None:
            return "501 5.5.4 Invalid Address"
        self.sender = address
        return f"250 2.1.0 {address}....Sender OK"

    def _rcpt(self, argument: str) -> str:
        if self.sender is None:
            return "503 5.5.2 Need mail command."
        address = _path(argument, "TO:")
        if not address:
            return "501 5.5.4 Invalid Address"
        if address.rpartition("@")[2].lower() not in self.local_domains and not self.relays():
            return f"550 5.7.1 Unable to relay for {address}"
        self.recipients.append(address)
        return f"250 2.1.5 {address}"

    def _data(self) -> str:
        if not self.recipients:
            return "503 5.5.2 Need Rcpt command."
        self.in_message = True
        return "354 Start mail input; end with <CRLF>.<CRLF>"

    def _forget(self) -> None:
        self.sender, self.recipients, self.in_message, self._size = None, [], False, 0


def _path(argument: str, keyword: str) -> str | None:
    """The address in `FROM:<address>`; parameters behind it are ignored."""
    if not argument.upper().startswith(keyword):
        return None
    match = _PATH.fullmatch(argument[len(keyword) :])
    return match["address"] if match else None


class SmtpService:
    """The running service. Made anew at each start; `stop` ends it for good."""

    def __init__(
        self,
        port: int,
        tarpit: int | Callable[[str], float],
        *,
        relays: Callable[[str], bool] = lambda _client: False,
    ) -> None:
        self.port = port
        self._tarpit = tarpit if callable(tarpit) else lambda _client: tarpit
        self._relays = relays
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Return when the port listens; raise OSError where it cannot."""
        listening: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(listening,), name=f"smtpsvc-{self.port}", daemon=True)
        self._thread.start()
        listening.result()

    def stop(self) -> None:
        """Return when the port and all sessions are closed."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended before
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self, listening: concurrent.futures.Future[None]) -> None:
        asyncio.run(self._serve(listening))

    async def _serve(self, listening: concurrent.futures.Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            server = await asyncio.start_server(self._session, "127.0.0.1", self.port, limit=MAX_LINE)
        except OSError as error:
            listening.set_exception(error)
            return
        listening.set_result(None)
        await self._stopping.wait()
        server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        try:
            if len(self._sessions) > MAX_SESSIONS:
                await self._send(writer, "421 4.3.2 Too many sessions")
            else:
                await self._talk(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # the client left, fell silent, or sends no lines: there is nobody to answer
        finally:
            self._sessions.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = str(writer.get_extra_info("peername")[0])
        conversation = Conversation(relays=lambda: self._relays(client))
        await self._send(writer, BANNER)
        while not conversation.closed:
            # asyncio.timeout and not wait_for, which before Python 3.12 could lose the cancellation by stop.
            async with asyncio.timeout(IDLE_SECONDS):
                raw = await reader.readuntil(b"\n")
            line = raw.rstrip(b"\r\n").decode("latin-1")
            reply = conversation.message_line(line) if conversation.in_message else conversation.reply(line)
            if reply is not None:
                await self._send(writer, reply)

    async def _send(self, writer: asyncio.StreamWriter, reply: str) -> None:
        if reply.startswith("5") and (seconds := self._tarpit(str(writer.get_extra_info("peername")[0]))):
            assert self._stopping is not None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()
        writer.write(reply.encode("latin-1", "replace") + b"\r\n")
        await writer.drain()
