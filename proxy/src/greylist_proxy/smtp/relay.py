# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One transaction at the mail server behind: each step's answer is the client's answer. Nothing is kept here.

The rules, so that no mail is lost and none is sent back for our own troubles:

1.  A reply goes back as it came. Exceptions: what is no answer (garbage, 1xx and 3xx out of place), and the
    replies of `BACKEND_TROUBLE`, which say that backend and proxy don't get along. These are 451 4.3.5.
2.  A backend that is lost before the final dot: 451 4.4.2, and the dot is never sent. It is not replaced in
    mid-transaction, so a transaction never spans two backends.
3.  Lost between the dot and its reply: 451 too, and the log says that the outcome is unknown. The client will
    send again, and a duplicate is possible (RFC 1047), a loss is not.
4.  A failure stays for the rest of the transaction: the client is told the same at its next step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from greylist_proxy.config_values import Endpoint
from greylist_proxy.log import Log
from greylist_proxy.smtp.address import Parameter, Path
from greylist_proxy.smtp.backend import GONE, TROUBLE, BackendError, Connection, Timeouts, connect
from greylist_proxy.smtp.replies import BACKEND_TROUBLE, Reply
from greylist_proxy.tasks import Tasks

# The extension that each parameter of MAIL belongs to (RFC 1870, RFC 6152).
EXTENSION = {"SIZE": "SIZE", "BODY": "8BITMIME"}


@dataclass(frozen=True)
class Backend:
    """The mail server behind: its hosts in order, and the name by which we greet them."""

    hosts: Sequence[Endpoint]
    hostname: str
    timeouts: Timeouts = field(default_factory=Timeouts)


