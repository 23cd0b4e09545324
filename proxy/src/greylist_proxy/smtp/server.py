# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The side that clients talk to: aiosmtpd's protocol class, with a command loop and timers of our own.

aiosmtpd brings the transport, the reader and writer, and the life of a connection. Its command loop and
commands are replaced, because of what aiosmtpd 1.4.6 does (each has a test):

    an exception in a handler is a permanent 500 that shows internals    here: 451 4.3.0, and the log
    its timer runs on while the backend works, and kills the session     here: a timer only while we wait
                                                                         for the client
    a half-close after the final dot cancels the message                 here: EOF is read in its turn, and
                                                                         the commit is shielded
    a bare LF ends a command, addresses are guessed, UTF-8 ones taken    here: CRLF only, a strict grammar
    `command_size_limits` belongs to the class, and grows                here: one limit, not used at all
    VRFY and unknown commands are echoed, AUTH is there                  here: fixed words, no AUTH

Each command is a method that returns its reply; `_converse` is the one place where replies are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

from aiosmtpd.smtp import SMTP

from greylist_proxy.client import Client, identify
from greylist_proxy.smtp.address import AddressError, check_mail_parameters, parse_sender, split
from greylist_proxy.smtp.body import Body
from greylist_proxy.smtp.replies import NO_PARAMETER, Reply, own_reply
from greylist_proxy.smtp.transaction import Hello, Services, Transaction

# RFC 5321 section 4.5.3.1.4 gives a command 512 octets and more for each extension; a path of ours may be longer.
MAX_COMMAND = 2048
MAX_ERRORS = 10  # lines that are no commands, before the client is told to leave (aiosmtpd: 5, Postfix: 20)
READ_SIZE = 1 << 16
COMMAND_PATIENCE = 300.0  # seconds, RFC 5321 section 4.5.3.2.7
CLOSE_PATIENCE = 10.0  # seconds for our last words to be read
DATA_PATIENCE = 180.0  # seconds without a byte of the message, section 4.5.3.2.5

OK = own_reply(250, "2.0.0", "OK")
NO_ARGUMENTS = own_reply(501, "5.5.4", "This command has no arguments")
NOT_IMPLEMENTED = own_reply(502, "5.5.1", "Command not implemented")
UNKNOWN = own_reply(500, "5.5.2", "Command not recognized")
LINE_TOO_LONG = own_reply(500, "5.5.2", "Line too long")
BAD_LINE_END = own_reply(500, "5.5.2", "Lines must end in CRLF")
SEND_DATA = Reply(354, (b"End data with <CR><LF>.<CR><LF>",))
INTERNAL = own_reply(451, "4.3.0", "Internal error, try again later")
TOO_MANY_ERRORS = own_reply(421, "4.7.0", "Too many errors, goodbye")
TIMED_OUT = own_reply(421, "4.4.2", "Waited too long, goodbye")
STOPPING = own_reply(421, "4.3.2", "Service is shutting down, try again later")


class _GoneError(Exception):
    """The client is gone; there is nobody to answer."""


