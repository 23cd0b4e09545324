# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`decisions`: what is found of the log, by filter and by id, on every store."""

from __future__ import annotations

import pytest
from greylist_proxy.policy import Reason
from greylist_proxy.store import Logged

from .command_line import CommandLine, decided

OFFICE = {"client": "40.92.17.4", "network": "40.92.17.0/24", "key": "spf:contoso.example"}


def log() -> list[Logged]:
    """The decisions that are asked for; their ages count from when they are put in."""
    return [
        decided(7200, "allow", "known", id="A00000000001.1", sender="Joe@Example.com", **OFFICE),
        decided(90, id="A00000000002.1", seconds_left=60),
        decided(90, "allow", "exempt-postmaster", id="A00000000002.2", recipient="postmaster"),
        decided(
            30, "block", "blocked-client", id="A00000000003.1", sender="", rule="entry client 192.0.2.0/24 (operator)"
        ),
        decided(5, "allow", "new", id="A00000000004.1", recipient="v@Example.ORG", would="defer"),
    ]


def found(line: CommandLine, *arguments: str) -> list[str]:
    result = line("decisions", "--json", *arguments)
    assert result.err == ""
    return [f"{each['id'][11:]}" for each in result.objects]


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ([], ["4.1", "3.1", "2.2", "2.1", "1.1"]),
        (["--limit", "2"], ["4.1", "3.1"]),
        (["--limit", "0"], ["4.1", "3.1", "2.2", "2.1", "1.1"]),
        (["--since", "1m"], ["4.1", "3.1"]),
        (["--verdict", "defer"], ["2.1"]),
        (["--reason", "known"], ["1.1"]),
        (["--client", "40.92.17.4"], ["1.1"]),
        (["--client", "40.92.17.5"], []),
        (["--client", "40.92.17.0/24"], ["1.1"]),
        (["--client", "contoso.example"], ["1.1"]),
        (["--sender", "<>"], ["3.1"]),
        (["--sender", "Joe@EXAMPLE.com"], ["1.1"]),
        (["--sender", "@example.com"], ["1.1"]),
        (["--recipient", "example.org", "--verdict", "allow"], ["4.1", "1.1"]),
        (["--recipient", "postmaster"], ["2.2"]),
        (["--id", "A00000000002.1"], ["2.1"]),
        (["--id", "(a00000000002.2)"], ["2.2"]),
        (["--id", "A00000000002"], ["2.2", "2.1"]),
        (["--id", "A00000000002", "--verdict", "defer"], ["2.1"]),
    ],
)
def test_filters(sqlite_line: CommandLine, arguments: list[str], ids: list[str]) -> None:
    sqlite_line.fill(decisions=log())
    assert found(sqlite_line, *arguments) == ids


def test_both_stores_find_the_same(line: CommandLine) -> None:
    line.fill(decisions=log())
    assert found(line) == ["4.1", "3.1", "2.2", "2.1", "1.1"]
    assert found(line, "--id", "A00000000002") == ["2.2", "2.1"]
    assert found(line, "--client", "contoso.example") == ["1.1"]


def test_json_has_the_fields_of_the_log_line(line: CommandLine) -> None:
    line.fill(decisions=log()[:1])
    (each,) = line("decisions", "--json").objects
    assert each.pop("time").endswith("+00:00")
    assert each == {
        "verdict": "allow",
        "reason": "known",
        "client": "40.92.17.4",
        "network": "40.92.17.0/24",
        "sender": "Joe@Example.com",
        "recipient": "u@example.org",
        "seconds_left": 0,
        "id": "A00000000001.1",
        "key": "spf:contoso.example",
        "rule": "",
        "would": None,
    }


