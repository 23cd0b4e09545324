# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd's watchdog: it is told that we live only while the event loop of each worker runs.

A single process tells it from its loop, at each beat of its pulse. The parent of several has no loop, and looks at the
beats that its workers wrote down. One that has not begun to beat does not count: it starts, which has another time
limit. One that stands still ends them all, as no other process can know what it holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from greylist_proxy.metrics.counts import Counts
from greylist_proxy.metrics.table import BEAT
from greylist_proxy.pulse import EVERY
from greylist_proxy.systemd import notify, watchdog_seconds

ALIVE = "WATCHDOG=1"


class Watchdog:
    """Tells systemd that the program lives, where it wants to know. To be made in the process that systemd started."""

    def __init__(
        self, counts: Counts, tell: Callable[[str], None] = notify, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._counts = counts
        self._tell = tell
        self._clock = clock
        self._limit = watchdog_seconds()

    @property
    def watches(self) -> bool:
        """Tell whether systemd wants to know."""
        return self._limit is not None

    @property
    def every(self) -> float:
        """How often the pulse has to beat, and `look` to be called, in seconds."""
        return EVERY if self._limit is None else min(EVERY, self._limit / 4)

    def alive(self) -> None:
        """Say that this process lives, from its event loop."""
        if self._limit is not None:
            self._tell(ALIVE)

    def look(self) -> None:
        """Say that all workers live, if they do."""
        if self._limit is None:
            return
        now = self._clock()
        if all(now - state[BEAT] <= self._limit / 2 for state in self._counts.alive()):
            self._tell(ALIVE)
