# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several hosts, and connections that are kept: which transaction goes where, and what is used again."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

import pytest
from greylist_proxy.metrics.table import BackendState
from greylist_proxy.smtp import pool
from greylist_proxy.smtp.address import Path
from greylist_proxy.smtp.backend import TROUBLE, UNREACHABLE
from greylist_proxy.smtp.breaker import FIRST_REST, LONGEST_REST, THRESHOLD, Breaker
from greylist_proxy.smtp.capabilities import Capabilities, Promises
from greylist_proxy.smtp.host import MAX_AGE, MAX_OCTETS, MAX_TRANSACTIONS, BackendSettings

from .peers import CLOSE, DEADLINE, ScriptedPeer, until
from .relays import PATIENT, SHORT, Played, Rig, closed_port, parameter

Scripted = Callable[..., ScriptedPeer]
SENDER = Path("a@far.test", "a", "far.test")


def run(scene: Any) -> Any:
    return asyncio.run(asyncio.wait_for(scene, DEADLINE))


async def play_all(rig: Rig, count: int, **how: Any) -> list[Played]:
    played = []
    for _n in range(count):
        played.append(await rig.play(pause=0, **how))
        await until(lambda: not rig.tasks)
    return played


def messages(peer: ScriptedPeer, count: int, **settings: Any) -> Rig:
    """Play messages one after the other; return what they were played with."""

    async def scene() -> Rig:
        rig = Rig(peer.port, **{"timeouts": PATIENT, **settings})
        await play_all(rig, count)
        await rig.settle()
        return rig

    rig: Rig = run(scene())
    return rig


def verbs(lines: list[bytes]) -> str:
    return " ".join(line.split()[0].decode() for line in lines)


# -- connections that are kept --


def test_a_connection_serves_one_message_after_the_other(scripted: Scripted) -> None:
    peer = scripted()
    messages(peer, 3)
    assert [verbs(lines) for lines in peer.conversations] == ["EHLO" + " MAIL RCPT DATA" * 3 + " QUIT"]
    assert len(peer.messages) == 3


def test_it_is_left_after_its_last_transaction(scripted: Scripted) -> None:
    peer = scripted()
    rig = messages(peer, MAX_TRANSACTIONS + 1)
    assert [verbs(lines).count("DATA") for lines in peer.conversations] == [MAX_TRANSACTIONS, 1]
    assert [line["outcome"] for line in rig.lines()] == ["accepted"] * (MAX_TRANSACTIONS + 1)


