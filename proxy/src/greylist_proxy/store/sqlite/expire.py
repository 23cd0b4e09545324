# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removing what no longer counts from the SQLite file, a few milliseconds at a time.

A sweep walks each table by its primary key, some rows a step, and begins again when it is through. So it reads
everything once a pass, but nothing has to keep an index on times for it. It may stop anywhere: what has
expired does not count, whether it is there or not.
"""

from __future__ import annotations

import sqlite3

from greylist_proxy.policy import Rules
from greylist_proxy.store import Limits
from greylist_proxy.store.sqlite import entries
from greylist_proxy.store.sqlite.commit import transaction
from greylist_proxy.store.sqlite.values import to_ms

STEP = 1000  # rows that are looked at
REMOVE = 500  # rows of other tables that are removed
FORGET_WRITERS = 86400.0  # seconds

_END = """
SELECT client, sender, recipient FROM TRIPLETS WHERE (client, sender, recipient) > (?, ?, ?)
ORDER BY client, sender, recipient LIMIT 1 OFFSET ?
"""
_EXPIRED = """
DELETE FROM TRIPLETS
WHERE (client, sender, recipient) > (?, ?, ?) AND (client, sender, recipient) <= (?, ?, ?) AND COUNTED < ?
"""
_EXPIRED_REST = "DELETE FROM TRIPLETS WHERE (client, sender, recipient) > (?, ?, ?) AND COUNTED < ?"
_TABLES = {
    table: tuple(
        statement.replace("TRIPLETS", table).replace("COUNTED", counted)
        for statement in (_END, _EXPIRED, _EXPIRED_REST)
    )
    for table, counted in (("pending", "first_seen"), ("known", "last_used"))
}
_EARNED_END = "SELECT earner FROM earned WHERE earner > ? ORDER BY earner LIMIT 1 OFFSET ?"
_EARNED = "DELETE FROM earned WHERE earner > ? AND (? IS NULL OR earner <= ?) AND last_used < ?"
_OLD_DECISIONS = """
DELETE FROM decisions WHERE id IN (SELECT id FROM decisions WHERE time < ? ORDER BY time LIMIT ?)
"""
# Numbers of rows are given out in order, so the distance from the highest one is how many there are.
_SURPLUS_DECISIONS = """
DELETE FROM decisions WHERE id IN (
    SELECT id FROM decisions WHERE id <= (SELECT max(id) FROM decisions) - ? ORDER BY id LIMIT ?
)
"""


class Sweep:
    """Where the removal has come to."""

    def __init__(self) -> None:
        self._steps = (self._pending, self._known, self._earned, self._entries, self._decisions)
        self._at = 0
        self._triplet = ("", "", "")
        self._earner = ""

    def step(self, connection: sqlite3.Connection, now: float, rules: Rules, limits: Limits) -> bool:
        """Do a step; True: the pass is not over."""
        with transaction(connection):
            through = self._steps[self._at](connection, now, rules, limits)
        if through:
            self._at = (self._at + 1) % len(self._steps)
        return not (through and self._at == 0)

    def _pending(self, connection: sqlite3.Connection, now: float, rules: Rules, _limits: Limits) -> bool:
        return self._triplets(connection, "pending", to_ms(now) - to_ms(rules.retry_window))

    def _known(self, connection: sqlite3.Connection, now: float, rules: Rules, _limits: Limits) -> bool:
        return self._triplets(connection, "known", to_ms(now) - to_ms(rules.lifetime))

    def _triplets(self, connection: sqlite3.Connection, table: str, live: int) -> bool:
        find_end, expired, rest = _TABLES[table]
        end = connection.execute(find_end, (*self._triplet, STEP - 1)).fetchone()
        if end is None:
            connection.execute(rest, (*self._triplet, live))
            self._triplet = ("", "", "")
            return True
        connection.execute(expired, (*self._triplet, *end, live))
        self._triplet = end
        return False

    def _earned(self, connection: sqlite3.Connection, now: float, rules: Rules, _limits: Limits) -> bool:
        row = connection.execute(_EARNED_END, (self._earner, STEP - 1)).fetchone()
        end = row[0] if row else None
        connection.execute(_EARNED, (self._earner, end, end, to_ms(now) - to_ms(rules.lifetime)))
        self._earner = end or ""
        return end is None

    def _entries(self, connection: sqlite3.Connection, now: float, _rules: Rules, _limits: Limits) -> bool:
        removed = entries.remove_expired(connection, now, REMOVE)
        return removed + entries.forget_removed(connection, now, REMOVE) < REMOVE

    def _decisions(self, connection: sqlite3.Connection, now: float, _rules: Rules, limits: Limits) -> bool:
        connection.execute("DELETE FROM writers WHERE used < ?", (to_ms(now - FORGET_WRITERS),))
        old = connection.execute(_OLD_DECISIONS, (to_ms(now - limits.decisions_lifetime), REMOVE)).rowcount
        surplus = connection.execute(_SURPLUS_DECISIONS, (limits.max_decisions, REMOVE)).rowcount
        return old + surplus < REMOVE