def test_people_see_a_table_and_that_there_is_more(sqlite_line: CommandLine) -> None:
    sqlite_line.fill(decisions=log())
    result = sqlite_line("decisions", "--limit", "4")
    assert [row[1:] for row in result.rows] == [
        ["192.0.2.7", "a@example.net", "v@Example.ORG", "allow, would defer", "new", "A00000000004.1"],
        ["192.0.2.7", "<>", "u@example.org", "block", "blocked-client", "A00000000003.1"],
        ["192.0.2.7", "a@example.net", "postmaster", "allow", "exempt-postmaster", "A00000000002.2"],
        ["192.0.2.7", "a@example.net", "u@example.org", "defer, 60s", "new", "A00000000002.1"],
    ]
    assert result.err == "the newest 4; there are more, and --limit 0 shows all\n"
    assert sqlite_line("decisions", "--limit", "5").err == ""


def test_people_see_a_hundred_and_programs_all(sqlite_line: CommandLine) -> None:
    sqlite_line.fill(decisions=[decided(number) for number in range(120)])
    assert len(sqlite_line("decisions").rows) == 100
    assert len(sqlite_line("decisions", "--json").objects) == 120


def test_one_decision_in_detail(sqlite_line: CommandLine) -> None:
    sqlite_line.fill(decisions=log())
    result = sqlite_line("decisions", "--id", "A00000000003.1")
    fields = dict(text.split(maxsplit=1) for text in result.out.splitlines())
    assert fields["sender"] == "<>"
    assert fields["client"] == "192.0.2.7 in 192.0.2.0/24"
    assert fields["reason"] == f"blocked-client: {Reason.BLOCKED_CLIENT.meaning}"
    assert result.out.splitlines()[-1] == "by rule    entry client 192.0.2.0/24 (operator)"


def test_a_reason_of_another_version_is_shown_as_it_is(sqlite_line: CommandLine) -> None:
    sqlite_line.fill(decisions=[decided(reason="moon-phase")])
    assert "reason     moon-phase\n" in sqlite_line("decisions", "--id", "0A1B2C3D4E5F.1").out


@pytest.mark.parametrize("ident", ["A00000000009.1", "A00000000002.3", "A0000000000", "%"])
def test_an_id_that_is_not_there(sqlite_line: CommandLine, ident: str) -> None:
    sqlite_line.fill(decisions=log())
    result = sqlite_line("decisions", "--id", ident)
    assert (result.status, result.out) == (1, "")
    assert f"no decision '{ident}' is kept" in result.err


def test_an_empty_log_is_an_answer(line: CommandLine) -> None:
    line.fill()
    assert line("decisions") == (0, "", "no decisions\n")
    assert line("decisions", "--json") == (0, "", "")


def test_what_came_from_outside_can_not_reach_the_terminal(sqlite_line: CommandLine) -> None:
    sqlite_line.fill(decisions=[decided(sender="\x1b]0;x\x07@example.net", recipient="\u202egro@example.org")])
    assert sqlite_line("decisions").rows[0][2:4] == ["\\u001b]0;x\\u0007@example.net", "\\u202egro@example.org"]
    assert "\\u001b]0;x\\u0007@example.net" in sqlite_line("decisions", "--id", "0A1B2C3D4E5F").out


def test_reasons_are_explained_without_a_store(sqlite_line: CommandLine) -> None:
    result = sqlite_line("decisions", "--reasons")
    assert (result.status, result.err) == (0, "")
    assert result.rows == [[str(reason), reason.meaning] for reason in Reason]
    as_json = sqlite_line("decisions", "--reasons", "--json").objects
    assert as_json == [{"reason": str(reason), "meaning": reason.meaning} for reason in Reason]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--reason", "because"], "'because': allowed is one of new, early, "),
        (["--verdict", "maybe"], "invalid choice"),
        (["--limit", "-1"], "allowed is a whole number"),
        (["--since", "noon"], "allowed is a duration"),
        (["--client", "x y"], "x y"),
        (["--sender", "@x y"], "neither an address nor a domain"),
        (["--id", "A00000000002", "--limit", "1"], "not with --id"),
    ],
)
def test_wrong_usage(sqlite_line: CommandLine, arguments: list[str], error: str) -> None:
    sqlite_line.fill(decisions=log())
    result = sqlite_line("decisions", *arguments)
    assert (result.status, result.out) == (2, "")
    assert error in result.err
