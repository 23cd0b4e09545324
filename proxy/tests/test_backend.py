# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How connections are opened: TLS in its four ways, and how XCLIENT and PROXY reach servers that others wrote."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop
from greylist_proxy.config_values import Endpoint
from greylist_proxy.smtp.backend import HIGH_WATER, BackendError, Connection
from greylist_proxy.smtp.replies import MAX_REPLY_LINES

from .peers import CLOSE, DEADLINE, SILENCE, ScriptedPeer, until, wait_until
from .postfix_server import PostfixServer
from .relays import BODY, CLIENT, PATIENT, Played, Rig
from .rounds import Pipe
from .valkey_servers import CertificateFiles, make_certificate

Scripted = Callable[..., ScriptedPeer]
OFFER = b"250-peer.test\r\n250-STARTTLS\r\n250 8BITMIME\r\n"
READY = b"220 go ahead\r\n"
TROUBLE = "451 4.3.5 "


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"), "backend", "127.0.0.1")


@pytest.fixture
def encrypted(issued: CertificateFiles, scripted: Scripted) -> Scripted:
    """Make peers that speak TLS."""

    def make(script: dict[str, Any] | None = None) -> ScriptedPeer:
        peer = scripted({"EHLO": OFFER, "STARTTLS": READY, **(script or {})})
        peer.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        peer.context.load_cert_chain(issued.certificate, issued.key)
        return peer

    return make


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a scene in either event loop: their TLS is not the same."""

    def runs(scene: Coroutine[Any, Any, Any]) -> Any:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(scene, DEADLINE))

    return runs


async def play(*ports: int, body: bytes = BODY, count: int = 1, **settings: Any) -> tuple[list[Played], Rig]:
    rig = Rig(*ports, **{"timeouts": PATIENT, **settings})
    played = []
    for _n in range(count):
        played.append(await rig.play(body=body, pause=0))
        await until(lambda: not rig.tasks)
    await rig.settle()
    return played, rig


def verbs(peer: ScriptedPeer) -> list[str]:
    return [" ".join(line.split()[0].decode() for line in lines) for lines in peer.conversations]


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.mark.parametrize("starttls", ["opportunistic", "required", "verify"])
def test_tls(run: Run, encrypted: Scripted, issued: CertificateFiles, starttls: str) -> None:
    peer = encrypted()
    body = b"Subject: x\r\n\r\n" + b"y" * 998 + b"\r\n"
    (played,), rig = run(play(peer.port, body=body * 300, starttls=starttls, ca_file=issued.authority))
    assert played.text == "250 taken\r\n"
    assert verbs(peer) == ["EHLO STARTTLS EHLO MAIL RCPT DATA QUIT"]
    assert peer.messages == [body * 300 + b".\r\n"]
    assert peer.tls == ["TLSv1.3"]
    assert rig.lines("backend") == []


def test_never(run: Run, encrypted: Scripted) -> None:
    peer = encrypted()
    (played,), _rig = run(play(peer.port, starttls="never"))
    assert played.text == "250 taken\r\n"
    assert verbs(peer) == ["EHLO MAIL RCPT DATA QUIT"]


def refused() -> bytes:
    return b"454 4.7.0 TLS not available\r\n"


@pytest.mark.parametrize(
    "script",
    [
        {"STARTTLS": refused},
        {"STARTTLS": b"500 what?\r\n"},
        {"STARTTLS": CLOSE},
        {"STARTTLS": SILENCE},
        {"STARTTLS": b"220 go ahead\r\n250 injected\r\n"},  # from anybody, before the encryption
        {"STARTTLS": b"220 go ahead\r\nno TLS at all\r\n"},
        {"STARTTLS": lambda: READY + b"\x15\x03\x01\x00\x02\x02\x28"},
    ],
)
@pytest.mark.parametrize("starttls", ["opportunistic", "required", "verify"])
def test_tls_that_fails(run: Run, scripted: Scripted, script: dict[str, Any], starttls: str) -> None:
    """An opportunity that is missed: in clear, on a fresh connection, and so for the next. Otherwise no mail."""
    peer, other = scripted({"EHLO": OFFER, **script}), scripted()
    timeouts = dataclasses.replace(PATIENT, connect=0.3)
    played, rig = run(play(peer.port, other.port, count=2, starttls=starttls, timeouts=timeouts, idle_connections=0))
    if starttls == "opportunistic":
        assert [each.text for each in played] == ["250 taken\r\n"] * 2
        assert verbs(peer)[1:] == ["EHLO MAIL RCPT DATA QUIT"] * 2
        (line,) = rig.lines("backend")
        assert (line["state"], line["level"]) == ("in clear", "alarm")
    else:
        assert [each.text[:10] for each in played] == [TROUBLE] * 2
        assert {(line["outcome"], line["level"]) for line in rig.lines()} == {("trouble", "alarm")}
        assert "MAIL" not in peer.verbs() + other.verbs()


@pytest.mark.parametrize("starttls", ["required", "verify"])
def test_the_next_host_has_tls(
    run: Run, scripted: Scripted, encrypted: Scripted, issued: CertificateFiles, starttls: str
) -> None:
    without, peer = scripted(), encrypted()
    (played,), rig = run(play(without.port, peer.port, starttls=starttls, ca_file=issued.authority))
    assert played.text == "250 taken\r\n"
    assert verbs(without) in (["EHLO"], ["EHLO QUIT"])
    assert "does not offer STARTTLS" in rig.lines()[0]["error"]


def test_a_certificate_that_is_not_its_own(run: Run, encrypted: Scripted, tmp_path: Path) -> None:
    stranger = make_certificate(tmp_path, "stranger", "127.0.0.1")
    wrong_name = make_certificate(tmp_path, "elsewhere", "127.0.0.9")
    peer, elsewhere = encrypted(), encrypted()
    elsewhere.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    elsewhere.context.load_cert_chain(wrong_name.certificate, wrong_name.key)
    for port, authority in ((peer.port, stranger.authority), (elsewhere.port, wrong_name.authority)):
        (played,), rig = run(play(port, starttls="verify", ca_file=authority))
        assert played.text[:10] == TROUBLE
        assert "certificate verify failed" in rig.lines()[0]["error"]
        # Who only wants to be encrypted does not look.
        (played,), _rig = run(play(port, starttls="required"))
        assert played.text == "250 taken\r\n"


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()

    async def scene() -> None:
        for name in ("missing.pem", "empty.pem"):
            with pytest.raises(OSError, match=r"."):
                Rig(1, starttls="verify", ca_file=tmp_path / name)

    asyncio.run(scene())


def test_a_probe_finds_tls_again(run: Run, encrypted: Scripted) -> None:
    peer = encrypted({"STARTTLS": refused})

    async def scene() -> None:
        rig = Rig(peer.port, timeouts=PATIENT, idle_connections=0)
        assert (await rig.play(pause=0)).text == "250 taken\r\n"
        assert peer.tls == []
        peer.replies["STARTTLS"] = READY
        probing = asyncio.ensure_future(rig.backends.keep_probing())
        await until(lambda: len(peer.tls) == 1)
        await until(lambda: peer.verbs()[-1] == "QUIT")
        probing.cancel()
        assert (await rig.play(pause=0)).text == "250 taken\r\n"
        await rig.settle()

    run(scene())
    assert verbs(peer)[-1] == "EHLO STARTTLS EHLO MAIL RCPT DATA QUIT"


def test_a_message_stuck_under_tls(run: Run, encrypted: Scripted) -> None:
    over = threading.Event()

    def stall() -> bytes:
        over.wait(DEADLINE)
        raise EOFError

    peer = encrypted({"body": stall})

    async def scene() -> tuple[Played, str]:
        rig = Rig(peer.port, timeouts=dataclasses.replace(PATIENT, block=0.3), starttls="required")
        # More than TLS and both sides' socket buffers take.
        played = await rig.play(body=(b"y" * 998 + b"\r\n") * 16_000)
        over.set()
        await rig.settle()
        return played, rig.lines()[0]["error"]

    played, error = run(scene())
    assert played.text.startswith("451 4.4.2")
    assert error.endswith("waited 0.3 seconds for it to take data")
    assert peer.messages == []


class Reluctant(asyncio.Transport):
    """A transport whose buffer shrinks by an octet each time that somebody looks at it, down to an end."""

    def __init__(self, size: int, end: int, taken: Callable[[], None]) -> None:
        super().__init__()
        self.size = size
        self.end = end
        self.taken = taken
        self.written = b""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing depends on them here."""

    def get_write_buffer_size(self) -> int:
        if self.size > self.end:
            self.size -= 1
            if not self.size:
                asyncio.get_running_loop().call_soon(self.taken)
        return self.size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.taken = lambda: None


