# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the proxy is measured against, as programs of their own: each prints its port and runs until it is ended.

stock    aiosmtpd as it comes, on its own event loop, with a handler that puts every recipient off: no decision,
         no store, no log
bare     a line protocol on uvloop that looks at a command's first letter and answers: what Python can do at all
stuck    a mail server that takes a message's beginning and then reads no more
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any, ClassVar

import uvloop
from aiosmtpd.smtp import SMTP

BACKLOG = 1024
DEFERRAL = "450 4.7.1 Greylisted, try again in 60 seconds (0123456789AB.1)"
EHLO = b"250-peer\r\n250-PIPELINING\r\n250-SIZE 36700160\r\n250 8BITMIME\r\n"


class PutOff:
    """aiosmtpd's handler."""

    async def handle_RCPT(self, *_arguments: Any) -> str:
        """Answer every recipient with the same words."""
        return DEFERRAL


class Bare(asyncio.Protocol):
    """A session without any state but the rest of a line."""

    REPLIES = {  # noqa: RUF012 - never changed
        ord("E"): EHLO,
        ord("M"): b"250 2.1.0 Ok\r\n",
        ord("R"): DEFERRAL.encode() + b"\r\n",
        ord("Q"): b"221 2.0.0 Bye\r\n",
    }

    def connection_made(self, transport: Any) -> None:
        """Greet."""
        self._transport = transport
        self._rest = b""
        transport.write(b"220 peer ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        """Answer each whole line."""
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        for line in lines:
            self._transport.write(self.REPLIES.get(line[0] if line else 0, b"500 5.5.1 What?\r\n"))
            if line == b"QUIT":
                self._transport.close()


class Stuck(Bare):
    """Takes everything until DATA, and then reads no more."""

    HELD: ClassVar[set[Stuck]] = set()  # uvloop does not hold who reads nothing

    REPLIES = Bare.REPLIES | {ord("R"): b"250 2.1.5 Ok\r\n", ord("D"): b"354 Go on\r\n"}

    def data_received(self, data: bytes) -> None:
        """Answer, and stop at DATA."""
        if b"DATA\r\n" in self._rest + data:
            self._transport.pause_reading()
            self.HELD.add(self)
        super().data_received(data)


class Taker(Bare):
    """Takes messages."""

    REPLIES = Bare.REPLIES | {
        ord("E"): b"250-peer\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 XCLIENT NAME ADDR PORT PROTO HELO\r\n",
        ord("R"): b"250 2.1.5 Ok\r\n",
        ord("X"): b"220 peer ESMTP\r\n",
    }
    taken = 0

    def connection_made(self, transport: Any) -> None:
        """Greet."""
        super().connection_made(transport)
        self._is_in_message = False

    def data_received(self, data: bytes) -> None:
        """Answer each line, or look for the end of the message."""
        if self._is_in_message:
            # No copy of the message is kept, only what the end may have begun with.
            data = self._rest + data
            end = data.find(b"\r\n.\r\n")
            self._rest = data[-4:]
            if end < 0:
                return
            Taker.taken += 1
            self._is_in_message = False
            self._rest, data = b"", data[end + 5 :]
            self._transport.write(b"250 2.0.0 Taken\r\n")
        while data and not self._is_in_message:
            line, end_of_line, data = (self._rest + data).partition(b"\r\n")
            self._rest = b"" if end_of_line else line
            if not end_of_line:
                return
            if line[:4] in (b"DATA", b"NOOP", b"RSET"):
                self._is_in_message = line == b"DATA"
                self._transport.write(b"354 Go on\r\n" if self._is_in_message else b"250 2.0.0 %d\r\n" % Taker.taken)
                self._rest = b"\r\n" if self._is_in_message else b""
            else:
                super().data_received(line + b"\r\n")
        if data:
            self.data_received(data)


async def _serve(kind: str) -> None:
    loop = asyncio.get_running_loop()
    factories: dict[str, Any] = {
        "stock": lambda: SMTP(PutOff(), hostname="peer", enable_SMTPUTF8=True),
        "bare": Bare,
        "stuck": Stuck,
        "taker": Taker,
    }
    # With its number, or asyncio does not see that it is TCP, and lets small writes wait (Nagle).
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    if kind == "stuck":
        # Or the system's buffer would be most of what is measured, on the wrong side.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    server = await loop.create_server(factories[kind], sock=listener, backlog=BACKLOG)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    (asyncio.run if sys.argv[1] == "stock" else uvloop.run)(_serve(sys.argv[1]))
