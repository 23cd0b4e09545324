# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever comes in whatever order: no mail is lost, no reply is given twice or not at all, and nothing is left over.

A test is a list of what happens, and after how many rounds of the loop the next thing does. `interleavings.py` has the
proxy between its clients and the mail server, who watch that the rules are kept.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .interleavings import Client, Server, Town

HOSTS = ("198.51.100.1", "198.51.100.1", "203.0.113.1")  # the first two clients have one address
CODES = (250, 421, 450, 452, 503, 550, 552)
SIZES = (500, 0, 3, 16_000, 16_384, 40_000)
SECONDS = (0.5, 0.5, 0.5, 0.5, 1.5, 1.5, 6.0, 6.0, 16.0, 70.0, 310.0, 700.0)


class Step(NamedTuple):
    """What happens: to one of those whom it may happen to, in one of its forms; then the loop goes on by `rounds`."""

    what: Callable[[Town, Step], None]
    who: int
    form: int
    rounds: int

    def client(self, town: Town) -> Client:
        return town.clients[self.who % len(HOSTS)]

    def server(self, town: Town) -> Server | None:
        servers = [server for server in town.servers if not server.pipe.is_over]
        return servers[self.who % len(servers)] if servers else None


def goes_on(town: Town, step: Step) -> None:
    """A client does what comes next, in the way of a message; or comes, where it has left."""
    client, form = step.client(town), step.form
    if not client.is_open:
        arrive(town, step.who % len(HOSTS))
    elif client.in_body:
        client.send_body(SIZES[form % len(SIZES)])
        if form % 3 == 0:
            client.end_body()
    elif not client.may_send:
        return
    elif not client.in_transaction:
        lines = ["MAIL FROM:<>" if form % 7 == 6 else "MAIL FROM:<a@far.test>"]
        if form % 2:
            lines += [f"RCPT TO:<u{form}@here.test>", "DATA"][: 1 + form % 3]
        client.send(*lines)
    elif not client.ready:
        client.send(f"RCPT TO:<{'new' if form % 5 == 4 else 'u'}{form}@here.test>")
    else:
        client.send("DATA")


def asks_for_another(town: Town, step: Step) -> None:
    client = step.client(town)
    if client.may_send and client.in_transaction:
        client.send(f"RCPT TO:<{('u', 'v', 'new')[step.form % 3]}{len(client.awaited)}@here.test>")


def says_something_else(town: Town, step: Step) -> None:
    client = step.client(town)
    if client.may_send:
        verb = ("NOOP", "RSET", "EHLO again.test", "QUIT")[step.form % 4]
        client.send(verb)
        client.is_open = verb != "QUIT"


def ends_its_message(town: Town, step: Step) -> None:
    client = step.client(town)
    if client.is_open and client.in_body:
        client.end_body()


def leaves(town: Town, step: Step) -> None:
    client = step.client(town)
    if client.is_open:
        client.half_close() if step.form % 2 else client.leave()


def reads_nothing(town: Town, step: Step) -> None:
    step.client(town).pipe.stalled = True


def reads_again(town: Town, step: Step) -> None:
    step.client(town).pipe.take()


def server_answers_all(town: Town, _step: Step) -> None:
    for server in town.servers:
        for _n in range(len(server.asked)):
            server.answer(250)


def server_answers(town: Town, step: Step) -> None:
    asked = [server for server in town.servers if server.asked and not server.pipe.is_over]
    if asked:
        asked[step.who % len(asked)].answer(250, cut=step.form % 2 == 1)


def server_refuses(town: Town, step: Step) -> None:
    asked = [server for server in town.servers if server.asked and not server.pipe.is_over]
    if asked:
        asked[step.who % len(asked)].answer(CODES[step.form % len(CODES)])


def server_leaves(town: Town, step: Step) -> None:
    if server := step.server(town):
        server.pipe.bring(None) if step.form % 2 else server.pipe.reset()


def server_takes_nothing(town: Town, step: Step) -> None:
    if server := step.server(town):
        server.pipe.stalled = True


def server_takes_again(town: Town, _step: Step) -> None:
    for server in town.servers:
        if server.pipe.stalled and not server.pipe.is_over:
            server.pipe.take()