@pytest.mark.parametrize(("end", "told"), [(0, ""), (3, "waited 0.02 seconds for it to take data")])
def test_a_backend_has_the_whole_time_anew_at_the_end_too_if_it_takes_something(run: Run, end: int, told: str) -> None:
    async def scene() -> tuple[str, bytes, float]:
        connection = Connection(Endpoint("127.0.0.1", 25))
        transport = Reluctant(10, end, connection.resume_writing)
        connection.connection_made(transport)
        connection.stream(Rig(25).flow, block=0.02)
        connection.pause_writing()
        start = time.monotonic()
        error = ""
        try:
            await connection.end_data()
        except BackendError as raised:
            error = str(raised)
        seconds = time.monotonic() - start
        await asyncio.sleep(0)  # the end of the round
        return error, transport.written, seconds

    error, written, seconds = run(scene())
    assert (error, written) == (told, b"" if told else b".\r\n")
    assert seconds > 3 * 0.02


def test_who_speaks_while_the_last_of_a_message_waits_gets_no_dot(run: Run) -> None:
    async def scene() -> bytes:
        connection = Connection(Endpoint("127.0.0.1", 25))
        transport = Reluctant(10, 10, connection.resume_writing)
        connection.connection_made(transport)
        connection.stream(Rig(25).flow, block=DEADLINE)
        connection.pause_writing()
        ending = asyncio.ensure_future(connection.end_data())
        await asyncio.sleep(0)
        connection.data_received(b"552 5.3.4 too big\r\n")
        with pytest.raises(BackendError, match="talks out of turn"):
            await ending
        return transport.written

    assert run(scene()) == b""


