# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries in the SQLite file, and the log of their changes.

Each change takes the next number (`seq`), and the row of an entry carries the number of its last change, so that
the changes since a number are the rows with a higher one. A removed entry stays as a row without an action, until
it is a day old; `floor` is the highest number that was forgotten so. A position is `EPOCH:SEQ:FLOOR`: the file's epoch,
the last number given, and the floor at that time. Who comes with another epoch, or with a number that
a floor has passed since, may have missed a removal, and is told to start again; so is who comes with a number that was
never given: the file has been restored from a copy. The floor is in the position because a
reader that is still paging through the old entries is below it, and has missed nothing.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from greylist_proxy.store import Action, Changes, Entry, Kind, Removed, Source

PAGE = 1000  # changes
REMEMBER_REMOVED = 86400.0  # seconds

_READ = "SELECT action, source, created, expires, note FROM entries WHERE kind = ? AND value = ?"
_WRITE = """
INSERT OR REPLACE INTO entries (kind, value, action, source, created, expires, note, changed, seq)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_NEXT = "UPDATE meta SET value = value + 1 WHERE name = 'seq'"
_META = """
SELECT (SELECT value FROM meta WHERE name = 'epoch'), (SELECT value FROM meta WHERE name = 'seq'),
    (SELECT value FROM meta WHERE name = 'floor')
"""
_CHANGES = """
SELECT kind, value, action, source, created, expires, note, seq FROM entries WHERE seq > ? ORDER BY seq LIMIT ?
"""
_EXPIRED = "SELECT kind, value FROM entries WHERE action IS NOT NULL AND expires <= ? LIMIT ?"
_OLD_REMOVALS = "SELECT seq FROM entries WHERE action IS NULL AND changed < ? ORDER BY seq LIMIT ?"


def put(connection: sqlite3.Connection, entry: Entry, now: float) -> bool:
    """Make or replace an entry, in the caller's transaction; False where an operator's own stands in the way."""
    before = read(connection, entry.kind, entry.value)
    if entry.source is not Source.OPERATOR and before is not None and is_operators(before, now):
        return False
    write(connection, entry, now)
    return True


def remove(connection: sqlite3.Connection, kind: Kind, value: str, now: float) -> bool:
    """Remove an entry, in the caller's transaction; False where there is none."""
    before = read(connection, kind, value)
    if before is None:
        return False
    _write_removed(connection, kind, value, now)
    return not is_over(before, now)


def read(connection: sqlite3.Connection, kind: Kind, value: str) -> Entry | None:
    """Return an entry, also one that has expired."""
    row = connection.execute(_READ, (kind, value)).fetchone()
    return None if row is None or row[0] is None else as_entry(kind, value, *row)


def write(connection: sqlite3.Connection, entry: Entry, now: float) -> None:
    """Write an entry, whatever was there, in the caller's transaction."""
    row = (entry.kind, entry.value, entry.action, entry.source, entry.created, entry.expires, entry.note)
    connection.execute(_WRITE, (*row, now, _next(connection)))


def is_over(entry: Entry, now: float) -> bool:
    """Tell whether an entry has expired."""
    return entry.expires is not None and entry.expires <= now


def is_operators(entry: Entry, now: float) -> bool:
    """Tell whether an entry is an operator's and holds."""
    return entry.source is Source.OPERATOR and not is_over(entry, now)


def as_entry(
    kind: str, value: str, action: str, source: str, created: float, expires: float | None, note: str
) -> Entry:
    """Make an entry of its row."""
    return Entry(Kind(kind), value, Action(action), Source(source), created, expires, note)


def changes(connection: sqlite3.Connection, position: str | None) -> Changes:
    """Return a page of changes."""
    # One snapshot: a change between the two statements could be missed.
    connection.execute("BEGIN")
    try:
        epoch, last, floor = connection.execute(_META).fetchone()
        since = _since(position, epoch, last, floor)
        rows = connection.execute(_CHANGES, (since or 0, PAGE + 1)).fetchall()
    finally:
        # After some errors SQLite has done it already, and another one would hide them.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    page = rows[:PAGE]
    seq = page[-1][-1] if page else since or 0
    changed = tuple(_change(*row[:-1]) for row in page)
    return Changes(since is None, changed, f"{epoch}:{seq}:{floor}", len(rows) > PAGE)


def remove_expired(connection: sqlite3.Connection, now: float, limit: int) -> int:
    """Remove entries that have expired, in the caller's transaction; return how many, `limit` at most."""
    rows = connection.execute(_EXPIRED, (now, limit)).fetchall()
    for kind, value in rows:
        _write_removed(connection, kind, value, now)
    return len(rows)


def forget_removed(connection: sqlite3.Connection, now: float, limit: int) -> int:
    """Forget removals that are a day old, in the caller's transaction; return how many, `limit` at most."""
    rows = connection.execute(_OLD_REMOVALS, (now - REMEMBER_REMOVED, limit)).fetchall()
    if rows:
        connection.executemany("DELETE FROM entries WHERE seq = ?", rows)
        connection.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'floor'", rows[-1])
    return len(rows)


def _write_removed(connection: sqlite3.Connection, kind: str, value: str, now: float) -> None:
    connection.execute(_WRITE, (kind, value, None, None, None, None, None, now, _next(connection)))


def _next(connection: sqlite3.Connection) -> int:
    connection.execute(_NEXT)
    (seq,) = connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone()
    return int(seq)


def _since(position: str | None, epoch: str, last: int, floor: int) -> int | None:
    """Return the number after which a reader knows nothing; None: it has to start again."""
    if position is None:
        return None
    try:
        its_epoch, seq, its_floor = position.split(":")
        if its_epoch == epoch and int(seq) <= last and (int(seq) >= floor or int(its_floor) == floor):
            return int(seq)
    except ValueError:
        pass  # some other store's position
    return None


def _change(kind: str, value: str, action: str | None, *rest: Any) -> Entry | Removed:
    return Removed(Kind(kind), value) if action is None else as_entry(kind, value, action, *rest)
