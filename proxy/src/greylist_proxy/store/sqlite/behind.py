# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When what is written behind is committed: at most 100 ms after it came, and again every second while that fails.

A commit that fails, or takes longer than a call may take, makes the store unwritable for sightings until one succeeds.
What could not be committed stays in the overlay, up to a bound.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import Callable

from greylist_proxy.policy import Rules
from greylist_proxy.store import Limits, Logged, StoreError
from greylist_proxy.store.sqlite.commit import commit
from greylist_proxy.store.sqlite.overlay import Overlay
from greylist_proxy.store.sqlite.worker import Worker

COMMIT_EVERY = 0.1  # seconds
RETRY_EVERY = 1.0  # seconds between attempts to commit what could not be
MAX_RECORDS = 100_000  # that are not committed
MAX_DECISIONS = 10_000


class WriteBehind:
    """The overlay, and its way into the file."""

    def __init__(
        self, name: str, worker: Worker, rules: Callable[[], Rules], limits: Limits, clock: Callable[[], float]
    ) -> None:
        self.overlay = Overlay()
        self.writer = secrets.randbits(62)  # by which the file tells our commits from other processes'
        self._name = name
        self._worker = worker
        self._rules = rules
        self._limits = limits
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._since: float | None = None  # by the event loop's clock, while a commit is under way
        self._committed = 0  # number of the last generation that is in the file
        self._is_reading = False
        # Its text: an exception that is raised again and again would grow a longer traceback each time.
        self._error: str | None = None
        self._flushing: list[tuple[int, asyncio.Future[None]]] = []
        self._is_stopped = False

    def trouble(self) -> StoreError | None:
        """Say why nothing more should be written, None: it may."""
        if self._error is not None:
            return StoreError(self._error)
        if self._since is not None and asyncio.get_running_loop().time() - self._since > self._limits.timeout:
            return StoreError(f"{self._name}: a write has taken more than {self._limits.timeout:g} seconds")
        return None

    def check_room(self) -> None:
        """Raise StoreError where no more can be kept."""
        if self.overlay.size >= MAX_RECORDS:
            raise StoreError(self._error or f"{self._name}: too much waits to be written")

    def note(self, decision: Logged) -> None:
        """Keep a decision, if there is room."""
        if self.overlay.decisions < MAX_DECISIONS:
            self.overlay.filling.decisions.append(decision)
            self.changed()

    def changed(self) -> None:
        """Say that something has been put into the overlay."""
        if self._timer is None and self.overlay.sealed is None and not self._is_stopped:
            self._timer = asyncio.get_running_loop().call_later(COMMIT_EVERY, self._commit)

    async def flush(self) -> None:
        """Return when everything is committed; StoreError where it can't be, or not in time."""
        filling, sealed = self.overlay.filling, self.overlay.sealed
        last = filling if filling or sealed is None else sealed
        if not last or last.number <= self._committed:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushing.append((last.number, future))
        self._commit()
        try:
            await asyncio.wait_for(future, self._limits.timeout)
        except TimeoutError:
            raise StoreError(f"{self._name}: not written within {self._limits.timeout:g} seconds") from None

    def stop(self) -> None:
        """Commit no more."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def lookup_begins(self) -> None:
        """Say that the file is being read: what it says may be from before a commit that ends meanwhile."""
        self._is_reading = True

    def lookup_ends(self) -> None:
        """Say that the answers have been worked off, so that what they might have missed can go."""
        self._is_reading = False
        self._let_go()

    def _commit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.overlay.sealed is not None or not self.overlay.filling:
            return
        generation = self.overlay.seal()
        rules, now = self._rules(), self._clock()

        def write(connection: sqlite3.Connection) -> int:
            commit(connection, generation, self.writer, now, rules)
            return generation.number

        try:
            self._worker.submit(write, self._commit_ends)
        except StoreError as error:
            self._commit_ends(0, error)
            return
        self._since = asyncio.get_running_loop().time()

    def _commit_ends(self, number_written: int, error: StoreError | None) -> None:
        self._since = None
        self._error = None if error is None else str(error)
        if error is not None:
            self.overlay.unseal()
            flushing, self._flushing = self._flushing, []
            for _number, future in flushing:
                if not future.done():
                    future.set_exception(error)
            if not self._is_stopped:
                self._timer = asyncio.get_running_loop().call_later(RETRY_EVERY, self._commit)
            return
        self._committed = number_written
        for number, future in self._flushing:
            if number <= self._committed and not future.done():
                future.set_result(None)
        self._flushing = [waiting for waiting in self._flushing if waiting[0] > self._committed]
        self._let_go()

    def _let_go(self) -> None:
        sealed = self.overlay.sealed
        if self._is_reading or sealed is None or sealed.number > self._committed:
            return
        self.overlay.let_go()
        if self._flushing:
            self._commit()
        elif self.overlay.filling:
            self.changed()
