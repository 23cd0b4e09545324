# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the protocol core is told at its start, and what it tells: the words between `protocol.py` and a session.

An event says what the client wants. After some of them a reply is owed (`ServerProtocol.reply`), and nothing more is
parsed until it is given; after the others the core has answered by itself, or there is nothing to answer.

Nobody changes an event, and nothing stops who would: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from greylist_proxy.smtp.address import Path
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.parameters import Parameter
from greylist_proxy.smtp.replies import Reply

BareLineEnds = Literal["normalise", "refuse"]


@dataclass(slots=True)
class Offers:
    """What a client is offered. Shared by all sessions, which read it anew at each EHLO and DATA.

    `max_size` is in octets, 0 for no limit; a backend with a smaller one lowers it. `capabilities` is what all
    backends can do, None while no backend is known: then the least is offered (GREYLISTING, rule 10).
    """

    hostname: str
    max_size: int
    capabilities: Capabilities | None
    starttls: bool

    def size_limit(self) -> int:
        """Return how many octets a message may have, 0 for no limit."""
        theirs = self.capabilities.size if self.capabilities is not None else None
        return min(self.max_size, theirs) if self.max_size and theirs else self.max_size or theirs or 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a client may ask of us; octets and counts."""

    max_errors: int = 10  # commands that make no sense, between two messages (aiosmtpd: 5, Postfix: 20)
    max_idle_commands: int = 100  # commands that bring no mail, between two messages
    max_rcpt_commands: int = 10_000  # in a transaction, refused ones too
    bare_line_ends: BareLineEnds = "normalise"
    max_header_size: int = 1 << 20
    max_hops: int = 50  # Received fields, as in Postfix


@dataclass(slots=True)
class Hello:
    """EHLO or HELO, already answered. `name` is what the client calls itself, as it came, and may be anything."""

    name: str
    esmtp: bool


@dataclass(slots=True)
class Mail:
    """MAIL FROM. A reply is owed: a positive one begins the transaction."""

    path: Path
    parameters: tuple[Parameter, ...] = ()


@dataclass(slots=True)
class Rcpt:
    """RCPT TO, within a transaction. A reply is owed.

    `address` is what stood between the brackets, for `parse_recipient`. It has non-ASCII characters only if the
    transaction may have them (SMTPUTF8).
    """

    address: str
    parameters: tuple[Parameter, ...] = ()


@dataclass(slots=True)
class Data:
    """DATA, within a transaction. A reply is owed: 354 lets the message come, 503 keeps the transaction open for more
    recipients, anything else ends it.
    """


@dataclass(slots=True)
class Chunk:
    """A piece of the message to pass on: dots doubled as the client doubled them, the final dot not included."""

    data: bytes


@dataclass(slots=True)
class Spoiled:
    """The message will be refused with this reply once it is all here. No more chunks come, `End` still does."""

    reply: Reply


@dataclass(slots=True)
class End:
    """The end of data. A reply is owed, `refusal` if that is set. The reply ends the transaction.

    `normalised` counts the bare CRs and LFs that were made CRLF.
    """

    refusal: Reply | None = None
    normalised: int = 0


@dataclass(slots=True)
class Reset:
    """The transaction is over without a message: RSET, a new EHLO, QUIT, or the end of the session by the core."""


@dataclass(slots=True)
class Refused:
    """A permanent refusal by the core, which `ServerProtocol.hold_refusals` leaves to the session: this reply is owed,
    perhaps after a delay.
    """

    reply: Reply


@dataclass(slots=True)
class StartTls:
    """STARTTLS. A reply is owed: after 220 nothing is parsed until `restart_after_tls`."""


@dataclass(slots=True)
class Foreign:
    """The client speaks something else (`kind`: "http", "tls", "ssh", ...). The core is closed, without a word."""

    kind: str


@dataclass(slots=True)
class Bye:
    """The core is closed: the last reply is in the output.

    `why`: "quit", "errors", "idle", "pipelining" or "bare line feed".
    """

    why: str


Event = Hello | Mail | Rcpt | Data | Chunk | Spoiled | End | Reset | Refused | StartTls | Foreign | Bye