def server_talks_out_of_turn(town: Town, step: Step) -> None:
    server = step.server(town)
    town.loop.rest()
    if server and not (server.asked or server.pipe.get_write_buffer_size()):
        server.is_spoiled = True
        server.pipe.bring((b"421 shutting down\r\n", b"552 too much\r\n", b"25")[step.form % 3])
        town.loop.rest()  # what crosses a command on its way can't be told from its answer


def server_takes_connections(town: Town, step: Step) -> None:
    town.refuses = step.form % 6 == 5


def store_is_quick(town: Town, step: Step) -> None:
    town.store.is_quick = step.form % 2 == 0
    town.store.end_noting()


def time_passes(town: Town, step: Step) -> None:
    town.loop.step(SECONDS[step.form % len(SECONDS)])


def is_stopped(town: Town, step: Step) -> None:
    """As by SIGTERM; those who come later may be served all the same."""
    if step.form % 8 == 7:
        for session in town.watch:
            town.loop.call_soon(session.stop)


OFTEN = [goes_on, goes_on, server_answers, server_answers_all]
NOW_AND_THEN = [
    asks_for_another,
    says_something_else,
    ends_its_message,
    reads_again,
    server_refuses,
    server_takes_again,
    server_takes_connections,
    store_is_quick,
]
RARELY = [
    leaves,
    reads_nothing,
    server_leaves,
    server_takes_nothing,
    server_talks_out_of_turn,
    time_passes,
    is_stopped,
]
HAPPENINGS = [*OFTEN * 8, *NOW_AND_THEN * 2, *RARELY]
STEPS = st.builds(Step, st.sampled_from(HAPPENINGS), st.integers(0, 11), st.integers(0, 41), st.integers(0, 4))


def arrive(town: Town, place: int) -> None:
    """Let a client come into this place, and say EHLO: too early where it is to wait for the banner."""
    client = town.arrives(HOSTS[place])
    client.send("EHLO client.test")
    if client.number >= len(HOSTS):
        # Whoever was there may still be under way, and is watched to his end.
        town.clients[place], town.clients[-1] = client, town.clients[place]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    share=st.integers(1, 2),
    connections=st.integers(1, 3),
    wait=st.sampled_from([0.0, 2.0]),
    session=st.sampled_from([3600.0, 20.0]),  # seconds that it may take
    pipelining=st.booleans(),
    verify=st.booleans(),
    ending=st.sampled_from([Town.finish, Town.give_up]),
    steps=st.lists(STEPS, min_size=30, max_size=160),
)
def test_rules_hold_whatever_comes_when(
    share: int,
    connections: int,
    wait: float,
    session: float,
    pipelining: bool,
    verify: bool,
    steps: list[Step],
    ending: Callable[[Town], None],
) -> None:
    town = Town(share=share, connections=connections, wait=wait, session=session, pipelining=pipelining, verify=verify)
    try:
        for host in HOSTS:
            town.arrives(host)
        town.loop.step(wait)
        for client in town.clients:
            client.send("EHLO client.test")
        for step in steps:
            step.what(town, step)
            for _n in range(step.rounds):
                town.loop.round()
            town.check()
        ending(town)
    finally:
        town.close()


@pytest.mark.parametrize("answers", range(5))
@pytest.mark.parametrize("way", [leaves, server_leaves])
def test_nothing_keeps_a_client_that_has_left(answers: int, way: Callable[[Town, Step], None]) -> None:
    """Not even a circle of references, which the collector would come to some day."""
    town = Town()
    gc.collect()
    gc.disable()
    try:
        arrive(town, 0)
        town.loop.rest()
        (client,) = town.clients
        client.send("MAIL FROM:<a@far.test>", "RCPT TO:<u@here.test>", "DATA")
        for number in range(answers):  # to MAIL, RCPT, DATA and the final dot
            town.loop.rest()
            if number == 3:
                client.send_body(500)
                client.end_body()
                town.loop.rest()
            town.servers[0].answer(250)
        town.loop.rest()
        assert client.session() is not None
        way(town, Step(way, 0, 0, 0))
        town.loop.rest()
        client.leave()
        town.loop.rest()
        assert client.session() is None
        town.finish()
    finally:
        gc.enable()
        town.close()
