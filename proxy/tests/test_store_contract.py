# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `store.Store` promises, on every kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest
from greylist_proxy.policy import Earned, Found, Identity, Record, Rules, Triplet, judge
from greylist_proxy.store import (
    Action,
    Allowance,
    Changes,
    Counts,
    Entry,
    Item,
    Kind,
    Limits,
    Logged,
    Remembered,
    Removed,
    Source,
    Store,
    Wanted,
)

from .stores import START, Stores
from .stores import stores as stores

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
        # Of what is exempt no record is kept; another identity of the client still gets its own.
        assert await reason(store, NET, SPF, sender="y@far.test") == "auto-allowed"
        await store.flush()
        assert {triplet.client for triplet in await listed(store, Wanted(sender="y@far.test"))} == {SPF.key}

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


# -- what comes from outside --

HOSTILE = [
    "'; DROP TABLE pending; --",
    '"quoted"@far.test',
    "%@far.test",
    "_@far.test",
    "*@far.test",
    "?[a-z]{1,2}@far.test",
    "[]@far.test",
    "{}@far.test",
    "back\\slash@far.test",
    "line\nfeed\r\n@far.test",
    "tab\t@far.test",
    "a b:c|d,e;f@far.test",
    "π@παράδειγμα.test",
    "\U0001f4e7@far.test",
    "\ud800@far.test",  # not UTF-8
    "\0@far.test",
    "",
    "<>",
    "x" * 1000 + "@far.test",
]


@pytest.mark.parametrize("flush", [False, True])
def test_any_text_is_a_value_and_nothing_else(stores: Stores, flush: bool) -> None:
    async def play() -> None:
        rules = replace(RULES, max_pending=1000)
        store = stores.make(rules)
        for text in HOSTILE:
            assert await reason(store, sender=text, rules=rules) == "new"
            if flush:
                await store.flush()
        for text in HOSTILE:
            assert await reason(store, sender=text, rules=rules) == "early"
            identity = Identity(f"spf:{text}", f"spf:{text}")
            assert await reason(store, identity, recipient=text, rules=rules) == "new"
            await deliver(store, identity, recipients=[text])
            if flush:
                await store.flush()
            assert await reason(store, identity, recipient=text, rules=rules) == "known"
        await store.flush()
        listing = await listed(store)
        assert len(listing) == 2 * len(HOSTILE)
        assert await store.remove_triplets(list(listing)) == len(listing)
        assert await listed(store) == {}

    stores.run(play())


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isprintable() and text])
def test_any_text_can_be_asked_for(stores: Stores, text: str) -> None:
    async def play() -> None:
        store = stores.make(replace(RULES, max_pending=1000))
        for other in (A, text, "x" + text):
            await store.observe([NET], other, U)
            store.note(replace(logged(START), sender=other))
        await store.flush()
        assert await store.put_entry(Entry(Kind.SENDER, text, Action.BLOCK, note=text))
        assert await listed(store, Wanted(sender=text)) == {Triplet(NET.key, text, U): Record(START)}
        assert [item.sender for item in await everything(store.decisions(Wanted(sender=text)))] == [text]
        [entry] = await everything(store.entries())
        assert (entry.value, entry.note) == (text, text)
        assert await store.remove_entry(Kind.SENDER, text)

    stores.run(play())


# -- entries --

ALLOW = Entry(Kind.CLIENT, "192.0.2.1", Action.ALLOW, created=START, note="the boss")


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


