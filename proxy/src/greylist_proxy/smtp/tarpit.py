# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who waits for his replies, and how: 5xx replies are held back, and those to clients that mail spam traps trickle.

Who waits costs a timer and his connection, so there is a cap: over it, replies go out at once. Nobody waits for more
than `MOST` in a session, however many replies there are. What may wait is the session's business: never a 2xx.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MOST = 120.0  # seconds that a session may be made to wait, all its replies together
LEAST_STEP = 0.05  # seconds between two octets of a trickle
MOST_OCTETS = 2000  # a second, to all who wait: each is a packet


class Wait:
    """One client that waits. `seconds` is for how long."""

    __slots__ = ("_done", "_handle", "_step", "_tarpit", "_wire", "_write", "seconds")

    def __init__(
        self,
        tarpit: Tarpit,
        seconds: float,
        done: Callable[[], None],
        wire: bytes = b"",
        write: Callable[[bytes], None] | None = None,
    ) -> None:
        self.seconds = seconds
        self._tarpit = tarpit
        self._done = done
        self._wire = wire
        self._write = write
        # One octet a step. Where many wait, or a backend's reply has thousands, the rest goes out at once in the end.
        least = max(LEAST_STEP, tarpit.waiting / MOST_OCTETS)
        steps = max(1, min(len(wire), int(seconds / least))) if write else 1
        self._step = seconds / steps
        self._handle = asyncio.get_running_loop().call_later(self._step, self._tick, steps - 1)

    def _tick(self, left: int) -> None:
        if left and self._write is not None:
            self._write(self._wire[:1])
            self._wire = self._wire[1:]
            self._handle = asyncio.get_running_loop().call_later(self._step, self._tick, left - 1)
            return
        self._tarpit.waiting -= 1
        if self._write is not None:
            self._write(self._wire)
        self._done()

    def cancel(self) -> None:
        """Stop waiting, the client is gone. Not to be called after `done` was."""
        self._handle.cancel()
        self._tarpit.waiting -= 1


class Tarpit:
    """Counts those who wait, in this process. A reload changes the numbers.

    `seconds` is for how long a 5xx waits, `trickle` how long a reply to a client that mails spam traps takes.
    """

    def __init__(self, seconds: float, trickle: float, max_waiting: int) -> None:
        self.seconds = seconds
        self.trickle = trickle
        self.max_waiting = max_waiting
        self.waiting = 0

    def hold(self, seconds: float, waited: float, done: Callable[[], None]) -> Wait | None:
        """Call `done` in so many seconds; None, and it is not called, if this client is not to wait.

        `waited` is for how long the session was made to wait before.
        """
        seconds = self._grant(seconds, waited)
        return Wait(self, seconds, done) if seconds else None

    def drip(self, wire: bytes, waited: float, write: Callable[[bytes], None], done: Callable[[], None]) -> Wait | None:
        """Write a reply octet by octet, then call `done`; None, and nothing is written, if it is not to be slow."""
        seconds = self._grant(self.trickle, waited)
        return Wait(self, seconds, done, wire, write) if seconds else None

    def _grant(self, seconds: float, waited: float) -> float:
        seconds = min(seconds, MOST - waited)
        if seconds <= 0 or self.waiting >= self.max_waiting:
            return 0.0
        self.waiting += 1
        return seconds
