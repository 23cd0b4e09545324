# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`stats`: what is counted, and how much of what was deferred came back."""

from __future__ import annotations

import dataclasses

import pytest
from greylist_proxy.commands import stats
from greylist_proxy.commands.comebacks import Comebacks, Result
from greylist_proxy.store import Action, Entry, Kind, Logged, Source

from .command_line import CommandLine, allowance, decided, triplet

ENTRIES = [
    Entry(Kind.CLIENT, "192.0.2.7", Action.ALLOW, Source.OPERATOR),
    Entry(Kind.CLIENT, "192.0.2.8", Action.BLOCK, Source.OPERATOR),
    Entry(Kind.TRAP, "old@example.org", Action.BLOCK, Source.OPERATOR),
]
LOG = [
    decided(90_000, "block", "blocked-client"),
    decided(700, "defer", "new"),
    decided(690, "defer", "early"),
    decided(300, "allow", "retried"),
    decided(200, "defer", "new", client="198.51.100.1", network="198.51.100.0/24"),
    decided(100, "allow", "known", would=None),
    decided(50, "allow", "new", would="defer", sender="c@example.net"),
]


def logged(
    when: float, verdict: str, reason: str, network: str = "192.0.2.0/24", key: str = "", sender: str = "a@example.net"
) -> Logged:
    decision = decided(0, verdict, reason, network=network, key=key, sender=sender)
    return dataclasses.replace(decision, time=when)


SPF = "spf:example.net"


@pytest.mark.parametrize(
    ("log", "result"),
    [
        pytest.param([], Result(0, 0, None), id="nothing"),
        pytest.param([logged(0, "defer", "new")], Result(1, 0, None), id="never came back"),
        pytest.param(
            [logged(0, "defer", "new"), logged(5, "defer", "early"), logged(70, "allow", "retried")],
            Result(1, 1, 70),
            id="an early retry changes nothing",
        ),
        pytest.param(
            [logged(0, "defer", "new"), logged(70, "allow", "retried"), logged(900, "allow", "retried")],
            Result(1, 1, 70),
            id="the first pass counts",
        ),
        pytest.param(
            [logged(0, "defer", "new"), logged(9, "defer", "new", sender="b@x"), logged(70, "allow", "retried")],
            Result(2, 1, 70),
            id="another sender is another delivery",
        ),
        pytest.param(
            [logged(0, "defer", "new"), logged(70, "allow", "retried", "198.51.100.0/24")],
            Result(1, 0, None),
            id="another network did not come back for it",
        ),
        pytest.param(
            [
                logged(0, "defer", "new", "10.0.0.0/24"),
                logged(20, "defer", "early", "10.0.1.0/24", SPF),
                logged(80, "allow", "retried", "10.0.2.0/24", SPF),
            ],
            Result(1, 1, 80),
            id="a pool is one client",
        ),
        pytest.param(
            [logged(0, "allow", "retried"), logged(9, "defer", "new")], Result(1, 0, None), id="deferred anew"
        ),
        pytest.param(
            [logged(0, "defer", "transaction"), logged(70, "allow", "transaction")], Result(1, 1, 70), id="transaction"
        ),
        pytest.param(
            [logged(0, "defer", "store-failed"), logged(1, "defer", "trap"), logged(2, "defer", "trapped-client")],
            Result(0, 0, None),
            id="other deferrals say nothing about greylisting",
        ),
        pytest.param(
            [logged(0, "defer", "new"), logged(70, "allow", "allowed-client")], Result(1, 0, None), id="let in by hand"
        ),
        pytest.param(
            [
                logged(0, "defer", "new", sender="a@x"),
                logged(0, "defer", "new", sender="b@x"),
                logged(60, "allow", "retried", sender="a@x"),
                logged(100, "allow", "retried", sender="b@x"),
            ],
            Result(2, 2, 80),
            id="the median",
        ),
    ],
)
def test_comebacks(log: list[Logged], result: Result) -> None:
    comebacks = Comebacks()
    for decision in reversed(log):
        comebacks.add(decision)
    assert comebacks.result() == result


def test_json(line: CommandLine) -> None:
    line.fill([triplet(), triplet("198.51.100.0/24", used=5), allowance("192.0.2.7", 1), *ENTRIES], LOG)
    (found,) = line("stats", "--json").objects
    assert found["store"] == {"pending": 1, "known": 1, "earners": 1, "entries": 3, "decisions": 7}
    assert found["entries"] == {"client allow": 1, "client block": 1, "trap": 1}
    day = found["last_24h"]
    assert day["verdicts"] == {"allow": 3, "defer": 3}
    assert day["would"] == {"defer": 1}
    assert {(each["verdict"], each["reason"]): each["count"] for each in day["reasons"]} == {
        ("allow", "new"): 1,
        ("allow", "known"): 1,
        ("allow", "retried"): 1,
        ("defer", "early"): 1,
        ("defer", "new"): 2,
    }
    assert day["deferred_networks"] == [
        {"network": "192.0.2.0/24", "count": 2},
        {"network": "198.51.100.0/24", "count": 1},
    ]
    assert found["deliveries"]["since"].endswith("+00:00")
    assert (found["deliveries"]["deferred"], found["deliveries"]["came_back"]) == (2, 1)
    assert found["deliveries"]["median_seconds"] == pytest.approx(400, abs=0.1)


def test_people_see_what_it_comes_to(sqlite_line: CommandLine) -> None:
    sqlite_line.fill([triplet(), *ENTRIES], LOG)
    result = sqlite_line("stats")
    assert (result.status, result.err) == (0, "")
    for text in (
        "  pending triplets  1\n",
        "    client block    1\n",
        "  came back       50.0% of 2\n  after (median)  7m\n",
        "6 decisions in the last 24 hours\n  allow  3  50.0%\n  defer  3  50.0%\n",
        "mode observe would have decided\n  defer  1\n",
        "reason   verdict  decisions\nnew      defer            2\n",
        "network          deferrals\n192.0.2.0/24             2\n198.51.100.0/24          1\n",
    ):
        assert text in result.out


def test_an_empty_store(line: CommandLine) -> None:
    line.fill()
    result = line("stats")
    assert (result.status, result.err) == (0, "")
    assert "no deferred deliveries in the log\n\nno decisions in the last 24 hours\n" in result.out
    (found,) = line("stats", "--json").objects
    assert found["deliveries"] == {"since": None, "deferred": 0, "came_back": 0, "median_seconds": None}


def test_no_more_decisions_are_read_than_memory_is_meant_for(
    sqlite_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "MAX_READ", 3)
    sqlite_line.fill(decisions=LOG)
    (found,) = sqlite_line("stats", "--json").objects
    assert found["store"]["decisions"] == 7
    assert sum(found["last_24h"]["verdicts"].values()) == 3


def test_the_ten_networks_that_are_deferred_most(sqlite_line: CommandLine) -> None:
    networks = [f"192.0.{number}.0/24" for number in range(12)]
    log = [decided(network=network) for number, network in enumerate(networks) for _ignored in range(number + 1)]
    sqlite_line.fill(decisions=log)
    (found,) = sqlite_line("stats", "--json").objects
    assert [each["network"] for each in found["last_24h"]["deferred_networks"]] == networks[:1:-1]
