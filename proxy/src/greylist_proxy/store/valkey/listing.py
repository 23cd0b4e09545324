# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking through all triplets and allowances in Valkey, which has no index of them: by SCAN, over every primary.

That takes seconds with millions of triplets, in small steps between which the server does its other work. SCAN may
give a key twice while a server makes room for more keys, and so may a listing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from greylist_proxy.policy import Record, Rules, is_expired
from greylist_proxy.store import Allowance, Counts, Remembered, Wanted
from greylist_proxy.store.valkey.keys import (
    EARNER,
    KNOWN,
    PENDING,
    Command,
    Keys,
    read_earned,
    read_record,
    seconds,
    triplet,
)
from greylist_proxy.store.valkey.servers import Servers
from greylist_proxy.store.wanted import wants_allowance, wants_triplet

PAGE = 500  # members of a set at a time


class Listing:
    """What one store holds."""

    def __init__(self, servers: Servers, keys: Keys) -> None:
        self._servers = servers
        self._keys = keys

    async def triplets(self, wanted: Wanted, now: float, rules: Rules) -> AsyncIterator[Remembered]:
        """Give the triplets that are wanted and have not expired at `now`."""
        for kind in (KNOWN, PENDING):
            async for keys in self._servers.scan(self._keys.pattern(kind, wanted.client)):
                pages = self._known(keys) if kind == KNOWN else self._pending(keys)
                async for remembered in pages:
                    if wants_triplet(wanted, remembered) and not is_expired(remembered.record, now, rules):
                        yield remembered

    async def allowances(self, wanted: Wanted, now: float, rules: Rules) -> AsyncIterator[Allowance]:
        """Give the earners that are wanted, and what they have earned that still counts at `now`."""
        async for keys in self._servers.scan(self._keys.pattern(EARNER, wanted.client)):
            values = await self._values(keys)
            with self._servers.reading():
                found = [Allowance(self._keys.split(key)[1], read_earned(value)) for key, value in values]
            for allowance in found:
                if wants_allowance(wanted, allowance) and now - allowance.earned.last_used <= rules.lifetime:
                    yield allowance

    async def count(self, *others: Command) -> Counts:
        """Count; `others` count entries and decisions."""
        entries, decisions = await self._servers.run(others)
        pending = known = earners = 0
        async for keys in self._servers.scan(self._keys.pattern(KNOWN)):
            known += len(keys)
        async for keys in self._servers.scan(self._keys.pattern(EARNER)):
            earners += len(keys)
        async for keys in self._servers.scan(self._keys.pattern(PENDING)):
            pending += sum(await self._servers.run([Command(key, ("ZCARD", key)) for key in keys]))
        return Counts(pending, known, earners, entries, decisions)

    async def _known(self, keys: list[bytes]) -> AsyncIterator[Remembered]:
        values = await self._values(keys)
        with self._servers.reading():
            found = [self._remembered(key, value) for key, value in values]
        for remembered in found:
            yield remembered

    async def _pending(self, keys: list[bytes]) -> AsyncIterator[Remembered]:
        cursors: dict[bytes, Any] = dict.fromkeys(keys, 0)
        while cursors:
            commands = [Command(key, ("ZSCAN", key, cursor, "COUNT", PAGE)) for key, cursor in cursors.items()]
            answers = await self._servers.run(commands)
            found: list[Remembered] = []
            with self._servers.reading():
                pages = dict(zip(cursors, answers, strict=True))
                for key, (_cursor, members) in pages.items():
                    client = self._keys.split(key)[1]
                    found += (
                        Remembered(triplet(client, name), Record(seconds(first_seen)))
                        for name, first_seen in zip(members[::2], members[1::2], strict=True)
                    )
                cursors = {key: cursor for key, (cursor, _members) in pages.items() if int(cursor)}
            for remembered in found:
                yield remembered

    def _remembered(self, key: bytes, value: bytes) -> Remembered:
        _kind, client, name = self._keys.split(key)
        return Remembered(triplet(client, name), read_record(value))

    async def _values(self, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
        """Return keys with their values; some may have gone since they were listed."""
        values = await self._servers.run([Command(key, ("GET", key)) for key in keys])
        return [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
