# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a generation into the file, in one transaction.

sqlite3 lets the event loop's thread have Python's global lock at every step of a statement, and getting it back can
take milliseconds. So a statement writes many rows, and the lock changes hands once for all of them. (All of them as
one JSON text makes it once for a batch, but SQLite then takes twice as long over each row.)

The rules by which rows merge are those of `overlay.py`. What is earned is counted in Python, by
`policy.earn`: only deliveries come here, and a second version of rule 8 in SQL would have to be kept in step.

These commits are not waited for to reach the disk (`synchronous = NORMAL`): a power failure may take the last
moments, which costs a deferral, and a crash of the program at most the last 100 ms. What operators do is (`FULL`).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain

from greylist_proxy import policy
from greylist_proxy.policy import Earned, Rules
from greylist_proxy.store import Logged
from greylist_proxy.store.sqlite.overlay import Generation
from greylist_proxy.store.sqlite.values import as_json, from_ms, to_ms
from greylist_proxy.store.texts import clean, is_clean

AT_ONCE = (256, 64, 16, 4, 1)  # rows a statement, so that few statements make any number

Row = tuple[str | int | None, ...]

# Where the rows go stands {rows}: `(?, ?), (?, ?)`.
_PENDING = """
WITH seen (client, sender, recipient, first_seen) AS (VALUES {rows})
INSERT INTO pending (client, sender, recipient, first_seen)
SELECT client, sender, recipient, first_seen FROM seen
WHERE NOT EXISTS (
    SELECT 1 FROM known
    WHERE known.client = seen.client AND known.sender = seen.sender AND known.recipient = seen.recipient
        AND seen.first_seen - known.last_used <= ?
)
ON CONFLICT (client, sender, recipient) DO UPDATE SET first_seen = CASE
    WHEN excluded.first_seen - pending.first_seen > ? THEN excluded.first_seen
    ELSE min(excluded.first_seen, pending.first_seen)
END
"""
_REPLACED = "DELETE FROM known WHERE client = ? AND sender = ? AND recipient = ? AND ? - last_used > ?"
_KNOWN = """
WITH delivered (client, sender, recipient, first_seen, last_used) AS (VALUES {rows})
INSERT INTO known (client, sender, recipient, first_seen, last_used)
SELECT client, sender, recipient,
    min(first_seen, coalesce((
        SELECT pending.first_seen FROM pending
        WHERE pending.client = delivered.client AND pending.sender = delivered.sender
            AND pending.recipient = delivered.recipient AND delivered.last_used - pending.first_seen <= ?
    ), first_seen)),
    last_used
FROM delivered
WHERE true
ON CONFLICT (client, sender, recipient) DO UPDATE SET
    first_seen = CASE
        WHEN excluded.last_used - known.last_used > ? THEN excluded.first_seen
        ELSE min(excluded.first_seen, known.first_seen)
    END,
    last_used = excluded.last_used
"""
_NO_LONGER_PENDING = "DELETE FROM pending WHERE (client, sender, recipient) IN (VALUES {rows})"
_READ_EARNED = """
SELECT json_group_array(json_array(earner, passes, counted_at, last_used))
FROM earned WHERE earner IN (SELECT value FROM json_each(?))
"""
_WRITE_EARNED = """
INSERT OR REPLACE INTO earned (earner, passes, counted_at, last_used)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
    json_extract(value, '$[3]')
FROM json_each(?)
"""
_DECISIONS = """
INSERT INTO decisions (time, verdict, reason, client, network, sender, recipient, seconds_left, mail_id, "key", rule,
    would)
VALUES {rows}
"""
_COMMITTED = "INSERT OR REPLACE INTO writers (id, number, used) VALUES (?, ?, ?)"


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, *, durable: bool = False) -> Iterator[None]:
    """Hold the write lock, and commit; `durable`: on the disk."""
    if durable:
        connection.execute("PRAGMA synchronous = FULL")
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            # After some errors SQLite has done it already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    finally:
        if durable:
            connection.execute("PRAGMA synchronous = NORMAL")


