# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages of what is in the SQLite file, for people who look.

A page *scans* a bounded number of rows by the primary key, and gives those that are wanted, so that a rare
one in a million rows does not make one statement that takes seconds. The next page goes on after the last key that
was scanned, whatever has been written meanwhile. Domains are compared without case in ASCII only, which is how
SQLite's `lower` sees it; triplets have their domains in lower case anyway.
"""

from __future__ import annotations

import sqlite3
from typing import Generic, NamedTuple, TypeVar

from greylist_proxy.policy import Earned, Record, Rules, Triplet
from greylist_proxy.store import Allowance, Counts, Entry, Logged, Remembered, Wanted
from greylist_proxy.store.sqlite.entries import as_entry, is_over
from greylist_proxy.store.sqlite.values import from_ms, to_ms

T = TypeVar("T")
K = TypeVar("K")
SCAN = 2000  # rows a page

# An address as `_address_parameters` puts it: a local part with its @ and a domain, or the end of an address.
_ADDRESSES = """
    (:sender_local IS NULL OR (substr(sender, 1, length(:sender_local)) = :sender_local
        AND lower(substr(sender, length(:sender_local) + 1)) = :sender_domain))
    AND (:sender_end IS NULL OR lower(substr(sender, -length(:sender_end))) = :sender_end)
    AND (:recipient_local IS NULL OR (substr(recipient, 1, length(:recipient_local)) = :recipient_local
        AND lower(substr(recipient, length(:recipient_local) + 1)) = :recipient_domain))
    AND (:recipient_end IS NULL OR lower(substr(recipient, -length(:recipient_end))) = :recipient_end)
"""
_TRIPLETS_END = """
SELECT client, sender, recipient FROM TRIPLETS
WHERE (client, sender, recipient) > (:client, :sender, :recipient) AND (:wanted IS NULL OR client = :wanted)
ORDER BY client, sender, recipient LIMIT 1 OFFSET :scan
"""
_TRIPLETS = (
    """
SELECT client, sender, recipient, first_seen, LAST_USED FROM TRIPLETS
WHERE (client, sender, recipient) > (:client, :sender, :recipient)
    AND (:end_client IS NULL OR (client, sender, recipient) <= (:end_client, :end_sender, :end_recipient))
    AND (:wanted IS NULL OR client = :wanted) AND (:since IS NULL OR first_seen >= :since)
    AND COUNTED >= :live AND NOT (sender = '' AND substr(recipient, 1, 1) = '@') AND"""
    + _ADDRESSES
    + "ORDER BY client, sender, recipient"
)


class _Table(NamedTuple):
    end: str
    rows: str


def _table(name: str, last_used: str, counted: str) -> _Table:
    rows = _TRIPLETS.replace("LAST_USED", last_used).replace("TRIPLETS", name).replace("COUNTED", counted)
    return _Table(_TRIPLETS_END.replace("TRIPLETS", name), rows)


_KNOWN = _table("known", "last_used", "last_used")
_PENDING = _table("pending", "NULL", "first_seen")
_ALLOWANCES = """
SELECT earner, passes, counted_at, last_used FROM earned
WHERE earner > :after AND (:wanted IS NULL OR earner = :wanted) ORDER BY earner LIMIT :scan
"""
_ENTRIES = """
SELECT kind, value, action, source, created, expires, note FROM entries
WHERE (kind, value) > (?, ?) AND action IS NOT NULL ORDER BY kind, value LIMIT ?
"""
_DECISIONS_END = """
SELECT time, id FROM decisions
WHERE (time, id) < (:time, :id) AND (:since IS NULL OR time >= :since)
ORDER BY time DESC, id DESC LIMIT 1 OFFSET :scan
"""
_DECISIONS = (
    """
SELECT time, verdict, reason, client, network, sender, recipient, seconds_left, mail_id, "key", rule, would
FROM decisions
WHERE (time, id) < (:time, :id) AND (:end_time IS NULL OR (time, id) >= (:end_time, :end_id))
    AND (:since IS NULL OR time >= :since)
    AND (:client IS NULL OR client = :client OR network = :client OR "key" = :client)
    AND (:verdict IS NULL OR verdict = :verdict) AND (:reason IS NULL OR reason = :reason)
    AND (:mail IS NULL OR mail_id = :mail OR substr(mail_id, 1, length(:mail) + 1) = :mail || '.') AND"""
    + _ADDRESSES
    + "ORDER BY time DESC, id DESC"
)
_COUNTS = """
SELECT (SELECT count(*) FROM pending WHERE NOT (sender = '' AND substr(recipient, 1, 1) = '@')),
    (SELECT count(*) FROM known), (SELECT count(*) FROM earned),
    (SELECT count(*) FROM entries WHERE action IS NOT NULL), (SELECT count(*) FROM decisions)
