# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `store.Store` promises of entries, on every kind of store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from greylist_proxy.store import (
    Action,
    Kind,
    Removed,
    Source,
)

from .store_checks import (
    ALLOW,
    DAY,
    RULES,
    all_changes,
    everything,
)
from .stores import START, Stores


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
