# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that fails, or means ill: gone at every step, slow, silent, endless, or ten thousand at once."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
import warnings
from collections.abc import Callable

import pytest

from .ledger import LedgerClient, Told, content
from .peers import Wire, wait_until
from .scene import MakeScene, reset

LEAVE: dict[str, Callable[[Wire], None]] = {"closes": Wire.close, "resets": reset}


@pytest.mark.parametrize("leave", LEAVE)
def test_gone_at_every_command(make_scene: MakeScene, leave: str) -> None:
    scene = make_scene()
    dialogue = (
        b"EHLO client.test\r\n",
        b"MAIL FROM:<a@far.test>\r\n",
        b"RCPT TO:<u@here.test>\r\n",
        b"RCPT TO:<v@here.test>\r\n",
        b"DATA\r\n",
    )
    scene.deliver_new()
    taken = dict(scene.ledger.taken)
    for steps in range(len(dialogue) + 1):
        for half in (0, 5):  # the last command whole, or the first bytes of the next one as well
            for hear in (True, False):
                wire = Wire(scene.proxy.port)
                for line in dialogue[:steps]:
                    wire.send(line)
                    if hear:
                        wire.reply()
                if steps < len(dialogue):
                    wire.send(dialogue[steps][:half])
                LEAVE[leave](wire)
    wait_until(lambda: scene.backend.open_connections() <= 20, "the backend's connections to end")
    assert scene.ledger.taken == taken
    scene.end()


@pytest.mark.parametrize("leave", LEAVE)
def test_gone_at_every_tenth_byte_of_the_message(make_scene: MakeScene, leave: str) -> None:
    scene = make_scene()
    wire_form = content(1)[:1500].rpartition(b"\r\n")[0] + b"\r\n.\r\n"
    cuts = [*range(0, len(wire_form), 10), *range(len(wire_form) - 5, len(wire_form))]
    for cut in cuts:
        wire = scene.in_data()
        wire.send(wire_form[:cut])
        LEAVE[leave](wire)
    # The final dot never went out: the backend has taken nothing, not even something else.
    scene.proxy.wait_for("relay", len(cuts), outcome="client-gone")
    assert (scene.ledger.taken, scene.ledger.damaged) == ({}, [])
    assert scene.backend.stages["."] == 0
    scene.end()


def test_gone_before_it_hears_that_its_mail_was_taken(make_scene: MakeScene) -> None:
    scene = make_scene()
    numbers = [scene.ledger.new() for _n in range(20)]
    for number in numbers:
        wire = scene.in_data()
        wire.send(content(number) + b".\r\n")
        LEAVE["resets" if number % 2 else "closes"](wire)
        scene.ledger.told(number, Told.NOTHING)
    # Whole messages: the backend takes each once, or never heard of it, and the client would send it again.
    wait_until(lambda: len(scene.proxy.select("relay")) == len(numbers), "20 outcomes")
    assert {each["outcome"] for each in scene.proxy.select("relay")} <= {"accepted", "client-gone"}
    assert all(len(transactions) == 1 for transactions in scene.ledger.taken.values())
    scene.end()


def test_half_closed(make_scene: MakeScene) -> None:
    """Everything at once, then FIN, as `nc` does: every answer comes, the message's own too."""
    scene = make_scene()
    number = scene.ledger.new()
    dialogue = b"EHLO c.test\r\nMAIL FROM:<a@far.test>\r\nRCPT TO:<u@here.test>\r\nDATA\r\n" + content(number)
    whole = dialogue + b".\r\nNOOP\r\n"
    with Wire(scene.proxy.port) as wire:
        wire.send(whole)
        wire.socket.shutdown(socket.SHUT_WR)
        codes = [line[:3] for line in wire.until_end().split(b"\r\n") if line[3:4] == b" "]
    assert codes[:7] == [b"220", b"250", b"250", b"250", b"354", b"250", b"250"]
    scene.ledger.told(number, Told.DELIVERED)
    # Half-closed within the message: nothing is delivered.
    with Wire(scene.proxy.port) as wire:
        wire.send(dialogue)
        wire.socket.shutdown(socket.SHUT_WR)
        assert b"\r\n354 " in wire.until_end()
    scene.proxy.wait_for("relay", outcome="client-gone")
    scene.end()
    assert len(scene.ledger.taken[number]) == 1


