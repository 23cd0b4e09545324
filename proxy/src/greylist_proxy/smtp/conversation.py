# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A conversation: when the input is looked at, when replies go out, and what is waited for, with which timer.

What the client's bytes mean is done in the call that brings them, in turns of `_go_on`. Only what has to wait (a
decision, the backend) is an errand, and its end goes on with the input. Replies gather in the core, and go out as one
write when nothing more can be done now. Which event means what is the session's business (`server.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache, partial
from time import monotonic
from typing import Any, ClassVar

from greylist_proxy.errand import Errand
from greylist_proxy.metrics.table import EARLY_TALKERS
from greylist_proxy.policy import Mode
from greylist_proxy.smtp.edge import BACKEND, CLIENT, HELD, OWED, UPGRADE, Edge
from greylist_proxy.smtp.events import Event
from greylist_proxy.smtp.protocol import ServerProtocol
from greylist_proxy.smtp.replies import Reply, own_reply
from greylist_proxy.smtp.shared import Services
from greylist_proxy.smtp.tarpit import Wait
from greylist_proxy.smtp.timers import Pace, Watch
from greylist_proxy.smtp.transaction import Transaction

TURN = 100  # events of one session before the others have their turn
TURN_TIME = 0.002  # seconds, likewise: an internationalised address takes a thousand times as long as a NOOP
MOST_BUFFERED = 1 << 16  # octets that a client may send while a reply or a turn is due; then we stop reading

INTERNAL = own_reply(451, "4.3.0", "Internal error, try again later")
INTERNAL_END = own_reply(421, "4.3.0", "Internal error, try again later")
TIMED_OUT = own_reply(421, "4.4.2", "Waited too long, goodbye")
STOPPING = own_reply(421, "4.3.2", "Service is shutting down, try again later")


@cache
def _banner(hostname: str) -> Reply:
    return Reply(220, (f"{hostname} ESMTP greylist-proxy".encode("ascii"),))