class _ByeError(Exception):
    """The session ends with this reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class Session(SMTP):
    """One connection."""

    # What aiosmtpd gives its StreamReader: reading stops at twice this much.
    line_length_limit = READ_SIZE

    def __init__(self, services: Services, sessions: set[Session], patience: tuple[float, float]) -> None:
        super().__init__(None, hostname=services.hostname, loop=asyncio.get_running_loop())
        self._services = services
        self._sessions = sessions
        self._command_patience, self._data_patience = patience
        self._client: Client | None = None
        self._hello: Hello | None = None
        self._transaction: Transaction | None = None
        self._input = bytearray()
        self._errors = 0
        self._idle = False  # waiting for a command, outside a transaction
        self._stopping = False
        self._leaving = False  # after QUIT
        self._is_trapped = False  # this client mails spam traps
        self._waited = 0.0  # seconds in the tarpit

    # -- the life of a connection --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take part in the set of sessions, so that a stop can reach us."""
        super().connection_made(transport)
        self._sessions.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Leave the set; aiosmtpd cancels the conversation."""
        self._sessions.discard(self)
        super().connection_lost(error)

    def eof_received(self) -> bool | None:
        """Let what came before the EOF be answered: aiosmtpd would cancel even a message being committed."""
        return asyncio.StreamReaderProtocol.eof_received(self)

    def _timeout_cb(self) -> None:
        # aiosmtpd's timer does not know whether the client or we are waited for, so it counts only after _close.
        if self._writer.is_closing():
            self._writer.transport.abort()

    def _close(self) -> None:
        # Closing waits until everything is sent, for ever where the client does not read.
        self._writer.close()
        if self.transport is not None:
            self._reset_timeout(min(CLOSE_PATIENCE, self._command_patience))

    def stop(self) -> None:
        """End the session politely: now if it is idle, else after its transaction."""
        self._stopping = True
        if self._idle:
            self._idle = False
            self._writer.write(STOPPING.wire())
            self._close()

    def abort(self) -> None:
        """End the session at once."""
        if self.transport is not None:
            self._writer.transport.abort()

    async def _handle_client(self) -> None:
        try:
            await self._converse()
        except _GoneError:
            pass
        finally:
            self._end_transaction("client-gone")
            self._close()

    async def _converse(self) -> None:
        peer = self._writer.get_extra_info("peername")
        if not peer:
            raise _GoneError
        self._client = identify(peer[0], self._services.ipv4_prefix, self._services.ipv6_prefix)
        await self._send(Reply(220, (f"{self._services.hostname} ESMTP greylist-proxy".encode("ascii"),)))
        while not self._leaving:
            try:
                line = await self._read_line()
                if self._stopping and self._transaction is None:
                    raise _ByeError(STOPPING)
                reply = await self._execute(line) if isinstance(line, bytes) else line
                if reply.code == 500:
                    self._errors += 1
                    if self._errors >= MAX_ERRORS:
                        raise _ByeError(TOO_MANY_ERRORS)
            except _ByeError as bye:
                self._leaving = True
                reply = bye.reply
            except _GoneError:
                raise
            except Exception as error:
                self._services.log.exception("an SMTP command failed", error, client=str(self._client.address))
                if self._transaction is not None:
                    self._transaction.fail()
                reply = INTERNAL
            if self._is_trapped and not reply.is_positive:
                self._waited += await self._services.tarpit.hold(self._waited)
            await self._send(reply)

    # -- bytes and lines --

    async def _send(self, reply: Reply) -> None:
        self._writer.write(reply.wire())
        try:
            async with asyncio.timeout(self._command_patience):
                await self._writer.drain()
        except OSError:
            # The connection is lost, or (TimeoutError) it does not read what it is told.
            raise _GoneError from None

    async def _fill(self, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                data = await self._reader.read(READ_SIZE)
        except TimeoutError:
            raise _ByeError(TIMED_OUT) from None
        except OSError:
            raise _GoneError from None
        if not data:
            raise _GoneError
        self._input += data

    async def _read_line(self) -> bytes | Reply:
        """Return the next line without its CRLF, or the reply that it has earned."""
        too_long = False
        while (end := self._input.find(b"\n")) < 0:
            if len(self._input) > MAX_COMMAND:
                too_long = True
                self._input.clear()
            self._idle = self._transaction is None
            await self._fill(self._command_patience)
            self._idle = False
        line = bytes(self._input[: end + 1])
        del self._input[: end + 1]
        if self._input:
            # Who sends many commands at once must not keep the others waiting.
            await asyncio.sleep(0)
        if too_long or len(line) > MAX_COMMAND:
            return LINE_TOO_LONG
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            return BAD_LINE_END
        return line[:-2]

    # -- commands --

    async def _execute(self, line: bytes) -> Reply:
        verb, _ignored, argument = line.partition(b" ")
        command = self._COMMANDS.get(verb.upper())
        return await command(self, argument.strip(b" \t")) if command else UNKNOWN

    async def _helo(self, argument: bytes) -> Reply:
        return self._greet(argument, esmtp=False)

    async def _ehlo(self, argument: bytes) -> Reply:
        return self._greet(argument, esmtp=True)

    def _greet(self, argument: bytes, *, esmtp: bool) -> Reply:
        if not argument:
            return own_reply(501, "5.5.4", "Expected a domain or an address literal")
        self._end_transaction("reset")
        self._hello = Hello(argument.decode("ascii", "replace"), esmtp)
        lines = [self._services.hostname]
        if esmtp:
            # Only what is passed on whole. PIPELINING works, but is not promised yet; ENHANCEDSTATUSCODES can't
            # be, while the backend's replies may have none.
            lines += [f"SIZE {self._services.max_message_size}", "8BITMIME"]
        return Reply(250, tuple(line.encode("ascii") for line in lines))

    async def _mail(self, argument: bytes) -> Reply:
        if self._hello is None or self._client is None:
            return own_reply(503, "5.5.1", "EHLO or HELO first")
        if self._transaction is not None:
            return own_reply(503, "5.5.1", "A transaction is under way")
        try:
            address, parameters = split(argument, b"FROM:")
            sender = parse_sender(address)
        except AddressError as error:
            return error.reply
        refusal = check_mail_parameters(parameters, self._services.max_message_size)
        if refusal is None:
            self._transaction = Transaction(self._services, self._client, self._hello, sender, parameters)
        return refusal or own_reply(250, "2.1.0", "Sender OK")

    async def _rcpt(self, argument: bytes) -> Reply:
        if self._transaction is None:
            return own_reply(503, "5.5.1", "MAIL first")
        try:
            address, parameters = split(argument, b"TO:")
        except AddressError as error:
            return error.reply
        if parameters:
            return NO_PARAMETER
        transaction = self._transaction
        reply = await transaction.rcpt(address)
        self._is_trapped = self._is_trapped or transaction.is_trapped
        return reply

    async def _data(self, argument: bytes) -> Reply:
        if argument:
            return NO_ARGUMENTS
        if self._transaction is None:
            return own_reply(503, "5.5.1", "MAIL first")
        transaction = self._transaction
        try:
            reply = await transaction.data()
            if reply.code == 354:
                return await self._take_message(transaction)
            if reply.code != 503:  # else RCPT may still come
                self._end_transaction("refused")
            return reply
        except (_GoneError, _ByeError):
            raise
        except Exception as error:
            # What is left of the message must not be read as commands.
            self._services.log.exception("taking a message failed", error)
            raise _ByeError(own_reply(421, "4.3.0", "Internal error, try again later")) from error

    async def _take_message(self, transaction: Transaction) -> Reply:
        await self._send(SEND_DATA)
        body = Body(self._services.max_message_size)
        while not body.ended:
            if not self._input:
                await self._fill(self._data_patience)
            data, self._input = bytes(self._input), bytearray()
            piece = body.feed(data)
            if body.refusal is not None:
                # The client gets its answer when it has sent everything; the backend need not wait.
                self._end_transaction("refused-here", body.refusal)
            elif piece:
                await transaction.write(piece)
        self._input = bytearray(body.rest)
        if body.refusal is not None:
            return body.refusal
        # From here on the client may leave, and this task be cancelled: the message is finished all the same.
        self._transaction = None
        return await asyncio.shield(self._services.tasks.spawn(transaction.commit()))

    async def _rset(self, argument: bytes) -> Reply:
        if argument:
            return NO_ARGUMENTS
        self._end_transaction("reset")
        return OK

    async def _noop(self, argument: bytes) -> Reply:
        return OK

    async def _quit(self, argument: bytes) -> Reply:
        if argument:
            return NO_ARGUMENTS
        self._end_transaction("quit")
        self._leaving = True
        return own_reply(221, "2.0.0", "Goodbye")

    async def _vrfy(self, argument: bytes) -> Reply:
        return own_reply(252, "2.5.0", "Cannot verify, try RCPT")

    async def _help(self, argument: bytes) -> Reply:
        return own_reply(214, "2.0.0", "See RFC 5321")

    async def _not_implemented(self, argument: bytes) -> Reply:
        return NOT_IMPLEMENTED

    _COMMANDS: ClassVar[dict[bytes, Callable[[Session, bytes], Awaitable[Reply]]]] = {
        b"HELO": _helo,
        b"EHLO": _ehlo,
        b"MAIL": _mail,
        b"RCPT": _rcpt,
        b"DATA": _data,
        b"RSET": _rset,
        b"NOOP": _noop,
        b"QUIT": _quit,
        b"VRFY": _vrfy,
        b"HELP": _help,
        b"EXPN": _not_implemented,
        b"AUTH": _not_implemented,
        b"STARTTLS": _not_implemented,
    }

    def _end_transaction(self, outcome: str, reply: Reply | None = None) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.abandon(outcome, reply)
