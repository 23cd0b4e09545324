# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the file says about many sightings, by one statement.

sqlite3 lets the event loop's thread have Python's global lock at every step of a statement, and getting it back
can take milliseconds. So all questions go in as one JSON text, and all answers come back as one row: the lock
changes hands once for a batch, not once for a row. One statement is one snapshot as well, without a transaction.

The questions are grouped by client, so that the pending ones of a client in trouble, a thousand rows, are counted once
for a batch. They are counted only where a triplet may be new, and only as far as it matters.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from greylist_proxy.policy import Earned, Record, Rules, Triplet
from greylist_proxy.store.sqlite.overlay import Kept, shared_triplet
from greylist_proxy.store.sqlite.values import as_json, from_ms, to_ms


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
    answers: list[Answer]


# `json_extract` and not `->>`: SQLite 3.34 has to do. NULL compares as not new enough, so both tests say "may be new".
_LOOK_UP = """
SELECT
    (SELECT number FROM writers WHERE id = :writer),
    json_group_array(json_array(
        json(answers),
        CASE WHEN may_be_new THEN (
            SELECT count(*) FROM (
                SELECT 1 FROM pending AS other
                WHERE other.client = asked.client AND other.first_seen >= :now - :retry_window
                    AND NOT (other.sender = '' AND substr(other.recipient, 1, 1) = '@')
                LIMIT :most_pending
            )
        ) ELSE 0 END
    ))
FROM (
    SELECT
        json_extract(clients.value, '$[0]') AS client,
        json_group_array(json_array(
            json_extract(questions.value, '$[0]'),
            known.first_seen, known.last_used, pending.first_seen, shared.first_seen,
            earned.passes, earned.counted_at, earned.last_used
        )) AS answers,
        max(
            NOT coalesce(json_extract(questions.value, '$[5]') - known.last_used < :lifetime, 0)
            AND NOT coalesce(json_extract(questions.value, '$[5]') - pending.first_seen < :retry_window, 0)
        ) AS may_be_new
    FROM json_each(:questions) AS clients, json_each(clients.value, '$[1]') AS questions
    LEFT JOIN known ON known.client = json_extract(clients.value, '$[0]')
        AND known.sender = json_extract(questions.value, '$[1]')
        AND known.recipient = json_extract(questions.value, '$[2]')
    LEFT JOIN pending ON pending.client = json_extract(clients.value, '$[0]')
        AND pending.sender = json_extract(questions.value, '$[1]')
        AND pending.recipient = json_extract(questions.value, '$[2]')
    LEFT JOIN pending AS shared ON shared.client = json_extract(clients.value, '$[0]')
        AND shared.sender = ''
        AND shared.recipient = json_extract(questions.value, '$[3]')
    LEFT JOIN earned ON earned.earner = json_extract(questions.value, '$[4]')
    GROUP BY clients.key
) AS asked
"""


def look_up(
    connection: sqlite3.Connection, questions: Sequence[Question], writer: int, most_pending: int, rules: Rules
) -> Answers:
    """Answer the questions; tell the last commit of `writer`, and count pending ones as far as `most_pending`."""
    clients: dict[str, list[tuple[int, str, str, str, str, int]]] = {}
    latest = 0
    for number, (triplet, earner, now) in enumerate(questions):
        shared = shared_triplet(triplet.client, triplet.recipient)
        question = (number, triplet.sender, triplet.recipient, shared.recipient, earner, to_ms(now))
        clients.setdefault(triplet.client, []).append(question)
        latest = max(latest, question[-1])
    committed, text = connection.execute(
        _LOOK_UP,
        {
            "writer": writer,
            "questions": as_json(clients.items()),
            "now": latest,
            "retry_window": to_ms(rules.retry_window),
            "lifetime": to_ms(rules.lifetime),
            "most_pending": most_pending,
        },
    ).fetchone()
    answers: dict[int, Answer] = {}
    for rows, pending in json.loads(text):
        for number, known_first, known_last, pending_first, shared_first, passes, counted_at, last_used in rows:
            answers[number] = Answer(
                Kept(
                    None if known_last is None else Record(from_ms(known_first), from_ms(known_last)),
                    None if pending_first is None else Record(from_ms(pending_first)),
                ),
                Kept(None, None if shared_first is None else Record(from_ms(shared_first))),
                None if passes is None else Earned(passes, from_ms(counted_at), from_ms(last_used)),
                pending,
            )
    return Answers(committed or 0, [answers[number] for number in range(len(questions))])
