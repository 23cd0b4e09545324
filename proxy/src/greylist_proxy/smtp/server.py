# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The side that clients talk to: a session around the protocol core.

    transport  <- bytes ->  Session  <- events, replies ->  ServerProtocol
                               |  Mail, Rcpt, Data, Chunk, End
                           Transaction

This file says what each event of the core means. Below it are `conversation.py` (turns, replies, timers, the tarpit)
and `edge.py` (the transport, the limits, the PROXY header).

What aiosmtpd 1.4.6 does by itself, and what is here instead (each has a test):

    an exception in a handler is a permanent 500 that shows internals    451 4.3.0, and the log
    its timer runs on while the backend works, and kills the session     a deadline only while we wait for the client
    a half-close after the final dot cancels the message                 the commit ends, and its reply goes out
    nothing before the banner                                            greet_delay: who talks first is marked
    the PROXY protocol from anybody                                      from listed networks, and there always
"""

from __future__ import annotations

import asyncio
import ssl

from greylist_proxy.metrics.table import TLS_HANDSHAKES
from greylist_proxy.smtp.conversation import Conversation
from greylist_proxy.smtp.edge import UPGRADE
from greylist_proxy.smtp.events import (
    Bye,
    Chunk,
    Data,
    End,
    Foreign,
    Hello,
    Mail,
    Rcpt,
    Refused,
    Reset,
    Spoiled,
    StartTls,
)
from greylist_proxy.smtp.replies import Reply, own_reply
from greylist_proxy.smtp.timers import Pace
from greylist_proxy.smtp.tls import spoken, upgrade
from greylist_proxy.smtp.transaction import Transaction

SENDER_OK = own_reply(250, "2.1.0", "Sender OK")
START_TLS = own_reply(220, "2.0.0", "Ready to start TLS")
NO_TLS = own_reply(454, "4.7.0", "TLS is not available now")
UNNAMED = own_reply(450, "4.7.1", "The proxy before this server did not say who sends")


class Session(Conversation):
    """One connection. It is also the Flow of its transactions: `pause` and `resume` its client."""

    __slots__ = ()

    def _on_mail(self, event: Mail) -> None:
        if self._is_unnamed:
            self._reply(UNNAMED)
            return
        core = self._core
        if core.hello is None:
            raise RuntimeError("MAIL without EHLO")
        self._transaction = Transaction(self._services, self._met(), core.hello, event, self, core.offered)
        core.reply(SENDER_OK)

    def _on_rcpt(self, event: Rcpt) -> None:
        answer = self._open().rcpt(event.address, event.parameters)
        if isinstance(answer, Reply):
            self._told(self._reply, answer)
        else:
            self._ask(answer, self._reply)

    def _on_data(self, event: Data) -> None:
        self._ask(self._open().data(), self._answer_data)

    def _answer_data(self, reply: Reply) -> None:
        if reply.code == 354:
            self._pace = Pace(self._now())
        elif reply.code != 503:  # else RCPT may still come
            self._end_transaction("refused")
        self._reply(reply)

    def _on_chunk(self, event: Chunk) -> None:
        if self._transaction is not None:
            self._transaction.write(event.data, is_last=self._core.has_ended)

    def _on_spoiled(self, event: Spoiled) -> None:
        # The client gets its answer when it has sent everything; the backend need not wait.
        pace = self._pace
        self._end_transaction("refused-here", event.reply)
        self._pace = pace  # or the time for one command would be all that there is for the rest

    def _on_end(self, event: End) -> None:
        self._pace = None
        if event.refusal is not None:
            self._end_transaction("refused-here", event.refusal)
            self._reply(event.refusal)
            return
        transaction = self._open()
        self._transaction = None
        if event.normalised:
            self._services.log.event("normalised", client=self.host, count=event.normalised)
        self._committing = True
        # From here on the client may leave: the message is finished all the same.
        self._ask(transaction.commit(), self._answer_end)

    def _answer_end(self, reply: Reply) -> None:
        self._committing = False
        self._reply(reply)

    def _on_reset(self, event: Reset) -> None:
        self._end_transaction("reset")

    def _on_refused(self, event: Refused) -> None:
        self._reply(event.reply)

    def _on_foreign(self, event: Foreign) -> None:
        self._services.log.event("foreign", client=self.host, protocol=event.kind)
        self._part()

    def _on_bye(self, event: Bye) -> None:
        # Never what is waited for, such as the 250 of a message before QUIT.
        if event.why == "quit" and self._core.replies == 1:
            self._cork()
        self._part()

    def _part(self) -> None:
        self._end_transaction("reset")
        self._close()

    def _on_hello(self, event: Hello) -> None:
        """Nothing is owed, and the transaction before it was reset."""

    def _on_start_tls(self, event: StartTls) -> None:
        context = self._services.tls.context
        if context is None:
            self._core.reply(NO_TLS)  # offered before a reload
            return
        self._core.reply(START_TLS)
        self.flush()
        self._end_transaction("reset")
        # Before the handshake: what comes after it may be here before we hear of its end.
        injected = self._core.restart_after_tls()
        if injected:
            self._services.log.event("tls", client=self.host, state="plaintext-discarded", bytes=injected)
        self._hold_back(UPGRADE)
        if self.transport is not None:
            task = self._services.tasks.spawn(self._upgrade(self.transport, context))
            self._task = None if task.done() else task

    async def _upgrade(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        try:
            upgraded = await upgrade(transport, self, context, self._services.settings.handshake_timeout)
        except asyncio.CancelledError:
            self._handshake_failed("the connection was lost, or it took too long")
            raise
        except Exception as error:  # noqa: BLE001 - what a hostile handshake raises is not a list to rely on
            self._handshake_failed(str(error) or type(error).__name__)
            self._task = None
            self.abort()
            # Whether the transport tells us depends on how far the handshake was.
            self.connection_lost(None)
            return
        self._task = None
        self._services.cells[TLS_HANDSHAKES.cells["succeeded",]] += 1
        self.transport = upgraded
        self._tls = spoken(upgraded)
        self._visitor = None
        self._reading = True
        self._release(UPGRADE)
        self._go_on()

    def _handshake_failed(self, why: str) -> None:
        self._services.cells[TLS_HANDSHAKES.cells["failed",]] += 1
        self._services.log.event("tls", client=self.host, state="failed", error=why)

    _DO = {  # noqa: RUF012 - a ClassVar, says Conversation
        Hello: _on_hello,
        Mail: _on_mail,
        Rcpt: _on_rcpt,
        Data: _on_data,
        Chunk: _on_chunk,
        Spoiled: _on_spoiled,
        End: _on_end,
        Reset: _on_reset,
        Refused: _on_refused,
        StartTls: _on_start_tls,
        Foreign: _on_foreign,
        Bye: _on_bye,
    }

    def _open(self) -> Transaction:
        if self._transaction is None:
            raise RuntimeError("the core tells of a transaction that there is not")
        return self._transaction
