# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend's half of a transaction, against mail servers that behave badly by script.

Each case plays one message: RCPT, DATA, body, end of data, as far as the answers allow, and shows what the client
is told at the last step. Whatever happens, a final dot that was not answered with 2xx is never a 250.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from greylist_proxy.smtp.relay import Relay

from .peers import CLOSE, DEADLINE, POLITE, SILENCE, ScriptedPeer, until, wait_until
from .relays import BODY, PATIENT, SHORT, Brake, Rig, closed_port, parameter, play

Scripted = Callable[..., ScriptedPeer]


def endless(piece: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.repeat(piece)


def dripping(text: bytes) -> Callable[[], Iterator[bytes]]:
    """A reply without an end, an octet at a time: always progress, and never done."""

    def drip() -> Iterator[bytes]:
        for octet in itertools.cycle(text):
            time.sleep(0.02)
            yield bytes((octet,))

    return drip


def stall(over: threading.Event, word: bytes | None = None) -> Callable[[], bytes]:
    """As a reply: read nothing until the event, then say a word, or leave."""

    def wait() -> bytes:
        over.wait(DEADLINE)
        if word is None:
            raise EOFError
        return word

    return wait


EVERYTHING = (
    b"250-peer.test\r\n250-PIPELINING\r\n250-SIZE\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n"
    b"250 ENHANCEDSTATUSCODES\r\n"
)
PIPELINING = b"250-peer.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
LATER = b"450 4.2.0 mailbox busy\r\n"
NEVER = b"550-5.7.1 go away,\r\n550 5.7.1 you\r\n"
UNKNOWN_TO_US = "451 4.3.5 "
LOST = "451 4.4.2 "
UNREACHABLE = "451 4.4.1 "


@pytest.mark.parametrize(
    ("script", "stage", "reply"),
    [
        # all is well
        ({}, "end", "250 taken\r\n"),
        ({".": b"250-2.0.0 a\r\n250 2.0.0 b\r\n"}, "end", "250-2.0.0 a\r\n250 2.0.0 b\r\n"),
        ({"RCPT": b"251 will forward\r\n"}, "end", "250 taken\r\n"),
        ({".": [b"25", b"0 in pi", b"eces\r", b"\n"]}, "end", "250 in pieces\r\n"),
        ({"connect": b"220-two lines\r\n220 of greeting\r\n"}, "end", "250 taken\r\n"),
        # its own refusals pass as they are, at every step
        ({"MAIL": NEVER}, "rcpt", NEVER.decode()),
        ({"MAIL": LATER}, "rcpt", LATER.decode()),
        ({"RCPT": NEVER}, "rcpt", NEVER.decode()),
        ({"RCPT": LATER}, "rcpt", LATER.decode()),
        ({"DATA": NEVER}, "data", NEVER.decode()),
        ({"DATA": LATER}, "data", LATER.decode()),
        ({".": NEVER}, "end", NEVER.decode()),
        ({".": LATER}, "end", LATER.decode()),
        ({"RCPT": b"550 5.1.1 \xfcn\xefknown\r\n"}, "rcpt", "550 5.1.1 \xfcn\xefknown\r\n"),
        ({"RCPT": b"550\r\n"}, "rcpt", "550 \r\n"),
        # a refusal before the end of data is its word as well
        ({"body": b"552 5.3.4 too big\r\n"}, "end", "552 5.3.4 too big\r\n"),
        # its troubles are not the sender's
        ({"connect": b"554 no\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"connect": b"421 busy\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"connect": b"250 hm\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"EHLO": b"550 no\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"EHLO": b"502 what\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"EHLO": b"421 bye\r\n"}, "rcpt", UNKNOWN_TO_US),
        *(
            ({step: b"%d no\r\n" % code}, stage, UNKNOWN_TO_US)
            for code in (421, 500, 501, 502, 503, 504, 530, 535, 538, 555)
            for step, stage in (("MAIL", "rcpt"), ("RCPT", "rcpt"), ("DATA", "data"), (".", "end"))
        ),
        # a 5xx that says of itself that it is temporary
        *(
            ({step: b"552 4.3.1 session too big\r\n"}, stage, UNKNOWN_TO_US)
            for step, stage in (("MAIL", "rcpt"), ("RCPT", "rcpt"), ("DATA", "data"), ("body", "end"), (".", "end"))
        ),
        ({"RCPT": b"550 4.4.7\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({".": b"552 4.5 MB is too much\r\n"}, "end", "552 4.5 MB is too much\r\n"),
        # not there, or not for long
        ({"connect": CLOSE}, "rcpt", UNREACHABLE),
        ({"connect": SILENCE}, "rcpt", UNREACHABLE),
        ({"EHLO": CLOSE}, "rcpt", UNREACHABLE),
        ({"EHLO": SILENCE}, "rcpt", UNREACHABLE),
        *(
            ({step: action}, stage, LOST)
            for action in (CLOSE, SILENCE)
            for step, stage in (
                ("MAIL", "rcpt"),
                ("RCPT", "rcpt"),
                ("DATA", "data"),
                ("body", "end"),
                (".", "end"),
            )
            if (step, action) != ("body", SILENCE)
        ),
        ({".": [b"250 half a rep"]}, "end", LOST),
        # no SMTP, or not as it should be
        ({"connect": b"HTTP/1.1 400 Bad Request\r\n\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"connect": b"\x15\x03\x01\x00\x02\x02\x50\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"RCPT": b"250-a\r\n550 b\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"RCPT": b"ok\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"RCPT": b"\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"RCPT": b"250\x1b[31m red\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"RCPT": b"550 with a\rbare CR\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"RCPT": b"354 go on\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"RCPT": b"150 hm\r\n"}, "rcpt", UNKNOWN_TO_US),
        ({"DATA": b"250 done\r\n"}, "data", UNKNOWN_TO_US),
        ({".": b"354 go on\r\n"}, "end", UNKNOWN_TO_US),
        # without an end
        ({"RCPT": endless(b"250-more\r\n")}, "rcpt", UNKNOWN_TO_US),
        ({"RCPT": endless(b"x" * 1000)}, "rcpt", UNKNOWN_TO_US),
        ({"connect": endless(b"220-hello\r\n")}, "rcpt", UNKNOWN_TO_US),
        ({"EHLO": b"".join(b"250-X%d\r\n" % number for number in range(101))}, "rcpt", UNKNOWN_TO_US),
        *(
            ({step: b"250-more\r\n" * 100_000 + b"250 done\r\n"}, stage, UNKNOWN_TO_US)
            for step, stage in (("MAIL", "rcpt"), ("RCPT", "rcpt"), ("DATA", "data"), (".", "end"))
        ),
        *(
            ({step: dripping(b"250-and so on\r\n")}, stage, LOST)
            for step, stage in (("MAIL", "rcpt"), ("RCPT", "rcpt"), ("DATA", "data"), (".", "end"))
        ),
        ({"connect": dripping(b"220-and so on\r\n")}, "rcpt", UNREACHABLE),
        ({"EHLO": dripping(b"250-and so on\r\n")}, "rcpt", UNREACHABLE),
        # out of turn: none of this may be taken for an answer that comes later
        ({"RCPT": b"250 ok\r\n250 ok\r\n"}, "data", UNKNOWN_TO_US),
        ({"RCPT": b"250 ok\r\n354 go on\r\n"}, "data", UNKNOWN_TO_US),
        ({"DATA": b"354 go on\r\n250 taken\r\n"}, "end", UNKNOWN_TO_US),
        ({"body": b"250 taken\r\n"}, "end", UNKNOWN_TO_US),
        ({"body": b"250 half"}, "end", LOST),
    ],
)
@pytest.mark.parametrize("pipelining", [False, True])
def test_a_message(scripted: Scripted, script: dict[str, Any], stage: str, reply: str, pipelining: bool) -> None:
    if pipelining:
        script = {"EHLO": PIPELINING, **script}
    peer = scripted(script)
    played = play(peer.port)
    assert (played.stage, played.text[: len(reply)]) == (stage, reply)
    # The peer holds a whole message only where it was to have the last word on one.
    assert bool(peer.messages) is (stage == "end" and "body" not in script and script.get("DATA") is None)
    if not reply.startswith("250"):
        (line,) = played.log
        if stage == "end" and "." in script and line["code"] is None:
            expected = "unknown"
        else:
            expected = "trouble" if reply == UNKNOWN_TO_US else "failed" if reply in (LOST, UNREACHABLE) else "refused"
        assert line["outcome"] == expected
        assert line["error"]
        assert line.get("level") == ("alarm" if line["outcome"] == "trouble" else None)


def test_what_is_said(scripted: Scripted) -> None:
    peer = scripted()
    parameters = (parameter("size=1000"), parameter("Body=8BitMime"))
    two = [("u@here.test", ()), ("U@here.test", ())]
    assert play(peer.port, parameters=parameters, recipients=two).reply.code == 250
    wait_until(lambda: b"QUIT\r\n" in peer.lines, "QUIT")
    assert peer.lines == [
        b"EHLO mx.test\r\n",
        b"MAIL FROM:<a@far.test> size=1000 Body=8BitMime\r\n",
        b"RCPT TO:<u@here.test>\r\n",
        b"RCPT TO:<U@here.test>\r\n",
        b"DATA\r\n",
        b"QUIT\r\n",
    ]
    assert peer.messages == [BODY + b".\r\n"]


def test_everything_that_is_offered_goes_on_as_it_came(scripted: Scripted) -> None:
    peer = scripted({"EHLO": EVERYTHING})
    raw = ("SIZE=12", "BODY=8BITMIME", "SmtpUtf8", "ret=Hdrs", "ENVID=aB+2Bc")
    recipients = [
        ("\u00fc@here.test", (parameter("NOTIFY=Success,delay"), parameter("ORCPT=rfc822;U@x"))),
        ("v@here.test", ()),
    ]
    played = play(peer.port, parameters=[parameter(each) for each in raw], recipients=recipients)
    assert played.text == "250 taken\r\n"
    assert peer.lines[1:4] == [
        b"MAIL FROM:<a@far.test> SIZE=12 BODY=8BITMIME SmtpUtf8 ret=Hdrs ENVID=aB+2Bc\r\n",
        b"RCPT TO:<\xc3\xbc@here.test> NOTIFY=Success,delay ORCPT=rfc822;U@x\r\n",
        b"RCPT TO:<v@here.test>\r\n",
    ]


def test_a_backend_without_extensions(scripted: Scripted) -> None:
    peer = scripted({"EHLO": b"250 peer.test\r\n"})
    assert play(peer.port, parameters=(parameter("SIZE=1000"), parameter("BODY=7BIT"))).reply.code == 250
    assert peer.lines[1] == b"MAIL FROM:<a@far.test>\r\n"


@pytest.mark.parametrize(
    ("raw", "lacks"),
    [
        ("BODY=8BITMIME", "8BITMIME"),
        ("SMTPUTF8", "SMTPUTF8"),
        ("RET=FULL", "DSN"),
        ("ENVID=x", "DSN"),
        ("SIZE=1001", "1000 octets"),
        ("XSTRANGE=1", "XSTRANGE"),
    ],
)
def test_a_promise_that_cant_be_kept(scripted: Scripted, raw: str, lacks: str) -> None:
    """Nobody re-encodes and nobody bounces, because a backend has fewer abilities than it had."""
    peer = scripted({"EHLO": b"250-peer.test\r\n250 SIZE 1000\r\n"})
    played = play(peer.port, parameters=(parameter(raw),))
    assert (played.stage, played.text[:10]) == ("rcpt", UNKNOWN_TO_US)
    (line,) = played.log
    assert (line["outcome"], line["stage"], line["level"]) == ("trouble", "mail", "alarm")
    assert lacks in line["error"]
    assert peer.verbs()[:2] in (["EHLO"], ["EHLO", "QUIT"])


@pytest.mark.parametrize("first", [True, False])
def test_dsn_for_a_recipient_that_cant_be_kept(scripted: Scripted, first: bool) -> None:
    recipients = [("u@here.test", ()), ("v@here.test", (parameter("NOTIFY=NEVER"),))]
    played = play(scripted().port, recipients=recipients[first:])
    assert (played.stage, played.text[:10]) == ("rcpt", UNKNOWN_TO_US)


def test_nothing_goes_on_that_nothing_was_promised_for(scripted: Scripted) -> None:
    peer = scripted()
    played = play(peer.port, promised=None)
    assert (played.stage, played.text[:10]) == ("rcpt", UNREACHABLE)
    assert peer.lines == []


@pytest.mark.parametrize(
    "script",
    [{"connect": CLOSE}, {"connect": SILENCE}, {"connect": b"554 no\r\n"}, {"EHLO": b"421 busy\r\n"}, None],
)
def test_hosts_are_tried_in_order(scripted: Scripted, script: dict[str, Any] | None) -> None:
    second, third = scripted(), scripted()
    first = closed_port() if script is None else scripted(script).port
    played = play(first, second.port, third.port)
    assert played.text == "250 taken\r\n"
    assert second.messages
    assert not third.lines
    passed_over, taken = played.log
    assert (passed_over["backend"], passed_over["stage"]) == (f"127.0.0.1:{first}", "connect")
    assert (taken["backend"], taken["outcome"], taken["code"]) == (f"127.0.0.1:{second.port}", "accepted", 250)
    assert taken["bytes"] == len(BODY)


@pytest.mark.parametrize(
    ("scripts", "reply"),
    [
        ([None, None], UNREACHABLE),
        ([None, {"connect": CLOSE}], UNREACHABLE),
        ([{"connect": b"554 no\r\n"}, None], UNKNOWN_TO_US),
    ],
)
def test_no_host_at_all(scripted: Scripted, scripts: list[dict[str, Any] | None], reply: str) -> None:
    ports = [closed_port() if script is None else scripted(script).port for script in scripts]
    played = play(*ports)
    assert (played.stage, played.text[:10]) == ("rcpt", reply)
    assert len(played.log) == 2


def test_a_failure_stays(scripted: Scripted) -> None:
    peer = scripted({"RCPT": CLOSE})
    assert play(peer.port, recipients=[("u@here.test", ())] * 3).text.startswith(LOST)
    # The transaction is not begun again, here or elsewhere.
    assert peer.verbs() == ["EHLO", "MAIL", "RCPT"]


def test_a_421_is_the_last_word(scripted: Scripted) -> None:
    peer = scripted({"RCPT": b"421 going away\r\n"})
    assert play(peer.port, recipients=[("u@here.test", ())] * 3).text.startswith(UNKNOWN_TO_US)
    assert peer.verbs()[:3] == ["EHLO", "MAIL", "RCPT"]
    assert peer.verbs().count("RCPT") == 1


def test_last_words_in_the_body_count(scripted: Scripted) -> None:
    def refuse_and_close() -> Iterator[bytes]:
        yield b"552 5.3.4 too big\r\n"
        raise EOFError

    peer = scripted({"body": refuse_and_close})
    played = play(peer.port, body=b"x" * 78 + b"\r\n" + b"y" * 7000)
    assert (played.stage, played.text) == ("end", "552 5.3.4 too big\r\n")


def test_the_outcome_is_unknown_after_the_dot(scripted: Scripted) -> None:
    for action in (CLOSE, SILENCE):
        peer = scripted({".": action})
        (line,) = play(peer.port).log
        assert (line["outcome"], line["stage"], line["code"]) == ("unknown", "end-of-data", None)
        assert peer.messages == [BODY + b".\r\n"]


def test_a_backend_that_stops_reading(scripted: Scripted) -> None:
    # Nothing is read after the first line, so the buffers fill up.
    over = threading.Event()
    peer = scripted({"body": stall(over)})
    played = play(peer.port, body=b"x" * 78 + b"\r\n" + b"y" * 30_000_000)
    over.set()
    assert (played.stage, played.text[:10]) == ("end", LOST)
    assert peer.messages == []
    assert "for it to take data" in played.log[0]["error"]


def test_a_slow_backend_is_waited_for(scripted: Scripted) -> None:
    def slowly() -> Iterator[bytes]:
        for piece in (b"250-", b"slow\r\n", b"250 but", b" sure\r\n"):
            yield piece
            time.sleep(0.5)  # more than end_of_data together, but each piece is progress

    timeouts = dataclasses.replace(SHORT, end_of_data=1.2)
    played = play(scripted({".": slowly}).port, settings={"timeouts": timeouts})
    assert played.text == "250-slow\r\n250 but sure\r\n"


def test_a_failure_of_a_later_recipient_is_one_of_the_transaction(scripted: Scripted) -> None:
    replies = iter((b"250 ok\r\n", CLOSE))
    peer = scripted({"RCPT": lambda: _or_close(next(replies))})
    played = play(peer.port, recipients=[("u@here.test", ()), ("v@here.test", ())])
    assert (played.stage, played.text[:10]) == ("rcpt", LOST)
    assert len(peer.conversations) == 1


def _or_close(reply: Any) -> bytes:
    if reply is CLOSE:
        raise EOFError
    assert isinstance(reply, bytes)
    return reply


class Bench:
    """A relay up to the middle of a message, and the rig that it belongs to."""

    def __init__(self, port: int, **settings: Any) -> None:
        self.rig = Rig(port, **{"timeouts": PATIENT, **settings})
        self.relay: Relay = self.rig.relay()

    async def begin(self) -> None:
        assert (await self.relay.rcpt("u@here.test", ())).is_positive
        assert (await self.relay.data()).code == 354


def test_a_client_waits_for_a_slow_backend(scripted: Scripted) -> None:
    """What is kept here of a message of any size is bounded: the client is told to wait, and again to go on."""
    over = threading.Event()
    peer = scripted({"body": stall(over)})

    async def stuck() -> tuple[int, Brake]:
        bench = Bench(peer.port)
        await bench.begin()
        sent = 0
        bench.relay.write(b"first line\r\n")
        await asyncio.sleep(0.1)
        while not bench.rig.flow.is_pressed:
            bench.relay.write(b"y" * 8192)
            sent += 8192
            await asyncio.sleep(0)
            assert sent < 100 << 20  # the kernel's buffers are not endless
        connection = bench.relay._connection
        assert connection is not None
        assert connection._transport is not None
        size = connection._transport.get_write_buffer_size()
        bench.relay.abandon("client-gone")
        released = not bench.rig.flow.is_pressed
        await bench.rig.settle()
        assert released
        return size, bench.rig.flow

    size, flow = asyncio.run(stuck())
    over.set()
    assert size <= (64 << 10) + 8192
    assert flow.pauses == 1
    assert peer.messages == []


@pytest.mark.parametrize("word", [b"552 5.3.4 too big\r\n", None])
def test_a_client_is_not_kept_waiting_by_a_backend_that_gave_up(scripted: Scripted, word: bytes | None) -> None:
    """It says something or leaves while the client waits: the client's data is read to its end, and thrown away."""
    let_go = threading.Event()
    peer = scripted({"body": stall(let_go, word)})

    async def scene() -> str:
        bench = Bench(peer.port)
        await bench.begin()
        bench.relay.write(b"first line\r\n")
        while not bench.rig.flow.is_pressed:
            bench.relay.write(b"y" * 65536)
            await asyncio.sleep(0)
        let_go.set()
        await until(lambda: not bench.rig.flow.is_pressed)
        bench.relay.write(b"more\r\n")
        reply = await bench.relay.finish()
        await bench.rig.settle()
        return str(reply)

    told = asyncio.run(scene())
    assert told.startswith("552 5.3.4" if word else "451 4.4.2")
    assert peer.messages == []


@pytest.mark.parametrize("moment", ["rcpt", "data", "body", "."])
def test_a_client_that_leaves(scripted: Scripted, moment: str) -> None:
    """Whenever it leaves, no final dot is sent that was not before, and the connection is not used again."""
    asked = threading.Event()

    def held() -> bytes:
        asked.set()
        time.sleep(0.2)
        return POLITE[moment.upper()]  # type: ignore[no-any-return]

    peer = scripted({moment.upper(): held} if moment in ("rcpt", "data") else {})

    async def scene() -> list[dict[str, Any]]:
        bench = Bench(peer.port)
        relay = bench.relay
        if moment == "rcpt":
            waiting = asyncio.ensure_future(relay.rcpt("u@here.test", ()))
        else:
            assert (await relay.rcpt("u@here.test", ())).is_positive
            waiting = asyncio.ensure_future(relay.data())
        if moment in ("rcpt", "data"):
            await until(asked.is_set)
        else:
            assert (await waiting).code == 354
            relay.write(b"Subject: x\r\n")
            await asyncio.sleep(0.05)
        relay.abandon("client-gone")
        if moment in ("rcpt", "data"):
            assert (await waiting).is_temporary
        else:
            assert (await relay.finish()).is_temporary
        await bench.rig.settle()
        return bench.rig.lines()

    log = asyncio.run(scene())
    assert peer.messages == []
    assert len(peer.conversations) == 1
    assert [line["outcome"] for line in log] == (["client-gone"] if moment in ("body", ".") else [])


@pytest.mark.parametrize("end", ["cancel", "abandon"])
def test_who_gives_up_after_the_dot_leaves_an_unknown_outcome(scripted: Scripted, end: str) -> None:
    """A stop of the program does not wait for ever, and the message may be the backend's."""
    peer = scripted({".": SILENCE})

    async def scene() -> list[dict[str, Any]]:
        bench = Bench(peer.port)
        await bench.begin()
        bench.relay.write(b"Subject: x\r\n")
        waiting = asyncio.ensure_future(bench.relay.finish())
        await until(lambda: peer.messages)
        if end == "cancel":
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert waiting.cancelled()
        else:
            bench.relay.abandon("client-gone")
            assert (await waiting).is_temporary
        await bench.rig.settle()
        return bench.rig.lines()

    (line,) = asyncio.run(scene())
    assert (line["outcome"], line["stage"], line["code"]) == ("unknown", "end-of-data", None)


def test_a_cancelled_question_leaves_no_reply_behind(scripted: Scripted) -> None:
    """The next transaction must not take the reply to this one's RCPT for one of its own."""
    asked = threading.Event()

    def once() -> bytes:
        if not asked.is_set():
            asked.set()
            time.sleep(0.2)
            return b"550 for the first\r\n"
        return b"250 for the second\r\n"

    peer = scripted({"RCPT": once})

    async def scene() -> str:
        bench = Bench(peer.port)
        waiting = asyncio.ensure_future(bench.relay.rcpt("u@here.test", ()))
        await until(asked.is_set)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        bench.relay.close()
        reply = await bench.rig.relay().rcpt("v@here.test", ())
        await bench.rig.settle()
        return str(reply)

    assert asyncio.run(scene()) == "250 for the second"
    assert len(peer.conversations) == 2
