# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One transaction at the mail server behind: each step's answer is the client's answer. Nothing is kept here.

The rules, so that no mail is lost and none is sent back for our own troubles:

1.  A reply goes back as it came. Exceptions: what is no answer (garbage, 1xx and 3xx out of place), the replies
    of `BACKEND_TROUBLE`, which say that backend and proxy don't get along, and a 5xx whose enhanced status says that
    it is temporary. These are 451 4.3.5.
2.  A backend that is lost before the final dot: 451 4.4.2, and the dot is never sent. It is not replaced once it
    has accepted a recipient, so a transaction never spans two backends.
3.  Lost between the dot and its reply: 451 too, and the log says that the outcome is unknown. The client will
    send again, and a duplicate is possible (RFC 1047), a loss is not.
4.  A failure stays for the rest of the transaction: the client is told the same at its next step.
5.  Nothing goes on for a client whose EHLO was answered before anything was known of a backend: what it was not
    offered, it would have to re-encode.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from greylist_proxy.config_values import Endpoint
from greylist_proxy.metrics.table import RELAY_SECONDS
from greylist_proxy.smtp import envelope
from greylist_proxy.smtp.address import Path
from greylist_proxy.smtp.backend import GONE, TROUBLE, UNREACHABLE, BackendError, Connection, Flow, for_client
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.forwarding import Introduce
from greylist_proxy.smtp.parameters import Parameter
from greylist_proxy.smtp.pool import Backends, Recipient
from greylist_proxy.smtp.replies import Reply
from greylist_proxy.tasks import Tasks


