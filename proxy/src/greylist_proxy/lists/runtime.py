# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The entries that were made at run time, as lists: one for each thing that an entry can do."""

from __future__ import annotations

import heapq

from greylist_proxy.lists.entries import EntryError, Network, key
from greylist_proxy.lists.tables import Mailboxes, Tables
from greylist_proxy.store import Action, Entry, Kind, Source

LEAST_TIDIED = 1000  # times; fewer are not worth it


class RuntimeEntries:
    """Entries by what they do. There is one for each kind and value."""

    def __init__(self) -> None:
        self.allow = Tables()
        self.block = Tables()
        self.trapped = Tables()  # clients that mailed a spam trap
        self.learned = Tables()
        self.traps = Mailboxes()
        self._expiring: list[tuple[float, Kind, str]] = []  # a heap, by time
        self._most_expiring = LEAST_TIDIED

    def put(self, entry: Entry) -> None:
        """Add an entry, in place of one with its kind and value. EntryError: it can't count."""
        found = key(entry.kind, entry.value)
        self._remove(entry.kind, found)
        rule = f"{entry.source}-entry:{entry.value}"
        if entry.kind is not Kind.TRAP:
            self._tables(entry).add(entry.kind, found, rule, entry.expires)
        elif isinstance(found, str):
            self.traps.add(found, rule, entry.expires)
        if entry.expires is not None:
            heapq.heappush(self._expiring, (entry.expires, entry.kind, entry.value))
            if len(self._expiring) > self._most_expiring:
                self._tidy()

    def remove(self, kind: Kind, value: str) -> None:
        """Remove an entry, where there is one. EntryError: there can't be."""
        self._remove(kind, key(kind, value))

    def expire(self, now: float) -> None:
        """Let go of what has expired at `now`. It counts no more in any case; this frees its memory."""
        while self._expiring and self._expiring[0][0] <= now:
            _expires, kind, value = heapq.heappop(self._expiring)
            self._remove(kind, key(kind, value), expired_at=now)

    def _tidy(self) -> None:
        """Keep one time for each entry, the latest: what is learned anew each day would leave one for each day."""
        latest: dict[tuple[Kind, str], float] = {}
        for expires, kind, value in self._expiring:
            latest[kind, value] = max(expires, latest.get((kind, value), expires))
        self._expiring = [(expires, kind, value) for (kind, value), expires in latest.items()]
        heapq.heapify(self._expiring)
        self._most_expiring = max(2 * len(self._expiring), LEAST_TIDIED)

    def _tables(self, entry: Entry) -> Tables:
        match entry.source, entry.action:
            case Source.OPERATOR, Action.ALLOW:
                return self.allow
            case Source.OPERATOR, Action.BLOCK:
                return self.block
            case Source.TRAP, Action.BLOCK if entry.kind is Kind.CLIENT:
                return self.trapped
            case Source.LEARNED, Action.ALLOW:
                return self.learned
        # Nothing makes such; what follows from it was never thought about.
        raise EntryError(f"source {entry.source} does not make entries with action {entry.action}")

    def _remove(self, kind: Kind, found: Network | str, expired_at: float | None = None) -> None:
        # Which table it is in is not remembered: that would cost more memory than looking costs time.
        if kind is not Kind.TRAP:
            for tables in (self.allow, self.block, self.trapped, self.learned):
                tables.remove(kind, found, expired_at)
        elif isinstance(found, str):
            self.traps.remove(found, expired_at)
