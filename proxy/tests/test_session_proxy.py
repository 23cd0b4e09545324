# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PROXY protocol at a session: who must speak it, whom it names, and who never reaches MAIL."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network

import pytest
from greylist_proxy.smtp.limits import Connections
from greylist_proxy.smtp.settings import SessionSettings

from .peers import until
from .sessions import ENVELOPE, Stage, run
from .test_proxy_header import FOUR, V1, v2

TRUSTING = SessionSettings(proxy_networks=(ip_network("127.0.0.0/8"), ip_network("2001:db8::/32")), proxy_timeout=0.3)
SOMEBODY_ELSE = SessionSettings(proxy_networks=(ip_network("192.0.2.0/24"),))


@pytest.mark.parametrize(
    ("host", "is_proxy"),
    [("127.0.0.1", True), ("::ffff:127.9.9.9", True), ("2001:db8::1%eth0", True), ("192.0.2.1", False), ("::1", False)],
)
def test_who_has_to_name_its_client(host: str, *, is_proxy: bool) -> None:
    assert TRUSTING.is_proxy(host) is is_proxy
    assert not SessionSettings().is_proxy(host)


@pytest.mark.parametrize("header", [V1, v2(0x21, 0x11, FOUR), v2(0x21, 0x11, FOUR + b"\x20\x00\x03abc")])
@pytest.mark.parametrize("together", [True, False])
def test_the_client_is_the_one_that_is_named(stage: Stage, header: bytes, *, together: bool) -> None:
    stage.settings = TRUSTING

    async def dialogue() -> None:
        talk = await stage.open()
        if together:
            talk.send(header + b"EHLO early.test\r\n")
            assert (await talk.reply()).startswith(b"220 ")
            assert (await talk.reply()).startswith(b"250-mx.test")
        else:
            for place in range(len(header)):
                talk.send(header[place : place + 1])
            await talk.begin(ENVELOPE[0])
        for line in ENVELOPE[1:]:
            assert (await talk.ask(line)).startswith(b"250 ")
        (transaction,) = stage.transactions
        visitor = transaction.visitor
        assert (str(visitor.client.address), visitor.port) == ("192.0.2.1", 4711)
        assert visitor.local() == ("198.51.100.2", 25)
        assert visitor.client.network == "192.0.2.0/24"

    run(dialogue())


def test_a_header_from_anybody_else_is_no_header(stage: Stage) -> None:
    stage.settings = SOMEBODY_ELSE

    async def dialogue() -> None:
        talk = await stage.open()
        talk.send(V1)
        assert (await talk.reply()).startswith(b"220 ")
        assert not (await talk.reply()).startswith(b"2")
        talk = await stage.connect()
        await talk.begin(*ENVELOPE)
        assert str(stage.transactions[0].visitor.client.address) == "127.0.0.1"

    run(dialogue())


@pytest.mark.parametrize(
    "data", [b"EHLO client.test\r\n", b"GET / HTTP/1.0\r\n", b"PROXY TCP4 1 2 3 4\r\n", b"PROXY " + b"x" * 200, b"\x16"]
)
def test_a_header_that_is_missing_or_malformed(stage: Stage, data: bytes) -> None:
    stage.settings = TRUSTING

    async def dialogue() -> None:
        talk = await stage.open()
        talk.send(data)
        assert await talk.until_end() == b""
        (event,) = stage.events("proxy-header")
        assert event["client"] == "127.0.0.1"
        assert event["error"]
        await until(lambda: not len(stage.watch))
        assert stage.connections.total == 0

    run(dialogue())


@pytest.mark.parametrize("data", [b"", V1[:20], v2(0x21, 0x11, FOUR)[:20]])
def test_a_header_that_never_ends(stage: Stage, data: bytes) -> None:
    stage.settings = TRUSTING

    async def dialogue() -> None:
        talk = await stage.open()
        talk.send(data)
        assert await talk.until_end() == b""
        assert stage.events("proxy-header")[0]["error"] == "none came"

    run(dialogue())


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", v2(0x20, 0, b""), v2(0x20, 0x11, FOUR), v2(0x21, 0, b"")])
def test_a_health_check_works_and_never_reaches_mail(stage: Stage, header: bytes) -> None:
    stage.settings = dataclasses.replace(TRUSTING, greet_delay=20)

    async def dialogue() -> None:
        talk = await stage.open()
        talk.send(header)
        await talk.begin(ENVELOPE[0], b"NOOP")
        assert (await talk.ask(ENVELOPE[1])).startswith(b"450 4.7.1 ")
        assert (await talk.ask(ENVELOPE[2])).startswith(b"503 ")
        assert (await talk.ask(b"QUIT")).startswith(b"221 ")
        assert stage.transactions == []

    run(dialogue())


def test_the_limit_is_that_of_the_client_that_is_named(stage: Stage) -> None:
    stage.settings = TRUSTING
    stage.connections = Connections(100, 2)

    async def dialogue() -> None:
        talks = [await stage.open(), *[await stage.connect() for _n in range(4)]]
        for number, talk in enumerate(talks):
            talk.send(b"PROXY TCP4 192.0.2.%d 198.51.100.2 4711 25\r\n" % (1 if number < 3 else number))
        greetings = [(await talk.reply())[:4] for talk in talks]
        assert greetings == [b"220 ", b"220 ", b"421 ", b"220 ", b"220 "]
        (event,) = stage.events("connection-refused")
        assert (event["client"], event["limit"]) == ("192.0.2.1", "client")
        for talk in talks:
            talk.reset()
        await until(lambda: stage.connections.total == 0)

    run(dialogue())


def test_a_client_that_only_connects(stage: Stage) -> None:
    stage.settings = TRUSTING

    async def dialogue() -> None:
        talk = await stage.open()
        talk.writer.close()
        await until(lambda: not len(stage.watch))
        assert stage.connections.total == 0
        assert stage.events("error") == []

    run(dialogue())
