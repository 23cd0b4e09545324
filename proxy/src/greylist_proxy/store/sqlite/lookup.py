# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the file says about sightings: one short statement for each identity, by primary keys.

A statement is one snapshot of the file, with the number of the last commit in it. Several of them are one transaction,
so that what belongs together is of one moment. One statement costs 7 microseconds, all that a sighting costs SQLite,
so it is asked in the event loop where that is safe (`inline.py`), else in a thread.

The pending ones of a client are counted only where a triplet may be new and has no shared record, and only as far as it
matters: there may be a thousand.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from greylist_proxy.policy import Earned, Record, Rules, Triplet
from greylist_proxy.store.sqlite.overlay import Kept, shared_recipient
from greylist_proxy.store.sqlite.values import from_ms, to_ms


class Question(NamedTuple):
    """What is to be looked up for one identity of a sighting at `now`."""

    triplet: Triplet
    earner: str
    now: float


class Answer(NamedTuple):
    """What the file says. `pending` counts the client's live pending ones where the triplet may be new."""

    kept: Kept
    shared: Kept
    earned: Earned | None
    pending: int


class Answers(NamedTuple):
    """The answers in the order asked, and the number of the last commit that they include."""

    committed: int
    answers: Sequence[Answer]


# NULL compares as not new enough, so without a record all three tests say "may be new".
_LOOK_UP = """
SELECT
    (SELECT number FROM writers WHERE id = ?1),
    known.first_seen, known.last_used, pending.first_seen, shared.first_seen,
    earned.passes, earned.counted_at, earned.last_used,
    CASE WHEN ?2 - known.last_used < ?3 OR ?2 - pending.first_seen < ?4 OR ?2 - shared.first_seen < ?4 THEN 0 ELSE (
        SELECT count(*) FROM (
            SELECT 1 FROM pending AS other
            WHERE other.client = ?6 AND other.first_seen >= ?2 - ?4
                AND NOT (other.sender = '' AND substr(other.recipient, 1, 1) = '@')
            LIMIT ?5
        )
    ) END
FROM (SELECT 1) AS asked
LEFT JOIN known ON known.client = ?6 AND known.sender = ?7 AND known.recipient = ?8
LEFT JOIN pending ON pending.client = ?6 AND pending.sender = ?7 AND pending.recipient = ?8
LEFT JOIN pending AS shared ON shared.client = ?6 AND shared.sender = '' AND shared.recipient = ?9
LEFT JOIN earned ON earned.earner = ?10
"""
NOTHING = Kept(None, None)
_UNKNOWN = (None,) * 7
_NO_ANSWER = Answer(NOTHING, NOTHING, None, 0)


def look_up(
    connection: sqlite3.Connection, questions: Sequence[Question], writer: int, most_pending: int, rules: Rules
) -> Answers:
    """Answer the questions; tell the last commit of `writer`, and count pending ones as far as `most_pending`."""
    lifetime, retry_window = to_ms(rules.lifetime), to_ms(rules.retry_window)
    committed = 0
    answers = []
    if len(questions) > 1:
        connection.execute("BEGIN")
    try:
        for (client, sender, recipient), earner, now in questions:
            shared = shared_recipient(recipient)
            row = connection.execute(
                _LOOK_UP,
                (writer, to_ms(now), lifetime, retry_window, most_pending, client, sender, recipient, shared, earner),
            ).fetchone()
            committed = row[0] or 0
            answers.append(_answer(row))
    finally:
        # After some errors SQLite has done it already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return Answers(committed, answers)


def _answer(row: tuple[int | None, ...]) -> Answer:
    if row[1:8] == _UNKNOWN:  # which is so for most: spam
        return Answer(NOTHING, NOTHING, None, row[8]) if row[8] else _NO_ANSWER
    _committed, known_first, known_last, pending_first, shared_first, passes, counted_at, last_used, pending = row
    known = None if known_first is None or known_last is None else Record(from_ms(known_first), from_ms(known_last))
    waits = None if pending_first is None else Record(from_ms(pending_first))
    return Answer(
        NOTHING if known is None and waits is None else Kept(known, waits),
        NOTHING if shared_first is None else Kept(None, Record(from_ms(shared_first))),
        None
        if passes is None or counted_at is None or last_used is None
        else Earned(passes, from_ms(counted_at), from_ms(last_used)),
        pending or 0,
    )