def ends_within(wire: Wire, seconds: float, each: float, data: bytes) -> bytes:
    """Send a piece now and again until the server ends it, and return all that it said."""
    heard = b""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        next_one = time.monotonic() + each
        while (left := next_one - time.monotonic()) > 0:
            wire.socket.settimeout(left)
            try:
                piece = wire.socket.recv(4096)
            except TimeoutError:
                break
            except ConnectionError:
                return heard
            if not piece:
                return heard
            heard += piece
        with contextlib.suppress(ConnectionError):
            wire.send(data)
    raise AssertionError(f"the session is still there after {seconds:g} seconds; heard {heard!r}")


SHORT = {"smtp": {"command_timeout": "1s", "data_timeout": "1s", "session_timeout": "4s"}}


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        (b"", b"421 4.4.2 "),  # silent
        (b"N", b"421 4.4.2 "),  # a byte now and again is no command
        (b"NOOP\r\n", b"421 4."),  # commands for ever, but the session's time is up
    ],
)
def test_slow_and_silent_between_commands(make_scene: MakeScene, piece: bytes, said: bytes) -> None:
    scene = make_scene(**SHORT)
    with scene.connect() as wire:
        began = time.monotonic()
        heard = ends_within(wire, 10, 0.3, piece)
        last = heard.rstrip(b"\r\n").rpartition(b"\n")[2]
        assert last.startswith(said)
        assert time.monotonic() - began > 0.9
    scene.end()


def test_silent_within_the_message(make_scene: MakeScene) -> None:
    scene = make_scene(**SHORT)
    with scene.in_data() as wire:
        wire.send(b"Subject: x\r\n")
        assert ends_within(wire, 10, 0.5, b"").startswith(b"421 4.4.2 ")
    scene.proxy.wait_for("relay")
    assert scene.backend.stages["."] == 0
    scene.end()


def test_a_byte_now_and_again_within_the_message(make_scene: MakeScene) -> None:
    """Each byte is progress, so only the session's time, and the least rate after a minute, put an end to it."""
    scene = make_scene(**SHORT)
    with scene.in_data() as wire:
        assert ends_within(wire, 10, 0.2, b"x").startswith(b"421 4.")
    assert scene.backend.stages["."] == 0
    scene.end()


def test_an_endless_line(make_scene: MakeScene) -> None:
    scene = make_scene()
    with scene.connect() as wire:
        before = scene.memory()
        for _n in range(500):
            wire.send(b"x" * 100_000)
        assert wire.ask(b"").startswith(b"500 ")
        assert wire.ask(b"NOOP").startswith(b"250 ")
        assert scene.memory() - before < 4 << 20
    scene.end()


def test_endless_headers(make_scene: MakeScene) -> None:
    scene = make_scene(smtp={"max_header_size": "64KiB", "max_message_size": "1GiB"})
    line = b"X-More: and more of it\r\n" * 4000
    with scene.in_data() as wire:
        before = scene.memory()
        for _n in range(200):
            wire.send(line)
        assert scene.memory() - before < 4 << 20
        assert wire.ask(b"\r\nbody\r\n.").startswith((b"552 ", b"554 "))
        assert wire.ask(b"NOOP").startswith(b"250 ")
    assert scene.backend.stages["."] == 0
    scene.end()


def test_a_message_without_an_end(make_scene: MakeScene) -> None:
    scene = make_scene(smtp={"max_message_size": "1MiB"})
    with scene.in_data() as wire:
        before = scene.memory()
        wire.send(b"Subject: x\r\n\r\n")
        for _n in range(300):
            wire.send(b"and more of it, until the end of all days\r\n" * 2500)
        assert scene.memory() - before < 4 << 20
        assert wire.ask(b".").startswith(b"552 5.3.4 ")
    assert scene.backend.stages["."] == 0
    scene.end()


