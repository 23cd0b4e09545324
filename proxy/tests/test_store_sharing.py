# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every kind of store promises to many at once, between processes and over its life."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from greylist_proxy.policy import Record, Triplet
from greylist_proxy.store import Action, Counts, Entry, Kind

from .store_checks import (
    NET,
    OTHER,
    RULES,
    SPF,
    A,
    U,
    deliver,
    listed,
    logged,
    reason,
)
from .stores import START, Stores

# -- at the same time --


def test_of_many_at_once_exactly_one_is_the_first(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        words = await asyncio.gather(*(reason(store) for _n in range(200)))
        assert (words.count("new"), words.count("early")) == (1, 199)

    stores.run(play())


def test_two_stores_on_the_same_data_see_each_other(stores: Stores) -> None:
    async def play() -> None:
        here, there = stores.make(RULES), stores.make(RULES)
        assert await reason(here) == "new"
        await here.flush()
        assert await reason(there) == "early"
        stores.clock.step(60)
        assert await reason(there) == "retried"
        await deliver(there, NET, SPF)
        await there.flush()
        assert await reason(here) == "known"
        assert await reason(here, SPF) == "known"
        assert await there.put_entry(Entry(Kind.CLIENT, "192.0.2.1", Action.ALLOW))
        assert len((await here.changes(None)).changed) == 1

    stores.run(play())


def test_of_two_stores_the_earlier_first_sight_counts(stores: Stores) -> None:
    async def play() -> None:
        here, there = stores.make(RULES), stores.make(RULES)
        await reason(here)
        stores.clock.step(10)
        await reason(there)
        await deliver(there, OTHER)
        await there.flush()
        await here.flush()
        assert (await listed(here))[Triplet(NET.key, A, U)] == Record(START)
        # A delivery that one has noted is not undone by the other's older sighting.
        await deliver(here)
        await here.flush()
        assert await reason(there) == "known"

    stores.run(play())


def test_what_is_written_is_there_after_a_restart(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        await reason(store)
        await deliver(store, OTHER)
        store.note(logged(START))
        await store.put_entry(Entry(Kind.TRAP, "trap@here.test", Action.BLOCK))
        store = await stores.reopen(store, RULES)
        assert await reason(store) == "early"
        assert await reason(store, OTHER) == "known"
        assert await store.counts() == Counts(pending=1, known=1, earners=1, entries=1, decisions=1)

    stores.run(play())


def test_rules_may_change_while_it_runs(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        for number in range(RULES.max_pending):
            await reason(store, sender=f"{number}@far.test")
        store.rules = replace(RULES, max_pending=RULES.max_pending + 1)
        assert await reason(store, sender="x@far.test") == "new"
        assert await reason(store, sender="y@far.test") == "pending-cap"

    stores.run(play())


# -- the life of a store --


def test_expiry_leaves_what_counts(stores: Stores) -> None:
    async def play() -> None:
        rules = replace(RULES, auto_allow_after=0)
        store = stores.make(rules)
        await reason(store)
        await deliver(store, OTHER)
        stores.clock.step(RULES.retry_window)
        await store.flush()
        while await store.expire():
            pass
        assert await reason(store, rules=rules) == "retried"
        assert await reason(store, OTHER, rules=rules) == "known"

    stores.run(play())


def test_closing_twice_and_closing_unused_is_no_error(stores: Stores) -> None:
    async def play() -> None:
        unused = stores.make(RULES)
        await unused.close()
        await unused.close()
        used = stores.make(RULES)
        await reason(used)
        await used.close()
        await used.close()

    stores.run(play())


def test_a_name_says_where_it_is(stores: Stores) -> None:
    assert stores.make(RULES).name
