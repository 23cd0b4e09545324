# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merging what another store gave into the SQLite file, and removing triplets that somebody names.

Row by row: it happens when a store is moved, or somebody asks for it. Triplets go in by their order in the tables, so
that rows that lie side by side are written one after the other; and what is not there is not deleted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from operator import attrgetter

from greylist_proxy import policy
from greylist_proxy.policy import Earned, Record, Rules, Triplet
from greylist_proxy.store import Allowance, Entry, Item, Remembered
from greylist_proxy.store.sqlite import entries
from greylist_proxy.store.sqlite.commit import read_earned, write_earned
from greylist_proxy.store.sqlite.overlay import shared_triplet
from greylist_proxy.store.sqlite.values import from_ms, to_ms

_READ = """
SELECT first_seen, last_used FROM known WHERE client = ?1 AND sender = ?2 AND recipient = ?3
UNION ALL
SELECT first_seen, NULL FROM pending WHERE client = ?1 AND sender = ?2 AND recipient = ?3
"""
_REMOVE_KNOWN = "DELETE FROM known WHERE client = ? AND sender = ? AND recipient = ?"
_REMOVE_PENDING = "DELETE FROM pending WHERE client = ? AND sender = ? AND recipient = ?"
_WRITE_KNOWN = "INSERT INTO known (client, sender, recipient, first_seen, last_used) VALUES (?, ?, ?, ?, ?)"
_WRITE_PENDING = "INSERT INTO pending (client, sender, recipient, first_seen) VALUES (?, ?, ?, ?)"


def load(connection: sqlite3.Connection, items: Sequence[Item], now: float, rules: Rules) -> int:
    """Merge items, in the caller's transaction; return how many changed something."""
    triplets = sorted((item for item in items if isinstance(item, Remembered)), key=attrgetter("triplet"))
    others = (item for item in items if not isinstance(item, Remembered))
    return sum(_load_triplet(connection, item, now, rules) for item in triplets) + sum(
        _load_allowance(connection, item, now, rules)
        if isinstance(item, Allowance)
        else _load_entry(connection, item, now)
        for item in others
    )


def remove(connection: sqlite3.Connection, triplets: Sequence[Triplet], now: float, rules: Rules) -> int:
    """Remove triplets, in the caller's transaction; return how many of them had not expired.

    So that the next sighting is a first one, what they may share with others by rule 7 goes with them.
    """
    count = 0
    for triplet in triplets:
        found = _read(connection, triplet)
        count += _live(found, now, rules) is not None
        _delete(connection, triplet, found)
    shared = {shared_triplet(triplet.client, triplet.recipient) for triplet in triplets}
    connection.executemany(_REMOVE_PENDING, sorted(shared))
    return count


def _load_triplet(connection: sqlite3.Connection, item: Remembered, now: float, rules: Rules) -> bool:
    if policy.is_expired(item.record, now, rules):
        return False
    found = _read(connection, item.triplet)
    before = _live(found, now, rules)
    after = _to_the_millisecond(item.record)
    if before is not None:
        uses = [record.last_used for record in (before, after) if record.last_used is not None]
        after = Record(min(before.first_seen, after.first_seen), max(uses, default=None))
    if after == before:
        return False
    _delete(connection, item.triplet, found)
    if after.last_used is None:
        connection.execute(_WRITE_PENDING, (*item.triplet, to_ms(after.first_seen)))
    else:
        connection.execute(_WRITE_KNOWN, (*item.triplet, to_ms(after.first_seen), to_ms(after.last_used)))
    return True


def _load_allowance(connection: sqlite3.Connection, item: Allowance, now: float, rules: Rules) -> bool:
    given = item.earned
    if now - given.last_used > rules.lifetime:
        return False
    after = Earned(given.passes, from_ms(to_ms(given.counted_at)), from_ms(to_ms(given.last_used)))
    before = read_earned(connection, [item.earner]).get(item.earner)
    if before is not None and now - before.last_used <= rules.lifetime:
        after = Earned(
            max(before.passes, after.passes),
            max(before.counted_at, after.counted_at),
            max(before.last_used, after.last_used),
        )
    if after == before:
        return False
    write_earned(connection, {item.earner: after})
    return True


def _load_entry(connection: sqlite3.Connection, entry: Entry, now: float) -> bool:
    before = entries.read(connection, entry.kind, entry.value)
    if entries.is_over(entry, now) or before == entry or (before is not None and entries.is_operators(before, now)):
        return False
    if before is not None and before.source is entry.source and _lasts_longer(before, entry):
        return False
    entries.write(connection, entry, now)
    return True


def _lasts_longer(entry: Entry, other: Entry) -> bool:
    return other.expires is not None and (entry.expires is None or entry.expires > other.expires)


def _read(connection: sqlite3.Connection, triplet: Triplet) -> list[Record]:
    """Return what is there of a triplet, the known one first; both only where one has expired."""
    return [
        Record(from_ms(first_seen), None if last_used is None else from_ms(last_used))
        for first_seen, last_used in connection.execute(_READ, triplet)
    ]


def _live(found: Sequence[Record], now: float, rules: Rules) -> Record | None:
    return next((record for record in found if not policy.is_expired(record, now, rules)), None)


def _delete(connection: sqlite3.Connection, triplet: Triplet, found: Sequence[Record]) -> None:
    for record in found:
        connection.execute(_REMOVE_PENDING if record.last_used is None else _REMOVE_KNOWN, triplet)


def _to_the_millisecond(record: Record) -> Record:
    last_used = None if record.last_used is None else from_ms(to_ms(record.last_used))
    return Record(from_ms(to_ms(record.first_seen)), last_used)