@pytest.mark.parametrize("before", [0, HIGH_WATER + 1], ids=["quick", "slow before"])
@pytest.mark.parametrize("size", [0, 1, HIGH_WATER, HIGH_WATER + 1, 3 * HIGH_WATER])
@pytest.mark.parametrize("leaves", [False, True])
def test_the_dot_goes_with_a_short_end_and_after_a_long_one_is_taken(
    run: Run, size: int, before: int, leaves: bool
) -> None:
    """Of a backend that takes nothing it is certain that it has no dot, but for one that went with a short end."""
    is_joined = size <= HIGH_WATER and not before

    async def scene() -> bytes:
        connection = Connection(Endpoint("127.0.0.1", 25))
        heard: list[bytes] = []
        pipe = Pipe(asyncio.get_running_loop(), connection, "127.0.0.1", heard.append)
        connection.connection_made(pipe)
        connection.stream(Rig(25).flow, block=DEADLINE)
        pipe.stalled = True
        connection.send(b"a" * before)
        ending = asyncio.ensure_future(connection.end_data(b"b" * size))
        await asyncio.sleep(0)
        assert ending.done() is is_joined
        if is_joined:
            await asyncio.sleep(0)  # the end of the round
            assert pipe.get_write_buffer_size() == size + len(b".\r\n")
        if leaves and not is_joined:
            pipe.reset()
            with pytest.raises(BackendError, match="connection lost"):
                await ending
        else:
            pipe.take()
            await ending
        return b"".join(heard)

    heard = run(scene())
    assert heard == (b"" if leaves and not is_joined else b"a" * before + b"b" * size + b".\r\n")


# -- one write for what is sent in a round of the loop --


