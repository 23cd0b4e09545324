# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SMTP replies (RFC 5321 section 4.2): how they look on the wire, how a backend's are read, and our own.

A backend's reply is passed on as it came. It comes from a machine that may be broken or hostile all the
same, so what is read is bounded, and what is not a reply is an error, never half a reply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# RFC 5321 section 4.5.3.1.5 gives a reply line 512 octets; the field writes longer ones (links to help pages).
MAX_REPLY_LINE = 2048
MAX_REPLY_LINES = 100
CONTINUED = ord("-")  # in place of the blank after the code
CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

# Replies by which a backend says that something is wrong between it and this proxy, not with the mail: syntax
# and sequence (500-504), authentication or TLS wanted (530, 535, 538), parameters (555), going away (421).
BACKEND_TROUBLE = frozenset({421, 500, 501, 502, 503, 504, 530, 535, 538, 555})
# What RFC 3463 calls temporary, whatever code it stands behind.
TEMPORARY_STATUS = re.compile(rb"4\.[0-9]{1,3}\.[0-9]{1,3}(?: |$)")


class ReplyError(Exception):
    """What came is not an SMTP reply; the text says why."""


# Nobody changes one; frozen it would take three times as long to make.
@dataclass(slots=True, unsafe_hash=True)
class Reply:
    """A reply: its code, and the text of each line, as bytes because a backend's may be anything."""

    code: int
    lines: tuple[bytes, ...]

    @property
    def is_positive(self) -> bool:
        """2xx: done."""
        return 200 <= self.code < 300

    @property
    def is_temporary(self) -> bool:
        """4xx: try again."""
        return 400 <= self.code < 500

    def wire(self) -> bytes:
        """Return the reply as it goes over the wire."""
        if len(self.lines) == 1:
            return b"%d %b\r\n" % (self.code, self.lines[0])
        *first, last = self.lines
        return b"".join(b"%d-%b\r\n" % (self.code, line) for line in first) + b"%d %b\r\n" % (self.code, last)

    def __str__(self) -> str:
        text = " / ".join(line.decode("utf-8", "backslashreplace") for line in self.lines)
        return f"{self.code} {text}"


def own_reply(code: int, enhanced: str, text: str) -> Reply:
    """Make one of our own one-line replies, with its enhanced status code (RFC 3463)."""
    return Reply(code, (f"{enhanced} {text}".strip().encode("ascii", "replace"),))


NO_PARAMETER = own_reply(555, "5.5.4", "Parameter not recognized or not implemented")
TOO_BIG = own_reply(552, "5.3.4", "Message is larger than this server takes")


def take_reply(buffer: bytearray) -> Reply | None:
    """Take one whole reply from the front of the buffer; None, and nothing taken, while it is not all there.

    ReplyError: too long, or not a reply. A line may end in a bare LF, as clients have always allowed; a CR,
    NUL or escape anywhere else may not be passed on, and is an error.
    """
    end = buffer.find(b"\n", 0, MAX_REPLY_LINE)
    if end >= 3 and buffer[3] != CONTINUED:  # nearly all of them
        reply = _of_one_line(bytes(buffer[:end]))
        del buffer[: end + 1]
        return reply
    code: int | None = None
    lines: list[bytes] = []
    start = 0
    while True:
        end = buffer.find(b"\n", start, start + MAX_REPLY_LINE)
        if end < 0:
            if len(buffer) - start >= MAX_REPLY_LINE:
                raise ReplyError("a reply line without an end")
            return None
        line = bytes(buffer[start:end]).removesuffix(b"\r")
        start = end + 1
        its_code = _code(line)
        if code not in (None, its_code):
            raise ReplyError(f"a reply with two codes: {code} and {line[:3]!r}")
        code = its_code
        lines.append(line[4:])
        if line[3:4] != b"-":
            del buffer[:start]
            return Reply(code, tuple(lines))
        if len(lines) >= MAX_REPLY_LINES:
            raise ReplyError(f"a reply of more than {MAX_REPLY_LINES} lines")


@lru_cache(maxsize=64)  # a backend says the same few things all day
def _of_one_line(line: bytes) -> Reply:
    line = line.removesuffix(b"\r")
    return Reply(_code(line), (line[4:],))


def _code(line: bytes) -> int:
    """Return the code of a line without its end. ReplyError: it is no line of a reply."""
    if not (line[:3].isdigit() and len(line) >= 3 and line[:1] in b"2345" and line[3:4] in (b" ", b"-", b"")):
        raise ReplyError(f"not a reply: {line[:80]!r}")
    if CONTROLS.search(line):
        raise ReplyError(f"control characters in a reply: {line[:80]!r}")
    return int(line[:3])
