# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Places, and who waits for them: in turn, none lost, none given twice; a client's share, whatever the others do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest
from greylist_proxy.smtp.limits import client_key
from greylist_proxy.smtp.turns import Shares, Turns
from hypothesis import given
from hypothesis import strategies as st

A, B = client_key("192.0.2.1"), client_key("2001:db8::1")
LONG = 30.0  # seconds: nobody waits for so long here


def run(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, LONG))


async def turn_of_the_loop() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def waiters(turns: Turns, count: int, order: list[int]) -> list[asyncio.Task[bool]]:
    """Let so many wait, who write their numbers down when they have a place."""

    async def wait(number: int) -> bool:
        taken = await turns.take(LONG)
        order.append(number)
        return taken

    tasks = [asyncio.ensure_future(wait(number)) for number in range(count)]
    await turn_of_the_loop()
    return tasks


def test_places_are_given_on_in_turn() -> None:
    async def scene() -> None:
        turns, order = Turns(2), list[int]()
        assert [turns.take_now() for _n in range(3)] == [True, True, False]
        tasks = await waiters(turns, 3, order)
        assert (turns.taken, turns.waiting, order) == (2, 3, [])
        turns.give()
        assert not turns.take_now(), "it is the first waiter's, who does not know it yet"
        turns.give()
        await turn_of_the_loop()
        assert (turns.taken, turns.waiting, order) == (2, 1, [0, 1])
        for _n in range(3):
            turns.give()
            await turn_of_the_loop()
        assert [await task for task in tasks] == [True] * 3
        assert (turns.taken, turns.waiting, order) == (0, 0, [0, 1, 2])

    run(scene())


def test_who_gives_up_leaves_no_trace() -> None:
    async def scene() -> None:
        turns, order = Turns(1), list[int]()
        assert turns.take_now()
        assert not await turns.take(0.01)
        assert turns.waiting == 0
        first, second, third = await waiters(turns, 3, order)
        second.cancel()
        await turn_of_the_loop()
        assert (second.cancelled(), turns.waiting) == (True, 2)
        first.cancel()
        turns.give()  # before the first one has run: the place is the third one's
        await turn_of_the_loop()
        assert (first.cancelled(), await third, order) == (True, True, [2])
        assert (turns.taken, turns.waiting) == (1, 0)

    run(scene())


def test_a_place_that_comes_too_late_is_the_next_ones() -> None:
    async def scene() -> None:
        turns, order = Turns(1), list[int]()
        assert turns.take_now()
        first, second = await waiters(turns, 2, order)
        turns.give()
        first.cancel()  # it has the place, and does not know it
        await turn_of_the_loop()
        assert (first.cancelled(), await second, order) == (True, True, [1])
        assert (turns.taken, turns.waiting) == (1, 0)

    run(scene())


def test_more_places_wake_who_waits_and_fewer_take_none_away() -> None:
    async def scene() -> None:
        turns, order = Turns(1), list[int]()
        assert turns.take_now()
        tasks = await waiters(turns, 4, order)
        turns.most = 3
        await turn_of_the_loop()
        assert (turns.taken, order) == (3, [0, 1])
        turns.most = 2
        turns.give()
        await turn_of_the_loop()
        assert (turns.taken, order) == (2, [0, 1]), "what is too many is not given on"
        turns.give()
        await turn_of_the_loop()
        assert (turns.taken, order) == (2, [0, 1, 2])
        turns.give()
        got = [await task for task in tasks]
        assert all(got)

    run(scene())


def test_a_client_waits_for_its_own_places_only() -> None:
    async def scene() -> None:
        shares = Shares(2)
        assert [await shares.take(A, LONG) for _n in range(2)] == [True, True]
        assert not shares.take_now(A)
        assert not await shares.take(A, 0.01)
        waiting = asyncio.ensure_future(shares.take(A, LONG))
        await turn_of_the_loop()
        assert await shares.take(B, LONG)
        shares.give(B)
        await turn_of_the_loop()
        assert not waiting.done()
        shares.give(A)
        assert await waiting
        assert (shares.taken, len(shares)) == (2, 1)
        for _n in range(2):
            shares.give(A)
        assert (shares.taken, len(shares)) == (0, 0), "a client that has nothing is not remembered"

    run(scene())


@pytest.mark.parametrize("place_comes", [False, True])
def test_a_client_whose_waiters_left_is_not_remembered(*, place_comes: bool) -> None:
    async def scene() -> None:
        shares = Shares(1)
        assert shares.take_now(A)
        waiting = asyncio.ensure_future(shares.take(A, LONG))
        await turn_of_the_loop()
        if place_comes:
            shares.give(A)
        waiting.cancel()
        if not place_comes:
            shares.give(A)
        await turn_of_the_loop()
        assert (waiting.cancelled(), shares.taken, len(shares)) == (True, 0, 0)

    run(scene())


def test_a_share_may_change_while_it_is_in_use() -> None:
    async def scene() -> None:
        shares = Shares(1)
        assert shares.take_now(A)
        waiting = asyncio.ensure_future(shares.take(A, LONG))
        await turn_of_the_loop()
        shares.most = 2
        assert await waiting
        assert [shares.take_now(B) for _n in range(3)] == [True, True, False]
        shares.most = 1
        shares.give(A)
        assert not shares.take_now(A)

    run(scene())


@given(st.integers(1, 3), st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["take", "give"])), max_size=100))
def test_nobody_has_more_than_his_share(most: int, steps: list[tuple[int, str]]) -> None:
    shares, counts = Shares(most), Counter[bytes]()
    for number, step in steps:
        key = bytes([number])
        if step == "take":
            assert shares.take_now(key) is (counts[key] < most)
            counts[key] = min(counts[key] + 1, most)
        elif counts[key]:
            shares.give(key)
            counts[key] -= 1
        assert shares.taken == counts.total()
        assert len(shares) == sum(count > 0 for count in counts.values())
