# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The message as it comes in after DATA: where it ends, and whether it may be passed on. No I/O.

The bytes go on as they came, dots doubled as the client doubled them (RFC 5321 section 4.5.2), because both
sides of the proxy speak the same transparency. So nothing is undone and redone, and nothing can come out
different. The end is strictly CRLF "." CRLF. A CR or LF alone is never passed on: a backend might see an end of
data in it where we do not, and a second message would be smuggled behind it. The message is then refused.
"""

from __future__ import annotations

from greylist_proxy.smtp.replies import TOO_BIG, Reply, own_reply

END = b"\r\n.\r\n"
BARE_LINE_END = own_reply(554, "5.6.0", "Message contains a bare CR or LF, lines must end in CRLF")
LEADING_BLANK = own_reply(554, "5.6.0", "Message starts with a blank, it must start with a header field")


class Body:
    """Takes what the client sends in pieces of any size, and gives what may be passed on.

    `refusal` is the reply that the message has earned so far, None while it is fine; nothing more comes out
    after it is set. `size` counts octets as RFC 1870 does: line ends count, doubled dots do not.
    `rest` holds, once `ended`, what the client sent after the end of the message.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        # The message begins after the CRLF of the DATA command, so an end of data may follow at once.
        # That CRLF is seen by the search for the end, but never comes out.
        self._held = bytearray(b"\r\n")
        self._started = False
        self._last_two = b"\r\n"
        self.size = 0
        self.refusal: Reply | None = None
        self.ended = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take more of the stream; return what may go to the backend. Not to be called once `ended`."""
        self._held += data
        end = self._held.find(END)
        if end >= 0:
            self.ended = True
            self.rest = bytes(self._held[end + len(END) :])
            cut = end + 2  # the CRLF belongs to the message's last line
        else:
            # The last four octets may begin the end of data, and a CR may belong to an LF still to come.
            cut = max(len(self._held) - len(END) + 1, 0)
            if self._held[cut - 1 : cut] == b"\r":
                cut -= 1
        piece = bytes(self._held[:cut])
        self._held = self._held[cut:]
        if not self._started:
            if len(piece) < 3 and not self.ended:
                # Only the CRLF of before: the first octet of the message is not here yet.
                self._held[:0] = piece
                return b""
            self._started = True
            piece = piece[2:]
            if piece[:1] in (b" ", b"\t"):
                self._refuse(LEADING_BLANK)
        self._inspect(piece)
        return piece if self.refusal is None else b""

    def _inspect(self, piece: bytes) -> None:
        pairs = piece.count(b"\r\n")
        if piece.count(b"\n") != pairs or piece.count(b"\r") != pairs:
            self._refuse(BARE_LINE_END)
        # Looking two octets back finds each doubled dot exactly once, wherever the pieces were cut.
        seen = self._last_two + piece
        self.size += len(piece) - seen.count(b"\r\n.")
        self._last_two = seen[-2:]
        if self.size > self._max_size:
            self._refuse(TOO_BIG)

    def _refuse(self, reply: Reply) -> None:
        self.refusal = self.refusal or reply