def test_it_is_left_after_so_many_octets(scripted: Scripted) -> None:
    """Taken or not: servers that count them count those of a session."""
    replies = iter((b"450 later\r\n", b"250 taken\r\n", b"250 taken\r\n"))
    peer = scripted({".": lambda: next(replies)})

    async def scene() -> None:
        rig = Rig(peer.port, timeouts=PATIENT)
        await play_all(rig, 3, body=b"x" * (MAX_OCTETS // 2) + b"\r\n")
        await rig.settle()

    run(scene())
    assert [verbs(lines).count("DATA") for lines in peer.conversations] == [2, 1]


def test_it_is_left_when_it_is_old(scripted: Scripted) -> None:
    """However busy it is: servers count from its opening, and end it in the middle of a message."""
    peer = scripted()

    async def scene() -> None:
        rig = Rig(peer.port, timeouts=PATIENT)
        (host,) = rig.backends._hosts
        await play_all(rig, 1)
        host._idle[0].opened -= MAX_AGE / 2
        await play_all(rig, 1)
        host._idle[0].opened -= MAX_AGE / 2
        await play_all(rig, 1)
        relay = rig.relay()
        assert (await relay.rcpt("u@here.test", ())).is_positive
        assert relay._connection is not None
        relay._connection.opened -= MAX_AGE
        assert (await relay.data()).code == 354
        assert (await relay.finish()).is_positive
        await until(lambda: not rig.tasks)
        assert not host._idle
        await play_all(rig, 1)
        await rig.settle()

    run(scene())
    assert [verbs(lines) for lines in peer.conversations] == [
        "EHLO MAIL RCPT DATA MAIL RCPT DATA QUIT",
        "EHLO MAIL RCPT DATA MAIL RCPT DATA QUIT",
        "EHLO MAIL RCPT DATA QUIT",
    ]


@pytest.mark.parametrize(
    ("script", "connections"),
    [
        ({}, 1),
        ({".": b"450 busy\r\n"}, 1),
        ({"RCPT": b"450 busy\r\n"}, 1),
        ({"DATA": b"450 busy\r\n"}, 1),
        # a 5xx counts as an error of the session, a 421 is its end
        ({".": b"550 no\r\n"}, 2),
        ({"RCPT": b"550 no\r\n"}, 2),
        ({"MAIL": b"550 no\r\n"}, 2),
        ({"DATA": b"554 no\r\n"}, 2),
        ({".": b"421 bye\r\n"}, 2),
        ({"RCPT": b"421 bye\r\n"}, 2),
        # what is not certain
        ({".": b"354 go on\r\n"}, 2),
        ({".": b"250 taken\r\n250 taken\r\n"}, 2),
        ({".": b"nonsense\r\n"}, 2),
        ({".": CLOSE}, 2),
        ({"RCPT": b"150 hm\r\n"}, 2),
        ({"RCPT": b"450 busy\r\n", "RSET": b"450 no\r\n"}, 2),
        ({"RCPT": b"450 busy\r\n", "RSET": CLOSE}, 2),
        ({"RCPT": b"450 busy\r\n", "RSET": b"250 ok\r\n250 ok\r\n"}, 2),
    ],
)
def test_what_is_used_again(scripted: Scripted, script: dict[str, Any], connections: int) -> None:
    peer = scripted(script)
    messages(peer, 2)
    assert len(peer.conversations) == connections


def test_what_waits_for_too_long_is_not_used_again(scripted: Scripted) -> None:
    def late() -> bytes:
        time.sleep(0.6)
        return b"250 late\r\n"

    peer = scripted({".": late})
    messages(peer, 2, timeouts=SHORT)
    assert len(peer.conversations) == 2


def test_an_idle_connection_is_left_after_a_while(scripted: Scripted) -> None:
    peer = scripted()

    async def scene() -> None:
        rig = Rig(peer.port, timeouts=PATIENT, idle_timeout=0.1)
        await play_all(rig, 1)
        assert "QUIT" not in peer.verbs()
        await until(lambda: "QUIT" in peer.verbs())
        await play_all(rig, 1)
        await rig.settle()

    run(scene())
    assert len(peer.conversations) == 2


def test_no_more_are_kept_than_may_be(scripted: Scripted) -> None:
    peer = scripted()

    async def scene() -> None:
        rig = Rig(peer.port, timeouts=PATIENT, idle_connections=2)
        await asyncio.gather(*(rig.play(pause=0) for _n in range(5)))
        await until(lambda: not rig.tasks)
        assert peer.verbs().count("QUIT") == 3
        await rig.settle()

    run(scene())
    assert len(peer.messages) == 5
    assert peer.verbs().count("QUIT") == 5


@pytest.mark.parametrize("words", [b"421 timed out\r\n", b"250 by the way\r\n", None])
def test_one_that_speaks_or_leaves_while_idle(scripted: Scripted, words: bytes | None) -> None:
    """Its words must not answer the next transaction's MAIL."""
    speak = threading.Event()

    def ending() -> Iterator[bytes]:
        yield b"250 taken\r\n"
        assert speak.wait(DEADLINE)
        if words is None:
            raise EOFError
        yield words

    replies = iter((ending, lambda: b"250 taken, too\r\n"))

    def say() -> Any:
        return next(replies)()

    peer = scripted({".": say})

    async def scene() -> Played:
        rig = Rig(peer.port, timeouts=PATIENT)
        await play_all(rig, 1)
        speak.set()
        await asyncio.sleep(0.1)
        (played,) = await play_all(rig, 1)
        await rig.settle()
        return played

    assert run(scene()).text == "250 taken, too\r\n"
    assert [verbs(lines) for lines in peer.conversations] == ["EHLO MAIL RCPT DATA", "EHLO MAIL RCPT DATA QUIT"]


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
@pytest.mark.parametrize("end", [CLOSE, b"421 timed out\r\n", b"what?\r\n"])
def test_one_that_had_died_is_replaced_once(scripted: Scripted, step: str, end: Any, pipelining: bool) -> None:
    asked = iter((b"250 ok\r\n", end, b"250 ok\r\n"))

    def answer() -> bytes:
        reply = next(asked)
        if reply is CLOSE:
            raise EOFError
        return reply  # type: ignore[no-any-return]

    peer = scripted({step: answer, "EHLO": b"250-peer\r\n250 PIPELINING\r\n" if pipelining else b"250 peer\r\n"})
    rig = messages(peer, 2)
    assert [line["outcome"] for line in rig.lines()] == ["accepted", "accepted"]
    assert len(peer.conversations) == 2
    assert len(peer.messages) == 2


@pytest.mark.parametrize(("first", "recipients", "connections"), [(1, 1, 2), (2, 2, 1)])
def test_it_is_not_replaced_twice_nor_after_it_took_a_recipient(
    scripted: Scripted, first: int, recipients: int, connections: int
) -> None:
    """`first` RCPT commands are answered, and then none."""
    asked = iter([b"250 ok\r\n"] * first)
    peer = scripted({"RCPT": lambda: next(asked, b"") or _leave()})

    async def scene() -> tuple[Played, list[dict[str, Any]]]:
        rig = Rig(peer.port, timeouts=PATIENT)
        await play_all(rig, 1)
        (played,) = await play_all(rig, 1, recipients=[("u@here.test", ())] * recipients)
        await rig.settle()
        return played, rig.lines()

    played, lines = run(scene())
    assert (played.stage, played.text[:10]) == ("rcpt", "451 4.4.2 ")
    assert [line["outcome"] for line in lines] == ["accepted", "failed"]
    assert len(peer.conversations) == connections


@pytest.mark.parametrize(("step", "code"), [("DATA", 354), (".", 250)])
def test_one_that_takes_no_more_messages_is_left(scripted: Scripted, step: str, code: int) -> None:
    """As servers do that take so many in a session: only who finds it out has to come again."""
    asked: dict[threading.Thread, int] = {}  # how often, in each connection

    def answer() -> bytes:
        number = asked[threading.current_thread()] = asked.get(threading.current_thread(), 0) + 1
        return b"452 4.4.5 too many messages\r\n" if number > 2 else b"%d ok\r\n" % code

    peer = scripted({step: answer})
    rig = messages(peer, 7)
    assert [line["outcome"] for line in rig.lines()] == ["accepted", "accepted", "refused"] * 2 + ["accepted"]
    assert [verbs(lines).count("DATA") for lines in peer.conversations] == [3, 3, 1]


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    "refusal", [b"452 4.4.5 too many messages\r\n", b"552 4.3.1 session too big\r\n", b"550 no\r\n"]
)
@pytest.mark.parametrize(("times", "outcome"), [(1, "accepted"), (2, "refused")])
def test_a_refusal_of_the_sender_counts_on_a_fresh_connection(
    scripted: Scripted, refusal: bytes, times: int, outcome: str, pipelining: bool
) -> None:
    """On one that was used before it may be about other people's mail."""
    replies = iter([b"250 ok\r\n"] + [refusal] * times)
    peer = scripted(
        {
            "MAIL": lambda: next(replies, b"250 ok\r\n"),
            "EHLO": b"250-peer\r\n250 PIPELINING\r\n" if pipelining else b"250 peer\r\n",
        }
    )
    rig = messages(peer, 2)
    expected = "trouble" if outcome == "refused" and b"4.3.1" in refusal else outcome
    assert [line["outcome"] for line in rig.lines()] == ["accepted", expected]
    assert [verbs(lines).count("MAIL") for lines in peer.conversations] == [2, 1]


@pytest.mark.parametrize("end", [CLOSE, b"421 timed out\r\n"])
def test_one_that_ends_before_it_took_a_recipient_is_replaced(scripted: Scripted, end: Any) -> None:
    """However many it has refused."""
    ok = b"250 ok\r\n"
    asked = iter((ok, b"450 4.2.0 later\r\n", end, ok, ok))

    def answer() -> bytes:
        reply = next(asked)
        return _leave() if reply is CLOSE else reply  # type: ignore[no-any-return]

    peer = scripted({"RCPT": answer})

    async def scene() -> list[int]:
        rig = Rig(peer.port, timeouts=PATIENT)
        await play_all(rig, 1)
        relay = rig.relay()
        codes = [(await relay.rcpt(f"{user}@here.test", ())).code for user in "abc"]
        codes.append((await relay.data()).code)
        codes.append((await relay.finish()).code)
        await rig.settle()
        return codes

    assert run(scene()) == [450, 250, 250, 354, 250]
    assert [verbs(lines).count("MAIL") for lines in peer.conversations] == [2, 1]


def _leave() -> bytes:
    raise EOFError


def test_a_reset_transaction_gives_its_connection_back(scripted: Scripted) -> None:
    peer = scripted()

    async def scene() -> None:
        rig = Rig(peer.port, timeouts=PATIENT)
        relay = rig.relay()
        assert (await relay.rcpt("u@here.test", ())).is_positive
        relay.abandon("reset")
        await until(lambda: not rig.tasks)
        await play_all(rig, 1)
        await rig.settle()

    run(scene())
    assert [verbs(lines) for lines in peer.conversations] == ["EHLO MAIL RCPT RSET MAIL RCPT DATA QUIT"]


def test_with_proxy_nothing_is_kept(scripted: Scripted) -> None:
    peer = scripted({"PROXY": b""})
    messages(peer, 2, send_client_address="proxy-v1")
    assert [verbs(lines) for lines in peer.conversations] == ["PROXY EHLO MAIL RCPT DATA QUIT"] * 2
    assert peer.lines[0] == b"PROXY TCP4 192.0.2.7 192.0.2.25 40123 25\r\n"


# -- how many at a time --


def test_who_finds_no_free_connection_waits_in_turn(scripted: Scripted) -> None:
    peer = scripted()

    async def scene() -> list[Played]:
        rig = Rig(peer.port, timeouts=PATIENT, max_connections=2)
        played = await asyncio.gather(*(rig.play(pause=0) for _n in range(8)))
        await rig.settle()
        return list(played)

    assert [played.text for played in run(scene())] == ["250 taken\r\n"] * 8
    assert len(peer.conversations) == 2


def test_who_waits_for_too_long_is_told_to_come_again(scripted: Scripted) -> None:
    peer = scripted()

    async def scene() -> tuple[str, str]:
        rig = Rig(peer.port, max_connections=1)
        relay = rig.relay()
        assert (await relay.rcpt("u@here.test", ())).is_positive
        told = (await rig.play(pause=0)).text
        waiting = asyncio.ensure_future(rig.play(pause=0))
        cancelled = asyncio.ensure_future(rig.play(pause=0))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        relay.close()
        then = (await waiting).text
        await rig.settle()
        return told, then

    told, then = run(scene())
    assert told.startswith("451 4.3.2 ")
    assert then == "250 taken\r\n"
    assert len(peer.conversations) == 1


def test_more_connections_by_a_reload_are_taken_at_once(scripted: Scripted) -> None:
    peer = scripted()

    async def scene() -> str:
        rig = Rig(peer.port, timeouts=PATIENT, max_connections=1)
        relay = rig.relay()
        assert (await relay.rcpt("u@here.test", ())).is_positive
        waiting = asyncio.ensure_future(rig.play(pause=0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        rig.backends.configure(dataclasses.replace(rig.settings, max_connections=2))
        told = (await waiting).text
        relay.close()
        await rig.settle()
        return told

    assert run(scene()) == "250 taken\r\n"
    assert len(peer.conversations) == 2


# -- several hosts --


def test_a_host_that_is_down_is_left_alone_for_a_while(scripted: Scripted) -> None:
    second = scripted()
    first = closed_port()

    async def scene() -> Rig:
        rig = Rig(first, second.port, timeouts=PATIENT)
        assert rig.backends.health() == {f"127.0.0.1:{first}": "unknown", f"127.0.0.1:{second.port}": "unknown"}
        await play_all(rig, THRESHOLD + 2)
        assert rig.backends.health() == {f"127.0.0.1:{first}": "down", f"127.0.0.1:{second.port}": "up"}
        await rig.settle()
        return rig

    rig = run(scene())
    failed = [line for line in rig.lines() if line["outcome"] == "failed"]
    assert [line["backend"] for line in failed] == [f"127.0.0.1:{first}"] * THRESHOLD
    (state,) = rig.lines("backend")
    assert (state["backend"], state["state"], state["level"]) == (f"127.0.0.1:{first}", "down", "alarm")
    assert len(second.messages) == THRESHOLD + 2


@pytest.mark.parametrize(
    ("connect", "reply"), [(CLOSE, "451 4.4.1 "), (b"554 no\r\n", "451 4.3.5 "), (b"421 busy\r\n", "451 4.3.5 ")]
)
def test_where_all_are_down_nobody_waits(scripted: Scripted, connect: Any, reply: str) -> None:
    peer = scripted({"connect": connect})

    async def scene() -> tuple[list[Played], list[dict[str, Any]]]:
        rig = Rig(peer.port)
        played = await play_all(rig, THRESHOLD + 2)
        await rig.settle()
        return played, rig.lines()

    played, lines = run(scene())
    assert [each.text[:10] for each in played] == [reply] * (THRESHOLD + 2)
    assert len(peer.conversations) == THRESHOLD
    assert [line["stage"] for line in lines] == ["connect"] * (THRESHOLD + 2)
    assert lines[-1]["error"] == "every host is down"


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    ("step", "end"), [("MAIL", CLOSE), ("MAIL", b"421 4.3.2 closing\r\n"), ("RCPT", b"421 no\r\n")]
)
def test_a_host_that_ends_before_it_took_a_recipient_is_passed_over(
    scripted: Scripted, step: str, end: Any, pipelining: bool
) -> None:
    """It greets and answers EHLO, so for the breaker it is up."""
    greeting = b"250-peer\r\n250 PIPELINING\r\n" if pipelining else b"250 peer\r\n"
    first, second = scripted({step: end, "EHLO": greeting}), scripted({"EHLO": greeting})

    async def scene() -> tuple[list[Played], Rig]:
        rig = Rig(first.port, second.port, timeouts=PATIENT)
        played = await play_all(rig, 3)
        await rig.settle()
        return played, rig

    played, rig = run(scene())
    assert [each.text[:4] for each in played] == ["250 "] * 3
    assert (len(first.conversations), len(second.messages)) == (3, 3)
    told = [(line["backend"], line["stage"], line["outcome"]) for line in rig.lines()]
    outcome = "failed" if end is CLOSE else "trouble"
    taken = (f"127.0.0.1:{second.port}", "end-of-data", "accepted")
    assert told == [(f"127.0.0.1:{first.port}", "mail", outcome), taken] * 3


@pytest.mark.parametrize("end", [CLOSE, b"421 4.3.2 closing\r\n"])
def test_where_all_hosts_end_so_each_is_asked_once(scripted: Scripted, end: Any) -> None:
    peers = [scripted({"MAIL": end}) for _n in range(2)]

    async def scene() -> list[Played]:
        rig = Rig(*(peer.port for peer in peers), timeouts=PATIENT)
        played = await play_all(rig, 1)
        await rig.settle()
        return played

    (played,) = run(scene())
    assert played.text[:4] == "451 "
    assert [len(peer.conversations) for peer in peers] == [1, 1]


def test_a_client_that_the_backend_does_not_like_takes_no_host_away(scripted: Scripted) -> None:
    """What follows XCLIENT is about a client: whoever it is must not be able to open the breaker."""
    peer = scripted({"EHLO": b"250-peer\r\n250 XCLIENT ADDR\r\n", "XCLIENT": b"554 5.7.1 bad reputation\r\n"})

    async def scene() -> tuple[list[Played], dict[str, str]]:
        rig = Rig(peer.port, timeouts=PATIENT, send_client_address="xclient")
        played = await play_all(rig, THRESHOLD + 2)
        await rig.settle()
        return played, rig.backends.health()

    played, health = run(scene())
    assert {each.text[:10] for each in played} == {"451 4.3.5 "}
    assert len(peer.conversations) == THRESHOLD + 2
    assert set(health.values()) == {"up"}


def test_the_breaker() -> None:
    breaker = Breaker(UNREACHABLE)
    now = 100.0
    for number in range(1, THRESHOLD + 1):
        assert not breaker.is_open
        assert breaker.admit(now)
        assert breaker.failed(now, TROUBLE, on_trial=False) is (number == THRESHOLD)
    assert breaker.reply is TROUBLE
    assert not breaker.failed(now, UNREACHABLE, on_trial=False)  # it had set out before
    rest = FIRST_REST
    for _n in range(5):
        assert breaker.is_open
        assert not breaker.admit(now + rest - 0.1)
        now += rest
        assert breaker.admit(now)
        assert not breaker.admit(now)  # one at a time
        assert breaker.failed(now, UNREACHABLE, on_trial=True)
        rest = min(2 * rest, LONGEST_REST)
        assert breaker.until == now + rest
    now += rest
    assert breaker.admit(now)
    breaker.unsettled(on_trial=True)
    assert breaker.admit(now)
    breaker.succeeded()
    assert (breaker.is_open, breaker.last) == (False, True)
    assert breaker.admit(now)


# -- probes and promises --


def probed(*peers: ScriptedPeer, path: FilePath | None = None, **settings: Any) -> Rig:
    """Probe the hosts once."""

    async def scene() -> Rig:
        rig = Rig(*(peer.port for peer in peers), path=path, **{"timeouts": PATIENT, **settings})
        probing = asyncio.ensure_future(rig.backends.keep_probing())
        await until(lambda: "unknown" not in rig.backends.health().values())
        await until(lambda: not rig.tasks)
        await asyncio.sleep(0.05)
        probing.cancel()
        await rig.settle()
        return rig

    rig: Rig = run(scene())
    return rig


def test_what_all_hosts_offer_is_promised_and_kept(scripted: Scripted, tmp_path: FilePath) -> None:
    one = scripted({"EHLO": b"250-a\r\n250-SIZE 500\r\n250-8BITMIME\r\n250 DSN\r\n"})
    two = scripted({"EHLO": b"250-b\r\n250-SIZE 900\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"})
    common = Capabilities(500, eightbitmime=True)
    rig = probed(one, two, path=tmp_path / "backends.json")
    assert rig.backends.offered == common
    assert one.verbs() == two.verbs() == ["EHLO", "QUIT"]
    assert Promises(tmp_path / "backends.json").common([f"127.0.0.1:{peer.port}" for peer in (one, two)]) == common


def test_what_is_kept_is_what_was_learnt_last(
    scripted: Scripted, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the first writing takes."""
    save, writings = Promises.save, iter([0.2])

    def slow(self: Promises, hosts: Iterable[str]) -> None:
        then = Promises(self._path)
        then._answers = dict(self._answers)
        time.sleep(next(writings, 0.0))
        save(then, hosts)

    monkeypatch.setattr(Promises, "save", slow)
    one = scripted({"EHLO": b"250-a\r\n250 DSN\r\n"})
    two = scripted({"EHLO": b"250-b\r\n250 8BITMIME\r\n"})
    probed(one, two, path=tmp_path / "backends.json")
    hosts = [f"127.0.0.1:{peer.port}" for peer in (one, two)]
    assert [Promises(tmp_path / "backends.json").common([host]) is not None for host in hosts] == [True, True]


def test_nothing_is_promised_where_nothing_is_known(scripted: Scripted) -> None:
    rig = probed(scripted({"EHLO": b"500 no\r\n"}))
    assert rig.backends.offered is None
    (line,) = rig.lines()
    assert (line["stage"], line["outcome"], line["level"]) == ("probe", "trouble", "alarm")


def test_a_backend_that_is_down_promises_what_it_did(scripted: Scripted, tmp_path: FilePath) -> None:
    peer = scripted()
    path = tmp_path / "backends.json"
    before = probed(peer, path=path).backends.offered
    peer.replies["connect"] = CLOSE
    rig = probed(peer, path=path)
    assert rig.backends.offered == before == Capabilities(99999999, eightbitmime=True)


def test_a_configured_promise_counts(scripted: Scripted) -> None:
    rig = probed(scripted(), capabilities=Capabilities(7, dsn=True))
    assert rig.backends.offered == Capabilities(7, dsn=True)


def test_mail_teaches_as_well(scripted: Scripted) -> None:
    assert messages(scripted(), 1).backends.offered == Capabilities(99999999, eightbitmime=True)


def test_a_file_that_cant_be_written_is_a_warning(scripted: Scripted, tmp_path: FilePath) -> None:
    rig = probed(scripted(), path=tmp_path / "missing/backends.json")
    (line,) = rig.lines("warning")
    assert "can't be kept" in line["message"]


def test_one_failure_is_soon_looked_into(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or health checks would speak of it until the next probe is due, which takes minutes."""
    monkeypatch.setattr("greylist_proxy.smtp.host.PROBE_AGAIN", 0.2)
    peer = scripted({"connect": CLOSE})

    async def scene() -> Rig:
        rig = Rig(peer.port, timeouts=PATIENT)
        probing = asyncio.ensure_future(rig.backends.keep_probing())
        await until(lambda: rig.backends.states() == [BackendState.DOWN])
        del peer.replies["connect"]
        await until(lambda: rig.backends.states() == [BackendState.UP])
        probing.cancel()
        await rig.settle()
        return rig

    assert run(scene()).lines("backend") == []


def test_a_host_comes_back_by_a_probe(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client has to be the one who tries."""
    monkeypatch.setattr("greylist_proxy.smtp.breaker.FIRST_REST", 0.2)
    peer = scripted({"connect": CLOSE})

    async def scene() -> Rig:
        rig = Rig(peer.port, timeouts=PATIENT)
        probing = asyncio.ensure_future(rig.backends.keep_probing())
        await play_all(rig, THRESHOLD)
        await until(lambda: rig.lines("backend"))
        del peer.replies["connect"]
        await until(lambda: rig.backends.health()[f"127.0.0.1:{peer.port}"] == "up")
        assert (await rig.play(pause=0)).text == "250 taken\r\n"
        probing.cancel()
        await rig.settle()
        return rig

    rig = run(scene())
    assert [line["state"] for line in rig.lines("backend")] == ["down", "up"]


def test_probes_come_again(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PROBE_EVERY", 0.05)
    peer = scripted()

    async def scene() -> None:
        rig = Rig(peer.port, timeouts=PATIENT)
        probing = asyncio.ensure_future(rig.backends.keep_probing())
        await until(lambda: len(peer.conversations) >= 3)
        peer.replies["EHLO"] = b"250 less\r\n"
        await until(lambda: rig.backends.offered == Capabilities())
        probing.cancel()
        await rig.settle()

    run(scene())


# -- verification --


@pytest.mark.parametrize(
    ("script", "told", "said"),
    [
        ({}, "250 recipient ok", "EHLO MAIL RCPT RSET QUIT"),
        ({"RCPT": b"450 later\r\n"}, "450 later", "EHLO MAIL RCPT RSET QUIT"),
        ({"RCPT": b"550 5.1.1 nobody\r\n"}, "550 5.1.1 nobody", "EHLO MAIL RCPT QUIT"),
        ({"MAIL": b"550 not you\r\n"}, "None", "EHLO MAIL QUIT"),
        ({"RCPT": b"503 confused\r\n"}, "451 4.3.5 The mail server", "EHLO MAIL RCPT QUIT"),
        ({"RCPT": CLOSE}, "451 4.4.2 ", "EHLO MAIL RCPT"),
        ({"EHLO": b"250-p\r\n250 PIPELINING\r\n", "MAIL": b"451 no\r\n"}, "None", "EHLO MAIL RCPT RSET QUIT"),
    ],
)
def test_a_recipient_is_verified(scripted: Scripted, script: dict[str, Any], told: str, said: str) -> None:
    peer = scripted(script)

    async def scene() -> str:
        rig = Rig(peer.port, timeouts=PATIENT)
        reply = await rig.backends.verify(SENDER, (), "u@here.test", rig.relay()._introduce)
        await until(lambda: not rig.tasks)
        await rig.settle()
        return str(reply)

    assert run(scene()).startswith(told)
    assert [verbs(lines) for lines in peer.conversations] == [said]


def test_verification_lacks_what_the_mail_needs(scripted: Scripted) -> None:
    async def scene(port: int) -> str:
        rig = Rig(port, timeouts=PATIENT)
        wanted = (parameter("SMTPUTF8"),)
        reply = await rig.backends.verify(SENDER, wanted, "u@here.test", rig.relay()._introduce)
        await rig.settle()
        return str(reply)

    assert run(scene(scripted().port)).startswith("451 4.3.5 ")


# -- a changed configuration --


def test_a_shorter_patience_with_idle_connections_counts_at_once(scripted: Scripted) -> None:
    peer = scripted()

    async def scene() -> None:
        rig = Rig(peer.port, timeouts=PATIENT, idle_timeout=3600.0)
        await play_all(rig, 1)
        rig.backends.configure(dataclasses.replace(rig.settings, idle_timeout=0.1))
        await play_all(rig, 1)
        await until(lambda: peer.verbs().count("QUIT") == 2)
        await rig.settle()

    run(scene())
    assert len(peer.conversations) == 2


def test_other_hosts_by_a_reload(scripted: Scripted) -> None:
    one, two = scripted(), scripted()

    async def scene() -> None:
        rig = Rig(one.port, timeouts=PATIENT)
        await play_all(rig, 1)
        relay = rig.relay()  # begun before, and finished where it was begun
        assert (await relay.rcpt("u@here.test", ())).is_positive
        hosts = [rig.settings.hosts[0]._replace(port=two.port)]
        rig.backends.configure(BackendSettings(hosts=hosts, timeouts=PATIENT))
        assert list(rig.backends.health()) == [f"127.0.0.1:{two.port}"]
        await play_all(rig, 1)
        assert (await relay.data()).code == 354
        assert (await relay.finish()).is_positive
        await rig.settle()

    run(scene())
    assert [verbs(lines) for lines in one.conversations] == ["EHLO MAIL RCPT DATA MAIL RCPT DATA QUIT"]
    assert [verbs(lines) for lines in two.conversations] == ["EHLO MAIL RCPT DATA QUIT"]


@pytest.mark.parametrize("before", ["proxy-v1", "xclient"])
def test_a_connection_in_use_is_not_kept_under_other_settings(scripted: Scripted, before: Any) -> None:
    """It speaks for its client, and under the new settings nobody would tell it that the next one is another."""
    peer = scripted({"PROXY": b"", "EHLO": b"250-peer\r\n250 XCLIENT ADDR\r\n", "XCLIENT": b"220 peer\r\n"})

    async def scene() -> None:
        rig = Rig(peer.port, timeouts=PATIENT, send_client_address=before)
        relay = rig.relay()
        assert (await relay.rcpt("u@here.test", ())).is_positive
        rig.backends.configure(BackendSettings(hosts=rig.settings.hosts, timeouts=PATIENT))
        assert (await relay.data()).code == 354
        assert (await relay.finish()).is_positive
        await play_all(rig, 2)
        await rig.settle()

    run(scene())
    first, second = map(verbs, peer.conversations)
    assert first.endswith("MAIL RCPT DATA QUIT")
    assert second == "EHLO MAIL RCPT DATA MAIL RCPT DATA QUIT"


def test_a_bad_reload_changes_nothing(scripted: Scripted, tmp_path: FilePath) -> None:
    peer = scripted()

    async def scene() -> Played:
        rig = Rig(peer.port, timeouts=PATIENT)
        bad = BackendSettings(hosts=(), starttls="verify", ca_file=tmp_path / "missing.pem")
        with pytest.raises(OSError, match=r"missing\.pem|No such file"):
            rig.backends.configure(bad)
        played = await rig.play(pause=0)
        await rig.settle()
        return played

    assert run(scene()).text == "250 taken\r\n"
