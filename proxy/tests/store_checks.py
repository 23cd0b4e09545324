# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the contract tests of the stores have in common: who is who, and short ways to ask a store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TypeVar

from greylist_proxy.policy import Identity, Record, Rules, Triplet, judge
from greylist_proxy.store import (
    Action,
    Changes,
    Entry,
    Kind,
    Logged,
    Removed,
    Store,
    Wanted,
)

from .stores import START

T = TypeVar("T")
HOUR = 3600.0
DAY = 24 * HOUR
RULES = Rules(delay=60, retry_window=600, lifetime=2 * HOUR, auto_allow_after=3, max_pending=4)
NET = Identity("192.0.2.0/24", "192.0.2.1")
NEIGHBOUR = Identity("192.0.2.0/24", "192.0.2.2")
OTHER = Identity("198.51.100.0/24", "198.51.100.1")
SPF = Identity("spf:far.test", "spf:far.test")
PTR = Identity("ptr:far.test", "")
A, U = "a@far.test", "u@here.test"
ALLOW = Entry(Kind.CLIENT, "192.0.2.1", Action.ALLOW, created=START, note="the boss")


async def reason(
    store: Store,
    *identities: Identity,
    sender: str = A,
    recipient: str = U,
    rules: Rules = RULES,
    record: bool = True,
) -> str:
    """Observe, and judge as the gate does."""
    identities = identities or (NET,)
    sighting = await store.observe(identities, sender, recipient, record=record)
    return judge(list(zip(identities, sighting.found, strict=True)), sighting.now, rules).reason


async def everything(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


async def listed(store: Store, wanted: Wanted | None = None) -> dict[Triplet, Record]:
    """Return the triplets as a dictionary; each must come once."""
    items = await everything(store.triplets(wanted or Wanted()))
    result = {item.triplet: item.record for item in items}
    assert len(result) == len(items)
    return result


async def deliver(store: Store, *identities: Identity, counts: bool = True, recipients: Sequence[str] = (U,)) -> None:
    await store.delivered(identities or (NET,), A, recipients, counts=counts)


async def all_changes(store: Store, position: str | None = None) -> tuple[list[Entry | Removed], str, list[bool]]:
    """Read pages to the end; return the changes, the position, and which pages said `restart`."""
    changed: list[Entry | Removed] = []
    restarts: list[bool] = []
    while True:
        page: Changes = await store.changes(position)
        assert len(page.changed) <= 1000
        if page.restart:
            changed.clear()
        changed += page.changed
        restarts.append(page.restart)
        position = page.position
        if not page.more:
            return changed, position, restarts


def logged(time: float, **fields: str) -> Logged:
    base = Logged(time, "defer", "new", "192.0.2.1", "192.0.2.0/24", A, U, 60, f"id{time:.0f}", "192.0.2.0/24")
    return replace(base, **fields)  # type: ignore[arg-type]
