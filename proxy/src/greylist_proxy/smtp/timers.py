# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a session has taken too long. A session has one deadline, a number; one timer looks at those of all.

A timer handle for each session, started anew at each command, would cost more than the command. Looking at 10,000
numbers once a second costs about a millisecond.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

SWEEP = 1.0  # seconds between two looks
NEVER = float("inf")
GRACE = 60.0  # seconds in which a message may be slower than the least rate


class Timed(Protocol):
    """What the watch looks at; `deadline` is in the time of the event loop."""

    deadline: float

    def overdue(self, now: float) -> None:
        """The deadline has passed. Called again and again until it is moved or the session is gone."""

    def stop(self) -> None:
        """End politely: now if nothing is under way, else after it."""

    def abort(self) -> None:
        """End at once."""

    def flush(self) -> None:
        """Send the replies that there are."""

    def failed(self, error: Exception) -> None:
        """Something unexpected happened."""


class Watch:
    """The sessions that there are, and the one timer for all of them. It runs only while there are any.

    It also sends their replies after all that had something to read had their turn: a write wakes the client up, which
    takes the processor away from the others, and what they had in its caches.
    """

    def __init__(self, interval: float = SWEEP) -> None:
        self._interval = interval
        self._sessions: set[Timed] = set()
        self._handle: asyncio.TimerHandle | None = None
        self._replying: list[Timed] = []  # in this round of the loop
        self.now: Callable[[], float] = _no_loop  # the loop's clock, from the first session on

    def add(self, session: Timed) -> None:
        """Begin to watch a session."""
        self._sessions.add(session)
        if self._handle is None:
            loop = asyncio.get_running_loop()
            self.now = loop.time
            self._handle = loop.call_later(self._interval, self._sweep)

    def discard(self, session: Timed) -> None:
        """Forget a session."""
        self._sessions.discard(session)

    def flush_later(self, session: Timed) -> None:
        """Let a session's replies go out at the end of this round."""
        if not self._replying:
            asyncio.get_running_loop().call_soon(self._flush)
        self._replying.append(session)

    def _flush(self) -> None:
        replying, self._replying = self._replying, []
        for session in replying:
            try:
                session.flush()
            except Exception as error:  # noqa: BLE001 - the others' replies go out all the same
                session.failed(error)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Timed]:
        return iter(list(self._sessions))

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._handle = loop.call_later(self._interval, self._sweep) if self._sessions else None
        now = loop.time()
        for session in [each for each in self._sessions if each.deadline <= now]:
            session.overdue(now)


def _no_loop() -> float:
    return asyncio.get_running_loop().time()


class Pace:
    """How fast a message comes. The time in which we do not read, because the backend is slow, does not count."""

    __slots__ = ("_began", "_paused_at", "_paused_for", "_received")

    def __init__(self, now: float) -> None:
        self._began = now
        self._received = 0
        self._paused_at: float | None = None
        self._paused_for = 0.0

    def take(self, count: int) -> None:
        """Count bytes of the message."""
        self._received += count

    def pause(self, now: float) -> None:
        """Stop the clock."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """Start the clock again."""
        if self._paused_at is not None:
            self._paused_for += now - self._paused_at
            self._paused_at = None

    def deadline(self, now: float, silence: float, rate: int) -> float:
        """Return when the client will have been silent for too long, or too slow if nothing more comes until then.

        `silence` is in seconds, `rate` in bytes a second, 0 for none. While the clock stands there is no deadline.
        """
        if self._paused_at is not None:
            return NEVER
        if not rate:
            return now + silence
        return min(now + silence, self._began + self._paused_for + max(GRACE, self._received / rate))
