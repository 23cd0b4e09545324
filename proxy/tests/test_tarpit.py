# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who waits for his replies: refusals that are held, replies that trickle, clients that talk too early."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import tracemalloc

import pytest
from greylist_proxy.policy import Mode
from greylist_proxy.smtp.replies import own_reply
from greylist_proxy.smtp.server import Session
from greylist_proxy.smtp.settings import SessionSettings
from greylist_proxy.smtp.tarpit import MOST, Tarpit

from .peers import until
from .sessions import ENVELOPE, PERMANENT, TEMPORARY, Scripted, Stage, run

LONG = SessionSettings(command_timeout=20, data_timeout=20, session_timeout=60)


def now() -> float:
    return asyncio.get_running_loop().time()


# -- the tarpit by itself --


def test_holding() -> None:
    async def hold() -> None:
        tarpit = Tarpit(0.1, 0, 2)
        done: list[float] = []
        start = now()
        waits = [tarpit.hold(tarpit.seconds, 0, lambda: done.append(now() - start)) for _n in range(3)]
        # Over the cap, nobody waits.
        assert [wait is not None for wait in waits] == [True, True, False]
        assert tarpit.waiting == 2
        waits[0].cancel()  # type: ignore[union-attr]
        assert tarpit.waiting == 1
        await until(lambda: done)
        assert tarpit.waiting == 0
        assert len(done) == 1
        assert done[0] >= 0.09

    run(hold())


@pytest.mark.parametrize(
    ("seconds", "waited", "granted"),
    [(5, 0, 5), (5, MOST - 3, 3), (5, MOST, None), (0, 0, None), (500, 0, MOST)],
)
def test_nobody_waits_for_more_than_so_much(seconds: float, waited: float, granted: float | None) -> None:
    async def hold() -> None:
        wait = Tarpit(seconds, seconds, 10).hold(seconds, waited, lambda: None)
        assert (wait.seconds if wait else None) == granted
        if wait:
            wait.cancel()

    run(hold())


@pytest.mark.parametrize(
    ("wire", "seconds", "count"),
    [
        pytest.param(b"450 No\r\n", 0.5, 8, id="octet by octet"),
        pytest.param(b"5", 0.2, 1, id="one octet"),
        pytest.param(b"450 " + b"x" * 9000 + b"\r\n", 0.2, 4, id="a long one, its rest at once"),
    ],
)
def test_a_reply_trickles(wire: bytes, seconds: float, count: int) -> None:
    async def drip() -> None:
        tarpit = Tarpit(0, seconds, 10)
        pieces: list[bytes] = []
        done: list[float] = []
        start = now()
        assert tarpit.drip(wire, 0, pieces.append, lambda: done.append(now() - start))
        await until(lambda: done)
        assert b"".join(pieces) == wire
        assert len(pieces) == count
        assert all(len(piece) == 1 for piece in pieces[:-1])
        assert 0.95 * seconds <= done[0] < seconds + 2
        assert tarpit.waiting == 0

    run(drip())


def test_where_many_wait_a_trickle_has_fewer_steps() -> None:
    async def drip() -> None:
        tarpit = Tarpit(60, 1, 10_000)
        others = [tarpit.hold(60, 0, list) for _ignored in range(999)]
        pieces: list[bytes] = []
        assert tarpit.drip(b"x" * 100, 0, pieces.append, lambda: pieces.append(b"done"))
        await until(lambda: pieces[-1:] == [b"done"])
        assert pieces == [b"x", b"x" * 99, b"done"]  # a step takes half a second
        for wait in others:
            assert wait
            wait.cancel()

    run(drip())


def test_a_cancelled_trickle_writes_no_more() -> None:
    async def drip() -> None:
        tarpit = Tarpit(0, 0.2, 10)
        pieces: list[bytes] = []
        wait = tarpit.drip(b"450 4.7.1 Not now\r\n", 0, pieces.append, lambda: pieces.append(b"done"))
        assert wait
        await until(lambda: pieces)
        wait.cancel()
        count = len(pieces)
        await asyncio.sleep(0.3)
        assert len(pieces) == count
        assert tarpit.waiting == 0

    run(drip())


# -- sessions in it --