class Conversation(Edge):
    """The middle of a session, around its protocol core."""

    # What each event of the core means.
    _DO: ClassVar[dict[type[Event], Callable[[Any, Any], None]]] = {}

    __slots__ = (
        "_awaited",
        "_committing",
        "_core",
        "_greeted",
        "_pace",
        "_pumping",
        "_scheduled",
        "_slow",
        "_stopping",
        "_task",
        "_transaction",
        "_wait",
        "_waited",
    )

    def __init__(self, services: Services, watch: Watch) -> None:
        super().__init__(services, watch)
        self._core = ServerProtocol(services.offers, services.limits)
        self._greeted = False
        self._transaction: Transaction | None = None
        self._task: Errand[Reply] | asyncio.Task[None] | None = None  # what a reply is waited for from
        self._committing = False  # it is the end of a message, which is never cut short
        self._pace: Pace | None = None  # of the message that comes in
        self._wait: Wait | None = None  # in the tarpit
        self._waited = 0.0  # seconds in the tarpit, the whole session
        self._slow = False  # replies to this client trickle
        self._awaited = False  # the deadline is that of the command that is awaited
        self._pumping = False
        self._scheduled = False  # another turn is to come
        self._stopping = False

    # -- the banner --

    def _arrived(self) -> None:
        # A load balancer's health check comes often, and brings no mail.
        delay = 0.0 if self._is_unnamed else self._services.settings.greet_delay
        self.deadline = self._until
        if not delay or not self._hold(self._services.tarpit.hold(delay, 0.0, self._greet)):
            self._greet()

    def _greet(self) -> None:
        if self._wait is not None or self._pause:
            self._released()
        self._greeted = True
        self._core.say(_banner(self._services.hostname))
        if self._early or self._eof or self._stopping:
            self._go_on()
        else:  # there is nothing to be looked at
            self._watch.flush_later(self)
            self._await_command(happened=True)

    # -- input --

    def _take(self, data: bytes) -> None:
        buffered = self._core.receive(data)
        if not self._greeted:
            self._talked_early()
            return
        if self._pace is not None:
            self._pace.take(len(data))
        if buffered > MOST_BUFFERED and (self._core.owes or self._pause or self._scheduled):
            self._hold_back(OWED)
        if not self._scheduled:  # else who sends most would have most turns
            self._go_on()

    def _talked_early(self) -> None:
        if not self._early:
            self._early = True
            self._slow = self._services.gate.rules.mode is not Mode.OBSERVE
            self._services.cells[EARLY_TALKERS.cell] += 1
            self._services.log.event("early-talker", client=self.host)
        self._hold_back(HELD)

    def _go_on(self) -> None:
        """Do what the input says, as far as it goes now, and send the replies."""
        if self._pumping or self._closing:
            return
        self._pumping = True
        happened = False
        try:
            happened = self._turn()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a temporary refusal
            self.failed(error)
            self._turn_later()  # what the client has sent behind it
        finally:
            self._pumping = False
        if self._closing:
            return
        is_ending = self._eof or self._stopping or self._core.closed
        if self._core.replies:
            happened = True
            if is_ending:
                self.flush()
            else:
                self._watch.flush_later(self)
        if is_ending or self._is_special():
            self._settle(happened)
        else:
            self._await_command(happened=happened)

    def _turn_later(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._scheduled = False
        self._go_on()

    def _turn(self) -> bool:
        core = self._core
        holds = self._services.tarpit.seconds > 0
        events = 0
        end = 0.0
        while not (self._pause & ~OWED or self._task or self._closing):
            core.hold_refusals = holds or self._slow
            event = core.next_event()
            if event is None:
                break
            if events == 1:  # most reads bring one command, and need no clock
                end = monotonic() + TURN_TIME  # the loop's stands still meanwhile
            self._DO[type(event)](self, event)
            events += 1
            if not core.has_more:
                break
            if events >= TURN or (events > 1 and monotonic() > end):
                self._turn_later()  # who sends many commands at once must not keep the others waiting
                break
        if self._pause & OWED and not core.owes and core.buffered <= MOST_BUFFERED:
            self._release(OWED)
        return events > 0

    def _is_special(self) -> bool:
        """Tell whether something else than the client's next command is waited for."""
        return bool(self._task or self._pace or self._pause or self._wait or self._scheduled)

    def flush(self) -> None:
        """Send the replies that there are."""
        output = self._core.take_output()
        if output and self.transport is not None:
            self.transport.write(output)

    def _settle(self, happened: bool) -> None:
        """Nothing more can be done now: find out what for we wait, and how long."""
        if (self._eof or self._core.closed) and not self._is_busy():  # closed: a 421 was the reply
            self._gone()
            self._close()
            return
        if self._stopping and self._is_idle():
            self._leave(STOPPING, "stopped")
            return
        if self._pause & CLIENT:
            return  # pause_writing has set it
        settings = self._services.settings
        if self._task or self._wait or self._scheduled or self._pause & (UPGRADE | BACKEND):
            self.deadline = self._until
            self._awaited = False
        elif self._pace is not None:
            now = self._now()
            self.deadline = min(self._until, self._pace.deadline(now, settings.data_timeout, settings.min_data_rate))
            self._awaited = False
        else:
            self._await_command(happened=happened)

    def _await_command(self, *, happened: bool) -> None:
        # A piece of a line does not begin the time anew.
        if happened or not self._awaited:
            deadline = self._watch.now() + self._services.settings.command_timeout
            self.deadline = deadline if deadline < self._until else self._until
            self._awaited = True

    # -- what has to be waited for --

    def _ask(self, coroutine: Coroutine[Any, Any, Reply], then: Callable[[Reply], None]) -> None:
        """Let `then` have the reply: at once where nothing has to be waited for, else as soon as it is there."""
        try:
            awaited = coroutine.send(None)
        except StopIteration as end:
            self._told(then, end.value)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a temporary refusal
            self._log_failure(error)
            then(INTERNAL)
        else:
            self._task = errand = Errand(coroutine, partial(self._answered, then), self._services.tasks)
            errand.wait(awaited)

    def _answered(self, then: Callable[[Reply], None], reply: Reply | None, error: BaseException | None) -> None:
        self._task = None
        if isinstance(error, Exception):
            self._log_failure(error)
            reply = INTERNAL
        if self._closing or reply is None:
            self._committing = False
            self._end_transaction("client-gone")
            return
        try:
            self._told(then, reply)
        except Exception as error:  # noqa: BLE001 - nobody else would look after the session now
            self.failed(error)
        self._go_on()

    def _told(self, then: Callable[[Reply], None], reply: Reply) -> None:
        transaction = self._transaction
        if transaction is not None and (transaction.slow or transaction.is_trapped):
            self._slow = True
        then(reply)

    # -- replies --

    def _reply(self, reply: Reply) -> None:
        """Give the reply that is owed: at once, or from the tarpit if it is a refusal."""
        tarpit = self._services.tarpit
        if self._slow and reply.code >= 400 and tarpit.trickle > 0:
            self.flush()
            self._core.reply(reply)
            wire = self._core.take_output()
            if not self._hold(tarpit.drip(wire, self._waited, self._write, self._served)):
                self._write(wire)
        elif reply.code < 500 or not self._hold(tarpit.hold(tarpit.seconds, self._waited, partial(self._serve, reply))):
            self._core.reply(reply)

    def _hold(self, wait: Wait | None) -> bool:
        if wait is None:
            return False
        self._wait = wait
        self._waited += wait.seconds
        if self._greeted:  # before the banner we want to see who talks
            self._hold_back(HELD)
        return True

    def _released(self) -> None:
        self._wait = None
        self._release(HELD)

    def _serve(self, reply: Reply) -> None:
        self._core.reply(reply)
        self._served()

    def _served(self) -> None:
        self._released()
        self._go_on()

    # -- flow control: what the relay calls --

    def pause(self) -> None:
        """The backend does not keep up."""
        self._hold_back(BACKEND)
        self.deadline = self._until
        if self._pace is not None:
            self._pace.pause(self._now())

    def resume(self) -> None:
        """The backend takes more."""
        if self._pause & BACKEND:
            if self._pace is not None:
                self._pace.resume(self._now())
            self._release(BACKEND)
            if self._transaction is not None:  # else it is being given up, and who does that goes on, or does not
                self._go_on()

    # -- the end --

    def _is_busy(self) -> bool:
        return bool(self._task or self._wait or self._scheduled or self._pause or self._core.owes)

    def _is_idle(self) -> bool:
        return not (self._core.in_transaction or self._is_busy())

    def stop(self) -> None:
        """End the session politely: now if it is idle, else after its transaction."""
        self._stopping = True
        if not self._closing and not self._pumping and (not self._greeted or self._is_idle()):
            self._leave(STOPPING, "stopped")

    def overdue(self, now: float) -> None:
        """End the session: the client, or all of it, took too long."""
        try:
            self._give_up()
        except Exception as error:  # noqa: BLE001 - the other sessions that are overdue have their turn, too
            self.failed(error)

    def _give_up(self) -> None:
        if self._committing and not self._closing:
            return  # for now: see the next sweep
        if self._closing or self._pause & (CLIENT | UPGRADE):
            self.abort()
        elif self._header is not None:
            self._refuse_header("none came")
        elif self._greeted and self._wait is not None:
            self._gone()  # a reply may be out in part
            self._close()
        else:
            self._leave(TIMED_OUT, "timed-out")

    def _leave(self, reply: Reply, outcome: str) -> None:
        self._gone(outcome)
        self._core.say(reply)
        self._close()

    def _gone(self, outcome: str = "client-gone") -> None:
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.cancel()
        if self._task is None:
            self._end_transaction(outcome)
        elif not self._committing:
            self._task.cancel()  # its end is the transaction's

    def _end_transaction(self, outcome: str, reply: Reply | None = None) -> None:
        self._pace = None
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.abandon(outcome, reply)

    def _log_failure(self, error: Exception) -> None:
        self._services.log.exception("an SMTP command failed", error, client=self.host)
        if self._transaction is not None:
            self._transaction.fail()

    def failed(self, error: Exception) -> None:
        """Say that something unexpected happened: a reply that is owed, else the end."""
        try:
            self._log_failure(error)
            if self._core.owes and not (self._wait or self._task):
                self._core.reply(INTERNAL)
                self.flush()
            else:
                # What is left of a message must not be read as commands.
                self._leave(INTERNAL_END, "failed")
        except Exception as second:
            # The connection is the least that can be let go.
            self._services.log.exception("a session could not be ended", second)
            self.abort()
