# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a session ends: clients that close their half, or all of it, at every point; a stop, an abort."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest

from .peers import DEADLINE, until
from .sessions import ACCEPTED, ENVELOPE, Gate, Stage, Talk, run

WHOLE = b"\r\n".join((*ENVELOPE, b"DATA")) + b"\r\n"
MESSAGE = b"Subject: x\r\n\r\nHello.\r\n"


# -- the client closes its half, or all of it --


def test_commands_before_a_half_close_are_answered(stage: Stage) -> None:
    async def dialogue() -> None:
        gate = stage.answers["rcpt"] = Gate()
        talk = await stage.open()
        await talk.begin()
        talk.send(b"\r\n".join(ENVELOPE) + b"\r\nNOOP\r\n")
        talk.writer.write_eof()
        await gate.asked.wait()
        gate.open.set()
        assert [line[:4] for line in (await talk.until_end()).splitlines()][-3:] == [b"250 "] * 3
        await until(lambda: not len(stage.watch))
        assert stage.transactions[0].outcomes == ["client-gone"]

    run(dialogue())


def test_a_half_close_after_the_final_dot_still_gets_its_reply(stage: Stage) -> None:
    async def dialogue() -> None:
        gate = stage.answers["commit"] = Gate()
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        talk.send(MESSAGE + b".\r\n")
        talk.writer.write_eof()
        await gate.asked.wait()
        await asyncio.sleep(0.1)  # the end of the input is there
        gate.open.set()
        assert await talk.until_end() == ACCEPTED.wire()
        assert stage.transactions[0].outcomes == ["committed"]

    run(dialogue())


@pytest.mark.parametrize(("commands", "last"), [(b"NOOP\r\nQUIT\r\n", b"221"), (b"NOOP\n", b"521")])
def test_a_reply_is_not_lost_where_the_client_sends_on(stage: Stage, commands: bytes, last: bytes) -> None:
    """What is unread when a connection is closed makes the system drop whatever it has not sent by then."""

    def talk(address: tuple[str, int]) -> bytes:
        with socket.create_connection(address, DEADLINE) as client:
            said = client.recv(1000)
            with contextlib.suppress(OSError):
                client.sendall(b"EHLO client.test\r\n" + commands + b"x" * 4_000_000)
            with contextlib.suppress(ConnectionResetError):
                while piece := client.recv(1000):
                    said += piece
        return said

    async def dialogue() -> None:
        replies = await asyncio.to_thread(talk, await stage.listen())
        assert [line[:3] for line in replies.splitlines()][-2:] == [b"250", last]

    run(dialogue())


@pytest.mark.parametrize("leave", [Talk.reset, lambda talk: talk.writer.close(), lambda talk: talk.writer.write_eof()])
@pytest.mark.parametrize("sent", [b"", MESSAGE, MESSAGE + b".", MESSAGE + b".\r", MESSAGE + b".\n", b"x" * 300_000])
def test_a_client_that_leaves_in_its_message(stage: Stage, leave: Callable[[Talk], None], sent: bytes) -> None:
    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        talk.send(sent)
        await talk.writer.drain()
        leave(talk)
        await until(lambda: not len(stage.watch))
        assert stage.transactions[0].outcomes == ["client-gone"]

    run(dialogue())


def test_a_client_that_leaves_after_the_final_dot(stage: Stage) -> None:
    async def dialogue() -> None:
        gate = stage.answers["commit"] = Gate()
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        talk.send(MESSAGE + b".\r\n")
        await gate.asked.wait()
        talk.reset()
        await until(lambda: not len(stage.watch))
        assert len(stage.tasks) == 1  # what a stop waits for
        gate.open.set()
        await until(lambda: not stage.tasks)
        assert not gate.cancelled
        assert stage.transactions[0].outcomes == ["committed"]

    run(dialogue())


@pytest.mark.parametrize("point", ["rcpt", "data"])
def test_a_client_that_leaves_while_we_work(stage: Stage, point: str) -> None:
    async def dialogue() -> None:
        gate = stage.answers[point] = Gate()
        talk = await stage.open()
        await talk.begin()
        talk.send(WHOLE)
        await gate.asked.wait()
        talk.reset()
        await until(lambda: not stage.tasks)
        # Nobody waits for the answer, and what holds a backend lets it go.
        assert gate.cancelled
        assert stage.transactions[0].outcomes == ["client-gone"]
        assert stage.events("error") == []

    run(dialogue())


# -- a stop --


def test_a_stop_between_and_in_transactions(stage: Stage) -> None:
    async def dialogue() -> None:
        gate = stage.answers["commit"] = Gate()
        idle, begun, busy = await stage.open(), await stage.connect(), await stage.connect()
        await idle.begin(ENVELOPE[0])
        await begun.begin(*ENVELOPE[:2])
        await busy.begin(*ENVELOPE, b"DATA")
        busy.send(MESSAGE + b".\r\n")
        await gate.asked.wait()
        for _n in range(3):  # as the program does: again and again
            for session in stage.watch:
                session.stop()
        assert (await idle.until_end()).startswith(b"421 4.3.2 ")
        assert (await begun.ask(ENVELOPE[2])).startswith(b"250 ")
        gate.open.set()
        assert await busy.reply() == ACCEPTED.wire()
        assert (await busy.until_end()).startswith(b"421 4.3.2 ")
        begun.send(b"RSET\r\n")
        assert (await begun.reply()).startswith(b"250 ")
        assert (await begun.until_end()).startswith(b"421 4.3.2 ")
        await until(lambda: not len(stage.watch))

    run(dialogue())


def test_an_abort(stage: Stage) -> None:
    async def dialogue() -> None:
        gate = stage.answers["rcpt"] = Gate()
        talk = await stage.open()
        await talk.begin(*ENVELOPE[:2])
        talk.send(ENVELOPE[2] + b"\r\n")
        await gate.asked.wait()
        for session in stage.watch:
            session.abort()
        assert await talk.until_end() == b""
        await until(lambda: not stage.tasks)
        assert stage.transactions[0].outcomes == ["client-gone"]
        assert stage.connections.total == 0

    run(dialogue())
