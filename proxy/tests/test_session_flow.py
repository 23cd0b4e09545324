# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session does with bytes, events and replies: batches, faults of ours."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest
from aiosmtpd.smtp import SMTP
from greylist_proxy.smtp import conversation
from greylist_proxy.smtp.conversation import TURN
from greylist_proxy.smtp.replies import Reply, own_reply
from greylist_proxy.smtp.server import Session
from greylist_proxy.smtp.settings import SessionSettings
from greylist_proxy.smtp.transaction import Transaction

from .peers import until
from .sessions import ACCEPTED, ENVELOPE, PERMANENT, Gate, Stage, run

WHOLE = b"\r\n".join((*ENVELOPE, b"DATA")) + b"\r\n"
MESSAGE = b"Subject: x\r\n\r\nHello.\r\n"


class Memory(asyncio.Transport):
    """A transport that keeps each write by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.reading = True
        self.closed = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": ("192.0.2.1", 4711), "sockname": ("192.0.2.2", 25)}.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def made(stage: Stage) -> tuple[Session, Memory]:
    session, transport = Session(stage.services(), stage.watch), Memory()
    session.connection_made(transport)
    return session, transport


def test_it_is_aiosmtpds_protocol_without_its_weight(stage: Stage) -> None:
    async def dialogue() -> None:
        session, _ignored = made(stage)
        assert isinstance(session, SMTP)
        assert not vars(session)  # no dictionary is filled: an idle session is to be small

    run(dialogue())


async def a_round() -> None:
    """Let the loop come to the end of a round: replies go out then."""
    await asyncio.sleep(0)


def test_replies_of_one_read_are_one_write(stage: Stage) -> None:
    async def dialogue() -> None:
        session, transport = made(stage)
        await a_round()
        assert [write[:4] for write in transport.writes] == [b"220 "]
        session.data_received(b"EHLO client.test\r\nNOOP\r\nRSET\r\nVRFY x\r\n")
        await a_round()
        assert len(transport.writes) == 2
        assert [line[:4] for line in transport.writes[1].splitlines()] == [b"250-", b"250 ", b"250 ", b"250 ", b"252 "]
        # Where the answers are there at once (Python 3.12 and later), a whole envelope is one write too.
        session.data_received(b"\r\n".join(ENVELOPE[1:]) + b"\r\nDATA\r\n")
        await until(lambda: transport.writes[-1].startswith(b"354 ") or b"\r\n354 " in transport.writes[-1])
        session.connection_lost(None)

    run(dialogue())


def test_what_was_answered_goes_out_before_the_end_of_a_client_that_asks_no_more(stage: Stage) -> None:
    async def dialogue() -> None:
        session, transport = made(stage)
        session.data_received(b"EHLO client.test\r\n")
        session.eof_received()  # in the same round
        assert b"".join(transport.writes).startswith(b"220 ")
        assert b"250-" in transport.writes[-1]
        session.connection_lost(None)

    run(dialogue())


@pytest.mark.parametrize("foreign", [b"GET / HTTP/1.1\r\n", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n"])
def test_who_speaks_another_protocol_at_once_is_greeted_and_no_more(stage: Stage, foreign: bytes) -> None:
    async def dialogue() -> None:
        session, transport = made(stage)
        session.data_received(foreign)  # in the same round
        assert [write[:4] for write in transport.writes] == [b"220 "]
        assert transport.writes[0].count(b"\n") == 1
        assert transport.closed
        session.connection_lost(None)

    run(dialogue())


def test_what_waits_holds_back_what_comes_after_it(stage: Stage) -> None:
    async def dialogue() -> None:
        gate = stage.answers["rcpt"] = Gate()
        session, transport = made(stage)
        session.data_received(WHOLE)
        await gate.asked.wait()
        await a_round()
        assert transport.writes[-1].endswith(b"Sender OK\r\n")
        count = len(transport.writes)
        session.data_received(b"x" * 60_000)
        assert transport.reading
        session.data_received(b"x" * 60_000)
        assert not transport.reading  # enough
        assert len(transport.writes) == count
        gate.open.set()
        await until(lambda: transport.reading)
        await a_round()
        assert b"354 " in transport.writes[-1]
        assert stage.transactions[0].content  # what came was the message
        session.connection_lost(None)

    run(dialogue())


def test_a_client_that_does_not_read_is_not_listened_to(stage: Stage) -> None:
    async def dialogue() -> None:
        session, transport = made(stage)
        session.pause_writing()
        assert not transport.reading
        session.data_received(b"NOOP\r\n")
        await a_round()
        assert len(transport.writes) == 1
        session.resume_writing()
        assert transport.reading
        await a_round()
        assert transport.writes[-1].startswith(b"250 ")
        session.connection_lost(None)

    run(dialogue())


def test_reading_goes_on_when_the_last_reason_is_gone(stage: Stage) -> None:
    async def dialogue() -> None:
        session, transport = made(stage)
        session.data_received(WHOLE)
        await until(lambda: b"354 " in b"".join(transport.writes))
        session.pause()
        session.pause_writing()
        session.resume_writing()
        assert not transport.reading
        session.resume()
        session.resume()
        assert transport.reading
        session.connection_lost(None)

    run(dialogue())


def test_what_waits_for_the_backend_is_not_looked_at_when_its_message_is_given_up(stage: Stage) -> None:
    """Giving a message up lets the client go on, but there is nothing left for it to go on with."""
    stage.settings = dataclasses.replace(stage.settings, session_timeout=0.2)

    async def dialogue() -> None:
        session, transport = made(stage)
        session.data_received(WHOLE)
        await until(lambda: b"354 " in b"".join(transport.writes))
        (transaction,) = stage.transactions
        transaction.abandon = lambda *_ignored: session.resume()  # type: ignore[method-assign]
        session.data_received(MESSAGE)
        session.pause()
        session.data_received(b".\r\nMAIL FROM:<b@c.test>\r\n")
        await until(lambda: transport.closed)
        assert transport.writes[-1].startswith(b"421 4.4.2 ")
        session.connection_lost(None)

    run(dialogue())
    assert stage.events("error") == []
    assert len(stage.transactions) == 1


def test_a_flood_of_events_lets_others_have_their_turn(stage: Stage) -> None:
    stage.limits = dataclasses.replace(stage.limits, max_idle_commands=100_000)

    async def dialogue() -> None:
        flood, other = await stage.open(), await stage.connect()
        await flood.begin()
        await other.begin()
        flood.send(b"EHLO x\r\n" * 20_000)
        answers = 0
        while (await other.ask(b"NOOP")).startswith(b"250 "):
            answers += 1
            if answers == 5:
                break
        assert answers == 5
        assert (await flood.reply()).startswith(b"250-")
        flood.reset()
        await until(lambda: len(stage.watch) == 1)

    run(dialogue())


def test_a_flood_has_one_turn_at_a_time_and_is_not_read_meanwhile(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "TURN_TIME", 30.0)  # by number alone: a machine may be busy for 2 ms
    stage.limits = dataclasses.replace(stage.limits, max_idle_commands=100_000)

    async def dialogue() -> None:
        session, transport = made(stage)
        for _n in range(5):
            session.data_received(b"EHLO x\r\n" * 10_000)
        session.flush()
        assert b"".join(transport.writes).count(b"250-mx.test") == TURN
        assert not transport.reading
        await asyncio.sleep(0)
        assert b"".join(transport.writes).count(b"250-mx.test") <= 2 * TURN
        await until(lambda: transport.reading)
        await until(lambda: b"".join(transport.writes).count(b"250-mx.test") == 50_000)
        session.connection_lost(None)

    run(dialogue())


def test_events_that_take_long_let_others_have_their_turn(stage: Stage) -> None:
    asked = 0

    def answer() -> Reply:
        nonlocal asked
        asked += 1
        time.sleep(0.003)
        return ACCEPTED

    stage.answers["rcpt"] = answer

    async def dialogue() -> None:
        session, transport = made(stage)
        session.data_received(b"\r\n".join((*ENVELOPE[:2], *[ENVELOPE[2]] * 20)) + b"\r\n")
        assert asked <= 1  # none so far where tasks don't begin at once (Python 3.11)
        await until(lambda: b"".join(transport.writes).count(ACCEPTED.wire()) == 20)
        session.connection_lost(None)

    run(dialogue())


def test_another_protocol_is_closed_without_a_word(stage: Stage) -> None:
    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin()
        talk.send(b"GET / HTTP/1.1\r\nHost: mx.test\r\n\r\n")
        assert await talk.until_end() == b""
        (event,) = stage.events("foreign")
        assert (event["client"], event["protocol"]) == ("127.0.0.1", "http")

    run(dialogue())


# -- faults of our own --


def test_an_exception_is_a_451_and_shows_nothing(stage: Stage) -> None:
    stage.answers["rcpt"] = RuntimeError("the secret")

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE[:2])
        assert await talk.ask(ENVELOPE[2]) == b"451 4.3.0 Internal error, try again later\r\n"
        stage.answers["rcpt"] = ACCEPTED
        # The transaction stays: 503 would make the sender give up.
        assert (await talk.ask(ENVELOPE[2])).startswith(b"250 ")
        stage.answers["data"] = RuntimeError("the secret")
        assert (await talk.ask(b"DATA")).startswith(b"451 4.3.0 ")
        assert stage.transactions[0].outcomes == ["failed", "failed", "refused"]
        assert [("the secret" in event["traceback"]) for event in stage.events("error")] == [True, True]
        assert (await talk.ask(b"NOOP")).startswith(b"250 ")

    run(dialogue())


def test_an_exception_in_a_message_ends_the_session(stage: Stage) -> None:
    stage.answers["write"] = RuntimeError("the secret")

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        # What is left of the message must not be read as commands.
        talk.send(b"Subject: x\r\nMAIL FROM:<smuggled@far.test>\r\n")
        assert await talk.until_end() == b"421 4.3.0 Internal error, try again later\r\n"
        assert len(stage.transactions) == 1
        assert stage.transactions[0].outcomes == ["failed", "failed"]

    run(dialogue())


def test_an_exception_in_a_commit(stage: Stage) -> None:
    stage.answers["commit"] = RuntimeError("the secret")

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        talk.send(MESSAGE + b".\r\n")
        assert (await talk.reply()).startswith(b"451 4.3.0 ")
        assert (await talk.ask(b"NOOP")).startswith(b"250 ")
        assert len(stage.events("error")) == 1

    run(dialogue())


def test_a_transaction_that_cant_be_made(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Transaction:
        raise RuntimeError("the secret")

    monkeypatch.setattr("greylist_proxy.smtp.server.Transaction", broken)

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(ENVELOPE[0])
        assert (await talk.ask(ENVELOPE[1])).startswith(b"451 4.3.0 ")
        assert (await talk.ask(ENVELOPE[2])).startswith(b"503 ")
        # What was sent along with it is answered as well.
        talk.send(b"\r\n".join([*ENVELOPE[1:], b"QUIT", b""]))
        assert [(await talk.reply())[:4] for _each in ENVELOPE] == [b"451 ", b"503 ", b"221 "]

    run(dialogue())


def broken(*_ignored: object) -> None:
    raise RuntimeError("the secret")


def test_an_exception_where_a_reply_is_to_be_given(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the reply any more, so who gives it must not lose the session."""
    stage.tarpit.seconds = 1
    monkeypatch.setattr(stage.tarpit, "hold", broken)

    async def dialogue() -> None:
        gate = stage.answers["rcpt"] = Gate(PERMANENT)
        talk = await stage.open()
        await talk.begin(*ENVELOPE[:2])
        talk.send(ENVELOPE[2] + b"\r\nNOOP\r\n")
        await gate.asked.wait()
        gate.open.set()
        assert (await talk.reply()).startswith(b"451 4.3.0 ")
        assert (await talk.reply()).startswith(b"250 ")

    run(dialogue())


