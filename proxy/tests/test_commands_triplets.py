# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`triplets`: what is listed, shown and deleted, on every store."""

from __future__ import annotations

import datetime

import pytest
from greylist_proxy.commands import triplets
from greylist_proxy.policy import Record, Rules
from greylist_proxy.store import Remembered

from .command_line import CommandLine, allowance, triplet

KNOWN = triplet("spf:example.net", used=3600, age=86400)
RIPE = triplet("198.51.100.0/24", "", "u@example.org", age=7200)
OTHER = triplet("192.0.2.0/24", "b@example.com", "V@example.org", age=600)


def who_waits() -> Remembered:
    """One that waits; made anew by each test, since it waits for minutes only."""
    return triplet(age=20)


def everything() -> list[Remembered]:
    return [KNOWN, who_waits(), RIPE, OTHER]


def senders(line: CommandLine, *arguments: str) -> list[str]:
    result = line("triplets", "list", "--json", *arguments)
    assert (result.status, result.err) == (0, "")
    return sorted(each["sender"] for each in result.objects)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], ["", "a@example.net", "a@example.net", "b@example.com"]),
        (["--client", "192.0.2.99"], ["a@example.net", "b@example.com"]),
        (["--client", "example.net"], ["a@example.net"]),
        (["--sender", "<>"], [""]),
        (["--sender", "a+news@Example.Net"], ["a@example.net", "a@example.net"]),
        (["--sender", "example.com"], ["b@example.com"]),
        (["--recipient", "V@EXAMPLE.ORG"], ["b@example.com"]),
        (["--recipient", "example.org", "--state", "known"], ["a@example.net"]),
        (["--state", "pending"], ["", "a@example.net", "b@example.com"]),
        (["--since", "5m"], ["a@example.net"]),
        (["--since", "1h", "--client", "192.0.2.0/24"], ["a@example.net", "b@example.com"]),
        (["--client", "203.0.113.1"], []),
        (["--limit", "2"], ["a@example.net", "b@example.com"]),
        (["--limit", "0"], ["", "a@example.net", "a@example.net", "b@example.com"]),
    ],
)
def test_filters(sqlite_line: CommandLine, arguments: list[str], found: list[str]) -> None:
    sqlite_line.fill(everything())
    assert senders(sqlite_line, *arguments) == found


def test_both_stores_list_the_same(line: CommandLine) -> None:
    line.fill(everything())
    assert senders(line, "--since", "1d", "--client", "192.0.2.1") == ["a@example.net", "b@example.com"]
    assert senders(line, "--sender", "<>", "--state", "pending") == [""]


def test_json_has_all_that_is_known_of_a_triplet(line: CommandLine) -> None:
    line.fill([KNOWN, who_waits()])
    found = {each["client"]: each for each in line("triplets", "list", "--json").objects}
    first_seen = {client: datetime.datetime.fromisoformat(each["first_seen"]) for client, each in found.items()}
    waiting, known = found["192.0.2.0/24"], found["spf:example.net"]
    assert (waiting["state"], waiting["last_used"], waiting["recipient"]) == ("pending", None, "u@example.org")
    assert datetime.datetime.fromisoformat(waiting["passes_from"]) - first_seen["192.0.2.0/24"] == datetime.timedelta(
        seconds=60
    )
    assert datetime.datetime.fromisoformat(waiting["expires"]) - first_seen["192.0.2.0/24"] == datetime.timedelta(2)
    assert (known["state"], known["passes_from"]) == ("known", None)
    used = datetime.datetime.fromisoformat(known["last_used"])
    assert used - first_seen["spf:example.net"] == datetime.timedelta(hours=23)
    assert datetime.datetime.fromisoformat(known["expires"]) - used == datetime.timedelta(36)


def test_people_see_the_newest_first(sqlite_line: CommandLine) -> None:
    sqlite_line.fill(everything())
    result = sqlite_line("triplets", "list")
    assert [row[:3] for row in result.rows] == [
        ["192.0.2.0/24", "a@example.net", "u@example.org"],
        ["192.0.2.0/24", "b@example.com", "V@example.org"],
        ["spf:example.net", "a@example.net", "u@example.org"],
        ["198.51.100.0/24", "<>", "u@example.org"],
    ]
    states = [row[3] for row in result.rows]
    assert states[0].startswith("pending, may pass in ")
    assert states[1:] == ["pending, may pass now", "known, expires in 36d", "pending, may pass now"]
    assert (result.status, result.err) == (0, "")


def test_a_limit_says_how_many_there_are(sqlite_line: CommandLine) -> None:
    sqlite_line.fill(everything())
    result = sqlite_line("triplets", "list", "--limit", "1")
    assert [row[1] for row in result.rows] == ["a@example.net"]
    assert result.err == "1 of 4 triplets, the newest; --limit 0 shows all\n"


def test_an_empty_list_is_an_answer(line: CommandLine) -> None:
    line.fill()
    assert line("triplets", "list") == (0, "", "no triplets\n")
    assert line("triplets", "list", "--json") == (0, "", "")


