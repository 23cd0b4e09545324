# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The message as it comes in after DATA: where it ends, and whether it may be passed on. No I/O.

The bytes go on as they came, dots doubled as the client doubled them (RFC 5321 section 4.5.2), because both sides of
the proxy speak the same transparency. So nothing is undone and redone, and nothing can come out different; 8-bit
bytes too, whether they were announced (BODY=8BITMIME) or not: re-encoding would break signatures, refusing would lose
mail that every server takes.

The end is strictly CRLF "." CRLF. What a backend might take for an end where we see none would let a second message
in behind the first (SMTP smuggling), so it is never passed on:

    a CR or LF alone        by setting the message is refused, or normalised: each of them becomes CRLF. A line that
                            begins thereby gets its dot doubled. A line of a dot alone that ends in a bare LF loses
                            its dot, as any other line does that begins with a dot: the sender should have doubled it.
    a NUL beside the dot    refused, where the dot is the first character of its line but for NULs: a server
                            that drops NULs, or stops at them, sees a line of one dot. Other NULs are passed on.

A message that begins with a blank is refused: its first line would continue our Received field. So is one that begins
with a NUL, behind which a server that drops NULs may find the blank.
All is done by searches and counts of whole pieces, at the speed of C; only a piece with a bare line end is rewritten.
"""

from __future__ import annotations

import re
from io import IncrementalNewlineDecoder

from greylist_proxy.smtp.events import Limits
from greylist_proxy.smtp.replies import TOO_BIG, Reply, own_reply

END = b"\r\n.\r\n"
# How the end of data may begin, the longest first: this much of what came last is held back.
BEGINNINGS = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")
NUL_END = re.compile(rb"\r\n(?:\x00++\.|\.\x00)")
HOP = b"\r\nreceived:"
BARE_LINE_END = own_reply(554, "5.6.0", "Message contains a bare CR or LF, lines must end in CRLF")
BARE_NUL = own_reply(554, "5.6.0", "Message contains a NUL beside a dot at the beginning of a line")
LEADING_BLANK = own_reply(554, "5.6.0", "Message starts with a blank or a NUL, it must start with a header field")
HEADER_TOO_BIG = own_reply(552, "5.3.4", "Message header is larger than this server takes")
TOO_MANY_HOPS = own_reply(554, "5.4.6", "Too many hops, this message is in a loop")


class Body:
    """Takes what the client sends in pieces of any size, and gives what may be passed on.

    `max_size` is in octets as RFC 1870 counts them, line ends but no doubled dots; 0 is no limit.
    `refusal` is the reply that the message has earned so far, None while it is fine; nothing more comes out after it is
    set. `normalised` counts the bare CRs and LFs that became CRLF. `rest` holds, once `ended`, what the client sent
    after the end of the message.
    """

    __slots__ = (
        "_header",
        "_held",
        "_limits",
        "_line_start",
        "_max_size",
        "_nul_line",
        "_started",
        "ended",
        "normalised",
        "refusal",
        "rest",
        "size",
    )

    def __init__(self, max_size: int, limits: Limits) -> None:
        self._max_size = max_size
        self._limits = limits
        self._header: _Header | None = _Header(limits)
        # The message begins after the CRLF of the DATA command, so an end of data may follow at once.
        # That CRLF is seen by the search for the end, but never comes out.
        self._held = b"\r\n"
        self._started = False
        self._line_start = False  # the last octet was a bare line end
        self._nul_line = False  # there are only NULs in this line so far
        self.size = 0
        self.normalised = 0
        self.refusal: Reply | None = None
        self.ended = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take more of the stream; return what may go to the backend. Not to be called once `ended`."""
        if self._held:
            data = self._held + data
        # Few lines begin with a dot, and in an attachment there is none at all: that saves two of five searches.
        dot = data.find(b"\r\n.") if b"." in data else -1
        end = data.find(END, dot) if dot >= 0 else -1
        if end >= 0:
            self.ended = True
            self.rest = data[end + len(END) :]
            cut = end + 2  # the CRLF belongs to the message's last line
            self._held = b""
        else:
            self._held = next(filter(data.endswith, BEGINNINGS), b"")
            cut = len(data) - len(self._held)
        if self.refusal is not None or not cut:
            return b""
        piece = self._inspect(data[:cut], dotted=0 <= dot <= cut - 3)
        return b"" if self.refusal is not None else piece

    def _inspect(self, piece: bytes, *, dotted: bool) -> bytes:
        # A true CRLF at the end of a piece is held back until it is known what follows. So a piece begins in the
        # middle of a line, or with a CR, or in one of two ways that are made alike: with the CRLF before the message,
        # or after a bare line end.
        begins = self._line_start or not self._started
        if self._line_start:
            piece = b"\n" + piece
            self.normalised -= 1
        if not has_bare_line_ends(piece):
            self._line_start = False
            self.size += len(piece) - (piece.count(b"\r\n.") if dotted else 0)
        elif self._limits.bare_line_ends == "refuse":
            self.refusal = BARE_LINE_END
            return b""
        else:
            if NUL_END.search(piece):  # before its dot is lost, as in a piece without a bare line end
                self.refusal = BARE_NUL
                return b""
            self._line_start = piece.endswith(b"\n") and not piece.endswith(b"\r\n")
            piece = self._normalise(piece)
        if self._nul_line or b"\x00" in piece:
            self._look_at_nuls(piece)
        if begins:
            piece = piece[2:]
            self.size -= 2
        if not self._started:
            self._started = True
            # A doubled dot hides the blank from us, not from the reader.
            if piece.startswith((b" ", b"\t", b"\x00", b". ", b".\t")):
                self.refusal = LEADING_BLANK
        if self._header is not None:
            self.refusal = self.refusal or self._header.look_at(piece)
            if self._header.ended:
                self._header = None
        if self.size > self._max_size > 0:
            self.refusal = self.refusal or TOO_BIG
        return piece

    def _normalise(self, piece: bytes) -> bytes:
        pairs = piece.count(b"\r\n")
        # Transparency is undone as the RFC has it, for lines that follow a CRLF, and redone for all lines.
        text = piece.replace(b"\r\n.", b"\r\n").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = text.count(b"\n")
        self.normalised += lines - pairs
        self.size += len(text) + lines
        return text.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")

    def _look_at_nuls(self, piece: bytes) -> None:
        seen = b"\r\n\x00" + piece if self._nul_line else piece
        if NUL_END.search(seen):
            self.refusal = BARE_NUL
        before = seen.rstrip(b"\x00")
        self._nul_line = len(before) < len(seen) and before.endswith(b"\r\n")