def test_permanent_refusals_wait(stage: Stage) -> None:
    stage.settings = LONG
    stage.tarpit = Tarpit(0.3, 0, 100)

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE[:2])
        for answer, line, waits in (
            (PERMANENT, ENVELOPE[2], True),
            (TEMPORARY, ENVELOPE[2], False),
            (stage.answers["commit"], ENVELOPE[2], False),
            (None, ENVELOPE[1], True),  # a second MAIL: the core's own
            (None, b"NOOP", False),
            (None, b"what", True),
        ):
            if answer is not None:
                stage.answers["rcpt"] = answer
            start = now()
            reply = await talk.ask(line)
            assert (now() - start >= 0.29) is waits, reply
        # And the backend's word on the message.
        stage.answers["commit"] = own_reply(554, "5.6.0", "No")
        assert (await talk.ask(b"DATA")).startswith(b"354 ")
        start = now()
        talk.send(b"x\r\n.\r\n")
        assert (await talk.reply()).startswith(b"554 ")
        assert now() - start >= 0.29

    run(dialogue())


def test_replies_before_a_held_one_go_out_and_nothing_after_it_is_parsed(stage: Stage) -> None:
    stage.settings = LONG
    stage.tarpit = Tarpit(0.3, 0, 100)
    stage.answers["rcpt"] = PERMANENT

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin()
        start = now()
        talk.send(b"\r\n".join(ENVELOPE) + b"\r\nNOOP\r\nNOOP\r\n")
        replies = [await talk.reply() for _n in range(2)]
        assert [reply[:3] for reply in replies] == [b"250", b"250"]
        assert now() - start < 0.29
        assert stage.tarpit.waiting == 1
        assert (await talk.reply()).startswith(b"550 ")
        assert now() - start >= 0.29
        assert [(await talk.reply())[:3] for _n in range(2)] == [b"250", b"250"]

    run(dialogue())


@pytest.mark.parametrize("answer", [PERMANENT, TEMPORARY])
def test_a_slow_clients_refusals_trickle(stage: Stage, answer: object) -> None:
    stage.settings = LONG
    stage.tarpit = Tarpit(0, 0.4, 100)
    stage.slow = True
    stage.answers["rcpt"] = answer  # type: ignore[assignment]

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE[:2])
        start = now()
        talk.send(ENVELOPE[2] + b"\r\nNOOP\r\n")
        assert len(await talk.reader.read(100)) < 5
        assert now() - start < 0.3
        rest = await talk.reader.readline()
        assert rest.endswith(b"\r\n")
        assert now() - start >= 0.39
        assert (await talk.reply()).startswith(b"250 ")  # at once, and only after it
        # What the core refuses trickles too, what is positive never.
        start = now()
        assert (await talk.ask(b"what")).startswith(b"500 ")
        assert now() - start >= 0.39
        start = now()
        assert (await talk.ask(b"RSET")).startswith(b"250 ")
        assert now() - start < 0.3

    run(dialogue())


def test_no_timer_but_the_sessions_counts_in_the_tarpit(stage: Stage) -> None:
    stage.settings = dataclasses.replace(LONG, command_timeout=0.2)
    stage.tarpit = Tarpit(0.6, 0, 100)

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin()
        assert (await talk.ask(b"what")).startswith(b"500 ")
        assert (await talk.reply()).startswith(b"421 4.4.2 ")

    run(dialogue())


def test_over_the_cap_replies_go_out_at_once(stage: Stage) -> None:
    stage.settings = LONG
    stage.tarpit = Tarpit(0.5, 0, 1)

    async def dialogue() -> None:
        first, second = await stage.open(), await stage.connect()
        await first.begin()
        await second.begin()
        first.send(b"what\r\n")
        await until(lambda: stage.tarpit.waiting == 1)
        assert (await second.ask(b"what")).startswith(b"500 ")
        first.reset()
        second.reset()
        await until(lambda: not len(stage.watch))

    run(dialogue())