def test_an_entry_is_made_replaced_and_removed(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        assert await everything(store.entries()) == []
        assert not await store.remove_entry(ALLOW.kind, ALLOW.value)
        other_kind = replace(ALLOW, kind=Kind.SENDER)
        assert await store.put_entry(ALLOW)
        assert await store.put_entry(other_kind)
        block = replace(ALLOW, action=Action.BLOCK, expires=START + 60)
        assert await store.put_entry(block)
        assert sorted(await everything(store.entries()), key=lambda entry: entry.kind) == [block, other_kind]
        assert await store.remove_entry(ALLOW.kind, ALLOW.value)
        assert not await store.remove_entry(ALLOW.kind, ALLOW.value)
        assert await everything(store.entries()) == [other_kind]

    stores.run(play())


@pytest.mark.parametrize(
    ("there", "comes", "is_put"),
    [
        (Source.OPERATOR, Source.OPERATOR, True),
        (Source.OPERATOR, Source.LEARNED, False),
        (Source.OPERATOR, Source.TRAP, False),
        (Source.LEARNED, Source.OPERATOR, True),
        (Source.TRAP, Source.LEARNED, True),
        (Source.TRAP, Source.TRAP, True),
    ],
)
def test_an_operators_entry_is_overwritten_by_operators_alone(
    stores: Stores, there: Source, comes: Source, is_put: bool
) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        old = replace(ALLOW, source=there)
        new = replace(ALLOW, action=Action.BLOCK, source=comes, note="another")
        assert await store.put_entry(old)
        assert await store.put_entry(new) is is_put
        assert await everything(store.entries()) == [new if is_put else old]
        # One that has expired stands in nobody's way.
        assert await store.put_entry(replace(old, source=Source.OPERATOR, expires=START + 60))
        stores.clock.step(61)
        assert await store.put_entry(new)
        assert await everything(store.entries()) == [new]

    stores.run(play())


def test_an_entry_ends_when_it_expires(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        await store.put_entry(replace(ALLOW, expires=START + 60))
        await store.put_entry(replace(ALLOW, value="192.0.2.2"))
        _changed, position, _restarts = await all_changes(store)
        stores.clock.step(59)
        assert len(await everything(store.entries())) == 2
        stores.clock.step(2)
        assert [entry.value for entry in await everything(store.entries())] == ["192.0.2.2"]
        while await store.expire():
            pass
        # Who keeps a copy may know by `expires` alone, but is never told of an entry that does not end.
        changed, _position, restarts = await all_changes(store, position)
        assert restarts == [False]
        assert changed in ([], [Removed(Kind.CLIENT, "192.0.2.1")])

    stores.run(play())


def test_changes_are_given_from_where_one_was(stores: Stores) -> None:
    async def play() -> None:
        store, other = stores.make(RULES), stores.make(RULES)
        assert (await all_changes(store))[::2] == ([], [True])
        first = replace(ALLOW, value="192.0.2.3")
        await other.put_entry(first)
        changed, position, restarts = await all_changes(store)
        assert (changed, restarts) == ([first], [True])
        assert (await all_changes(store, position))[::2] == ([], [False])
        await other.put_entry(ALLOW)
        await other.put_entry(replace(ALLOW, value="192.0.2.2"))
        changed, position, restarts = await all_changes(store, position)
        assert (changed, restarts) == ([ALLOW, replace(ALLOW, value="192.0.2.2")], [False])
        await other.remove_entry(ALLOW.kind, ALLOW.value)
        await other.put_entry(replace(ALLOW, value="192.0.2.2", action=Action.BLOCK))
        changed, _position, _restarts = await all_changes(other, position)
        assert changed == [
            Removed(Kind.CLIENT, "192.0.2.1"),
            replace(ALLOW, value="192.0.2.2", action=Action.BLOCK),
        ]

    stores.run(play())


@pytest.mark.parametrize("position", ["", "nonsense", "a:b:c", "0", "1-0", "ffffffffffffffff:999:0", ":::::"])
def test_a_position_of_another_store_starts_again(stores: Stores, position: str) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        await store.put_entry(ALLOW)
        changed, its_own, restarts = await all_changes(store, position)
        assert (changed, restarts) == ([ALLOW], [True])
        assert (await all_changes(store, its_own))[::2] == ([], [False])
        elsewhere = stores.make(RULES, data="elsewhere")
        await elsewhere.put_entry(replace(ALLOW, value="192.0.2.9"))
        assert (await all_changes(elsewhere, its_own))[2] == [True]

    stores.run(play())


def test_thousands_of_entries_come_in_pages(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        entries = [replace(ALLOW, value=f"10.0.{number // 256}.{number % 256}") for number in range(3000)]
        assert await store.load(entries) == 3000
        changed, position, restarts = await all_changes(store)
        assert restarts[0]
        assert not any(restarts[1:])
        assert len(restarts) >= 3
        assert sorted(changed, key=lambda entry: entry.value) == sorted(entries, key=lambda entry: entry.value)
        assert (await all_changes(store, position))[0] == []
        assert len(await everything(store.entries())) == 3000

    stores.run(play())


def test_who_was_away_too_long_starts_again_or_misses_nothing(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        await store.load([replace(ALLOW, value=f"10.0.0.{number}") for number in range(5)])
        _changed, position, _restarts = await all_changes(store)
        await store.remove_entry(Kind.CLIENT, "10.0.0.1")
        stores.clock.step(2 * DAY)
        while await store.expire():
            pass
        mirror = {f"10.0.0.{number}" for number in range(5)}
        changed, position, restarts = await all_changes(store, position)
        if any(restarts):
            mirror = set()
        for change in changed:
            (mirror.discard if isinstance(change, Removed) else mirror.add)(change.value)
        assert mirror == {"10.0.0.0", "10.0.0.2", "10.0.0.3", "10.0.0.4"}
        assert (await all_changes(store, position))[::2] == ([], [False])

    stores.run(play())


# -- decisions --


def logged(time: float, **fields: str) -> Logged:
    base = Logged(time, "defer", "new", "192.0.2.1", "192.0.2.0/24", A, U, 60, f"id{time:.0f}", "192.0.2.0/24")
    return replace(base, **fields)  # type: ignore[arg-type]


def test_decisions_are_kept_whole_and_given_newest_first(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        full = Logged(
            START - 1, "allow", "retried", "2001:db8::1", "2001:db8::/64", "A@Far.Test", "U@Here.Test", 0, "x",
            "spf:far.test", "allow.txt:3", "defer",
        )  # fmt: skip
        decisions = [*(logged(START - 20 + number) for number in range(3)), full]
        for decision in decisions:
            store.note(decision)
        await store.flush()
        assert await everything(store.decisions(Wanted())) == decisions[::-1]

    stores.run(play())


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), "edcba"),
        (Wanted(client="192.0.2.1"), "a"),
        (Wanted(client="192.0.2.0/24"), "ba"),
        (Wanted(client="spf:far.test"), "c"),
        (Wanted(client="192.0.2"), ""),
        (Wanted(sender="a@far.test"), "ba"),
        (Wanted(sender="a@FAR.test"), "ba"),
        (Wanted(sender="A@far.test"), "c"),
        (Wanted(sender="@far.TEST"), "cba"),
        (Wanted(sender="@test"), ""),
        (Wanted(sender="<>"), "e"),
        (Wanted(recipient="v@here.test"), "db"),
        (Wanted(recipient="@sub.here.test"), "c"),
        (Wanted(recipient="@here.test"), "edba"),
        (Wanted(verdict="allow"), "dc"),
        (Wanted(reason="early"), "b"),
        (Wanted(verdict="allow", sender="@far.test"), "c"),
        (Wanted(since=START - 2), "edc"),
    ],
)
def test_decisions_are_narrowed(stores: Stores, wanted: Wanted, expected: str) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        for decision in (
            logged(START - 4, id="a"),
            logged(
                START - 3, id="b", client="192.0.2.77", sender="a@Far.Test", recipient="v@here.test", reason="early",
            ),
            logged(
                START - 2, id="c", client="::1", network="::/64", key="spf:far.test", sender="A@far.test",
                recipient="u@sub.here.test", verdict="allow", reason="retried",
            ),
            logged(
                START - 1, id="d", client="::1", network="::/64", key="", sender="a@sub.far.test",
                recipient="v@HERE.test", verdict="allow", reason="known",
            ),
            logged(START, id="e", client="::1", network="::/64", key="", sender="<>"),
        ):  # fmt: skip
            store.note(decision)
        await store.flush()
        assert "".join([decision.id for decision in await everything(store.decisions(wanted))]) == expected

    stores.run(play())


def test_thousands_of_decisions_come_in_order_also_of_the_same_moment(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        for number in range(5000):
            store.note(logged(START + number // 3, id=str(number)))
        await store.flush()
        times = [decision.time for decision in await everything(store.decisions(Wanted()))]
        assert len(times) == 5000
        assert times == sorted(times, reverse=True)
        ids = {decision.id for decision in await everything(store.decisions(Wanted()))}
        assert len(ids) == 5000

    stores.run(play())


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (Limits(timeout=20), 30),
        (Limits(timeout=20, max_decisions=10), 10),
        (Limits(timeout=20, decisions_lifetime=10), 10),
        (Limits(timeout=20, max_decisions=0), 0),
        (Limits(timeout=20, decisions_lifetime=0), 0),
    ],
)
def test_old_and_surplus_decisions_go(stores: Stores, limits: Limits, kept: int) -> None:
    async def play() -> None:
        store = stores.make(RULES, limits)
        for number in range(30):
            store.note(logged(START - 29.5 + number, id=str(number)))
        await store.flush()
        while await store.expire():
            pass
        ids = [decision.id for decision in await everything(store.decisions(Wanted()))]
        # A store may count them in blocks: never fewer than allowed, and bounded.
        assert ids[:kept] == [str(29 - number) for number in range(kept)]
        if limits.max_decisions >= 30 or kept == 0:
            assert len(ids) == kept
        else:
            assert len(ids) <= 30

    stores.run(play())


# -- looking and moving --


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), {"1", "2", "3", "4", "5"}),
        (Wanted(client=NET.key), {"1", "2", "3"}),
        (Wanted(client="192.0.2"), set()),
        (Wanted(sender="1@far.test"), {"1"}),
        (Wanted(sender="1@FAR.test"), {"1"}),
        (Wanted(sender="@far.test"), {"1", "2", "4"}),
        (Wanted(sender="@test"), set()),
        (Wanted(sender="far.test"), set()),
        (Wanted(recipient="@here.test"), {"1", "3", "4", "5"}),
        (Wanted(recipient="@sub.here.test"), {"2"}),
        (Wanted(recipient=U, client=OTHER.key), {"4", "5"}),
        (Wanted(since=START + 1), {"3", "4", "5"}),
    ],
)
def test_triplets_are_narrowed(stores: Stores, wanted: Wanted, expected: set[str]) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        await store.observe([NET], "1@far.test", U)
        await store.observe([NET], "2@far.test", "u@sub.here.test")
        stores.clock.step(1)
        await store.observe([NET], "3@sub.far.test", U)
        await store.observe([OTHER], "4@far.test", U)
        await store.delivered([OTHER], "5@sub.far.test", [U], counts=True)
        assert {triplet.sender[0] for triplet in await listed(store, wanted)} == expected

    stores.run(play())


