# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator wants of an entry: read from JSON, compared with what is there, and shown as JSON.

    {"kind": "client", "value": "192.0.2.7", "action": "allow", "expires": "30d", "note": "waiting for their invoice"}

An entry that says the same already is left as it is. One that was made for a duration says the same until it expires:
asking for `30d` each day must neither be a change each day nor make it last for ever.
"""

from __future__ import annotations

import datetime
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from greylist_proxy.lists.entries import EntryError, canonical, quoted
from greylist_proxy.moments import WHEN, iso_time, lasting, to_come
from greylist_proxy.store import Action, Entry, Kind, Source

MAX_NOTE = 500  # characters
KEYS = ("kind", "value", "action", "expires", "note")
SLACK = 5.0  # seconds between an entry's making and the moment that its duration was counted from
UNKEPT = re.compile("[\0\ud800-\udfff]")  # JSON and command lines have them, text that can be kept has not
KINDS = ", ".join(Kind)
ACTIONS = ", ".join(Action)


class Keeper(Protocol):
    """Where entries are kept: a store, or a running server that has one (`commands/running.py`). StoreError."""

    def entries(self) -> AsyncIterator[Entry]:
        """Give the entries that have not expired, in no order."""

    async def put_entry(self, entry: Entry) -> bool:
        """Make or replace an entry. False: an operator's own stands in the way."""

    async def remove_entry(self, kind: Kind, value: str) -> bool:
        """Remove an entry; False where there is none."""


@dataclass(frozen=True)
class Wish:
    """The entry that is to be there, and how long it was to last where that was said, in seconds."""

    entry: Entry
    lasts: float | None = None

    def is_met_by(self, entry: Entry | None) -> bool:
        """Tell whether an entry says the same."""
        wanted = self.entry
        if entry is None or entry.source is not Source.OPERATOR:
            return False
        wanted_rule = (wanted.kind, wanted.value, wanted.action, wanted.note)
        if (entry.kind, entry.value, entry.action, entry.note) != wanted_rule:
            return False
        if entry.expires is None or wanted.expires is None:
            return entry.expires is wanted.expires
        if self.lasts is not None:
            return abs(entry.expires - entry.created - self.lasts) <= SLACK
        return abs(entry.expires - wanted.expires) < 1  # a time is written in whole seconds


def read_wish(data: object) -> Wish:
    """Read what an operator sent. EntryError: it can't be meant, the text says why."""
    if not isinstance(data, dict) or not set(data) <= set(KEYS):
        raise EntryError(f"allowed is an object with the keys {', '.join(KEYS)}")
    kind, value = subject(data)
    given = data.get("action")
    if kind is Kind.TRAP and given is not None:
        raise EntryError("a trap has no action: it blocks the client that mails it for a while")
    action = Action.BLOCK if kind is Kind.TRAP else Action.ALLOW
    if given is not None:
        if given not in tuple(Action):
            raise EntryError(f"action {quoted(str(given))}: allowed is one of {ACTIONS}")
        action = Action(given)
    note = data.get("note") or ""
    if not isinstance(note, str) or len(note) > MAX_NOTE or UNKEPT.search(note):
        raise EntryError(f"note: allowed is text of up to {MAX_NOTE} characters")
    expires = data.get("expires")
    if expires in (None, ""):
        return Wish(Entry(kind, value, action, Source.OPERATOR, time.time(), None, note))
    text = str(expires)
    try:
        moment = to_come(text)
    except ValueError as error:
        raise EntryError(f"expires: {error if len(text) <= 100 else f'allowed is {WHEN}'}") from None
    return Wish(Entry(kind, value, action, Source.OPERATOR, time.time(), moment, note), lasting(text))


def subject(data: Mapping[str, object]) -> tuple[Kind, str]:
    """Read which entry is meant: its kind, and its value as it is kept. EntryError: none can be."""
    kind, value = data.get("kind"), data.get("value")
    if not isinstance(kind, str) or kind not in tuple(Kind):
        raise EntryError(f"kind {quoted(str(kind))}: allowed is one of {KINDS}")
    if not isinstance(value, str):
        raise EntryError("value: allowed is text")
    return Kind(kind), canonical(Kind(kind), value)


async def find_entry(keeper: Keeper, kind: Kind, value: str) -> Entry | None:
    """Return the entry of that kind and value, None where there is none. StoreError."""
    async for entry in keeper.entries():
        if (entry.kind, entry.value) == (kind, value):
            return entry
    return None


async def count_entries(entries: AsyncIterator[Entry], advance: Callable[[], object] = lambda: None) -> Counter[str]:
    """Count entries by kind, and for clients, senders and recipients by action: `client allow`."""
    counted: Counter[str] = Counter()
    async for entry in entries:
        counted[str(entry.kind) if entry.kind is Kind.TRAP else f"{entry.kind} {entry.action}"] += 1
        advance()
    return counted


def as_json(entry: Entry) -> dict[str, str | None]:
    """Show an entry to programs; times are ISO 8601, in UTC."""
    return {
        "kind": str(entry.kind),
        "value": entry.value,
        "action": str(entry.action),
        "source": str(entry.source),
        "created": iso_time(entry.created),
        "expires": iso_time(entry.expires),
        "note": entry.note,
    }


def from_json(data: Mapping[str, str]) -> Entry:
    """Return the entry that `as_json` showed. KeyError, TypeError, ValueError: it did not."""
    created, expires = data["created"], data["expires"]  # null where there is none
    return Entry(
        Kind(data["kind"]),
        data["value"],
        Action(data["action"]),
        Source(data["source"]),
        _time(created) if created else 0.0,
        _time(expires) if expires else None,
        data["note"],
    )


def _time(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()