def test_what_came_from_outside_can_not_reach_the_terminal(sqlite_line: CommandLine) -> None:
    sqlite_line.fill([triplet(sender="\x1b[2Jred\u202e[b]@example.net", recipient="a\nb@example.org")])
    result = sqlite_line("triplets", "list")
    assert [row[1:3] for row in result.rows] == [["\\u001b[2Jred\\u202e[b]@example.net", "a\\u000ab@example.org"]]
    (found,) = sqlite_line("triplets", "list", "--json").objects
    assert (found["sender"], found["recipient"]) == ("\x1b[2Jred\u202e[b]@example.net", "a\nb@example.org")


def test_show(line: CommandLine) -> None:
    line.fill([KNOWN, who_waits(), allowance("192.0.2.7", 3), allowance("spf:example.net", 7)])
    result = line("triplets", "show", "192.0.2.7", "<a@example.net>", "u@Example.org")
    assert result.status == 0
    fields = dict(text.split(maxsplit=1) for text in result.out.splitlines())
    assert fields["client"] == "192.0.2.0/24"
    assert fields["state"].startswith("pending, may pass in ")
    assert fields["earned"] == "192.0.2.7: 3 of 5 passed triplets"
    (found,) = line("triplets", "show", "spf:example.net", "a@example.net", "u@example.org", "--json").objects
    assert (found["state"], found["earner"], found["passes"]) == ("known", "spf:example.net", 7)


@pytest.mark.parametrize("client", ["198.51.100.1", "spf:example.com"])
def test_show_what_is_not_there(sqlite_line: CommandLine, client: str) -> None:
    sqlite_line.fill(everything())
    result = sqlite_line("triplets", "show", client, "a@example.net", "u@example.org")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("greylist-proxy: there is no triplet of ")


def test_delete_one(line: CommandLine) -> None:
    line.fill(everything())
    exact = ["triplets", "delete", "192.0.2.7", "a@example.net", "u@example.org", "--yes"]
    assert line(*exact) == (0, "1 triplet deleted\n", "")
    assert senders(line) == ["", "a@example.net", "b@example.com"]
    assert line(*exact) == (1, "", "greylist-proxy: no triplet matches, nothing is deleted\n")


@pytest.mark.parametrize(
    ("arguments", "number", "left"),
    [
        (["--client", "192.0.2.7"], 2, ["", "a@example.net"]),
        (["--state", "pending"], 3, ["a@example.net"]),
        (["--sender", "<>"], 1, ["a@example.net", "a@example.net", "b@example.com"]),
        (["--all"], 4, []),
    ],
)
def test_delete_by_filters(sqlite_line: CommandLine, arguments: list[str], number: int, left: list[str]) -> None:
    sqlite_line.fill(everything())
    plural = "1 triplet" if number == 1 else f"{number} triplets"
    assert sqlite_line("triplets", "delete", *arguments, "--dry-run") == (0, f"{plural} would be deleted\n", "")
    assert len(senders(sqlite_line)) == 4
    assert sqlite_line("triplets", "delete", *arguments, "--yes") == (0, f"{plural} deleted\n", "")
    assert senders(sqlite_line) == left


def test_delete_in_batches(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triplets, "BATCH", 10)
    line.fill([triplet(recipient=f"u{number}@example.org") for number in range(25)])
    assert line("triplets", "delete", "--client", "192.0.2.1", "--yes") == (0, "25 triplets deleted\n", "")
    assert senders(line) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "what is to be deleted?"),
        (["--yes"], "what is to be deleted?"),
        (["--all", "--client", "192.0.2.1", "--yes"], "what is to be deleted?"),
        (["--all", "192.0.2.1", "a@example.net", "u@example.org"], "what is to be deleted?"),
        (["192.0.2.1", "a@example.net", "u@example.org", "--state", "known"], "what is to be deleted?"),
        (["192.0.2.1", "a@example.net"], "all three"),
        (["--client", "nonsense!"], "nonsense!"),
        (["--al"], "unrecognized arguments"),
        (["--all"], "--yes is needed"),  # nobody is there to be asked
    ],
)
def test_delete_does_nothing_that_is_not_surely_meant(
    sqlite_line: CommandLine, arguments: list[str], error: str
) -> None:
    sqlite_line.fill(everything())
    result = sqlite_line("triplets", "delete", *arguments)
    assert (result.status, result.out) == (2, "")
    assert error in result.err
    assert len(senders(sqlite_line)) == 4


@pytest.mark.parametrize(
    ("record", "state", "passes", "ends"),
    [
        (Record(1000), "pending", 1060, 1000 + 172800),
        (Record(5000), "pending", 1110, 5000 + 172800),  # the clock was set back: nobody waits longer than the delay
        (Record(1000, 1030), "known", None, 1030 + 36 * 86400),
    ],
)
def test_what_comes_next(record: Record, state: str, passes: float | None, ends: float) -> None:
    found = triplets.as_json(Remembered(triplet().triplet, record), Rules(), 1050)

    def seconds(name: str) -> float | None:
        return None if found[name] is None else datetime.datetime.fromisoformat(str(found[name])).timestamp()

    assert (found["state"], seconds("passes_from"), seconds("expires")) == (state, passes, ends)