class Relay:
    """The backend's half of a transaction. Nothing is connected before the first `rcpt`."""

    def __init__(
        self, backend: Backend, log: Log, tasks: Tasks, ident: str, sender: Path, parameters: Sequence[Parameter]
    ) -> None:
        self._backend = backend
        self._log = log
        self._tasks = tasks
        self._ident = ident
        self._sender = sender
        self._parameters = parameters
        self._connection: Connection | None = None
        self._failure: Reply | None = None
        self._in_body = False
        self._started = time.monotonic()
        self._endpoint: Endpoint | None = None
        self._bytes = 0

    async def rcpt(self, recipient: Path) -> Reply:
        """Put a recipient to the backend, after connecting and MAIL where that is still to be done."""
        if self._failure is None and self._connection is None:
            await self._open()
        if self._failure is not None or self._connection is None:
            return self._failure or GONE
        return await self._command(self._connection, "rcpt", b"RCPT TO:<%b>" % recipient.address.encode("ascii"))

    async def data(self) -> Reply:
        """Ask to send the message: 354, or the reply that says why not."""
        if self._failure is not None or self._connection is None:
            return self._failure or GONE
        self._started = time.monotonic()
        reply = await self._command(self._connection, "data", b"DATA")
        self._in_body = reply.code == 354
        return reply

    async def write(self, data: bytes) -> None:
        """Send a piece of the message. A failure shows in `finish`; until then the rest is ignored."""
        if self._failure is not None or self._connection is None:
            return
        self._bytes += len(data)
        try:
            if self._connection.has_spoken():
                raise await self._early(self._connection)
            await self._connection.write(data, self._backend.timeouts.block)
        except BackendError as error:
            self._fail("body", "failed", error)

    async def finish(self) -> Reply:
        """Send the final dot and return the backend's word on the message."""
        if self._failure is not None or self._connection is None:
            return self._failure or GONE
        connection, timeouts = self._connection, self._backend.timeouts
        try:
            if connection.has_spoken():
                raise await self._early(connection)
            await connection.end_data(timeouts.block)
        except BackendError as error:
            return self._fail("body", "failed", error)
        try:
            answer = await connection.reply(timeouts.end_of_data)
        except BackendError as error:
            return self._fail("end-of-data", "unknown", error)
        self._in_body = False
        reply = _for_client(answer)
        outcome = "accepted" if reply.is_positive else "refused" if reply is answer else "trouble"
        self._report("end-of-data", outcome, code=answer.code, error=None if reply.is_positive else str(answer))
        self.close()
        return reply

    def close(self) -> None:
        """End the transaction. In the middle of a message the connection is dropped, without the final dot."""
        connection, self._connection = self._connection, None
        self._failure = self._failure or GONE
        if connection is None:
            return
        if self._in_body:
            connection.abort()
        else:
            self._tasks.spawn(connection.quit(self._backend.timeouts.quit))

    def abandon(self, outcome: str, reply: Reply | None = None) -> None:
        """Give a message up that is under way, because of the client (`client-gone`) or of the message."""
        if self._in_body:
            self._report("body", outcome, code=reply.code if reply else None, error=str(reply) if reply else None)
        self.close()

    async def _open(self) -> None:
        backend = self._backend
        try:
            self._connection = await connect(backend.hosts, backend.hostname, backend.timeouts, self._passed_over)
        except BackendError as error:
            # _passed_over has reported each host.
            self._failure = error.reply
            return
        self._endpoint = self._connection.endpoint
        line = b"MAIL FROM:<%b>" % self._sender.address.encode("ascii")
        for parameter in self._parameters:
            if EXTENSION[parameter.keyword] in self._connection.extensions:
                line += b" " + parameter.raw.encode("ascii")
            elif parameter.value.upper() == "8BITMIME":
                # Promised to the client, and not kept by this backend: the client must not re-encode or bounce.
                self._fail("mail", "trouble", BackendError(TROUBLE, "it does not take 8BITMIME"))
                return
            # SIZE and BODY=7BIT only tell a backend what it finds out by itself.
        reply = await self._command(self._connection, "mail", line)
        if not reply.is_positive and self._failure is None:
            self._failure = reply

    async def _command(self, connection: Connection, stage: str, line: bytes) -> Reply:
        timeouts = self._backend.timeouts
        try:
            answer = await connection.command(line, timeouts.data if stage == "data" else timeouts.command)
        except BackendError as error:
            # Between commands a backend that is gone is gone, whatever its last words were.
            return self._fail(stage, "failed", error)
        reply = answer if stage == "data" and answer.code == 354 else _for_client(answer)
        if stage == "data" and answer.is_positive:
            reply = TROUBLE
        if reply is not answer:
            self._report(stage, "trouble", code=answer.code, error=str(answer))
        elif answer.code >= 400:
            self._report(stage, "refused", code=answer.code, error=str(answer))
        if answer.code == 421:
            self._failure = reply
        return reply

    async def _early(self, connection: Connection) -> BackendError:
        """Make an error of what the backend said before the final dot.

        A refusal is its word on the message, which it did not take. A 2xx can't be: nobody asked yet.
        """
        try:
            answer = await connection.reply(self._backend.timeouts.quit)
        except BackendError as error:
            return error
        reply = _for_client(answer)
        if reply.is_positive:
            reply = TROUBLE
        return BackendError(reply, f"it answered before the end of data: {answer}")

    def _passed_over(self, host: Endpoint, error: BackendError) -> None:
        self._endpoint = host
        self._report("connect", "trouble" if error.reply is TROUBLE else "failed", error=str(error))

    def _fail(self, stage: str, outcome: str, error: BackendError) -> Reply:
        self._failure = error.reply
        self._report(stage, outcome, error=str(error))
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        return error.reply

    def _report(self, stage: str, outcome: str, code: int | None = None, error: str | None = None) -> None:
        self._log.event(
            "relay",
            outcome=outcome,
            stage=stage,
            id=self._ident,
            backend=str(self._endpoint) if self._endpoint else None,
            code=code,
            bytes=self._bytes,
            seconds=round(time.monotonic() - self._started, 3),
            error=error,
        )


def _for_client(answer: Reply) -> Reply:
    """Return the backend's own reply, or TROUBLE where it is none that a client could use (rule 1)."""
    if answer.code in BACKEND_TROUBLE or not (answer.is_positive or answer.code >= 400):
        return TROUBLE
    return answer
