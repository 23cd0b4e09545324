# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When does something go wrong, and who gets to know?

`host.faults` is a host's book of troubles (troubles.py). Rules name requests as the journal does, by the
first words of their line in any letter case ("StopService", "Get Win32_Service", "" for all of them):

    host.faults.on("StopService", Answer(return_value=2))       the next one
    host.faults.on("StopService", EMPTY_500, nth=2, times=None) the second one and all after it
    host.faults.after(3, Cut())                                 the fourth request of any kind from now on

Every rule counts the requests that it names; of those that are due, the oldest acts, on one request at a
time. Only requests that passed the login and could be read are counted: what precedes them is not the
client's choice.

`host.on_request(callback)` tells of each request three times, from the connection's own thread, so that
a callback may for instance kill the client at a moment that is known exactly: `received`, `answered` (it
has been carried out, and nothing of the reply is sent), `sent`. A client that is killed leaves what it has
written: after `sent` that may be the next request already, and `received` is carried out all the same,
unless a rule cuts it off.

A request that hangs waits in a thread of its own. `release` lets all of them go on, `clear` and `close`
cut them off, not carried out: nothing of one test happens in the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from lab.troubles import CutError, Trouble
from lab.wsman import Fault, Reply, Request

Moment = Literal["received", "answered", "sent"]
ALL: Final = ""
_NONE: Final = Trouble()


@dataclass(frozen=True)
class RequestSeen:
    """The host's `number`-th request since the last clear(), its line in the journal, and how far it is."""

    number: int
    note: str
    moment: Moment


Callback = Callable[[RequestSeen], None]


@dataclass
class _Rule:
    words: list[str]
    trouble: Trouble
    nth: int
    times: int | None
    seen: int = 0

    def due(self, note: str) -> bool:
        """Count the request if it is one of these; is it this rule's turn?"""
        if note.lower().split()[: len(self.words)] != self.words:
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)


@dataclass
class _Waiting:
    """Where requests hang. Each release or abandonment ends a round for all who wait in it."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    # How each round ended: True where the requests were to go on.
    rounds: list[bool] = field(default_factory=list)
    hanging: int = 0
    closed: bool = False

    def hang(self) -> None:
        """See `Patience`."""
        with self.changed:
            mine = len(self.rounds)
            self.hanging += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.closed or len(self.rounds) > mine)
            self.hanging -= 1
            if self.closed or not self.rounds[mine]:
                raise CutError("the test was over before the request")

    def pause(self, seconds: float) -> None:
        """See `Patience`."""
        with self.changed:
            mine = len(self.rounds)
            if self.changed.wait_for(lambda: self.closed or not all(self.rounds[mine:]), timeout=seconds):
                raise CutError("the test was over before the reply")

    def end_round(self, *, go_on: bool, close: bool = False) -> None:
        """Let all who wait go on, or cut them off; close() does so for good."""
        with self.changed:
            self.rounds.append(go_on)
            self.closed = self.closed or close
            self.changed.notify_all()


class Faults:
    """The troubles of one host. Implements `lab.wsman.Interference`."""

    def __init__(self, journal: Callable[[str], None]) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._callbacks: list[Callback] = []
        self._waiting = _Waiting()
        self._requests = 0

    # -- what tests say --

    def on(self, action: str, trouble: Trouble, *, nth: int = 1, times: int | None = 1) -> None:
        """From the nth request on that is named so, give the trouble to so many of them (None: all)."""
        if nth < 1 or (times is not None and times < 1):
            raise ValueError("requests are counted from 1")
        with self._lock:
            self._rules.append(_Rule(action.lower().split(), trouble, nth, times))

    def after(self, requests: int, trouble: Trouble, *, times: int | None = 1) -> None:
        """Let so many requests pass from now on, then give the trouble."""
        self.on(ALL, trouble, nth=requests + 1, times=times)

    def on_request(self, callback: Callback) -> None:
        """Call this at each moment of each request, until clear()."""
        with self._lock:
            self._callbacks.append(callback)

    def wait_until_hanging(self, requests: int = 1, *, seconds: float = 30) -> None:
        """Return when so many requests hang."""
        with self._waiting.changed:
            if not self._waiting.changed.wait_for(lambda: self._waiting.hanging >= requests, timeout=seconds):
                raise TimeoutError(f"{self._waiting.hanging} requests hang, not {requests}")

    def release(self) -> None:
        """Let those go on that hang now."""
        self._waiting.end_round(go_on=True)

    def clear(self) -> None:
        """Forget all rules and callbacks, cut off what hangs, and count from 1 again."""
        with self._lock:
            self._rules.clear()
            self._callbacks.clear()
            self._requests = 0
        self._waiting.end_round(go_on=False)

    def close(self) -> None:
        """The host ends: nothing hangs any more."""
        self.clear()
        self._waiting.end_round(go_on=False, close=True)

    # -- what the host asks --

    def begin(self, request: Request, note: str) -> Course:
        """See `Interference`."""
        self._journal(note)
        with self._lock:
            self._requests += 1
            # All of them count, whichever acts.
            due = [rule.trouble for rule in self._rules if rule.due(note)]
            number, callbacks = self._requests, list(self._callbacks)
        trouble = due[0] if due else _NONE
        return Course(request, RequestSeen(number, note, "received"), trouble, callbacks, self._waiting)


@dataclass(frozen=True)
class Course:
    """One request's way through the host. Implements `lab.wsman.Exchange`."""

    request: Request
    seen: RequestSeen
    trouble: Trouble
    callbacks: list[Callback]
    waiting: _Waiting

    def carry_out(self, act: Callable[[], str]) -> str:
        self._tell("received")
        try:
            content = self.trouble.carry_out(self.request, act, self.waiting)
        except Fault:
            self._tell("answered")
            raise
        self._tell("answered")
        return content

    def shape(self, reply: Reply) -> Reply:
        return self.trouble.shape(reply)

    def deliver(self, message: bytes, write: Callable[[bytes], None]) -> None:
        self.trouble.deliver(message, write, self.waiting)
        self._tell("sent")

    def _tell(self, moment: Moment) -> None:
        for callback in self.callbacks:
            callback(RequestSeen(self.seen.number, self.seen.note, moment))
