# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errands: a coroutine goes on in the call that rings, and comes to the same end as a task would."""

from __future__ import annotations

import asyncio
import gc
import io
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from greylist_proxy.errand import Bell, Errand
from greylist_proxy.log import Log
from greylist_proxy.patience import in_a_task
from greylist_proxy.tasks import Tasks


class Desk:
    """Sends coroutines on errands from the loop itself, as a transport does: there is no current task."""

    def __init__(self) -> None:
        self.log = io.StringIO()
        self.tasks = Tasks(Log(self.log))
        self.ends: list[tuple[Any, BaseException | None]] = []
        self.ended = asyncio.Event()

    async def send(self, coroutine: Coroutine[Any, Any, Any]) -> Errand[Any]:
        """Let the coroutine make its first step, and wait for what it awaits."""
        sent: asyncio.Future[Errand[Any]] = asyncio.get_running_loop().create_future()

        def begin() -> None:
            awaited = coroutine.send(None)
            errand = Errand(coroutine, self._take, self.tasks)
            errand.wait(awaited)
            sent.set_result(errand)

        asyncio.get_running_loop().call_soon(begin)
        return await sent

    async def end(self) -> tuple[Any, BaseException | None]:
        """Wait for the end of the one errand; it is told once, and nobody holds it any more."""
        async with asyncio.timeout(10):
            await self.ended.wait()
        await asyncio.sleep(0)  # a task leaves one turn later
        assert len(self.ends) == 1
        assert len(self.tasks) == 0
        return self.ends[0]

    def _take(self, result: Any, error: BaseException | None) -> None:
        self.ends.append((result, error))
        self.ended.set()


async def rung_twice(bell: Bell) -> str:
    await bell
    await bell
    return "rung twice"


def test_it_goes_on_within_the_call_that_rings() -> None:
    async def play() -> None:
        desk, bell = Desk(), Bell()

        await desk.send(rung_twice(bell))
        assert len(desk.tasks) == 1
        ringing: list[int] = []

        def ring() -> None:
            bell.ring()
            ringing.append(len(desk.ends))

        loop = asyncio.get_running_loop()
        loop.call_soon(ring)
        loop.call_soon(ring)
        assert await desk.end() == ("rung twice", None)
        assert ringing == [0, 1]
        assert not bell.is_awaited

    asyncio.run(play())


def test_ringing_soon_is_not_at_once_and_rings_once() -> None:
    async def play() -> None:
        desk, bell = Desk(), Bell()

        async def once() -> str:
            await bell
            return "rung"

        await desk.send(once())
        assert bell.is_awaited
        bell.ring_soon()
        bell.ring()
        bell.ring_soon()
        assert (bell.is_awaited, desk.ends) == (False, [])
        assert await desk.end() == ("rung", None)

    asyncio.run(play())


def test_what_is_no_bell_is_awaited_by_a_task() -> None:
    async def play() -> None:
        desk, bell = Desk(), Bell()

        async def mixed() -> list[str]:
            await bell
            await in_a_task()
            async with asyncio.timeout(10):  # which only a task may ask for
                await asyncio.sleep(0.001)
            await bell  # within the task now
            return ["all", "of", "it"]

        await desk.send(mixed())
        asyncio.get_running_loop().call_soon(bell.ring)
        while not desk.ended.is_set():
            await asyncio.sleep(0.001)
            bell.ring()
        assert await desk.end() == (["all", "of", "it"], None)

    asyncio.run(play())


async def waits_for_a_bell(bell: Bell) -> None:
    await bell


async def waits_in_a_task(_bell: Bell) -> None:
    await in_a_task()
    await asyncio.sleep(60)


async def waits_for_a_future(_bell: Bell) -> None:
    await asyncio.get_running_loop().create_future()


WAYS = [waits_for_a_bell, waits_in_a_task, waits_for_a_future]


