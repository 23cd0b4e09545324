# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records on the move: what another store, postgrey or sqlgrey remembers, into a store of ours.

`archive.py` is the format of our own, `postgrey.py` and `sqlgrey.py` read what those programs left behind, and
`load` takes what any of them gives. Stores merge what they are given, so an import may be broken off and run again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from greylist_proxy.policy import Rules, is_expired
from greylist_proxy.store import Allowance, Entry, Item, Remembered, Store

CHUNK = 1000  # items in one transaction: each is durable, and none keeps a shared store busy for long


class TransferError(Exception):
    """What is to be read is not what it should be; the text says where and why, in one line."""


@dataclass(slots=True)
class Loaded:
    """What became of the items: how many the store was given, and for how many of them it had something to write."""

    triplets: int = 0
    allowances: int = 0
    entries: int = 0
    expired: int = 0
    changed: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # why, how often


async def load(store: Store, items: Iterable[Item], rules: Rules, now: float, into: Loaded, *, dry_run: bool) -> None:
    """Put the items into the store, but for what has expired at `now` (seconds since 1970).

    `into` counts while it goes, so that after an error of the reader or the store it says what is loaded already.
    """
    chunk: list[Item] = []
    try:
        for item in items:
            if _is_over(item, now, rules):
                into.expired += 1
                continue
            chunk.append(item)
            if len(chunk) == CHUNK:
                full, chunk = chunk, []
                await _put(store, full, into, dry_run=dry_run)
    except TransferError:
        # What came before the fault is good, and `into` says how much that was.
        await _put(store, chunk, into, dry_run=dry_run)
        raise
    await _put(store, chunk, into, dry_run=dry_run)


async def _put(store: Store, chunk: list[Item], into: Loaded, *, dry_run: bool) -> None:
    if dry_run:
        await asyncio.sleep(0)  # what shows the progress wants its turn
    elif chunk:
        into.changed += await store.load(chunk)
    for item in chunk:
        if isinstance(item, Remembered):
            into.triplets += 1
        elif isinstance(item, Allowance):
            into.allowances += 1
        else:
            into.entries += 1


def _is_over(item: Item, now: float, rules: Rules) -> bool:
    if isinstance(item, Remembered):
        return is_expired(item.record, now, rules)
    if isinstance(item, Entry):
        return item.expires is not None and item.expires <= now
    return now - item.earned.last_used > rules.lifetime
