# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's side of SMTP (RFC 5321) without I/O: bytes in, events and replies out. No socket, no clock.

    core.receive(bytes)                         what the client sent, in pieces of any size
    while event := core.next_event():           what it means; `events.py` lists them
        ...                                     if a reply is owed after it: core.reply(...), now or later
    transport.write(core.take_output())         all replies of one read in one write (RFC 2920)

Where the input is cut makes no difference to what comes out, with one exception, which is about time: what comes after
DATA and before its reply. RFC 2920 section 3.1 has the client wait there. If DATA is refused and there is more, it
is likely to be a message whose sender does not look at replies; its lines must not be taken for commands, because
someone else may have written them. The session ends.

Rules of this file: all state is in Core (`core.py`). A command is a method that takes the argument and returns an
event, or None when the core has answered it; COMMANDS names them all. Everything that the core answers by itself is
counted, as an error or as idle, so that nobody can keep it busy for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from greylist_proxy.smtp import answers, foreign
from greylist_proxy.smtp.address import AddressError, parse_sender
from greylist_proxy.smtp.body import Body
from greylist_proxy.smtp.core import Core
from greylist_proxy.smtp.events import (
    Chunk,
    Data,
    End,
    Event,
    Foreign,
    Hello,
    Mail,
    Rcpt,
    Reset,
    Spoiled,
    StartTls,
)
from greylist_proxy.smtp.parameters import (
    NON_ASCII,
    Parameter,
    check_mail_parameters,
    check_rcpt_parameters,
    has_smtputf8,
    split,
)
from greylist_proxy.smtp.replies import Reply

# RFC 5321 section 4.5.3.1.4 gives a command 512 octets and more for each extension (DSN: 500 for ORCPT alone); a path
# of ours may be longer, too.
MAX_COMMAND = 2048
BLANKS = b" \t\r"


@lru_cache(maxsize=1024)  # our own recipients come again and again
def _split_recipient(argument: bytes) -> tuple[str, tuple[Parameter, ...]]:
    return split(argument, b"TO:")