@pytest.mark.parametrize("rings", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_it_can_be_cancelled(way: Callable[[Bell], Coroutine[Any, Any, None]], rings: bool) -> None:
    async def play() -> None:
        desk, bell = Desk(), Bell()
        cleaned: list[str] = []

        async def careful() -> None:
            try:
                await way(bell)
            finally:
                cleaned.append("up")

        errand = await desk.send(careful())
        if rings:
            bell.ring_soon()  # too late: whoever cancels must not be told a result
        errand.cancel()
        errand.cancel()
        assert desk.ends == []  # not within the call
        result, error = await desk.end()
        assert result is None
        assert isinstance(error, asyncio.CancelledError)
        assert cleaned == ["up"]

    asyncio.run(play())


@pytest.mark.parametrize("way", WAYS)
def test_who_was_cancelled_is_not_kept(way: Callable[[Bell], Coroutine[Any, Any, None]]) -> None:
    """Clients leave at all times: what they leave must be gone at once, and not when the collector comes."""

    class Session:
        pass

    async def play() -> None:
        desk = Desk()

        async def keeps(_session: Session) -> None:
            await way(Bell())

        session = Session()
        last = weakref.ref(session)
        errand = await desk.send(keeps(session))
        del session
        await asyncio.sleep(0)
        assert last() is not None
        errand.cancel()
        await desk.end()
        desk.ends.clear()
        del errand
        await asyncio.sleep(0)
        assert last() is None

    gc.collect()
    gc.disable()
    try:
        asyncio.run(play())
    finally:
        gc.enable()


def test_one_that_goes_on_after_it_was_cancelled_is_listened_to() -> None:
    async def play() -> None:
        desk, bell = Desk(), Bell()

        async def stubborn() -> str:
            with pytest.raises(asyncio.CancelledError):
                await bell
            await bell
            return "finished"

        errand = await desk.send(stubborn())
        errand.cancel()
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(bell.ring)
        assert await desk.end() == ("finished", None)

    asyncio.run(play())


@pytest.mark.parametrize("way", ["bell", "task"])
def test_errors_reach_who_asked(way: str) -> None:
    async def play() -> None:
        desk, bell = Desk(), Bell()

        async def fails() -> None:
            await (bell if way == "bell" else in_a_task())
            raise ValueError(way)

        await desk.send(fails())
        asyncio.get_running_loop().call_soon(bell.ring)
        _result, error = await desk.end()
        assert repr(error) == f"ValueError('{way}')"

    asyncio.run(play())


def test_who_rings_is_not_hurt_by_what_the_end_brings_about(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        desk, bell = Desk(), Bell()

        def take(_result: Any, _error: BaseException | None) -> None:
            raise ValueError("a bug in who asked")

        monkeypatch.setattr(desk, "_take", take)
        await desk.send(waits_for_a_bell(bell))
        rung: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ring() -> None:
            bell.ring()
            rung.set_result(None)

        asyncio.get_running_loop().call_soon(ring)
        async with asyncio.timeout(10):
            await rung
        assert len(desk.tasks) == 0
        assert "a bug in who asked" in desk.log.getvalue()

    asyncio.run(play())


def test_what_is_left_at_the_end_is_given_up() -> None:
    async def play() -> None:
        desk = Desk()
        await desk.send(waits_for_a_bell(Bell()))
        desk.tasks.give_up()
        _result, error = await desk.end()
        assert isinstance(error, asyncio.CancelledError)

    asyncio.run(play())


def test_one_that_begins_within_a_task_is_not_that_tasks_business() -> None:
    """What a client sent with the end of its handshake is looked at by the task that made the handshake."""

    async def play() -> None:
        desk, bell = Desk(), Bell()

        async def begin() -> None:
            coroutine = rung_twice(bell)
            Errand(coroutine, desk._take, desk.tasks).wait(coroutine.send(None))

        beginning = asyncio.create_task(begin())
        await beginning
        await asyncio.sleep(0)
        for _n in range(2):
            assert bell.is_awaited
            assert desk.ends == []
            bell.ring()
            assert not bell.is_awaited
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert await desk.end() == ("rung twice", None)

    asyncio.run(play())


def test_a_task_may_wait_for_a_bell() -> None:
    async def play() -> None:
        bell = Bell()
        waiting = asyncio.create_task(waits_for_a_bell(bell))
        await asyncio.sleep(0)
        assert bell.is_awaited
        bell.ring()
        assert not bell.is_awaited
        async with asyncio.timeout(10):
            await waiting

    asyncio.run(play())
