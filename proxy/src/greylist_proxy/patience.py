# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for something, up to a deadline, at no cost where there is nothing to wait for.

A deadline needs a timer, which costs as much as a whole look into the store. But most that is asked here is answered
from memory: such a coroutine runs to its end at the first step, and needs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


@coroutine
def in_a_task() -> Generator[None, None, None]:
    """To be awaited before anything that waits, in a coroutine that may have begun without a task: see `go_on`.

    So a task is made only where there is something to wait for: making one costs as much as a decision.
    """
    yield


async def within(question: Coroutine[Any, Any, T], deadline: float) -> T:
    """Await a coroutine until a time of the event loop's clock; TimeoutError: it was cancelled then."""
    try:
        awaited = question.send(None)
    except StopIteration as end:
        answer: T = end.value
        return answer
    async with asyncio.timeout_at(deadline):
        return await go_on(question, awaited)


@coroutine
def go_on(question: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that has begun and awaits something; what happens to us happens to it."""
    try:
        while True:
            try:
                sent = yield awaited
            except GeneratorExit:
                question.close()
                raise
            except BaseException as error:  # noqa: BLE001 - as `yield from` does it
                awaited = question.throw(error)
            else:
                awaited = question.send(sent)
    except StopIteration as end:
        answer: T = end.value
        return answer
