# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Listening sockets: made, taken from systemd, and what happens when there are no more file descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from greylist_proxy import systemd
from greylist_proxy.config_values import Endpoint
from greylist_proxy.log import Log
from greylist_proxy.smtp.listener import AT_ONCE, Descriptors, ListenError, make_sockets, serve_on
from greylist_proxy.systemd import Given, given_sockets

from .peers import DEADLINE

BUFFER = 65_536


def test_sockets_are_made() -> None:
    four, six = make_sockets([Endpoint("127.0.0.1", 0), Endpoint("::1", 0)], BUFFER)
    with four, six:
        for made in (four, six):
            assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            assert made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * BUFFER  # as Linux counts
            assert not made.getblocking()
            assert not os.get_inheritable(made.fileno())
        assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        with socket.create_connection(four.getsockname()):
            connection = accepted(four)
            with connection:
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * BUFFER


def accepted(made: socket.socket) -> socket.socket:
    made.settimeout(DEADLINE)
    return made.accept()[0]


def test_both_wildcards_at_one_port() -> None:
    with make_sockets([Endpoint("0.0.0.0", 0)], BUFFER)[0] as four:
        (six,) = make_sockets([Endpoint("::", four.getsockname()[1])], BUFFER)
        six.close()


def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=f"can't listen on 127.0.0.1:{port}: Address already in use"):
            make_sockets([Endpoint("127.0.0.1", 0), Endpoint("127.0.0.1", port)], BUFFER)


# -- systemd --


