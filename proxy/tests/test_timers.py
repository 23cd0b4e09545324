# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a session has taken too long: the sweep, the pace of a message, and what a session is timed by."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from greylist_proxy.smtp.settings import SessionSettings
from greylist_proxy.smtp.timers import GRACE, NEVER, Pace, Watch

from .peers import until
from .sessions import ACCEPTED, ENVELOPE, Stage, run

SHORT = SessionSettings(command_timeout=0.3, data_timeout=0.3, session_timeout=30, min_data_rate=0)


class Idle:
    """Something with a deadline."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.called = 0
        self.flushed = 0
        self.fails = False
        self.errors: list[str] = []

    def overdue(self, now: float) -> None:
        self.called += 1
        self.deadline = NEVER

    def stop(self) -> None:
        """Not asked for here."""

    def abort(self) -> None:
        """Not asked for here."""

    def flush(self) -> None:
        self.flushed += 1
        if self.fails:
            raise RuntimeError("not written")

    def failed(self, error: Exception) -> None:
        self.errors.append(str(error))


def test_replies_go_out_after_all_had_their_turn() -> None:
    async def look() -> None:
        loop = asyncio.get_running_loop()
        watch = Watch()
        first, broken, last = Idle(NEVER), Idle(NEVER), Idle(NEVER)
        broken.fails = True
        flushed: list[int] = []
        for each in (first, broken, last):
            # As the loop calls for sockets that are readable in one round.
            loop.call_soon(watch.flush_later, each)
            loop.call_soon(lambda: flushed.append(first.flushed))
        await until(lambda: last.flushed)
        assert flushed == [0, 0, 0]
        assert (first.flushed, broken.flushed, last.flushed) == (1, 1, 1)
        assert (first.errors, broken.errors, last.errors) == ([], ["not written"], [])

    run(look())


def test_the_sweep_finds_who_is_overdue() -> None:
    async def look() -> None:
        now = asyncio.get_running_loop().time()
        watch = Watch(0.01)
        late, later, never = Idle(now), Idle(now + 0.05), Idle(NEVER)
        for each in (late, later, never):
            watch.add(each)
        await until(lambda: later.called)
        assert (late.called, later.called, never.called) == (1, 1, 0)
        assert asyncio.get_running_loop().time() >= now + 0.05
        assert len(watch) == 3
        for each in watch:
            watch.discard(each)
        assert len(watch) == 0
        # Without sessions it stands still, and starts again with the next one.
        await asyncio.sleep(0.03)
        another = Idle(0)
        watch.add(another)
        await until(lambda: another.called)

    run(look())


def test_ten_thousand_sessions_cost_a_sweep_little() -> None:
    async def look() -> None:
        loop = asyncio.get_running_loop()
        watch = Watch(3600)
        for _n in range(10_000):
            watch.add(Idle(NEVER))
        start = loop.time()
        watch._sweep()
        assert loop.time() - start < 0.1  # a millisecond or two, on a machine that is not busy

    run(look())


@pytest.mark.parametrize(
    ("received", "deadline"),
    [(0, GRACE), (100, GRACE), (6000, GRACE), (6001, 60.01), (12_000, 120), (1_000_000, 180)],
)
def test_the_pace_of_a_message(received: int, deadline: float) -> None:
    pace = Pace(1000.0)
    pace.take(received)
    assert pace.deadline(1000.0, 180, 100) == pytest.approx(1000 + deadline)
    assert pace.deadline(1000.0, 180, 0) == 1180
    assert pace.deadline(1010.0, 20, 100) == 1030


def test_time_in_which_we_do_not_read_does_not_count() -> None:
    pace = Pace(0.0)
    pace.take(12_000)
    pace.pause(10)
    pace.pause(20)
    assert pace.deadline(500, 180, 100) == NEVER
    pace.resume(510)
    pace.resume(520)
    assert pace.deadline(510, 180, 100) == 620


def test_a_command_is_timed_as_a_whole(stage: Stage) -> None:
    stage.settings = SHORT

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin()
        # Each whole command begins the time anew.
        for _n in range(4):
            await asyncio.sleep(0.15)
            assert (await talk.ask(b"NOOP")).startswith(b"250 ")
        # A byte now and then does not.
        reply = asyncio.ensure_future(talk.reply())
        for _n in range(20):
            talk.send(b"N")
            await asyncio.wait([reply], timeout=0.05)
            if reply.done():
                break
        assert (await reply) == b"421 4.4.2 Waited too long, goodbye\r\n"
        assert await talk.until_end() == b""

    run(dialogue())


def test_silence_before_the_first_command(stage: Stage) -> None:
    stage.settings = SHORT

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin()
        assert (await talk.reply()).startswith(b"421 4.4.2 ")

    run(dialogue())


def test_a_slow_message_is_taken_and_the_backend_may_take_its_time(stage: Stage) -> None:
    stage.settings = SHORT
    release = asyncio.Event()

    async def commit() -> object:
        await release.wait()
        return ACCEPTED

    stage.answers["commit"] = commit

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        # Slower than the timer as a whole, but never silent for that long.
        for _n in range(5):
            talk.send(b"line\r\n")
            await asyncio.sleep(0.15)
        talk.send(b".\r\n")
        await asyncio.sleep(0.6)
        release.set()
        assert (await talk.reply()).startswith(b"250 ")
        assert (await talk.reply()).startswith(b"421 4.4.2 ")
        assert stage.transactions[0].content.count(b"line\r\n") == 5
        assert stage.transactions[0].outcomes == ["committed"]

    run(dialogue())


def test_silence_in_a_message(stage: Stage) -> None:
    stage.settings = SHORT

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        talk.send(b"Subject: x\r\n")
        assert (await talk.reply()).startswith(b"421 4.4.2 ")
        assert await talk.until_end() == b""
        assert stage.transactions[0].outcomes == ["timed-out"]

    run(dialogue())


def test_a_message_that_comes_too_slowly(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greylist_proxy.smtp.timers.GRACE", 0.3)
    stage.settings = dataclasses.replace(SHORT, data_timeout=5, min_data_rate=1000)

    async def dialogue() -> None:
        slow, fast = await stage.open(), await stage.connect()
        for talk in (slow, fast):
            await talk.begin(*ENVELOPE, b"DATA")
        reply = asyncio.ensure_future(slow.reply())
        start = asyncio.get_running_loop().time()
        while not reply.done() and asyncio.get_running_loop().time() < start + 5:
            slow.send(b"x")
            fast.send(b"x" * 78 + b"\r\n")
            await asyncio.wait([reply], timeout=0.02)
        assert (await reply).startswith(b"421 4.4.2 ")
        fast.send(b".\r\n")
        assert (await fast.reply()).startswith(b"250 ")

    run(dialogue())


def test_a_message_may_wait_for_the_backend(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greylist_proxy.smtp.timers.GRACE", 0.1)
    stage.settings = dataclasses.replace(SHORT, min_data_rate=1000)

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        flow = stage.transactions[0].flow
        flow.pause()
        talk.send(b"x\r\n.\r\n")
        await asyncio.sleep(0.8)
        assert stage.transactions[0].content == b""  # it is not even read
        flow.resume()
        assert (await talk.reply()).startswith(b"250 ")
        assert stage.transactions[0].content == b"x\r\n"

    run(dialogue())


def test_the_whole_session_is_timed(stage: Stage) -> None:
    stage.settings = dataclasses.replace(SHORT, session_timeout=0.5)

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin()
        replies = b""
        for _n in range(40):
            talk.send(b"NOOP\r\n")
            replies = await talk.reply()
            if replies.startswith(b"421 "):
                break
            await asyncio.sleep(0.05)
        assert replies.startswith(b"421 4.4.2 ")

    run(dialogue())


def test_the_end_of_a_session_cuts_no_commit(stage: Stage) -> None:
    stage.settings = dataclasses.replace(SHORT, session_timeout=0.3)

    async def commit() -> object:
        await asyncio.sleep(0.8)
        return ACCEPTED

    stage.answers["commit"] = commit

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        talk.send(b"x\r\n.\r\n")
        assert (await talk.reply()).startswith(b"250 ")
        assert (await talk.reply()).startswith(b"421 4.4.2 ")

    run(dialogue())


def test_a_session_that_ends_while_a_recipient_is_asked_for(stage: Stage) -> None:
    stage.settings = dataclasses.replace(SHORT, session_timeout=0.3)
    stage.answers["rcpt"] = lambda: asyncio.sleep(60)

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE[:2])
        assert (await talk.ask(ENVELOPE[2])).startswith(b"421 4.4.2 ")
        assert await talk.until_end() == b""
        await until(lambda: not stage.tasks)
        assert stage.transactions[0].outcomes == ["client-gone"]

    run(dialogue())


def test_a_client_that_does_not_read_is_left(stage: Stage) -> None:
    stage.settings = SHORT
    stage.limits = dataclasses.replace(stage.limits, max_idle_commands=10_000_000)

    async def dialogue() -> None:
        talk = await stage.open()
        talk.writer.transport.pause_reading()  # type: ignore[attr-defined]
        talk.send(b"VRFY x\r\n" * 2_000_000)
        await until(lambda: not len(stage.watch))
        talk.reset()

    run(dialogue())


def test_last_words_that_nobody_reads(stage: Stage) -> None:
    # More replies than the sockets hold, then QUIT: closing waits for the client, but not for ever.
    stage.settings = dataclasses.replace(SHORT, command_timeout=30, close_timeout=0.2)
    stage.limits = dataclasses.replace(stage.limits, max_idle_commands=10_000_000)

    async def dialogue() -> None:
        talk = await stage.open()
        talk.writer.transport.pause_reading()  # type: ignore[attr-defined]
        talk.send(b"VRFY x\r\n" * 500_000)
        await asyncio.sleep(0.5)
        (session,) = list(stage.watch)
        session._leave(ACCEPTED, "test")  # type: ignore[attr-defined]
        await until(lambda: not len(stage.watch))
        talk.reset()

    run(dialogue())