def test_an_exception_while_a_reply_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply that is on its way must not become that of another command."""

    async def dialogue() -> None:
        gate = stage.answers["rcpt"] = Gate()
        session, transport = made(stage)
        session.data_received(WHOLE)
        await gate.asked.wait()
        monkeypatch.setattr(transport, "pause_reading", broken)
        session.data_received(b"x" * 70_000)
        assert transport.writes[-1].splitlines()[-1].startswith(b"421 4.3.0 ")
        assert transport.closed
        await until(lambda: not stage.tasks)
        assert stage.transactions[0].outcomes == ["failed", "client-gone"]
        assert transport.writes[-1].splitlines()[-1].startswith(b"421 4.3.0 ")
        session.connection_lost(None)

    run(dialogue())


def test_a_session_that_cant_be_ended_does_not_keep_the_others(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.settings = dataclasses.replace(stage.settings, session_timeout=0.05)

    async def dialogue() -> None:
        sessions, transports = zip(*(made(stage) for _n in range(4)), strict=True)
        for transport in transports[1:]:
            monkeypatch.setattr(transport, "write", broken)
        await until(lambda: all(transport.closed for transport in transports))
        assert transports[0].writes[-1].startswith(b"421 4.4.2 ")
        for session in sessions:
            session.connection_lost(None)

    run(dialogue())


# -- what a transaction says --


@pytest.mark.parametrize(
    ("answer", "outcomes"),
    [
        (own_reply(503, "5.5.1", "RCPT first"), []),
        (PERMANENT, ["refused"]),
        (own_reply(451, "4.3.0", "Not now"), ["refused"]),
    ],
)
def test_what_data_is_answered(stage: Stage, answer: Reply, outcomes: list[str]) -> None:
    stage.answers["data"] = answer

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE)
        assert await talk.ask(b"DATA") == answer.wire()
        assert stage.transactions[0].outcomes == outcomes
        assert (await talk.ask(ENVELOPE[2])).startswith(b"503 " if outcomes else b"250 ")

    run(dialogue())


def test_a_message_that_is_too_big_is_read_to_its_end(stage: Stage) -> None:
    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        talk.send(b"x" * 70 + b"\r\n")
        talk.send((b"x" * 70 + b"\r\n") * 20_000)
        await until(lambda: stage.transactions[0].outcomes)
        assert stage.transactions[0].outcomes == ["refused-here"]
        talk.send(b".\r\n")
        assert (await talk.reply()).startswith(b"552 5.3.4 ")
        assert (await talk.ask(b"NOOP")).startswith(b"250 ")

    run(dialogue())


def test_the_rest_of_a_message_that_is_refused_has_the_time_of_a_message(stage: Stage) -> None:
    """It has to be read to its end, and a client that is slow but goes on is not cut off."""
    stage.settings = SessionSettings(command_timeout=1000, data_timeout=50)

    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        talk.send((b"x" * 70 + b"\r\n") * 20_000)
        await until(lambda: stage.transactions[0].outcomes)
        (session,) = stage.watch
        assert stage.watch.now() < session.deadline <= stage.watch.now() + 50
        talk.send(b"more\r\n.\r\n")
        assert (await talk.reply()).startswith(b"552 ")
        await until(lambda: session.deadline > stage.watch.now() + 500)

    run(dialogue())


def test_bare_line_ends_that_were_mended_are_counted(stage: Stage) -> None:
    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE, b"DATA")
        talk.send(b"Subject: x\n\r\nHello.\n.\nMore\r\n.\r\n")
        assert (await talk.reply()).startswith(b"250 ")
        (event,) = stage.events("normalised")
        assert (event["client"], event["count"]) == ("127.0.0.1", 3)

    run(dialogue())


@pytest.mark.parametrize("line", [b"RSET", b"EHLO again.test", b"QUIT"])
def test_the_end_of_a_transaction(stage: Stage, line: bytes) -> None:
    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin(*ENVELOPE)
        assert (await talk.ask(line))[:1] == b"2"
        assert stage.transactions[0].outcomes == ["reset"]

    run(dialogue())
