# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `store.Store` promises of sightings and deliveries, on every kind of store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from greylist_proxy.policy import Earned, Found, Record, Triplet
from greylist_proxy.store import (
    Allowance,
    Wanted,
)

from .store_checks import (
    DAY,
    HOUR,
    NEIGHBOUR,
    NET,
    OTHER,
    PTR,
    RULES,
    SPF,
    A,
    U,
    deliver,
    everything,
    listed,
    reason,
)
from .stores import START, Stores

# -- the decision --


def test_a_triplet_is_new_then_early_then_passes_then_is_known(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        assert await reason(store) == "new"
        stores.clock.step(59)
        assert await reason(store) == "early"
        stores.clock.step(1)
        assert await reason(store) == "retried"
        assert await reason(store) == "retried"
        await deliver(store)
        assert await reason(store) == "known"
        assert await reason(store, sender="b@far.test") == "new"
        assert await reason(store, recipient="v@here.test") == "new"
        assert await reason(store, OTHER) == "new"
        assert await reason(store, NEIGHBOUR) == "known"

    stores.run(play())


def test_a_sighting_says_what_was_known_before_it_and_when_it_was(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        first = await store.observe([NET, SPF], A, U)
        assert first == (START, (Found(), Found()))
        stores.clock.step(5)
        second = await store.observe([NET, SPF, PTR], A, U)
        assert second == (START + 5, (Found(Record(START)), Found(Record(START)), Found()))
        await deliver(store, NET)
        found = (await store.observe([PTR, NET], A, U)).found
        assert found == (
            Found(Record(START + 5)),
            Found(Record(START, START + 5), earned=Earned(1, START + 5, START + 5)),
        )

    stores.run(play())


@pytest.mark.parametrize("flush", [False, True])
def test_times_are_whole_seconds_from_the_first_sight(stores: Stores, flush: bool) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        expected = [(0, "new"), (600, "retried"), (0.001, "new"), (59.999, "early"), (0.001, "retried")]
        for step, word in expected:
            stores.clock.step(step)
            assert await reason(store) == word
            if flush:
                await store.flush()

    stores.run(play())


@pytest.mark.parametrize("flush", [False, True])
def test_known_for_a_lifetime_since_the_last_delivery(stores: Stores, flush: bool) -> None:
    async def play() -> None:
        store = stores.make(replace(RULES, auto_allow_after=0))
        await reason(store)
        for _n in range(3):
            await deliver(store)
            if flush:
                await store.flush()
            stores.clock.step(RULES.lifetime)
            assert await reason(store, rules=replace(RULES, auto_allow_after=0)) == "known"
        stores.clock.step(0.001)
        assert await reason(store, rules=replace(RULES, auto_allow_after=0)) == "new"

    stores.run(play())


@pytest.mark.parametrize("flush", [False, True])
def test_a_clock_that_is_set_back_makes_nobody_wait_longer(stores: Stores, flush: bool) -> None:
    async def play() -> None:
        rules = replace(RULES, auto_allow_after=0)
        store = stores.make(rules)
        await reason(store)
        await reason(store, OTHER)
        await deliver(store, OTHER)
        if flush:
            await store.flush()
        stores.clock.step(-10 * DAY)
        assert await reason(store) == "early"
        assert await reason(store, OTHER, rules=rules) == "known"
        if flush:
            await store.flush()
        records = await listed(store)
        assert records[Triplet(NET.key, A, U)] == Record(START - 10 * DAY)
        assert records[Triplet(OTHER.key, A, U)] == Record(START - 10 * DAY, START - 10 * DAY)
        stores.clock.step(60)
        assert await reason(store) == "retried"
        # Brought back, so nobody stays known for longer than the lifetime.
        stores.clock.step(RULES.lifetime)
        assert await reason(store, OTHER, rules=rules) == "new"

    stores.run(play())


def test_a_clock_set_back_does_not_revive_what_was_replaced(stores: Stores) -> None:
    async def play() -> None:
        rules = replace(RULES, auto_allow_after=0)
        store = stores.make(rules)
        await deliver(store)
        await store.flush()
        stores.clock.step(RULES.lifetime + 1)
        assert await reason(store, rules=rules) == "new"
        await store.flush()
        stores.clock.step(-RULES.lifetime)
        assert await reason(store, rules=rules) == "early"

    stores.run(play())


def test_each_identity_has_a_record_of_its_own(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        assert await reason(store, NET) == "new"
        stores.clock.step(60)
        assert await reason(store, SPF) == "new"
        assert await reason(store, NET, SPF) == "retried"
        stores.clock.step(30)
        assert await reason(store, SPF, PTR) == "early"
        await deliver(store, SPF, PTR)
        assert await reason(store, PTR) == "known"
        assert await reason(store, SPF) == "known"
        assert await reason(store, NET) == "retried"

    stores.run(play())


def test_a_delivery_makes_all_its_recipients_known(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        await reason(store)
        stores.clock.step(60)
        await deliver(store, NET, PTR, recipients=[U, "v@here.test", "w@here.test"])
        await store.flush()
        records = await listed(store)
        assert len(records) == 6
        assert records[Triplet(NET.key, A, U)] == Record(START, START + 60)
        assert set(records.values()) == {Record(START, START + 60), Record(START + 60, START + 60)}

    stores.run(play())


def test_looking_without_recording_changes_nothing(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        assert await reason(store, record=False) == "new"
        assert await reason(store) == "new"
        stores.clock.step(-100)
        assert await reason(store, record=False) == "early"
        await store.flush()
        assert await listed(store) == {Triplet(NET.key, A, U): Record(START)}

    stores.run(play())


def test_an_hour_apart_deliveries_are_counted_until_the_client_is_exempt(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        words: list[str] = []
        for _n in range(4):
            sender = f"{len(words)}@far.test"
            words.append(await reason(store, sender=sender))
            await store.delivered([NET], sender, [U], counts=True)
            await store.delivered([NET], sender, [U], counts=True)
            stores.clock.step(HOUR)
        assert words == ["new", "new", "new", "auto-allowed"]
        [allowance] = await everything(store.allowances(Wanted()))
        assert allowance == Allowance(NET.earner, Earned(4, START + 3 * HOUR, START + 3 * HOUR))
        # It is the address that is exempt, not its network.
        assert await reason(store, NEIGHBOUR, sender="x@far.test") == "new"
        # Of what is exempt no record is kept, of no identity: it would be pending for ever, and count to the cap.
        assert await reason(store, NET, SPF, sender="y@far.test") == "auto-allowed"
        assert await reason(store, SPF, NET, sender="y@far.test") == "auto-allowed"
        await store.flush()
        assert await listed(store, Wanted(sender="y@far.test")) == {}

    stores.run(play())


@pytest.mark.parametrize(
    ("steps", "passes"),
    [
        ([0], 1),
        ([0, HOUR - 1], 1),
        ([0, HOUR], 2),
        ([0, HOUR - 1, 1], 2),
        ([0, HOUR - 1, HOUR - 1], 2),
        ([0, -5 * HOUR, HOUR], 2),  # the clock was set back: the hour runs from then
        ([0, -5 * HOUR, HOUR - 1], 1),
        ([0, RULES.lifetime + 1], 1),  # forgotten, and begun again
    ],
)
@pytest.mark.parametrize("flush", [False, True])
def test_at_most_one_delivery_an_hour_counts(stores: Stores, steps: list[float], passes: int, flush: bool) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        for step in steps:
            stores.clock.step(step)
            await deliver(store)
            if flush:
                await store.flush()
        await store.flush()
        assert [item.earned.passes for item in await everything(store.allowances(Wanted()))] == [passes]

    stores.run(play())


def test_what_does_not_count_only_refreshes_what_is_earned(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        await deliver(store, NET, counts=False)
        assert await everything(store.allowances(Wanted())) == []
        await deliver(store, NET, PTR, counts=True)
        stores.clock.step(2 * HOUR)
        # An exempt client's message: nothing becomes known.
        await deliver(store, NET, counts=False, recipients=[])
        await store.flush()
        expected = Allowance(NET.earner, Earned(1, START, START + 2 * HOUR))
        assert await everything(store.allowances(Wanted())) == [expected]
        stores.clock.step(2 * HOUR + 1)
        assert await everything(store.allowances(Wanted())) == []

    stores.run(play())


def test_without_the_automatic_exemption_nobody_is_exempt(stores: Stores) -> None:
    async def play() -> None:
        rules = replace(RULES, auto_allow_after=0)
        store = stores.make(rules)
        for _n in range(5):
            await deliver(store)
            stores.clock.step(HOUR)
        assert await reason(store, sender="b@far.test", rules=rules) == "new"

    stores.run(play())


# -- the cap of rule 7 --


@pytest.mark.parametrize("flush", [False, True])
def test_the_cap_holds_exactly_and_the_rest_shares_a_record(stores: Stores, flush: bool) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        for number in range(RULES.max_pending):
            assert await reason(store, sender=f"{number}@far.test") == "new"
            if flush:
                await store.flush()
        found = (await store.observe([NET], "x@far.test", U)).found
        assert found == (Found(shared=True),)
        stores.clock.step(30)
        assert await reason(store, sender="y@far.test") == "pending-cap"
        found = (await store.observe([NET], "z@far.test", U)).found
        assert found == (Found(Record(START), shared=True),)
        # Another domain of ours, another network: a delay of its own. The first ones keep theirs.
        assert await reason(store, sender="x@far.test", recipient="u@there.test") == "pending-cap"
        assert await reason(store, OTHER) == "new"
        assert await reason(store, sender="0@far.test") == "early"
        stores.clock.step(30)
        assert await reason(store, sender="new@far.test") == "retried"
        assert await reason(store, sender="x@far.test", recipient="u@there.test") == "pending-cap"
        await store.flush()
        # Shared records are neither listed nor counted.
        assert {triplet.sender for triplet in await listed(store, Wanted(client=NET.key))} == {
            f"{number}@far.test" for number in range(RULES.max_pending)
        }
        assert (await store.counts()).pending == RULES.max_pending + 1

    stores.run(play())


@pytest.mark.parametrize("flush", [False, True])
def test_who_comes_back_makes_room_and_so_does_time(stores: Stores, flush: bool) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        for number in range(RULES.max_pending):
            await reason(store, sender=f"{number}@far.test")
        assert await reason(store, sender="x@far.test") == "pending-cap"
        if flush:
            await store.flush()
        await store.delivered([NET], "0@far.test", [U], counts=False)
        # A shared record that is alive is still shared: whom it put off does not begin anew.
        assert await reason(store, sender="x@far.test") == "pending-cap"
        assert await reason(store, sender="x@far.test", recipient="u@there.test") == "new"
        assert await reason(store, sender="y@far.test", recipient="u@there.test") == "pending-cap"
        stores.clock.step(60)
        assert await reason(store, sender="x@far.test") == "retried"
        stores.clock.step(RULES.retry_window + 1)
        assert await reason(store, sender="x@far.test") == "new"

    stores.run(play())


def test_many_at_once_do_not_get_past_the_cap(stores: Stores) -> None:
    async def play() -> None:
        rules = replace(RULES, max_pending=10)
        store = stores.make(rules)
        words = await asyncio.gather(*(reason(store, sender=f"{number}@far.test", rules=rules) for number in range(50)))
        assert (words.count("new"), words.count("pending-cap")) == (10, 40)
        await store.flush()
        assert (await store.counts()).pending == 10

    stores.run(play())