@pytest.mark.parametrize("slow", [False, True])
def test_who_leaves_or_is_stopped_makes_room(stage: Stage, *, slow: bool) -> None:
    stage.settings = dataclasses.replace(LONG, session_timeout=0.5)
    stage.tarpit = Tarpit(20, 20, 10)
    stage.slow = slow
    stage.answers["rcpt"] = PERMANENT

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE[:2])
        talk.send(ENVELOPE[2] + b"\r\n")
        await until(lambda: stage.tarpit.waiting)
        await until(lambda: not len(stage.watch))  # by the session's time
        assert stage.tarpit.waiting == 0
        assert stage.transactions[0].outcomes == ["client-gone"]

    run(dialogue())


# -- before the banner --


def test_a_patient_client_is_greeted(stage: Stage) -> None:
    stage.settings = dataclasses.replace(LONG, greet_delay=0.3)

    async def dialogue() -> None:
        start = now()
        talk = await stage.open()
        await talk.begin(*ENVELOPE)
        assert now() - start >= 0.29
        assert not stage.transactions[0].visitor.early
        assert stage.events("early-talker") == []

    run(dialogue())


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.OBSERVE])
def test_who_talks_first_is_marked(stage: Stage, mode: Mode) -> None:
    stage.mode = mode
    stage.settings = dataclasses.replace(LONG, greet_delay=0.3)
    stage.tarpit = Tarpit(0, 0.3, 10)

    async def dialogue() -> None:
        start = now()
        talk = await stage.open()
        talk.send(b"EHLO client.test\r\n")
        await talk.begin()
        assert now() - start >= 0.29
        assert (await talk.reply()).startswith(b"250")
        start = now()
        assert (await talk.ask(b"what")).startswith(b"500 ")
        assert (now() - start >= 0.29) is (mode is Mode.ENFORCE)
        await talk.ask(ENVELOPE[1])
        assert stage.transactions[0].visitor.early
        assert [event["client"] for event in stage.events("early-talker")] == ["127.0.0.1"]

    run(dialogue())


def test_without_a_delay_nobody_is_early(stage: Stage) -> None:
    async def dialogue() -> None:
        talk = await stage.open()
        talk.send(b"\r\n".join(ENVELOPE) + b"\r\n")
        await talk.begin()
        assert (await talk.reply()).startswith(b"250")
        await until(lambda: stage.transactions)
        assert not stage.transactions[0].visitor.early

    run(dialogue())


def test_a_stop_before_the_banner(stage: Stage) -> None:
    stage.settings = dataclasses.replace(LONG, greet_delay=20)

    async def dialogue() -> None:
        talk = await stage.open()
        await until(lambda: stage.tarpit.waiting)
        for session in stage.watch:
            session.stop()
        assert (await talk.until_end()).startswith(b"421 4.3.2 ")
        assert stage.tarpit.waiting == 0

    run(dialogue())


# -- ten thousand --


class Wire(asyncio.Transport):
    """A transport in memory: 10,000 sockets are more than some machines let a test have."""

    __slots__ = ()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": ("192.0.2.1", 4711), "sockname": ("192.0.2.2", 25)}.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nobody reads it."""

    def pause_reading(self) -> None:
        """There is nothing to read."""

    def resume_reading(self) -> None:
        """There is nothing to read."""


@pytest.mark.parametrize("slow", [False, True])
def test_ten_thousand_waiting_clients_cost_under_50_megabytes(stage: Stage, *, slow: bool) -> None:
    """Of Python's memory, with the asyncio loop, whose timers tracemalloc sees; a uvloop transport adds under 1 KiB."""
    count = 10_000
    stage.connections.max_total = stage.connections.max_per_client = count
    stage.tarpit = Tarpit(60, 60, count)
    stage.slow = slow
    stage.answers["rcpt"] = PERMANENT

    async def fill() -> None:
        services = stage.services()
        sessions = []
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _n in range(count):
                session = Session(services, stage.watch)
                session.connection_made(Wire())
                session.data_received(b"\r\n".join(ENVELOPE) + b"\r\n")
                sessions.append(session)
            await until(lambda: stage.tarpit.waiting == count)
            gc.collect()
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        for session in sessions:
            session.connection_lost(None)
        assert stage.tarpit.waiting == 0
        assert used < 50_000_000, f"{used / count:.0f} bytes a client"
        assert all(isinstance(each, Scripted) for each in stage.transactions)

    asyncio.run(fill())
