# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store in one SQLite file, which several processes may share.

Sightings are looked up (`sightings.py`) in the event loop's thread as long as that is a matter of microseconds
(`inline.py`), else in a thread. Two more threads, each with a connection of its own, write and serve people who look,
so that no mail waits for a count of a million rows. What sightings and deliveries change is kept in an overlay
(`overlay.py`), where the next sighting finds it, and is committed within 100 ms (`behind.py`, `commit.py`).

So within a process each sighting is one step, and of many sightings of one triplet exactly one is the first. With
several processes each sees the others' commits, after 100 ms and a commit: two that see a triplet for the
first time within that time both say so, and the record has the earlier of the two times.

A process that is killed loses what was not committed, the last 100 ms; a power failure may take a little more.
Both cost a sender another deferral. What operators do is on the disk before it is confirmed.

While nothing can be written (the disk is full, the file locked or read-only), what is known is still answered, but a
sighting that would have to be written is an error: a record that is lost with the process could defer a
sender for ever. What was taken before is kept, up to a bound, and tried again every second.
`file.py` says what happens when the file is damaged, `schema.py` what is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

from greylist_proxy.log import Log
from greylist_proxy.policy import Identity, Rules, Triplet
from greylist_proxy.store import (
    Allowance,
    Changes,
    Counts,
    Entry,
    Item,
    Kind,
    Limits,
    Logged,
    Remembered,
    Sighting,
    StoreError,
    Wanted,
)
from greylist_proxy.store.sqlite import entries, listing, merge
from greylist_proxy.store.sqlite.behind import WriteBehind
from greylist_proxy.store.sqlite.commit import transaction
from greylist_proxy.store.sqlite.expire import Sweep
from greylist_proxy.store.sqlite.file import DatabaseFile
from greylist_proxy.store.sqlite.inline import InlineReader
from greylist_proxy.store.sqlite.listing import Page
from greylist_proxy.store.sqlite.overlay import Delivery
from greylist_proxy.store.sqlite.sightings import Sightings
from greylist_proxy.store.sqlite.values import from_ms, to_ms
from greylist_proxy.store.sqlite.worker import Work, Worker
from greylist_proxy.store.texts import clean, clean_entry, is_clean

T = TypeVar("T")
K = TypeVar("K")

COUNT_PATIENCE = 60.0  # seconds
LOAD_PATIENCE = 0.001  # more seconds for each item