def commit(connection: sqlite3.Connection, generation: Generation, writer: int, now: float, rules: Rules) -> None:
    """Write a generation."""
    with transaction(connection):
        _commit_triplets(connection, generation, rules)
        _commit_earned(connection, generation, rules)
        if generation.decisions:
            _write(connection, _DECISIONS, [_decision_row(decision) for decision in generation.decisions])
        connection.execute(_COMMITTED, (writer, generation.number, to_ms(now)))


def read_earned(connection: sqlite3.Connection, earners: Iterable[str]) -> dict[str, Earned]:
    """Return what the file says of earners."""
    (text,) = connection.execute(_READ_EARNED, (as_json(earners),)).fetchone()
    return {
        earner: Earned(passes, from_ms(counted_at), from_ms(last_used))
        for earner, passes, counted_at, last_used in json.loads(text)
    }


def write_earned(connection: sqlite3.Connection, earned: dict[str, Earned]) -> None:
    """Write what earners have."""
    rows = ((key, value.passes, to_ms(value.counted_at), to_ms(value.last_used)) for key, value in earned.items())
    connection.execute(_WRITE_EARNED, (as_json(rows),))


def _commit_triplets(connection: sqlite3.Connection, generation: Generation, rules: Rules) -> None:
    # Rows that come in the order of the primary key touch each of its pages once.
    records = sorted(generation.records.items())
    retry_window, lifetime = to_ms(rules.retry_window), to_ms(rules.lifetime)
    if pending := [(*triplet, to_ms(record.first_seen)) for triplet, record in records if record.last_used is None]:
        for triplet in generation.replaced:
            now = to_ms(generation.records[triplet].first_seen)
            connection.execute(_REPLACED, (*triplet, now, lifetime))
        _write(connection, _PENDING, pending, lifetime, retry_window)
    known = [
        (*triplet, to_ms(record.first_seen), to_ms(record.last_used))
        for triplet, record in records
        if record.last_used is not None
    ]
    if known:
        _write(connection, _KNOWN, known, retry_window, lifetime)
        _write(connection, _NO_LONGER_PENDING, [row[:3] for row in known])


def _write(connection: sqlite3.Connection, statement: str, rows: Sequence[Row], *settings: int) -> None:
    """Run a statement over rows, many at a time; `settings` are its parameters after those of the rows."""
    done = 0
    for at_once in AT_ONCE:
        many = _with_rows(statement, len(rows[0]), at_once)
        while len(rows) - done >= at_once:
            connection.execute(many, [*chain.from_iterable(rows[done : done + at_once]), *settings])
            done += at_once


@cache
def _with_rows(statement: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return statement.replace("{rows}", ", ".join([row] * rows))


def _commit_earned(connection: sqlite3.Connection, generation: Generation, rules: Rules) -> None:
    if not generation.earned:
        return
    before = read_earned(connection, generation.earned)
    after: dict[str, Earned] = {}
    for earner, deliveries in generation.earned.items():
        earned = before.get(earner)
        for delivery in deliveries:
            earned = policy.earn(earned, delivery.time, rules, counts=delivery.counts)
        if earned is None:
            # Expired in between, by a clock that was set back: what the file says may still look alive.
            connection.execute("DELETE FROM earned WHERE earner = ?", (earner,))
        elif earned != before.get(earner):
            after[earner] = earned
    if after:
        write_earned(connection, after)


def _decision_row(decision: Logged) -> Row:
    """Return what is written of a decision, in the order of `_DECISIONS`."""
    who: tuple[str, ...] = (decision.client, decision.network, decision.sender, decision.recipient)
    why: tuple[str, ...] = (decision.id, decision.key, decision.rule)
    if not is_clean(*who, *why):
        who, why = tuple(map(clean, who)), tuple(map(clean, why))
    what = (to_ms(decision.time), decision.verdict, decision.reason)
    return (*what, *who, decision.seconds_left, *why, decision.would)
