# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend's half of a transaction, against mail servers that behave badly by script.

Each case plays one message: RCPT, DATA, body, end of data, as far as the answers allow, and shows what the client
is told at the last step. Whatever happens, a final dot that was not answered with 2xx is never a 250.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from greylist_proxy.config_values import Endpoint
from greylist_proxy.log import Log
from greylist_proxy.smtp.address import Parameter, Path
from greylist_proxy.smtp.backend import Timeouts
from greylist_proxy.smtp.relay import Backend, Relay
from greylist_proxy.smtp.replies import Reply
from greylist_proxy.tasks import Tasks

from .peers import CLOSE, SILENCE, ScriptedPeer, until, wait_until

Scripted = Callable[..., ScriptedPeer]
SHORT = Timeouts(connect=5, opening=0.4, command=0.3, data=0.3, block=0.3, end_of_data=0.3, quit=0.3)
BODY = b"Subject: x\r\n\r\nbody\r\n"


class Played:
    """What came of a message: the stage reached, the last reply, and the log."""

    def __init__(self, stage: str, reply: Reply, log: list[dict[str, Any]]) -> None:
        self.stage = stage
        self.reply = reply
        self.text = reply.wire().decode("latin-1")
        self.log = log


def play(
    *ports: int,
    parameters: tuple[Parameter, ...] = (),
    body: bytes = BODY,
    recipients: int = 1,
    timeouts: Timeouts = SHORT,
) -> Played:
    async def message() -> Played:
        stream = io.StringIO()
        log = Log(stream)
        tasks = Tasks(log)
        hosts = [Endpoint("127.0.0.1", port) for port in ports]
        relay = Relay(Backend(hosts, "mx.test", timeouts), log, tasks, "ID", Path("a@far.test"), parameters)
        stage, reply = await steps(relay)
        relay.close()
        await until(lambda: not tasks)
        return Played(stage, reply, [json.loads(line) for line in stream.getvalue().splitlines()])

    async def steps(relay: Relay) -> tuple[str, Reply]:
        for _n in range(recipients):
            reply = await relay.rcpt(Path("u@here.test", "u", "here.test"))
        if not reply.is_positive:
            return "rcpt", reply
        reply = await relay.data()
        if reply.code != 354:
            return "data", reply
        for start in range(0, len(body), 4096):
            await relay.write(body[start : start + 4096])
            await asyncio.sleep(0.05 if start == 0 else 0)  # what the peer says meanwhile arrives
        return "end", await relay.finish()

    return asyncio.run(message())


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def endless(piece: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.repeat(piece)


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
        # out of turn: none of this may be taken for an answer that comes later
        ({"RCPT": b"250 ok\r\n250 ok\r\n"}, "data", UNKNOWN_TO_US),
        ({"RCPT": b"250 ok\r\n354 go on\r\n"}, "data", UNKNOWN_TO_US),
        ({"DATA": b"354 go on\r\n250 taken\r\n"}, "end", UNKNOWN_TO_US),
        ({"body": b"250 taken\r\n"}, "end", UNKNOWN_TO_US),
        ({"body": b"250 half"}, "end", LOST),
    ],
)
def test_a_message(scripted: Scripted, script: dict[str, Any], stage: str, reply: str) -> None:
    peer = scripted(script)
    played = play(peer.port)
    assert (played.stage, played.text[: len(reply)]) == (stage, reply)
    # The peer holds a whole message only where it was to have the last word on one.
    assert bool(peer.messages) is (stage == "end" and "body" not in script and script.get("DATA") is None)
    if not reply.startswith("250"):
        (line,) = [line for line in played.log if line["event"] == "relay"]
        assert line["outcome"] in ("refused", "trouble", "failed", "unknown")
        assert line["error"]


def test_what_is_said(scripted: Scripted) -> None:
    peer = scripted()
    parameters = (Parameter("size=1000", "SIZE", "1000"), Parameter("Body=8BitMime", "BODY", "8BitMime"))
    assert play(peer.port, parameters=parameters, recipients=2).reply.code == 250
    wait_until(lambda: b"QUIT\r\n" in peer.lines, "QUIT")
    assert peer.lines == [
        b"EHLO mx.test\r\n",
        b"MAIL FROM:<a@far.test> size=1000 Body=8BitMime\r\n",
        b"RCPT TO:<u@here.test>\r\n",
        b"RCPT TO:<u@here.test>\r\n",
        b"DATA\r\n",
        b"QUIT\r\n",
    ]
    assert peer.messages == [BODY + b".\r\n"]


def test_a_backend_without_extensions(scripted: Scripted) -> None:
    peer = scripted({"EHLO": b"250 peer.test\r\n"})
    size, seven = Parameter("SIZE=1000", "SIZE", "1000"), Parameter("BODY=7BIT", "BODY", "7BIT")
    assert play(peer.port, parameters=(size, seven)).reply.code == 250
    assert peer.lines[1] == b"MAIL FROM:<a@far.test>\r\n"
    # What 8BITMIME promised to the client can't be kept here: nobody re-encodes, nobody bounces.
    played = play(peer.port, parameters=(Parameter("BODY=8BITMIME", "BODY", "8BITMIME"),))
    assert (played.stage, played.text[:10]) == ("rcpt", UNKNOWN_TO_US)


@pytest.mark.parametrize(
    "script",
    [{"connect": CLOSE}, {"connect": SILENCE}, {"connect": b"554 no\r\n"}, {"EHLO": b"421 busy\r\n"}, None],
)
def test_hosts_are_tried_in_order(scripted: Scripted, script: dict[str, Any] | None) -> None:
    first = closed_port() if script is None else scripted(script).port
    second, third = scripted(), scripted()
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
    assert play(peer.port, recipients=3).text.startswith(LOST)
    # The transaction is not begun again, here or elsewhere.
    assert peer.verbs() == ["EHLO", "MAIL", "RCPT"]


def test_a_421_is_the_last_word(scripted: Scripted) -> None:
    peer = scripted({"RCPT": b"421 going away\r\n"})
    assert play(peer.port, recipients=3).text.startswith(UNKNOWN_TO_US)
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
    peer = scripted({"body": SILENCE})
    played = play(peer.port, body=b"x" * 78 + b"\r\n" + b"y" * 30_000_000)
    assert (played.stage, played.text[:10]) == ("end", LOST)
    assert peer.messages == []


def test_a_slow_backend_is_waited_for(scripted: Scripted) -> None:
    def slowly() -> Iterator[bytes]:
        for piece in (b"250-", b"slow\r\n", b"250 ", b"but", b" sure", b"\r\n"):
            time.sleep(0.15)  # more than end_of_data together, but each piece is progress
            yield piece

    assert play(scripted({".": slowly}).port).text == "250-slow\r\n250 but sure\r\n"
