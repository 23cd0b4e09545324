# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""That entries have changed: told to all workers at once, and known of each whether it has taken that in.

Each looks into the store once a second anyway, for what other proxies and commands change. Who changes an entry here
rings: a number in shared memory goes up, and each worker's bell (an eventfd) is rung. A worker writes the number that
it saw before it looked into its own place. So nothing is locked, and one that is dead, whose place its parent has
marked, is not waited for: it reads everything when it starts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
from collections.abc import Awaitable, Callable

LOOK_EVERY = 1.0  # seconds until an entry that was made elsewhere counts, at most
PATIENCE = 3.0  # seconds that a change waits for all workers
POLL = 0.01  # seconds
RUNG = 0  # the place of the number
NOT_THERE = (1 << 64) - 1  # in a worker's place


class News:
    """What the workers of a program tell each other of entries. To be made before they are forked."""

    def __init__(self, workers: int = 1) -> None:
        self._memory = mmap.mmap(-1, (1 + workers) * 8)
        self._cells = memoryview(self._memory).cast("Q")
        self._bells = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _n in range(workers)]
        self._number = 0
        for number in range(workers):
            self.gone(number)

    def use(self, number: int) -> None:
        """Be this worker from now on; a worker calls it once."""
        self._number = number

    def gone(self, number: int) -> None:
        """Wait no more for a worker that is dead."""
        self._cells[1 + number] = NOT_THERE

    async def ring(self) -> bool:
        """Tell all workers that an entry has changed; True when all count it, False where one did not in PATIENCE.

        Only one worker may do this, as only one serves the control socket.
        """
        self._cells[RUNG] += 1
        wanted = self._cells[RUNG]
        for bell in self._bells:
            with contextlib.suppress(BlockingIOError):  # rung already, four billion times over
                os.eventfd_write(bell, 1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while min(self._cells[1:]) < wanted:  # noqa: ASYNC110 - what is waited for are other processes
                    await asyncio.sleep(POLL)
                return True
        return False

    async def look(self, load: Callable[[], Awaitable[bool]]) -> None:
        """Have `load` look into the store, and say that what was rung is taken in; not where it returns False."""
        seen = self._cells[RUNG]
        if await load():
            self._cells[1 + self._number] = seen

    async def follow(self, load: Callable[[], Awaitable[bool]]) -> None:
        """`look` each second, and when the bell rings; runs until it is cancelled."""
        loop, bell, rung = asyncio.get_running_loop(), self._bells[self._number], asyncio.Event()

        def hear() -> None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(bell)
            rung.set()

        loop.add_reader(bell, hear)
        try:
            while True:
                rung.clear()
                await self.look(load)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await rung.wait()
        finally:
            loop.remove_reader(bell)
