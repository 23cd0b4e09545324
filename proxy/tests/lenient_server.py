# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mail server of the careless kind: what ends a line for it is not only CRLF.

It is what smuggling needs: a receiver that sees an end of data where the sender meant text. It reads lines with a
pattern of its own, as servers did that were built on a language's "read a line", takes everything, and keeps it.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from .peers import DEADLINE, ThreadedServer

# How a line may end, and the look-ahead that a CR needs, as an LF may follow.
LINE_ENDS = {
    "LF and CRLF": rb"\r*\n",
    "CR, LF and CRLF": rb"\r\n|\n|\r(?=[^\n])",
}


@dataclass(frozen=True)
class Taken:
    """A message as this server understands it; its lines joined by LF."""

    sender: bytes
    recipients: tuple[bytes, ...]
    text: bytes


class LenientServer(ThreadedServer):
    """Takes mail, with one of LINE_ENDS."""

    def __init__(self, line_end: str) -> None:
        self.taken: list[Taken] = []
        self._line_end = re.compile(LINE_ENDS[line_end])
        self.listen()

    def _lines(self, connection: socket.socket) -> Iterator[bytes]:
        waiting = b""
        while data := connection.recv(1 << 16):
            waiting += data
            while match := self._line_end.search(waiting):
                yield waiting[: match.start()]
                waiting = waiting[match.end() :]

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(DEADLINE)
        sender, recipients = b"", []  # type: tuple[bytes, list[bytes]]
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"220 lenient.test ESMTP\r\n")
            lines = self._lines(connection)
            for line in lines:
                verb = line[:4].upper()
                if verb == b"MAIL":
                    sender, recipients = line, []
                elif verb == b"RCPT":
                    recipients.append(line)
                elif verb == b"DATA":
                    connection.sendall(b"354 go on\r\n")
                    text = []
                    for piece in lines:
                        if piece == b".":
                            break
                        text.append(piece.removeprefix(b"."))
                    else:
                        return  # the client left in the middle of it
                    self.taken.append(Taken(sender, tuple(recipients), b"\n".join(text)))
                connection.sendall({b"EHLO": b"250-lenient.test\r\n250 8BITMIME\r\n"}.get(verb, b"250 ok\r\n"))