class ServerProtocol(Core):
    """One connection's conversation.

    `hello` is the client's last EHLO or HELO; `offered` is what the backends' capabilities were when that was
    answered, which is what the client may use. `hold_refusals` makes 5xx replies of the core's own into events.
    """

    __slots__ = ()

    def receive(self, data: bytes) -> int:
        """Take what the client has sent. `next_event` then tells what it means. Return what `buffered` is now."""
        if self.closed:
            return 0
        self._input = data = self._input[self._at :] + data if self._input else data
        self._at = 0
        return len(data)

    def next_event(self) -> Event | None:
        """Return what happens next; None: more must be received first, or a reply is owed, or all is over."""
        if self._pending:
            first, *rest = self._pending
            self._pending = tuple(rest)
            return first
        if self._owed is not None or self.closed or self._awaits_tls:
            return None
        if self._body is not None:
            return self._next_of_body(self._body)
        while (end := self._input.find(b"\n", self._at)) >= 0:
            if (event := self._take_line(end)) is not None:
                return event
        return self._keep_rest() if self._input else None

    def reply(self, reply: Reply) -> None:
        """Answer what is owed. A 421 closes. ValueError: nothing is owed."""
        owed, self._owed = self._owed, None
        if owed is None:
            raise ValueError("no reply is owed")
        self._output.append(reply.wire())
        if reply.code == 421:
            self._close()
        elif owed is Mail:
            self.in_transaction = reply.is_positive
            self._idle += not reply.is_positive
        elif owed is Data and reply.code == 354:
            self._body = Body(self._offers.size_limit(), self._limits)
        elif owed is Data:
            self.in_transaction = reply.code == 503
            if self.buffered:
                event = self._end(answers.NOT_SYNCHRONISED, "pipelining")
                self._pending = (event, *self._pending)
        elif owed is End:
            self.in_transaction = False
            self._idle += 1
            if reply.is_positive:
                self._errors = self._idle = 0
        elif owed is StartTls:
            self._awaits_tls = reply.is_positive

    def restart_after_tls(self) -> int:
        """Begin anew under TLS. All is forgotten, also what had been received in clear: its number of octets is
        returned, because more than 0 was an attempt at injection (RFC 3207 section 5). Only the counts go on.
        """
        injected = self.buffered
        self._forget()
        self.tls = True
        return injected

    # -- input --

    def _take_line(self, end: int) -> Event | None:
        """Take the line that ends at `end`, and do what it says."""
        line, self._at = self._input[self._at : end], end + 1
        if self._at == len(self._input):
            self._input, self._at = b"", 0
        if not line.endswith(b"\r"):
            # Someone may have made a client send this in what was to be one line: what follows is not to be obeyed.
            kind = None if self._overlong else foreign.of_line(line)
            return self._leave(Foreign(kind)) if kind else self._end(answers.BARE_LINE_FEED, "bare line feed")
        if self._overlong:
            self._overlong = False
            return self._error(answers.LINE_TOO_LONG)
        if len(line) >= MAX_COMMAND:
            return self._error(answers.LINE_TOO_LONG, foreign.of_octet(line[:1]))
        if line.count(b"\r") > 1:
            return self._error(answers.BAD_LINE_END, foreign.of_line(line))
        verb, _ignored, argument = line.rstrip(BLANKS).partition(b" ")
        command = COMMANDS.get(verb) or COMMANDS.get(verb.upper())
        if command is None:
            return self._error(answers.UNKNOWN, foreign.of_line(line))
        return command(self, argument.lstrip(BLANKS))

    def _keep_rest(self) -> Event | None:
        """Keep the beginning of a line until the rest is there, or throw it away where it is too long already."""
        rest = self._input[self._at :]
        # Who speaks no SMTP may never end a line, and would wait for us as we for him.
        kind = None if self._overlong else foreign.of_octet(rest[:1])
        if self._overlong or len(rest) >= MAX_COMMAND:
            self._overlong, rest = True, b"\r" if rest.endswith(b"\r") else b""
        self._input, self._at = rest, 0
        return None if kind is None else self._leave(Foreign(kind))

    def _next_of_body(self, body: Body) -> Event | None:
        data, self._input, self._at = self._input[self._at :], b"", 0
        if not data:
            return None
        was_spoiled = body.refusal is not None
        piece = body.feed(data)
        events: list[Event] = []
        if piece:
            events.append(Chunk(piece))
        if body.refusal is not None and not was_spoiled:
            events.append(Spoiled(body.refusal))
        if body.ended:
            events.append(End(body.refusal, body.normalised))
            self._owed, self._body, self._input = End, None, body.rest
        self._pending = tuple(events[1:])
        return events[0] if events else None

    # -- commands --

    def _ehlo(self, argument: bytes) -> Event | None:
        return self._greet(argument, esmtp=True)

    def _helo(self, argument: bytes) -> Event | None:
        return self._greet(argument, esmtp=False)

    def _greet(self, argument: bytes, *, esmtp: bool) -> Event | None:
        if not argument:
            return self._error(answers.NO_NAME)
        self._idle += 1
        if self._idle > self._limits.max_idle_commands:
            return self._end(answers.TOO_MANY_COMMANDS, "idle")
        offers = self._offers
        self.offered = offers.capabilities
        hello = self.hello = Hello(argument.decode("ascii", "replace"), esmtp)
        if esmtp:
            starttls = offers.starttls and not self.tls
            self._output.append(answers.ehlo_reply(offers.hostname, offers.size_limit(), offers.capabilities, starttls))
        else:
            self._output.append(b"250 %b\r\n" % offers.hostname.encode("ascii"))
        if self.in_transaction:
            self.in_transaction = False
            self._pending = (hello,)
            return Reset()
        return hello

    def _mail(self, argument: bytes) -> Event | None:
        if self.hello is None:
            return self._error(answers.NO_HELLO)
        if self.in_transaction:
            return self._error(answers.IN_TRANSACTION)
        if self._idle >= self._limits.max_idle_commands:  # refused ones count, in `reply`
            return self._end(answers.TOO_MANY_COMMANDS, "idle")
        try:
            address, parameters = split(argument, b"FROM:")
            smtputf8 = False
            # Also after HELO, where nothing was offered: a sender who knows us from before loses nothing by it.
            if parameters:
                smtputf8 = has_smtputf8(parameters)
                refusal = check_mail_parameters(parameters, self.offered, self._offers.size_limit())
                if refusal is not None:
                    return self._error(refusal)
            if not smtputf8 and not address.isascii():
                return self._error(NON_ASCII)
            path = parse_sender(address)
        except AddressError as error:
            return self._error(error.reply)
        self._smtputf8 = smtputf8
        self._rcpts = 0
        self._owed = Mail
        return Mail(path, parameters)

    def _rcpt(self, argument: bytes) -> Event | None:
        if not self.in_transaction:
            # No error of its own, but what comes of pipelining, where MAIL was refused.
            return self._answer(answers.NO_MAIL)
        self._rcpts += 1
        if self._rcpts > self._limits.max_rcpt_commands:
            return self._end(answers.TOO_MANY_COMMANDS, "idle")
        # A bad recipient is no error either, nor idle: one list full of them must not cost the others their mail.
        try:
            address, parameters = _split_recipient(argument)
        except AddressError as error:
            return self._refuse(error.reply)
        if parameters:
            refusal = check_rcpt_parameters(parameters, self.offered, smtputf8=self._smtputf8)
            if refusal is not None:
                return self._refuse(refusal)
        if not self._smtputf8 and not address.isascii():
            return self._refuse(NON_ASCII)
        self._owed = Rcpt
        return Rcpt(address, parameters)

    def _data(self, argument: bytes) -> Event | None:
        if argument:
            return self._error(answers.NO_ARGUMENTS)
        if self.in_transaction:
            self._owed = Data
            return Data()
        if not self.buffered:
            return self._answer(answers.NO_MAIL)
        self._output.append(answers.NO_MAIL.wire())
        return self._end(answers.NOT_SYNCHRONISED, "pipelining")

    def _rset(self, argument: bytes) -> Event | None:
        if argument:
            return self._error(answers.NO_ARGUMENTS)
        event = self._answer(answers.OK)
        if event is None and self.in_transaction:
            self.in_transaction = False
            return Reset()
        return event

    def _quit(self, argument: bytes) -> Event | None:
        return self._error(answers.NO_ARGUMENTS) if argument else self._end(answers.GOODBYE, "quit")

    def _starttls(self, argument: bytes) -> Event | None:
        if argument:
            return self._error(answers.NO_ARGUMENTS)
        if self.tls:
            return self._error(answers.UNDER_TLS)
        if not self._offers.starttls:
            return self._error(answers.NOT_IMPLEMENTED)
        if self.in_transaction:
            return self._error(answers.IN_TRANSACTION)
        self._owed = StartTls
        return StartTls()

    def _noop(self, _ignored: bytes) -> Event | None:
        return self._answer(answers.OK)

    def _vrfy(self, _ignored: bytes) -> Event | None:
        return self._answer(answers.CANNOT_VERIFY)

    def _help(self, _ignored: bytes) -> Event | None:
        return self._answer(answers.HELP)

    def _not_implemented(self, _ignored: bytes) -> Event | None:
        return self._error(answers.NOT_IMPLEMENTED)


COMMANDS: dict[bytes, Callable[[ServerProtocol, bytes], Event | None]] = {
    b"EHLO": ServerProtocol._ehlo,
    b"HELO": ServerProtocol._helo,
    b"MAIL": ServerProtocol._mail,
    b"RCPT": ServerProtocol._rcpt,
    b"DATA": ServerProtocol._data,
    b"RSET": ServerProtocol._rset,
    b"NOOP": ServerProtocol._noop,
    b"QUIT": ServerProtocol._quit,
    b"VRFY": ServerProtocol._vrfy,
    b"HELP": ServerProtocol._help,
    b"STARTTLS": ServerProtocol._starttls,
    **dict.fromkeys((b"EXPN", b"AUTH", b"TURN"), ServerProtocol._not_implemented),
}
