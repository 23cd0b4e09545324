# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""So many at a time, in all or of each client; who finds no place free waits for one, in turn.

`Turns` are the places of one thing, such as the connections to a host. `Shares` are those of each client: nobody can
hold all of what everybody needs, however many there are of him and however slow he is. Each worker process counts for
itself, as it has connections of its own. A place that is taken must be given back, once.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Places, of which `most` are to be taken at a time; that may change at any moment."""

    __slots__ = ("_most", "_waiters", "taken")

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.taken = 0

    @property
    def most(self) -> int:
        """How many may be taken. Those over it are not taken away, and not given on."""
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        self._most = most
        self._wake()

    @property
    def waiting(self) -> int:
        """How many wait for a place, or have one and do not know it yet."""
        return len(self._waiters)

    def take_now(self) -> bool:
        """Take a place if one is free."""
        # While somebody waits none is: it becomes his in the moment in which it becomes free.
        if self.taken >= self._most:
            return False
        self.taken += 1
        return True

    async def take(self, seconds: float) -> bool:
        """Take a place, and wait for it at most for so long. False: none became free."""
        if self.take_now():
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give()  # it came, and we are not there
            if isinstance(error, TimeoutError):
                return False
            raise
        finally:
            self._waiters.remove(turn)  # most often the first one: all wait for as long
        return True

    def give(self) -> None:
        """Give a place back."""
        self.taken -= 1
        self._wake()

    def _wake(self) -> None:
        for turn in self._waiters:
            if self.taken >= self._most:
                break
            # One that is done has been given a place or has given up, and goes when it runs next.
            if not turn.done():
                self.taken += 1
                turn.set_result(None)


class Shares:
    """Places of each client, which is a key (`limits.client_key`): `most` of them at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._clients: dict[bytes, Turns] = {}  # those that have a place, or wait for one
        self.taken = 0  # by all together

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def most(self) -> int:
        """How many places each client may have."""
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        self._most = most
        for turns in self._clients.values():
            turns.most = most

    def take_now(self, key: bytes) -> bool:
        """Take one of a client's places if it has one left."""
        turns = self._clients.get(key)
        if turns is None:
            turns = self._clients[key] = Turns(self._most)
        has_taken = turns.take_now()
        self.taken += has_taken
        return has_taken

    async def take(self, key: bytes, seconds: float) -> bool:
        """Take one of a client's places, and wait at most for so long until it gives one back. False: it did not."""
        if self.take_now(key):
            return True
        turns = self._clients[key]
        try:
            has_taken = await turns.take(seconds)
        finally:
            self._forget(key, turns)
        self.taken += has_taken
        return has_taken

    def give(self, key: bytes) -> None:
        """Give one of a client's places back."""
        turns = self._clients[key]
        turns.give()
        self.taken -= 1
        self._forget(key, turns)

    def _forget(self, key: bytes, turns: Turns) -> None:
        if not turns.taken and not turns.waiting:
            del self._clients[key]
