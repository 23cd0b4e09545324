# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision as the SMTP side asks for it: store and policy behind one coroutine that always answers.

The store may block (a disk, another process's lock), so it runs in a thread of its own: one, because calls
must keep their order (a delivery is noted before the next sighting of the same triplet). A store that fails,
or does not answer in time, does not stop mail: `on_failure` says what happens then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from greylist_proxy.log import Log
from greylist_proxy.policy import Decision, Reason, Triplet, Verdict
from greylist_proxy.store import Store
from greylist_proxy.tasks import Tasks

T = TypeVar("T")

STORE_PATIENCE = 5.0  # seconds that a client waits for the store; longer than a store waits for a lock
EXPIRE_EVERY = 600.0  # seconds
EXPIRE_BATCH = 1000  # records; decisions come in between


class Gate:
    """Decides, remembers deliveries, and keeps the store small."""

    def __init__(
        self, store: Store, on_failure: str, log: Log, tasks: Tasks, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._on_failure = Decision(Verdict.ALLOW if on_failure == "accept" else Verdict.DEFER, Reason.STORE_FAILED)
        self._log = log
        self._tasks = tasks
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "store")
        self._failing = False

    async def decide(self, triplet: Triplet) -> Decision:
        """Judge a sighting, now. Never raises."""
        decision = await self._ask(partial(self._store.observe, triplet, self._clock()))
        return self._on_failure if decision is None else decision

    def delivered(self, triplets: Sequence[Triplet]) -> None:
        """Note the backend's final 250; returns at once, and a later `decide` sees it."""
        if triplets:
            note = partial(self._store.delivered, triplets, self._clock())
            self._tasks.spawn(self._wait_for(self._submit(note)))

    async def keep_house(self) -> None:
        """Remove expired records, now and then; runs until it is cancelled."""
        while True:
            removed: int | None = EXPIRE_BATCH
            while removed == EXPIRE_BATCH:
                removed = await self._ask(partial(self._store.expire, self._clock(), EXPIRE_BATCH))
            await asyncio.sleep(EXPIRE_EVERY)

    async def close(self) -> None:
        """Close the store after everything that was asked of it."""
        await self._ask(self._store.close)
        self._thread.shutdown(wait=False)

    def _submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _ask(self, call: Callable[[], T]) -> T | None:
        return await self._wait_for(self._submit(call))

    async def _wait_for(self, future: asyncio.Future[T]) -> T | None:
        try:
            answer = await asyncio.wait_for(future, STORE_PATIENCE)
        except Exception as error:  # noqa: BLE001 - whatever it is, mail goes on
            if not self._failing:
                self._failing = True
                text = str(error) or f"no answer within {STORE_PATIENCE:g} seconds"
                self._log.event("store", state="failed", error=text, kind=type(error).__name__)
            return None
        if self._failing:
            self._failing = False
            self._log.event("store", state="working")
        return answer