class SqliteStore:
    """A `Store` in a file, which is opened on first use. `rules` may be set anew at any time."""

    def __init__(
        self, path: Path, rules: Rules, limits: Limits, log: Log, clock: Callable[[], float] = time.time
    ) -> None:
        self.rules = rules
        self._name = str(path)
        self._limits = limits
        self._clock = clock
        # The file gives up on a lock before its caller does, so that the error says what it was.
        patience = limits.timeout * 0.8
        self._lookups, self._writes, self._listings, self._counts = (
            Worker(f"sqlite-{task}", DatabaseFile(path, patience, log))
            for task in ("lookups", "writes", "listings", "counts")
        )
        self._behind = WriteBehind(self._name, self._writes, self._get_rules, limits, self._now)
        self._reader = InlineReader(DatabaseFile(path, patience, log), self._lookups)
        self._sightings = Sightings(self._name, self._reader, self._lookups, self._behind, self._get_rules, limits)
        self._sweep = Sweep()
        self._is_closed = False

    @property
    def name(self) -> str:
        """The file's path."""
        return self._name

    # -- the decision --

    def observe_now(self, identities: Sequence[Identity], sender: str, recipient: str) -> Sighting | None:
        """Look a sighting up at once, if it can be; see `Store`."""
        if self._is_closed or not is_clean(sender, recipient, *chain.from_iterable(identities)):
            return None
        return self._sightings.observe_now(identities, sender, recipient, self._now())

    async def observe(
        self, identities: Sequence[Identity], sender: str, recipient: str, *, record: bool = True
    ) -> Sighting:
        """Look a sighting up and keep what is new of it; see `Store`."""
        self._check_open()
        if not is_clean(sender, recipient, *chain.from_iterable(identities)):
            identities = [Identity(clean(key), clean(earner)) for key, earner in identities]
            sender, recipient = clean(sender), clean(recipient)
        return await self._sightings.observe(identities, sender, recipient, self._now(), record=record)

    def delivered_now(
        self, identities: Sequence[Identity], sender: str, recipients: Sequence[str], *, counts: bool
    ) -> bool:
        """Note the backend's final 250 at once; see `Store`. Written behind."""
        self._check_open()
        self._behind.check_room()
        now, overlay, rules = self._now(), self._behind.overlay, self.rules
        if not is_clean(sender, *recipients, *chain.from_iterable(identities)):
            identities = [Identity(clean(key), clean(earner)) for key, earner in identities]
            sender, recipients = clean(sender), [*map(clean, recipients)]
        for key, earner in identities:
            for recipient in recipients:
                overlay.deliver(Triplet(key, sender, recipient), now, rules)
            if earner:
                overlay.earn(earner, Delivery(now, counts), rules)
        self._behind.changed()
        return True

    async def delivered(
        self, identities: Sequence[Identity], sender: str, recipients: Sequence[str], *, counts: bool
    ) -> None:
        """Note the backend's final 250; see `Store`."""
        self.delivered_now(identities, sender, recipients, counts=counts)

    # -- entries --

    async def put_entry(self, entry: Entry) -> bool:
        """Make or replace an entry; see `Store`."""
        cleaned, now = clean_entry(entry), self._clock()
        return await self._durably(lambda connection: entries.put(connection, cleaned, now))

    async def remove_entry(self, kind: Kind, value: str) -> bool:
        """Remove an entry; see `Store`."""
        cleaned, now = clean(value), self._clock()
        return await self._durably(lambda connection: entries.remove(connection, kind, cleaned, now))

    async def changes(self, position: str | None) -> Changes:
        """Return what happened to the entries since a position; see `Store`."""
        return await self._look(lambda connection: entries.changes(connection, position))

    # -- decisions --

    def note(self, decision: Logged) -> None:
        """Keep a decision for questions; see `Store`."""
        if not self._is_closed and self._limits.max_decisions > 0 and self._limits.decisions_lifetime > 0:
            self._behind.note(decision)

    # -- looking and moving --

    def triplets(self, wanted: Wanted) -> AsyncIterator[Remembered]:
        """Give the triplets that have not expired; see `Store`."""
        now, rules = self._now(), self.rules
        return self._pages(lambda connection, after: listing.triplets(connection, after, wanted, now, rules))

    def allowances(self, wanted: Wanted) -> AsyncIterator[Allowance]:
        """Give the earners and what they have earned; see `Store`."""
        now, rules = self._now(), self.rules
        return self._pages(lambda connection, after: listing.allowances(connection, after, wanted, now, rules))

    def entries(self) -> AsyncIterator[Entry]:
        """Give the entries that have not expired; see `Store`."""
        now = self._clock()
        return self._pages(lambda connection, after: listing.entries(connection, after, now))

    def decisions(self, wanted: Wanted) -> AsyncIterator[Logged]:
        """Give decisions, newest first; see `Store`."""
        return self._pages(lambda connection, after: listing.decisions(connection, after, wanted))

    async def remove_triplets(self, triplets: Sequence[Triplet]) -> int:
        """Remove triplets; see `Store`."""
        cleaned = [Triplet(*map(clean, triplet)) for triplet in triplets]
        await self.flush()
        now, rules = self._now(), self.rules
        return await self._durably(lambda connection: merge.remove(connection, cleaned, now, rules), len(cleaned))

    async def load(self, items: Sequence[Item]) -> int:
        """Add what another store gave, in one transaction; see `Store`."""
        cleaned = [_clean_item(item) for item in items]
        await self.flush()
        now, rules = self._now(), self.rules
        return await self._durably(lambda connection: merge.load(connection, cleaned, now, rules), len(cleaned))

    async def counts(self) -> Counts:
        """Count; see `Store`. Other calls do not wait for it."""
        with contextlib.suppress(StoreError):
            await self.flush()
        self._check_open()
        return await self._counts.call(listing.counts, COUNT_PATIENCE)

    # -- the life of a store --

    async def expire(self) -> bool:
        """Remove some of what no longer counts; see `Store`."""
        # Or the file's row would go although it has been used since, and with it the count that it holds.
        await self.flush()
        now, rules = self._now(), self.rules
        return await self._writes.call(
            lambda connection: self._sweep.step(connection, now, rules, self._limits), self._limits.timeout
        )

    async def flush(self) -> None:
        """Return when everything that was written behind is in the store; see `Store`."""
        self._check_open()
        await self._behind.flush()

    async def close(self) -> None:
        """Flush, and let go of the file; no error."""
        if self._is_closed:
            return
        with contextlib.suppress(StoreError):
            await self.flush()
        self._is_closed = True
        self._behind.stop()
        self._sightings.stop(StoreError(f"{self._name}: closed"))
        self._reader.close()
        workers = (self._lookups, self._writes, self._listings, self._counts)
        await asyncio.gather(*(worker.close(self._limits.timeout) for worker in workers))

    def _get_rules(self) -> Rules:
        return self.rules

    def _now(self) -> float:
        # As the file keeps times, so that what is compared later is equal.
        return from_ms(to_ms(self._clock()))

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError(f"{self._name}: closed")

    async def _look(self, work: Work[T]) -> T:
        self._check_open()
        return await self._listings.call(work, self._limits.timeout)

    async def _durably(self, work: Work[T], items: int = 0) -> T:
        """Do something in a transaction that is on the disk when it returns."""
        self._check_open()

        def whole(connection: sqlite3.Connection) -> T:
            with transaction(connection, durable=True):
                return work(connection)

        return await self._writes.call(whole, self._limits.timeout + items * LOAD_PATIENCE)

    async def _pages(self, read: Callable[[sqlite3.Connection, K | None], Page[T, K]]) -> AsyncIterator[T]:
        """Give what pages hold, one after the other."""
        # Where it can't be written, what is in the file can still be looked at.
        with contextlib.suppress(StoreError):
            await self.flush()
        after: K | None = None
        while True:
            page = await self._look(lambda connection, after=after: read(connection, after))  # type: ignore[misc]
            for row in page.rows:
                yield row
            if page.following is None:
                return
            after = page.following


def _clean_item(item: Item) -> Item:
    if isinstance(item, Remembered):
        return replace(item, triplet=Triplet(*map(clean, item.triplet)))
    if isinstance(item, Allowance):
        return replace(item, earner=clean(item.earner))
    return clean_entry(item)