def test_thousands_of_triplets_are_listed_once_each_and_expired_ones_are_not(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        items = [
            Remembered(
                Triplet(f"10.{number % 7}.0.0/24", f"{number}@far.test", U),
                Record(START, START if number % 2 else None),
            )
            for number in range(7000)
        ]
        assert await store.load(items) == 7000
        assert await listed(store) == {item.triplet: item.record for item in items}
        assert len(await listed(store, Wanted(client="10.3.0.0/24"))) == 1000
        assert len(await listed(store, Wanted(sender="6999@far.test"))) == 1
        counts = await store.counts()
        assert (counts.pending, counts.known) == (3500, 3500)
        stores.clock.step(RULES.retry_window + 1)
        assert len(await listed(store)) == 3500
        while await store.expire():
            pass
        assert len(await listed(store)) == 3500
        stores.clock.step(RULES.lifetime)
        assert await listed(store) == {}

    stores.run(play())


def test_allowances_are_listed_and_expire(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        await deliver(store, NET, SPF, PTR)
        await store.flush()
        earned = Earned(1, START, START)
        items = await everything(store.allowances(Wanted()))
        assert sorted(items, key=lambda item: item.earner) == [
            Allowance(NET.earner, earned),
            Allowance(SPF.earner, earned),
        ]
        assert await everything(store.allowances(Wanted(client="spf:far.test"))) == [Allowance(SPF.earner, earned)]
        assert await everything(store.allowances(Wanted(client=NET.key))) == []
        stores.clock.step(RULES.lifetime + 1)
        assert await everything(store.allowances(Wanted())) == []

    stores.run(play())


def test_what_is_removed_is_new_again(stores: Stores) -> None:
    async def play() -> None:
        store, other = stores.make(RULES), stores.make(RULES)
        await reason(store)
        await deliver(store, OTHER)
        await reason(store, sender="stays@far.test")
        gone = [Triplet(NET.key, A, U), Triplet(OTHER.key, A, U)]
        missing = Triplet(NET.key, "never@far.test", U)
        assert await store.remove_triplets([*gone, missing]) == 2
        assert await store.remove_triplets(gone) == 0
        assert await store.remove_triplets([]) == 0
        assert set(await listed(store)) == {Triplet(NET.key, "stays@far.test", U)}
        assert await reason(store) == "new"
        assert await reason(other, OTHER) == "new"

    stores.run(play())


TRIPLET = Triplet(NET.key, A, U)


@pytest.mark.parametrize(
    ("there", "comes", "result", "changes"),
    [
        (None, Record(START), Record(START), 1),
        (Record(START), Record(START), Record(START), 0),
        (Record(START), Record(START - 5), Record(START - 5), 1),
        (Record(START), Record(START + 5), Record(START), 0),
        (Record(START), Record(START + 5, START + 5), Record(START, START + 5), 1),
        (Record(START, START), Record(START - 5), Record(START - 5, START), 1),
        (Record(START, START + 5), Record(START + 1, START + 4), Record(START, START + 5), 0),
        (Record(START, START + 5), Record(START - 1, START + 9), Record(START - 1, START + 9), 1),
        (Record(START), Record(START - RULES.retry_window - 50), Record(START), 0),  # has expired
    ],
)
def test_a_loaded_triplet_is_merged(
    stores: Stores, there: Record | None, comes: Record, result: Record, changes: int
) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        stores.clock.step(10)
        if there is not None:
            assert await store.load([Remembered(TRIPLET, there)]) == 1
        assert await store.load([Remembered(TRIPLET, comes)]) == changes
        assert await listed(store) == {TRIPLET: result}
        assert await store.load([Remembered(TRIPLET, comes)]) == 0

    stores.run(play())


@pytest.mark.parametrize(
    ("there", "comes", "result", "changes"),
    [
        (None, Earned(2, START, START), Earned(2, START, START), 1),
        (Earned(2, START, START), Earned(1, START - 1, START - 1), Earned(2, START, START), 0),
        (Earned(2, START, START), Earned(1, START + 1, START + 2), Earned(2, START + 1, START + 2), 1),
        (Earned(2, START, START), Earned(9, START - 1, START - 1), Earned(9, START, START), 1),
    ],
)
def test_a_loaded_allowance_is_merged(
    stores: Stores, there: Earned | None, comes: Earned, result: Earned, changes: int
) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        if there is not None:
            assert await store.load([Allowance(NET.earner, there)]) == 1
        assert await store.load([Allowance(NET.earner, comes)]) == changes
        assert await everything(store.allowances(Wanted())) == [Allowance(NET.earner, result)]

    stores.run(play())


def test_a_loaded_entry_leaves_an_operators_own(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        learned = replace(ALLOW, value="192.0.2.2", source=Source.LEARNED)
        await store.put_entry(ALLOW)
        await store.put_entry(learned)
        others: list[Item] = [
            replace(ALLOW, action=Action.BLOCK),
            replace(learned, action=Action.BLOCK, source=Source.OPERATOR),
            replace(ALLOW, value="192.0.2.3"),
        ]
        assert await store.load(others) == 2
        assert await store.load(others) == 0
        assert {entry.value: (entry.action, entry.source) for entry in await everything(store.entries())} == {
            "192.0.2.1": (Action.ALLOW, Source.OPERATOR),
            "192.0.2.2": (Action.BLOCK, Source.OPERATOR),
            "192.0.2.3": (Action.ALLOW, Source.OPERATOR),
        }

    stores.run(play())


def test_a_store_moves_into_another_one_whole(stores: Stores) -> None:
    async def play() -> None:
        source, target = stores.make(RULES), stores.make(RULES, data="target")
        await reason(source)
        await deliver(source, OTHER, SPF)
        await source.put_entry(ALLOW)
        items: list[Item] = [
            *await everything(source.triplets(Wanted())),
            *await everything(source.allowances(Wanted())),
            *await everything(source.entries()),
        ]
        assert await target.load(items) == len(items) == 6
        assert await target.load(items) == 0
        assert await listed(target) == await listed(source)
        assert await target.counts() == await source.counts()
        assert await reason(target) == "early"
        assert await reason(target, OTHER) == "known"

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