class Relay:
    """The backend's half of a transaction. Nothing is connected before the first `rcpt`.

    `promised` is what the client's EHLO was answered by; `flow` is its side of the message. One of `rcpt`, `data` and
    `finish` runs at a time; `abandon` and `close` may come at any moment.
    """

    __slots__ = (
        "_backends",
        "_bytes",
        "_connection",
        "_endpoint",
        "_failure",
        "_flow",
        "_ident",
        "_in_body",
        "_introduce",
        "_is_closed",
        "_is_waiting",
        "_may_begin_anew",
        "_parameters",
        "_sender",
        "_started",
        "_tasks",
        "refuses_sender",
    )

    def __init__(
        self,
        backends: Backends,
        tasks: Tasks,
        ident: str,
        sender: Path,
        parameters: Sequence[Parameter],
        introduce: Introduce,
        promised: Capabilities | None,
        flow: Flow,
    ) -> None:
        self._backends = backends
        self._tasks = tasks
        self._ident = ident
        self._sender = sender
        self._parameters = parameters
        self._introduce = introduce
        self._flow = flow
        self._connection: Connection | None = None
        self._endpoint: Endpoint | None = None
        self._failure: Reply | None = UNREACHABLE if promised is None else None
        self._may_begin_anew = False  # the connection was used before, and has accepted nobody yet
        self._is_waiting = False  # for a reply
        self._is_closed = False
        self._in_body = False
        self._started = time.monotonic()
        self._bytes = 0
        self.refuses_sender = False  # the backend did, at MAIL: what recipients are told is not about them

    async def rcpt(self, address: str, parameters: Sequence[Parameter]) -> Reply:
        """Put a recipient to the backend, after connecting and MAIL where that is still to be done."""
        recipient = Recipient(address, parameters)
        if self._failure is None and self._connection is None:
            return await self._begin(recipient, fresh=False)
        if self._failure is not None or self._connection is None:
            return self._failure or GONE
        connection = self._connection
        try:
            line = envelope.rcpt(address, parameters, connection.capabilities)
        except BackendError as error:
            self._report("rcpt", "trouble", error=str(error))
            return error.reply
        try:
            answer = await self._ask(connection, line, self._backends.settings.timeouts.command)
        except BackendError as error:
            return await self._begin_anew(connection, recipient) or self._fail("rcpt", error)
        if answer.code == 421 and (reply := await self._begin_anew(connection, recipient)):
            return reply
        return self._judge("rcpt", answer)

    async def data(self) -> Reply:
        """Ask to send the message: 354, or the reply that says why not."""
        if self._failure is not None or self._connection is None:
            return self._failure or GONE
        connection, timeouts = self._connection, self._backends.settings.timeouts
        self._started = time.monotonic()
        try:
            answer = await self._ask(connection, b"DATA", timeouts.data)
        except BackendError as error:
            return self._fail("data", error)
        if answer.code == 354:
            self._in_body = True
            connection.stream(self._flow, timeouts.block)
            return answer
        return self._judge("data", answer)

    def write(self, piece: bytes) -> None:
        """Send a piece of the message. A failure shows in `finish`; until then the rest is ignored."""
        connection = self._connection
        if self._failure is not None or connection is None:
            return
        self._bytes += len(piece)
        # What it says now it says before its turn, and that is never taken back: no piece and no dot follow.
        if connection.has_spoken() or connection.is_lost:
            self._end_early(connection)
        else:
            connection.send(piece)

    async def finish(self, last: bytes = b"") -> Reply:
        """Send the last piece of the message and the final dot, and return the backend's word on it."""
        if self._failure is not None or self._connection is None:
            return self._failure or GONE
        connection, timeouts = self._connection, self._backends.settings.timeouts
        self._bytes += len(last)
        self._is_waiting = True
        try:
            if not connection.has_spoken():
                await connection.end_data(last)
            else:
                raise _out_of_turn(await connection.reply(timeouts.quit))
        except BackendError as error:
            return self._fail("body", error)
        self._in_body = False
        try:
            answer = await connection.reply(timeouts.end_of_data)
        except BackendError as error:
            return self._fail("end-of-data", error, outcome="unknown")
        except BaseException as error:  # the program ends
            self._fail("end-of-data", BackendError(GONE, f"given up: {error!r}"), outcome="unknown")
            raise
        self._is_waiting = False
        connection.octets += self._bytes
        reply = for_client(answer)
        if reply.is_positive:
            seconds = self._took("end-of-data")
            self._backends.report_accepted(self._ident, self._endpoint, answer.code, self._bytes, seconds)
        else:
            self._report(
                "end-of-data", "refused" if reply is answer else "trouble", code=answer.code, error=str(answer)
            )
        self._connection = None
        self._failure = GONE
        # Refused, it may be because of what came before on this connection: the next message is not to suffer, too.
        used_up = connection.reused and not reply.is_positive
        self._backends.release(connection, reusable=reply is answer and not used_up)
        return reply

    def close(self) -> None:
        """End the transaction. In the middle of a message the connection is dropped, without the final dot."""
        self._is_closed = True
        self._failure = self._failure or GONE
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._in_body or self._is_waiting or connection.is_lost:
            # Whoever waits for a reply there hears that the connection is gone.
            self._backends.drop(connection)
        else:
            self._tasks.spawn(self._backends.retire(connection))

    def abandon(self, outcome: str, reply: Reply | None = None) -> None:
        """Give a message up that is under way, because of the client (`client-gone`) or of the message."""
        if self._in_body and self._connection is not None:
            self._report("body", outcome, code=reply.code if reply else None, error=str(reply) if reply else None)
        self.close()

    async def _begin_anew(self, connection: Connection, recipient: Recipient) -> Reply | None:
        """Begin once more where that may help: the connection is lost, and was used before; None: it may not."""
        if not self._may_begin_anew or self._is_closed:
            return None
        self._connection = None
        self._backends.drop(connection)
        return await self._begin(recipient, fresh=True)

    async def _begin(self, recipient: Recipient, *, fresh: bool) -> Reply:
        try:
            begun = await self._backends.begin(
                self._sender, self._parameters, recipient, self._introduce, self._passed_over, fresh=fresh
            )
        except BackendError as error:
            self._failure = error.reply  # _passed_over has reported it
            return error.reply
        if self._is_closed:
            self._tasks.spawn(self._backends.retire(begun.connection))
            return GONE
        self._connection = begun.connection
        self._endpoint = begun.connection.endpoint
        self._may_begin_anew = begun.connection.reused and not fresh
        reply = self._judge("mail", begun.mail)
        self.refuses_sender = not reply.is_positive
        if not reply.is_positive or begun.rcpt is None:
            self._failure = reply
            return reply
        return self._judge("rcpt", begun.rcpt)

    async def _ask(self, connection: Connection, line: bytes, seconds: float) -> Reply:
        # Not in a `finally`: who is cancelled here leaves a reply unread, and the connection is not used again.
        self._is_waiting = True
        try:
            reply = await connection.command(line, seconds)
        except BackendError:
            self._is_waiting = False
            raise
        self._is_waiting = False
        return reply

    def _judge(self, stage: str, answer: Reply) -> Reply:
        """Return what the client is told, and report what is no consent."""
        reply = for_client(answer)
        if stage == "data" and answer.is_positive:
            reply = TROUBLE
        if reply is not answer:
            self._report(stage, "trouble", code=answer.code, error=str(answer))
            if self._connection is not None:
                self._connection.spoiled = True
        elif answer.code >= 400:
            self._report(stage, "refused", code=answer.code, error=str(answer))
        elif stage == "rcpt":
            self._may_begin_anew = False
        if stage == "data" and self._connection is not None and self._connection.reused:
            self._connection.spoiled = True  # as in `finish`
        if answer.code == 421:
            self._failure = reply
        return reply

    def _end_early(self, connection: Connection) -> None:
        """Draw the line if the backend has said all it had to say before the final dot, or is gone."""
        try:
            answer = connection.take()
        except BackendError as error:
            self._fail("body", error)
            return
        if answer is not None:
            self._fail("body", _out_of_turn(answer))
        elif connection.is_lost:
            self._fail("body", connection.loss())

    def _passed_over(self, endpoint: Endpoint | None, stage: str, error: BackendError) -> None:
        self._endpoint = endpoint
        self._report(stage, error.outcome, error=str(error))

    def _fail(self, stage: str, error: BackendError, outcome: str = "") -> Reply:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._failure = error.reply
            self._backends.drop(connection)
        elif not outcome:
            return self._failure or GONE  # closed meanwhile, and that has been told
        self._report(stage, outcome or error.outcome, error=str(error))
        return error.reply

    def _report(self, stage: str, outcome: str, code: int | None = None, error: str | None = None) -> None:
        seconds = self._took(stage)
        self._backends.report(
            outcome,
            stage,
            self._ident,
            self._endpoint,
            code=code,
            bytes=self._bytes,
            seconds=seconds,
            error=error,
        )

    def _took(self, stage: str) -> float:
        seconds = time.monotonic() - self._started
        if stage == "end-of-data":
            RELAY_SECONDS.observe(self._backends.cells, seconds)
        return round(seconds, 3)


def _out_of_turn(answer: Reply) -> BackendError:
    """Make an error of what the backend said before the final dot.

    A refusal is its word on the message, which it did not take. A 2xx can't be: nobody asked yet.
    """
    reply = for_client(answer)
    return BackendError(TROUBLE if reply.is_positive else reply, f"it answered before the end of data: {answer}")
