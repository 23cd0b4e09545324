# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `store.Store` promises to those who look and move, on every kind of store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from greylist_proxy.policy import Earned, Record, Triplet
from greylist_proxy.store import (
    Action,
    Allowance,
    Item,
    Limits,
    Logged,
    Remembered,
    Source,
    Wanted,
)

from .store_checks import (
    ALLOW,
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
    logged,
    reason,
)
from .stores import START, Stores

# -- decisions --


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
        (Wanted(id="b"), "b"),
        (Wanted(id="B"), ""),
        (Wanted(id="b", verdict="allow"), ""),
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


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("0A.1", ["0A.1"]), ("0A", ["0A.2", "0A.1"]), ("0", []), ("0A.", []), ("0A.1.1", []), ("%", []), ("", [])],
)
def test_a_transactions_decisions_are_found_by_its_id(stores: Stores, wanted: str, expected: list[str]) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        for number, ident in enumerate(("0A.1", "0A.2", "0AB.1", "A.1")):
            store.note(logged(START + number, id=ident))
        await store.flush()
        assert [decision.id for decision in await everything(store.decisions(Wanted(id=wanted)))] == expected

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


@pytest.mark.parametrize("flush", [False, True])
def test_what_triplets_share_is_removed_with_them(stores: Stores, flush: bool) -> None:
    async def play() -> None:
        rules = replace(RULES, max_pending=2)
        store = stores.make(rules)
        for number, expected in enumerate(("new", "new", "pending-cap")):
            assert await reason(store, sender=f"{number}@far.test", rules=rules) == expected
        if flush:
            await store.flush()
        stores.clock.step(RULES.delay)
        assert await store.remove_triplets(list(await listed(store))) == 2
        assert await reason(store, sender="another@far.test", rules=rules) == "new"

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


@pytest.mark.parametrize(
    ("there", "comes", "expires"),
    [
        (START + 90, START + 1, START + 90),
        (START + 1, START + 90, START + 90),
        (None, START + 90, None),
        (START + 90, None, None),
    ],
)
@pytest.mark.parametrize("source", [Source.LEARNED, Source.TRAP])
def test_of_entries_of_one_source_the_one_that_ends_later_stays(
    stores: Stores, source: Source, there: float | None, comes: float | None, expires: float | None
) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        entry = replace(ALLOW, source=source)
        assert await store.load([replace(entry, expires=there)]) == 1
        assert await store.load([replace(entry, expires=comes)]) == (expires == comes)
        assert await everything(store.entries()) == [replace(entry, expires=expires)]
        # Another source's is another matter.
        other = replace(entry, source=Source.OPERATOR, expires=START + 1)
        assert await store.load([other]) == 1
        assert await everything(store.entries()) == [other]

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
