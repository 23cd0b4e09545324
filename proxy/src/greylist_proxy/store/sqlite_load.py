# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merging what another store gave into the SQLite file, and removing triplets that somebody names.

Row by row: it happens when a store is moved, or somebody asks for it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from greylist_proxy import policy
from greylist_proxy.policy import Earned, Record, Rules, Triplet
from greylist_proxy.store import Allowance, Entry, Item, Remembered
from greylist_proxy.store import sqlite_entries as entries
from greylist_proxy.store.sqlite_commit import read_earned, write_earned
from greylist_proxy.store.sqlite_values import from_ms, to_ms

_READ_KNOWN = "SELECT first_seen, last_used FROM known WHERE client = ? AND sender = ? AND recipient = ?"
_READ_PENDING = "SELECT first_seen, NULL FROM pending WHERE client = ? AND sender = ? AND recipient = ?"
_REMOVE_KNOWN = "DELETE FROM known WHERE client = ? AND sender = ? AND recipient = ?"
_REMOVE_PENDING = "DELETE FROM pending WHERE client = ? AND sender = ? AND recipient = ?"
_WRITE_KNOWN = "INSERT INTO known (client, sender, recipient, first_seen, last_used) VALUES (?, ?, ?, ?, ?)"
_WRITE_PENDING = "INSERT INTO pending (client, sender, recipient, first_seen) VALUES (?, ?, ?, ?)"


def load(connection: sqlite3.Connection, items: Sequence[Item], now: float, rules: Rules) -> int:
    """Merge items, in the caller's transaction; return how many changed something."""
    return sum(_load_one(connection, item, now, rules) for item in items)


def remove(connection: sqlite3.Connection, triplets: Sequence[Triplet], now: float, rules: Rules) -> int:
    """Remove triplets, in the caller's transaction; return how many of them had not expired."""
    count = 0
    for triplet in triplets:
        count += _read(connection, triplet, now, rules) is not None
        _delete(connection, triplet)
    return count


def _load_one(connection: sqlite3.Connection, item: Item, now: float, rules: Rules) -> bool:
    if isinstance(item, Remembered):
        return _load_triplet(connection, item, now, rules)
    if isinstance(item, Allowance):
        return _load_allowance(connection, item, now, rules)
    return _load_entry(connection, item, now)


def _load_triplet(connection: sqlite3.Connection, item: Remembered, now: float, rules: Rules) -> bool:
    if policy.is_expired(item.record, now, rules):
        return False
    before = _read(connection, item.triplet, now, rules)
    after = _to_the_millisecond(item.record)
    if before is not None:
        uses = [record.last_used for record in (before, after) if record.last_used is not None]
        after = Record(min(before.first_seen, after.first_seen), max(uses, default=None))
    if after == before:
        return False
    _delete(connection, item.triplet)
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
    entries.write(connection, entry, now)
    return True


def _read(connection: sqlite3.Connection, triplet: Triplet, now: float, rules: Rules) -> Record | None:
    for statement in (_READ_KNOWN, _READ_PENDING):
        row = connection.execute(statement, triplet).fetchone()
        if row is not None:
            record = Record(from_ms(row[0]), None if row[1] is None else from_ms(row[1]))
            if not policy.is_expired(record, now, rules):
                return record
    return None


def _delete(connection: sqlite3.Connection, triplet: Triplet) -> None:
    connection.execute(_REMOVE_KNOWN, triplet)
    connection.execute(_REMOVE_PENDING, triplet)


def _to_the_millisecond(record: Record) -> Record:
    last_used = None if record.last_used is None else from_ms(to_ms(record.last_used))
    return Record(from_ms(to_ms(record.first_seen)), last_used)
