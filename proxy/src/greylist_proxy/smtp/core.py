# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the protocol core remembers of a connection, what it says by itself, and how it ends.

What the client's bytes mean is above it, in `protocol.py`.
"""

from __future__ import annotations

from greylist_proxy.smtp import answers
from greylist_proxy.smtp.body import Body
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.events import Bye, End, Event, Foreign, Hello, Limits, Offers, Refused, Reset
from greylist_proxy.smtp.replies import Reply


class Core:
    """The lower half of ServerProtocol: all of its state."""

    __slots__ = (
        "_at",
        "_awaits_tls",
        "_body",
        "_errors",
        "_idle",
        "_input",
        "_limits",
        "_offers",
        "_output",
        "_overlong",
        "_owed",
        "_pending",
        "_rcpts",
        "_smtputf8",
        "closed",
        "hello",
        "hold_refusals",
        "in_transaction",
        "offered",
        "tls",
    )

    def __init__(self, offers: Offers, limits: Limits, *, tls: bool = False) -> None:
        self._offers = offers
        self._limits = limits
        self.tls = tls
        self.hold_refusals = False
        self.closed = False
        self._errors = 0  # since the last message
        self._idle = 0  # commands since the last message
        self._output: list[bytes] = []
        self._forget()

    def _forget(self) -> None:
        self.hello: Hello | None = None
        self.offered: Capabilities | None = None
        self.in_transaction = False
        self._smtputf8 = False  # in this transaction
        self._rcpts = 0  # in this transaction
        self._owed: type[Event] | None = None  # to this event
        self._pending: tuple[Event, ...] = ()  # the next events, before anything more is parsed
        self._body: Body | None = None
        self._input = b""
        self._at = 0  # where in _input to go on
        self._overlong = False  # within a line that has become too long
        self._awaits_tls = False

    @property
    def in_body(self) -> bool:
        """True between 354 and the end of data."""
        return self._body is not None

    @property
    def has_ended(self) -> bool:
        """True from the end of data until its reply: a `Chunk` that comes now is the message's last."""
        return self._owed is End

    @property
    def owes(self) -> bool:
        """True while a reply is owed to the last event."""
        return self._owed is not None and not self._pending

    @property
    def replies(self) -> int:
        """Return how many replies there are to be taken."""
        return len(self._output)

    @property
    def has_more(self) -> bool:
        """Tell whether `next_event` has something to look at. A session asks: it is five times as fast."""
        return bool(self._input or self._pending)

    @property
    def buffered(self) -> int:
        """Return how many octets have been received and not parsed yet."""
        return len(self._input) - self._at

    def say(self, reply: Reply) -> None:
        """Say something unasked: the banner, or a parting 421, which closes."""
        self._output.append(reply.wire())
        if reply.code == 421:
            self._close()

    def take_output(self) -> bytes:
        """Return the replies gathered since the last call."""
        output, self._output = self._output, []
        return output[0] if len(output) == 1 else b"".join(output)

    # -- what the core says by itself --

    def _error(self, reply: Reply, kind: str | None = None) -> Event | None:
        """Refuse what makes no sense; leave where it is of another protocol (`kind`)."""
        if kind is not None:
            return self._leave(Foreign(kind))
        self._errors += 1
        if self._errors >= self._limits.max_errors:
            return self._end(answers.TOO_MANY_ERRORS, "errors")
        return self._refuse(reply)

    def _refuse(self, reply: Reply) -> Event | None:
        if self.hold_refusals:
            self._owed = Refused
            return Refused(reply)
        self._output.append(reply.wire())
        return None

    def _answer(self, reply: Reply) -> Event | None:
        """Answer a command that brings no mail."""
        self._idle += 1
        if self._idle > self._limits.max_idle_commands:
            return self._end(answers.TOO_MANY_COMMANDS, "idle")
        if reply.code >= 500:
            return self._refuse(reply)
        self._output.append(reply.wire())
        return None

    def _end(self, reply: Reply, why: str) -> Event:
        self._output.append(reply.wire())
        return self._leave(Bye(why))

    def _leave(self, event: Event) -> Event:
        """Close; return what happens next."""
        was_in_transaction = self.in_transaction
        self._close()
        if not was_in_transaction:
            return event
        self._pending = (event,)
        return Reset()

    def _close(self) -> None:
        self.closed = True
        self.in_transaction = False
        self._body = None
        self._owed = None
        self._pending = ()
        self._input, self._at = b"", 0
