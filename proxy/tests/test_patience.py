# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting up to a deadline: the same as a timer around an await, whatever the coroutine does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from greylist_proxy.patience import within


async def soon(seconds: float = 10) -> float:
    return asyncio.get_running_loop().time() + seconds


def test_what_does_not_wait_is_answered_in_one_step() -> None:
    async def question() -> str:
        return "answer"

    with pytest.raises(StopIteration) as end:
        within(question(), 0.0).send(None)  # needs no loop, and no deadline is too early
    assert end.value.value == "answer"


async def raises_at_once() -> None:
    raise ValueError("at once")


async def raises_later() -> None:
    await asyncio.sleep(0)
    raise ValueError("later")


@pytest.mark.parametrize(("question", "text"), [(raises_at_once, "at once"), (raises_later, "later")])
def test_errors_come_through(question: Any, text: str) -> None:
    async def play() -> None:
        with pytest.raises(ValueError, match=text):
            await within(question(), await soon())

    asyncio.run(play())


def test_it_awaits_bare_yields_futures_and_other_tasks() -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        loop.call_later(0.01, future.set_result, "future")

        async def other() -> str:
            await asyncio.sleep(0.01)
            return "task"

        async def question() -> list[str]:
            await asyncio.sleep(0)
            said = [await future, await asyncio.create_task(other())]
            with pytest.raises(TimeoutError):  # one of its own, around something that is caught inside
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(10)
            return said

        assert await within(question(), await soon()) == ["future", "task"]

    asyncio.run(play())


@asynccontextmanager
async def noting(ends: list[str]) -> AsyncIterator[None]:
    try:
        yield
    except BaseException as error:
        ends.append(type(error).__name__)
        raise


def test_the_deadline_cancels_it() -> None:
    ends: list[str] = []

    async def question() -> None:
        async with noting(ends):
            await asyncio.sleep(10)

    async def play() -> None:
        with pytest.raises(TimeoutError):
            await within(question(), await soon(0.01))

    asyncio.run(play())
    assert ends == ["CancelledError"]


def test_who_cancels_us_cancels_it() -> None:
    ends: list[str] = []

    async def question() -> None:
        async with noting(ends):
            await asyncio.sleep(10)

    async def play() -> None:
        task = asyncio.create_task(within(question(), await soon()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(play())
    assert ends == ["CancelledError"]


def test_it_may_survive_being_cancelled_as_any_coroutine_may() -> None:
    async def question() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "went on"
        return "not cancelled"

    async def play() -> str:
        task: asyncio.Task[str] = asyncio.create_task(within(question(), await soon()))
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(play()) == "went on"


def test_one_that_is_dropped_is_closed() -> None:
    ends: list[str] = []

    async def question() -> None:
        async with noting(ends):
            await asyncio.sleep(0)

    async def play() -> None:
        waiting: Coroutine[Any, Any, None] = within(question(), await soon())
        waiting.send(None)
        waiting.close()

    asyncio.run(play())
    assert ends == ["GeneratorExit"]