"""


class Page(NamedTuple, Generic[T, K]):
    """Some rows, and where the next page begins; None: there is none."""

    rows: list[T]
    following: K | None


class Place(NamedTuple):
    """A place in the triplets: known ones come first."""

    known: bool
    triplet: Triplet


FIRST = Triplet("", "", "")


def triplets(
    connection: sqlite3.Connection, after: Place | None, wanted: Wanted, now: float, rules: Rules
) -> Page[Remembered, Place]:
    """Give a page of triplets that have not expired."""
    known, start = after or Place(True, FIRST)
    table, kept = (_KNOWN, rules.lifetime) if known else (_PENDING, rules.retry_window)
    # Two statements: the second one may see rows that the first one has not, in between, which are as good.
    parameters: dict[str, object] = {**start._asdict(), "wanted": wanted.client, "scan": SCAN - 1}
    end = connection.execute(table.end, parameters).fetchone()
    parameters |= {
        "end_client": end and end[0],
        "end_sender": end and end[1],
        "end_recipient": end and end[2],
        "since": None if wanted.since is None else to_ms(wanted.since),
        "live": to_ms(now) - to_ms(kept),
        **_address_parameters(wanted),
    }
    rows = [
        Remembered(
            Triplet(client, sender, recipient),
            Record(from_ms(first_seen), None if last_used is None else from_ms(last_used)),
        )
        for client, sender, recipient, first_seen, last_used in connection.execute(table.rows, parameters)
    ]
    if end is not None:
        return Page(rows, Place(known, Triplet(*end)))
    return Page(rows, Place(False, FIRST) if known else None)


def allowances(
    connection: sqlite3.Connection, after: str | None, wanted: Wanted, now: float, rules: Rules
) -> Page[Allowance, str]:
    """Give a page of earners whose allowance has not expired."""
    parameters = {"after": after or "", "wanted": wanted.client, "scan": SCAN}
    rows = connection.execute(_ALLOWANCES, parameters).fetchall()
    page = [
        Allowance(earner, Earned(passes, from_ms(counted_at), from_ms(last_used)))
        for earner, passes, counted_at, last_used in rows
        if now - from_ms(last_used) <= rules.lifetime
    ]
    return Page(page, rows[-1][0] if len(rows) == SCAN else None)


def entries(connection: sqlite3.Connection, after: tuple[str, str] | None, now: float) -> Page[Entry, tuple[str, str]]:
    """Give a page of entries that have not expired."""
    rows = connection.execute(_ENTRIES, (*(after or ("", "")), SCAN)).fetchall()
    page = [entry for row in rows if not is_over(entry := as_entry(*row), now)]
    return Page(page, rows[-1][:2] if len(rows) == SCAN else None)


def decisions(
    connection: sqlite3.Connection, after: tuple[int, int] | None, wanted: Wanted
) -> Page[Logged, tuple[int, int]]:
    """Give a page of decisions, newest first."""
    time, number = after or (2**62, 2**62)
    parameters: dict[str, object] = {
        "time": time,
        "id": number,
        "since": None if wanted.since is None else to_ms(wanted.since),
        "scan": SCAN - 1,
    }
    end = connection.execute(_DECISIONS_END, parameters).fetchone()
    parameters |= {
        "end_time": end and end[0],
        "end_id": end and end[1],
        "client": wanted.client,
        "verdict": wanted.verdict,
        "reason": wanted.reason,
        "mail": wanted.id,
        **_address_parameters(wanted),
    }
    rows = [Logged(from_ms(row[0]), *row[1:]) for row in connection.execute(_DECISIONS, parameters)]
    return Page(rows, end)


def counts(connection: sqlite3.Connection) -> Counts:
    """Count the rows."""
    return Counts(*connection.execute(_COUNTS).fetchone())


def _address_parameters(wanted: Wanted) -> dict[str, object]:
    return _one_address("sender", wanted.sender) | _one_address("recipient", wanted.recipient)


def _one_address(name: str, address: str | None) -> dict[str, object]:
    local: str | None = None
    domain: str | None = None
    end: str | None = None
    if address is not None and address.startswith("@"):
        end = address.lower()
    elif address is not None:
        before, at, after = address.rpartition("@")
        local, domain = (before + at, after.lower()) if at else (address, "")
    return {f"{name}_local": local, f"{name}_domain": domain, f"{name}_end": end}