def has_bare_line_ends(piece: bytes) -> bool:
    """Tell whether there is a CR or an LF that is not one of a CRLF."""
    # What tells the line ends of text files apart looks at each octet once, in C; counting all three takes three times
    # as long.
    reader = IncrementalNewlineDecoder(None, False)
    reader.decode(piece.decode("latin-1"), final=True)
    return reader.newlines not in (None, "\r\n")


class _Header:
    """The header section: how long it is, and how many hosts have passed the message on (RFC 5321 section 6.3)."""

    __slots__ = ("_hops", "_limits", "_seen", "_size", "ended")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seen = b"\r\n"  # the last octets, one less than what is looked for
        self._hops = 0
        self._size = 0
        self.ended = False

    def look_at(self, piece: bytes) -> Reply | None:
        """Look at the next piece of the message; return the reply that the header has earned."""
        # A dot that begins a line is for the wire only: `.Received:` is a hop. No piece ends before such a dot.
        if self._seen.endswith(b"\r\n"):
            piece = piece.removeprefix(b".")
        # Only as far as the header goes: the rest of the message may be all there already.
        blank = piece.find(b"\r\n\r\n")
        header = piece if blank < 0 else piece[: blank + 4]
        seen = self._seen + header.replace(b"\r\n.", b"\r\n")
        end = seen.find(b"\r\n\r\n")
        if end >= 0:
            self.ended = True
            seen = seen[: end + 2]
        self._size += len(seen) - len(self._seen)
        self._hops += seen.lower().count(HOP)
        self._seen = seen[1 - len(HOP) :]
        if self._hops > self._limits.max_hops:
            return TOO_MANY_HOPS
        return HEADER_TOO_BIG if self._size > self._limits.max_header_size else None
