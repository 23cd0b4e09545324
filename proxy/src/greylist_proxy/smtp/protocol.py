# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's side of SMTP (RFC 5321) without I/O: bytes in, events and replies out. No socket, no clock."""

from __future__ import annotations

from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.events import Event, Hello, Limits, Offers
from greylist_proxy.smtp.replies import Reply


class ServerProtocol:
    """One connection's conversation.

    `hello` is the client's last EHLO or HELO; `offered` what the backends' capabilities were when that was answered,
    which is what the client may use (for the relay's `promised`).
    """

    def __init__(self, offers: Offers, limits: Limits, *, tls: bool = False) -> None:
        self.hello: Hello | None = None
        self.offered: Capabilities | None = None
        self.in_transaction = False
        self.closed = False
        self.hold_refusals = False
        raise NotImplementedError

    @property
    def in_body(self) -> bool:
        """True between 354 and the end of data."""
        raise NotImplementedError

    @property
    def owes(self) -> bool:
        """True while a reply is owed."""
        raise NotImplementedError

    @property
    def buffered(self) -> int:
        """Return how many octets have been received and not parsed yet."""
        raise NotImplementedError

    def receive(self, data: bytes) -> None:
        """Take what the client has sent. `next_event` then tells what it means."""
        raise NotImplementedError

    def next_event(self) -> Event | None:
        """Return what happens next; None: more must be received first, or a reply is owed, or all is over."""
        raise NotImplementedError

    def reply(self, reply: Reply) -> None:
        """Answer what is owed. A 421 closes."""
        raise NotImplementedError

    def say(self, reply: Reply) -> None:
        """Say something unasked: the banner, or a parting 421, which closes."""
        raise NotImplementedError

    def take_output(self) -> bytes:
        """Return the replies gathered since the last call."""
        raise NotImplementedError

    def restart_after_tls(self) -> int:
        """Begin anew under TLS. All is forgotten, also what had been received in clear: its number of octets is
        returned, because more than 0 was an attempt at injection (RFC 3207 section 5).
        """
        raise NotImplementedError