def test_a_thousand_recipients(make_scene: MakeScene) -> None:
    scene = make_scene()
    recipients = [f"u{number}@here.test" for number in range(1000)]
    number = scene.ledger.new()

    async def send() -> tuple[Told, bytes]:
        client = LedgerClient(scene.proxy.port, scene.ledger)
        told = await client.offer(number, recipients)
        await client.leave()
        # One more than max_recipients: that one is to come again, the others are none the worse.
        too_many = await client.offer(scene.ledger.new(), [*recipients, "one@here.test"])
        await client.leave()
        assert too_many is Told.REFUSED
        return told, client.answer

    told, answer = asyncio.run(send())
    assert told is Told.DELIVERED
    assert answer.startswith(b"452 4.5.3 ")
    assert scene.backend.stages["RCPT"] >= 2000
    scene.end()


def test_ten_thousand_connections_at_once(make_scene: MakeScene) -> None:
    """As many as the system lets this process and the program have, up to 10,000."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(10_000, hard - 500)
    if count < 10_000:
        warnings.warn(f"only {count} connections at once, as many as this machine lets a process have", stacklevel=1)
    scene = make_scene(smtp={"max_connections": count + 100, "max_connections_per_client": 1000})
    base = scene.descriptors()

    async def one(number: int, connecting: asyncio.Semaphore, all_there: asyncio.Barrier) -> bytes:
        # From many addresses, as a botnet.
        async with connecting:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", scene.proxy.port, local_addr=(f"127.1.{number // 100}.1", 0)
            )
            assert (await reader.readline()).startswith(b"220 ")
        try:
            await all_there.wait()
            writer.write(b"NOOP\r\n")
            return await reader.readline()
        finally:
            writer.transport.abort()

    async def crowd() -> list[bytes]:
        connecting, all_there = asyncio.Semaphore(500), asyncio.Barrier(count)
        async with asyncio.timeout(90):
            return await asyncio.gather(*(one(number, connecting, all_there) for number in range(count)))

    answers = asyncio.run(crowd())
    assert {answer[:4] for answer in answers} == {b"250 "}
    wait_until(lambda: scene.descriptors() <= base + 5, "the connections' end")
    scene.end()


def test_more_connections_than_are_allowed(make_scene: MakeScene) -> None:
    scene = make_scene(smtp={"max_connections": 30, "max_connections_per_client": 10}, tarpit={"max_waiting": 10})

    def open_from(source: str) -> tuple[Wire, bytes]:
        wire = Wire(scene.proxy.port, source=source)
        return wire, wire.reply()

    same = [open_from("127.0.7.1") for _n in range(12)]
    assert [banner[:10] for _ignored, banner in same] == [*[b"220 mx.tes"] * 10, *[b"421 4.7.0 "] * 2]
    others = [open_from(f"127.0.7.{number}") for number in range(2, 30)]
    assert sum(banner.startswith(b"220 ") for _ignored, banner in others) == 20
    for wire, _ignored in [*same, *others]:
        wire.close()

    def free_again() -> bool:
        wire, banner = open_from("127.0.7.1")
        wire.close()
        return banner.startswith(b"220 ")

    wait_until(free_again, "the places")
    scene.end()


def test_nobody_reads_the_replies(make_scene: MakeScene) -> None:
    scene = make_scene()
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(scene.connect())
        before = scene.memory()
        wire.socket.settimeout(1)
        sent = 0
        # Either it stops reading, or it has had enough of such commands.
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _n in range(1000):
                wire.socket.sendall(b"NOOP\r\n" * 10_000)
                sent += 60_000
        assert sent < 20 << 20
        assert scene.memory() - before < 8 << 20
        reset(wire)
    scene.end()
