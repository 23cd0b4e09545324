# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who waits for his replies, and how long: clients that mail spam traps.

A client that waits costs a timer and its connection, so there is a cap: over it, replies go out at once. Nobody waits
for more than `MOST` in a session, however many replies there are.
"""

from __future__ import annotations

import asyncio

MOST = 120.0  # seconds that a session may be made to wait, all its replies together
MAX_WAITING = 2000  # sessions


class Tarpit:
    """Counts those who wait. `seconds` is the delay of one reply."""

    def __init__(self, seconds: float, max_waiting: int = MAX_WAITING) -> None:
        self.seconds = seconds
        self._max_waiting = max_waiting
        self.waiting = 0

    async def hold(self, waited: float) -> float:
        """Wait, and return for how long; `waited` is what the session has waited before, in seconds."""
        seconds = min(self.seconds, MOST - waited)
        if seconds <= 0 or self.waiting >= self._max_waiting:
            return 0.0
        self.waiting += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.waiting -= 1
        return seconds