class Writes(Reluctant):
    """A transport that keeps each write by itself."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(0, 0, connection.resume_writing)
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))


def connected() -> tuple[Connection, Writes]:
    """Connect over such a transport."""
    connection = Connection(Endpoint("127.0.0.1", 25))
    transport = Writes(connection)
    connection.connection_made(transport)
    return connection, transport


@pytest.mark.parametrize(
    ("sent", "at_once", "later"),
    [
        ([b"a", b"b"], [], [b"ab"]),
        ([b"a", b"b" * HIGH_WATER], [b"a" + b"b" * HIGH_WATER], []),  # so that what is not taken is noticed
        ([b"a" * HIGH_WATER, b"b", b"c"], [b"a" * HIGH_WATER + b"b"], [b"c"]),
    ],
    ids=["little", "much", "much, then little"],
)
def test_what_is_sent_in_a_round_goes_together(
    run: Run, sent: list[bytes], at_once: list[bytes], later: list[bytes]
) -> None:
    async def scene() -> tuple[list[bytes], list[bytes]]:
        connection, transport = connected()
        for piece in sent:
            connection.send(piece)
        written = [*transport.writes]
        await asyncio.sleep(0)
        return written, transport.writes[len(written) :]

    assert run(scene()) == (at_once, later)


def test_what_was_sent_goes_before_what_comes_is_heard(run: Run) -> None:
    async def scene() -> list[bytes]:
        connection, transport = connected()
        connection.send(b"NOOP\r\n")
        connection.data_received(b"250 ok\r\n")
        return [*transport.writes]

    assert run(scene()) == [b"NOOP\r\n"]


def test_what_was_sent_does_not_go_when_the_connection_is_given_up(run: Run) -> None:
    async def scene() -> list[bytes]:
        connection, transport = connected()
        connection.send(b".\r\n")
        connection.abort()
        await asyncio.sleep(0)
        return transport.writes

    assert run(scene()) == []


# -- for whom --


def test_xclient_before_each_transaction(scripted: Scripted) -> None:
    peer = scripted(
        {"EHLO": b"250-peer\r\n250-PIPELINING\r\n250 XCLIENT NAME ADDR LOGIN\r\n", "XCLIENT": b"220 peer\r\n"}
    )
    other = CLIENT._replace(address=ip_address("2001:db8::9"), name=None, helo="no name")

    async def scene() -> None:
        rig = Rig(peer.port, timeouts=PATIENT, send_client_address="xclient")
        for client in (CLIENT, other):
            assert (await rig.play(client=client, pause=0)).text == "250 taken\r\n"
        await rig.settle()

    asyncio.run(scene())
    assert verbs(peer) == ["EHLO XCLIENT EHLO MAIL RCPT DATA XCLIENT EHLO MAIL RCPT DATA QUIT"]
    spoken = [line for line in peer.lines if line.startswith((b"XCLIENT", b"EHLO"))]
    assert spoken == [
        b"EHLO mx.test\r\n",
        b"XCLIENT NAME=mail.far.test LOGIN=[UNAVAILABLE] ADDR=192.0.2.7\r\n",
        b"EHLO helo.far.test\r\n",
        b"XCLIENT NAME=[UNAVAILABLE] LOGIN=[UNAVAILABLE] ADDR=IPV6:2001:db8::9\r\n",
        b"EHLO mx.test\r\n",
    ]


def test_a_backend_without_xclient_takes_mail_all_the_same(scripted: Scripted) -> None:
    peer = scripted()
    played, rig = asyncio.run(play(peer.port, count=2, send_client_address="xclient", idle_connections=0))
    assert [each.text for each in played] == ["250 taken\r\n"] * 2
    (line,) = rig.lines("backend")
    assert (line["state"], line["level"]) == ("without xclient", "alarm")


@pytest.mark.parametrize(
    ("step", "reply"), [("XCLIENT", b"550 5.7.0 no\r\n"), ("XCLIENT", b"421 no\r\n"), ("XCLIENT", CLOSE)]
)
def test_xclient_that_is_refused(scripted: Scripted, step: str, reply: Any) -> None:
    peer = scripted({"EHLO": b"250-peer\r\n250 XCLIENT ADDR\r\n", step: reply})
    (played,), rig = asyncio.run(play(peer.port, send_client_address="xclient"))
    assert played.text[:10] == (TROUBLE if reply is not CLOSE else "451 4.4.2 ")
    assert rig.lines()[0]["outcome"] == ("trouble" if reply is not CLOSE else "failed")


LONG = ".".join(["x" * 62] * 4)


@pytest.mark.parametrize("settings", [{}, {"smtpd_tls_security_level": "may"}])
def test_postfix_knows_the_client_by_xclient(
    start_postfix: Callable[..., PostfixServer], issued: CertificateFiles, settings: dict[str, str]
) -> None:
    """Three clients, of which the first has names so long that they need two commands."""
    if settings:
        # Postfix reads the key as root, before it gives that up.
        settings |= {"smtpd_tls_cert_file": str(issued.certificate), "smtpd_tls_key_file": str(issued.key)}
    postfix = start_postfix(
        smtpd_authorized_xclient_hosts="127.0.0.0/8, 198.51.100.1", inet_protocols="all", **settings
    )
    clients = [
        CLIENT._replace(address=ip_address("198.51.100.1"), name=LONG, helo=LONG),
        CLIENT._replace(address=ip_address("2001:db8::9"), name=None, helo="[192.0.2.1]"),
        CLIENT._replace(helo="no name"),
    ]

    async def scene() -> list[Played]:
        rig = Rig(postfix.port, timeouts=PATIENT, send_client_address="xclient")
        played = [await rig.play(client=client, pause=0) for client in clients]
        await rig.settle()
        return played

    assert [each.text[:4] for each in asyncio.run(scene())] == ["250 "] * 3
    wait_until(lambda: len(re.findall("disconnect from", postfix.log.read_text())) >= 3, "Postfix's log")
    log = postfix.log.read_text()
    assert re.findall(r": client=(\S+)", log) == [
        f"{LONG}[198.51.100.1]",
        "unknown[2001:db8::9]",
        "mail.far.test[192.0.2.7]",
    ]
    # The first client may use XCLIENT itself, so its connection served the second as well, but not the third.
    assert re.findall(r"disconnect from (\S+) .* mail=(\d)", log) == [
        ("unknown[2001:db8::9]", "2"),
        ("mail.far.test[192.0.2.7]", "1"),
    ]


@pytest.mark.parametrize("version", ["proxy-v1", "proxy-v2"])
def test_postfix_knows_the_client_by_proxy(start_postfix: Callable[..., PostfixServer], version: str) -> None:
    postfix = start_postfix(smtpd_upstream_proxy_protocol="haproxy")

    async def scene() -> list[Played]:
        rig = Rig(postfix.port, timeouts=PATIENT, send_client_address=version)
        probing = asyncio.ensure_future(rig.backends.keep_probing())
        await until(lambda: rig.backends.offered is not None)
        probing.cancel()
        played = [await rig.play(pause=0) for _n in range(2)]
        await rig.settle()
        return played

    assert [each.text[:4] for each in asyncio.run(scene())] == ["250 ", "250 "]
    wait_until(lambda: len(re.findall(r"cleanup.*message-id", postfix.log.read_text())) >= 2, "Postfix's log")
    assert re.findall(r": client=(\S+)", postfix.log.read_text()) == ["unknown[192.0.2.7]"] * 2


def test_a_long_reply_octet_by_octet_takes_no_quadratic_time(run: Run) -> None:
    async def scene() -> None:
        connection = Connection(Endpoint("127.0.0.1", 25))
        text = b"250-" + b"x" * 2000 + b"\r\n"
        stream = text * (MAX_REPLY_LINES - 1) + b"250 end\r\n250 next\r\n"
        start = time.process_time()
        replies = []
        for number in range(len(stream)):
            connection.data_received(stream[number : number + 1])
            if (reply := connection.take()) is not None:
                replies.append(reply)
        assert time.process_time() - start < 5  # it was more than a minute
        assert [(len(reply.lines), reply.lines[-1]) for reply in replies] == [(MAX_REPLY_LINES, b"end"), (1, b"next")]

    run(scene())