@pytest.fixture(name="hand_over")
def _hand_over(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Given]:
    """Give sockets as systemd does. The descriptors are where a test may have them, not at 3."""

    def give(*sockets: socket.socket, number: str = "", process: str = "", names: str = "smtp") -> Given:
        if sockets:
            first = sockets[0].fileno()
            assert [each.fileno() for each in sockets] == list(range(first, first + len(sockets)))
            monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", first)
        monkeypatch.setenv("LISTEN_FDS", number or str(len(sockets)))
        monkeypatch.setenv("LISTEN_PID", process or str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDNAMES", names)
        return given_sockets()

    return give


def test_sockets_from_systemd(hand_over: Callable[..., Given]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        (taken,) = hand_over(given).smtp
        assert taken.getsockname() == given.getsockname()
        assert not taken.getblocking()
        # Children are not to take them for theirs.
        assert not {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} & set(os.environ)
        assert given_sockets() == Given()
        taken.detach()


@pytest.mark.parametrize("is_blocking", [True, False])
def test_sockets_that_would_stop_others_are_told_of(hand_over: Callable[..., Given], is_blocking: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        given.setblocking(is_blocking)
        taken = hand_over(given)
        assert [warning.partition(":")[0] for warning in taken.warnings] == (
            ["systemd made the sockets blocking"] if is_blocking else []
        )
        taken.smtp[0].detach()


def in_a_row(*sockets: socket.socket) -> list[socket.socket]:
    """Give sockets descriptors that follow one another, as systemd does, far above all that a test has open."""
    for number, each in enumerate(sockets, 500):
        os.dup2(each.fileno(), number, inheritable=False)
        each.close()
    return [socket.socket(fileno=number) for number, _each in enumerate(sockets, 500)]


def test_sockets_are_known_by_their_names(hand_over: Callable[..., Given], tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    unnamed, smtp, admin = (socket.create_server(("127.0.0.1", 0)) for _n in range(3))
    control = socket.socket(socket.AF_UNIX)
    control.bind(path)
    control.listen()
    smtp, admin, control = in_a_row(smtp, admin, control)
    with unnamed, smtp, admin, control:
        given = hand_over(smtp, admin, control, names="greylist-proxy.socket:admin:control")
        assert [taken.getsockname() for taken in given.smtp] == [smtp.getsockname()]
        assert [taken.getsockname() for taken in given.admin] == [admin.getsockname()]
        assert [taken.getsockname() for taken in given.control] == [path]
        for taken in (*given.smtp, *given.admin, *given.control):
            taken.detach()
        # An older systemd names none: all of them are SMTP's.
        given = hand_over(unnamed, names="")
        assert [taken.getsockname() for taken in given.smtp] == [unnamed.getsockname()]
        given.smtp[0].detach()


@pytest.mark.parametrize(("number", "process"), [("", "1"), ("0", ""), ("", "")])
def test_nothing_from_systemd(hand_over: Callable[..., Given], number: str, process: str) -> None:
    assert hand_over(number=number, process=process) == Given()


def test_what_is_no_listening_socket(hand_over: Callable[..., Given]) -> None:
    with pytest.raises(ListenError, match="LISTEN_FDS"):
        hand_over(number="many")
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        silent = socket.socket(type=kind)
        with pytest.raises(ListenError, match="not a listening TCP socket"):
            hand_over(silent)
        silent.detach()  # it was taken, and closed
    tcp = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(ListenError, match="not a listening Unix socket"):
        hand_over(tcp, names="control")
    tcp.detach()


# -- file descriptors --


def test_running_out_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    descriptors = Descriptors(Log(stream))
    descriptors.look()
    with monkeypatch.context() as patch:

        def none_left(*_: object) -> int:
            raise OSError(24, "Too many open files")

        patch.setattr(os, "open", none_left)
        descriptors.look()
        descriptors.look()
    descriptors.look()
    descriptors.look()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(event["event"], event["state"]) for event in events] == [
        ("descriptors", "exhausted"),
        ("descriptors", "available"),
    ]


def test_many_at_once() -> None:
    """Whoever waits when the loop looks is accepted in few rounds, not one in each."""

    class Counter(asyncio.Protocol):
        met = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            Counter.met += 1
            transport.close()

    async def rounds() -> int:
        (made,) = make_sockets([Endpoint("127.0.0.1", 0)], BUFFER)
        with contextlib.ExitStack() as clients:
            for _n in range(4 * AT_ONCE):
                clients.enter_context(socket.create_connection(made.getsockname()[:2], DEADLINE))
            servers = await serve_on([made], Counter)
            count = 0
            while Counter.met < 4 * AT_ONCE:
                count += 1
                await asyncio.sleep(0)
            for server in servers:
                server.close()
            return count

    assert uvloop.run(rounds()) <= 4 * AT_ONCE // 2


# A process with few descriptors: it must not spin, tell of it once, and serve again when there are some.
STARVED = """
import asyncio, os, resource, sys, time
import uvloop
from greylist_proxy.config_values import Endpoint
from greylist_proxy.log import Log
from greylist_proxy.smtp.listener import Descriptors, make_sockets, serve_on

class Greeter(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"220 mx.test\\r\\n")

async def main():
    sockets = make_sockets([Endpoint("127.0.0.1", 0)], 65536)
    await serve_on(sockets, Greeter)
    watch = asyncio.create_task(Descriptors(Log(sys.stderr)).keep_watch())
    await asyncio.sleep(0)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, used + 10))
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    print(time.process_time(), flush=True)

uvloop.run(main())
"""


def test_no_more_descriptors() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARVED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        port = int(process.stdout.readline())
        clients = [socket.create_connection(("127.0.0.1", port), DEADLINE) for _n in range(60)]
        greetings = [client.recv(100) for client in clients]
        served = [client for client, greeting in zip(clients, greetings, strict=True) if greeting]
        assert 5 <= len(served) < 15
        # The others were closed, not left to wait; they come again.
        assert greetings.count(b"") == 60 - len(served)
        assert json.loads(process.stderr.readline())["state"] == "exhausted"
        start = time.monotonic()
        while time.monotonic() < start + 1:  # it is left alone, and must not burn the processor
            time.sleep(0.1)
        for client in clients:
            client.close()
        assert json.loads(process.stderr.readline())["state"] == "available"
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as again:
            assert again.recv(100) == b"220 mx.test\r\n"
        output, errors = process.communicate("end\n", DEADLINE)
        assert errors == ""
        assert process.returncode == 0
        assert float(output) < 2  # seconds of the processor, the start of Python included
