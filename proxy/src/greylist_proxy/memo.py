# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was found out, kept for as long as it holds, and asked for once however many want it at a time.

Everything here is bounded: what is kept by its weight (the least recently used goes first), what is being asked by its
number (over it the answer is None at once: a queue would only make everybody late), and each question by whoever
asks it. A question runs in a task of its own: the client that came first may leave, and the others still get
the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Told(NamedTuple, Generic[V]):
    """An answer, for how many seconds it holds (0: not kept), and how much room it takes."""

    value: V
    ttl: float
    weight: int = 1


class _Kept(NamedTuple, Generic[V]):
    value: V
    expires: float
    weight: int


class Memo(Generic[K, V]):
    """Answers by question. `room` is the sum of weights that is kept, `clock` gives seconds."""

    def __init__(self, room: int, max_in_flight: int, clock: Callable[[], float]) -> None:
        self._room = room
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._used = 0
        self._kept: dict[K, _Kept[V]] = {}  # in order of use, the last one last
        self._asked: dict[K, asyncio.Task[Told[V]]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._kept)

    def known(self, key: K) -> Told[V] | None:
        """Return what is kept, with the seconds that it still holds; None where there is nothing."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        left = kept.expires - self._clock()
        if left <= 0:
            self._used -= kept.weight
            return None
        self._kept[key] = kept
        return Told(kept.value, left, kept.weight)

    async def get(self, key: K, ask: Callable[[], Coroutine[Any, Any, Told[V]]]) -> Told[V] | None:
        """Return what is kept, or ask. None: too much is being asked already, or the memo was closed.

        What `ask` raises reaches all who wait for it.
        """
        if (told := self.known(key)) is not None:
            return told
        task = self._asked.get(key)
        if task is None:
            if self._closed or len(self._asked) >= self._max_in_flight:
                return None
            task = asyncio.get_running_loop().create_task(self._ask(key, ask))
            self._asked[key] = task
            task.add_done_callback(lambda _task: self._asked.pop(key, None))
        # Unlike `await task`, this leaves the task alone when the one who waits is cancelled.
        await asyncio.wait((task,))
        return None if task.cancelled() else task.result()

    async def close(self) -> None:
        """End what is being asked; who waits for it gets None."""
        self._closed = True
        tasks = list(self._asked.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, key: K, ask: Callable[[], Coroutine[Any, Any, Told[V]]]) -> Told[V]:
        told = await ask()
        if told.ttl > 0 and told.weight <= self._room:
            self._kept[key] = _Kept(told.value, self._clock() + told.ttl, told.weight)
            self._used += told.weight
            while self._used > self._room:
                self._used -= self._kept.pop(next(iter(self._kept))).weight
        return told
