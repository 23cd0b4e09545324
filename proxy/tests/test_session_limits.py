# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections there may be: the counts, shared between processes, and what a client over them is told."""

from __future__ import annotations

import subprocess
import sys

import pytest
from greylist_proxy.smtp.limits import Connections, Prevalence, client_key
from hypothesis import given
from hypothesis import strategies as st

from .peers import DEADLINE, until
from .sessions import Stage, run

A, B = client_key("192.0.2.1"), client_key("192.0.2.2")


@pytest.mark.parametrize(
    ("host", "same"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"),
        ("fe80::1%lo", "fe80::2"),
    ],
)
def test_one_client(host: str, same: str) -> None:
    assert client_key(host) == client_key(same)


@pytest.mark.parametrize(
    ("host", "other"), [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8:0:1::1"), ("192.0.2.1", "2001:db8::1")]
)
def test_two_clients(host: str, other: str) -> None:
    assert client_key(host) != client_key(other)


def test_counts() -> None:
    connections = Connections(3, 2)
    assert [connections.enter() for _n in range(4)] == [None, None, None, "total"]
    assert [connections.join(A) for _n in range(3)] == [None, None, "client"]
    assert connections.join(B) is None
    assert (connections.total, connections.of_client(A), connections.of_client(B)) == (4, 3, 1)
    connections.leave()
    connections.part(A)
    assert (connections.total, connections.of_client(A)) == (3, 2)


# In a process of its own: this one may have threads, which fork would leave behind.
WORKERS = """
import os
from greylist_proxy.smtp.limits import Connections, client_key
client = client_key("192.0.2.1")
connections = Connections(10, 3, workers=3)
for number in (1, 2):
    if not os.fork():
        connections.use(number)
        connections.enter()
        connections.join(client)
        os._exit(0)
    assert os.wait()[1] == 0
assert [connections.row(number) for number in range(3)] == [0, 1, 1]
assert (connections.total, connections.of_client(client)) == (2, 2)
connections.enter()
assert connections.join(client) is None
assert connections.join(client) == "client"
connections.clear(1)
connections.clear(2)
assert (connections.total, connections.of_client(client)) == (1, 2)
print("counted")
"""


def test_workers_share_the_counts() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WORKERS], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (ended.stdout, ended.stderr) == ("counted\n", "")


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=200))
def test_a_count_is_never_too_small(steps: list[tuple[int, bool]]) -> None:
    connections = Connections(1, 1)  # eight cells only, so that clients meet in them
    counts: dict[bytes, int] = {}
    for number, comes in steps:
        key = number.to_bytes(4)
        if comes:
            connections.join(key)
            counts[key] = counts.get(key, 0) + 1
        elif counts.get(key):
            connections.part(key)
            counts[key] -= 1
        assert all(connections.of_client(each) >= count for each, count in counts.items())
    for key, count in counts.items():
        for _n in range(count):
            connections.part(key)
    assert all(connections.of_client(each) == 0 for each in counts)


def test_clients_hardly_ever_meet() -> None:
    connections = Connections(5000, 50)
    for number in range(5000):
        connections.join(number.to_bytes(4))
    assert max(connections.of_client(number.to_bytes(4)) for number in range(5000)) < 6


def test_prevalence_of_one_address() -> None:
    prevalence = Prevalence(window=200, least=100, share=0.9, every=3600)
    warned = [number for number in range(300) if prevalence.seen(A, float(number))]
    assert warned == [99]
    assert prevalence.seen(A, 3700.0)
    assert not prevalence.seen(B, 8000.0)  # it is the other one that is everywhere


def test_no_prevalence_where_clients_differ() -> None:
    prevalence = Prevalence(window=200, least=100)
    for number in range(2000):
        key = A if number % 8 else number.to_bytes(4)
        assert not prevalence.seen(key, float(number))


def test_over_the_limit_in_all(stage: Stage) -> None:
    stage.connections = Connections(2, 10)

    async def dialogue() -> None:
        first, second = await stage.open(), await stage.connect()
        await first.begin()
        await second.begin()
        third = await stage.connect()
        assert await third.until_end() == b"421 4.7.0 Too many connections, try again later\r\n"
        (event,) = stage.events("connection-refused")
        assert (event["client"], event["limit"]) == ("127.0.0.1", "total")
        # The others go on, and who leaves makes room.
        assert (await first.ask(b"NOOP")).startswith(b"250 ")
        second.reset()
        await until(lambda: stage.connections.total == 1)
        fourth = await stage.connect()
        await fourth.begin()

    run(dialogue())


def test_over_the_limit_of_a_client(stage: Stage) -> None:
    stage.connections = Connections(100, 2)

    async def dialogue() -> None:
        talks = [await stage.open(), await stage.connect()]
        for talk in talks:
            await talk.begin()
        assert (await (await stage.connect()).until_end()).startswith(b"421 4.7.0 ")
        (event,) = stage.events("connection-refused")
        assert event["limit"] == "client"
        for talk in talks:
            talk.reset()
        await until(lambda: stage.connections.total == 0)
        assert stage.connections.of_client(client_key("127.0.0.1")) == 0

    run(dialogue())


def test_a_flood_of_connections_leaves_nothing_behind(stage: Stage) -> None:
    stage.connections = Connections(20, 20)

    async def dialogue() -> None:
        talks = [await stage.open()] + [await stage.connect() for _n in range(199)]
        greetings = [await talk.reply() for talk in talks]
        assert sum(each.startswith(b"220 ") for each in greetings) == 20
        assert sum(each.startswith(b"421 4.7.0 ") for each in greetings) == 180
        for talk in talks:
            talk.reset()
        await until(lambda: not len(stage.watch))
        assert stage.connections.total == 0
        # All of them from one address, which looks like a proxy that hides its clients; said once.
        assert len(stage.events("connection-refused")) <= 20

    run(dialogue())


def test_one_address_nearly_everywhere_is_a_warning(stage: Stage) -> None:
    async def dialogue() -> None:
        (await stage.open()).reset()
        for _n in range(120):
            talk = await stage.connect()
            await talk.begin()
            talk.reset()
        (warning,) = stage.events("warning")
        assert "127.0.0.1" in warning["message"]
        assert "smtp.proxy_protocol_from" in warning["message"]

    run(dialogue())
