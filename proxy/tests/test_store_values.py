# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text from outside is a value and nothing else, in every kind of store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from greylist_proxy.policy import Identity, Record, Triplet
from greylist_proxy.store import Action, Entry, Kind, Wanted

from .store_checks import NET, RULES, A, U, deliver, everything, listed, logged, reason
from .stores import START, Stores

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


@pytest.mark.parametrize("text", HOSTILE)
def test_an_entry_with_any_text_can_be_replaced_and_removed(stores: Stores, text: str) -> None:
    async def play() -> None:
        store = stores.make(RULES)
        entry = Entry(Kind.SENDER, text, Action.ALLOW, created=START, note=text)
        assert await store.put_entry(entry)
        [kept] = await everything(store.entries())
        kept.note.encode()  # or no archive could hold it
        assert await store.put_entry(replace(entry, action=Action.BLOCK))
        assert [each.action for each in await everything(store.entries())] == [Action.BLOCK]
        assert await store.load([entry]) == 0  # an operator's own is there
        assert await store.remove_entry(entry.kind, entry.value)
        assert await everything(store.entries()) == []

    stores.run(play())
