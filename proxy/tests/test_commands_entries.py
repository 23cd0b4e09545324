# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`entries`: added, replaced, listed and removed, on every store."""

from __future__ import annotations

import time

import pytest
from greylist_proxy.store import Action, Entry, Kind, Source

from .command_line import CommandLine

TRAPPED = Entry(Kind.CLIENT, "192.0.2.7", Action.BLOCK, Source.TRAP, time.time(), time.time() + 3600, "mailed a trap")
LEARNED = Entry(Kind.SENDER, "joe@example.net", Action.ALLOW, Source.LEARNED, time.time(), time.time() + 86400)


def listed(line: CommandLine, *arguments: str) -> list[tuple[str, ...]]:
    result = line("entries", "list", "--json", *arguments)
    assert (result.status, result.err) == (0, "")
    return [(each["kind"], each["value"], each["action"], each["source"]) for each in result.objects]


def test_an_entry_comes_and_goes(line: CommandLine) -> None:
    added = line("entries", "add", "client", "192.0.2.7", "--note", "their invoice")
    assert added == (0, "allow client 192.0.2.7\n", "")
    assert listed(line) == [("client", "192.0.2.7", "allow", "operator")]
    (each,) = line("entries", "list", "--json").objects
    assert (each["note"], each["expires"]) == ("their invoice", None)
    assert line("entries", "remove", "client", "192.0.2.7") == (0, "client 192.0.2.7 removed\n", "")
    assert line("entries", "remove", "client", "192.0.2.7") == (
        1,
        "",
        "greylist-proxy: there is no entry client 192.0.2.7\n",
    )
    assert line("entries", "list") == (0, "", "no entries\n")


def test_adding_again_replaces(line: CommandLine) -> None:
    line("entries", "add", "sender", "Example.NET", "--note", "first")
    again = line("entries", "add", "sender", "@example.net", "--action", "block")
    assert again == (0, "block sender example.net (replaced an operator's: allow sender example.net)\n", "")
    (each,) = line("entries", "list", "--json").objects
    assert (each["action"], each["note"]) == ("block", "")


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (TRAPPED, "allow client 192.0.2.7 (replaced a spam trap's block: block client 192.0.2.7)\n"),
        (LEARNED, "allow sender joe@example.net (replaced one that was learned: allow sender joe@example.net)\n"),
    ],
)
def test_an_operator_replaces_what_was_automatic(line: CommandLine, before: Entry, said: str) -> None:
    line.fill([before])
    assert line("entries", "add", before.kind, before.value) == (0, said, "")
    assert listed(line) == [(before.kind, before.value, "allow", "operator")]


@pytest.mark.parametrize(
    ("kind", "value", "canonical"),
    [
        ("client", "192.0.2.0/24", "192.0.2.0/24"),
        ("client", "2001:DB8::0:1", "2001:db8::1"),
        ("client", "Mail.Example.NET.", "mail.example.net"),
        ("sender", "Joe@Example.NET", "joe@example.net"),
        ("recipient", "otp@example.org", "otp@example.org"),
        ("recipient", "jobs@", "jobs@"),
        ("trap", "old@example.org", "old@example.org"),
    ],
)
def test_values_are_kept_in_one_form(sqlite_line: CommandLine, kind: str, value: str, canonical: str) -> None:
    assert sqlite_line("entries", "add", kind, value).status == 0
    action = "block" if kind == "trap" else "allow"
    assert listed(sqlite_line) == [(kind, canonical, action, "operator")]
    assert sqlite_line("entries", "remove", kind, value).status == 0


def test_an_entry_expires(sqlite_line: CommandLine) -> None:
    result = sqlite_line("entries", "add", "client", "192.0.2.7", "--expires", "2h")
    assert result.out.startswith("allow client 192.0.2.7, until 2")
    (each,) = sqlite_line("entries", "list", "--json").objects
    assert each["expires"] > each["created"]


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ([], ["192.0.2.7", "a.example", "joe@example.net", "old@example.org"]),
        (["--kind", "client"], ["192.0.2.7", "a.example"]),
        (["--action", "block"], ["192.0.2.7"]),
        (["--action", "allow"], ["a.example", "joe@example.net"]),
        (["--source", "operator"], ["a.example", "old@example.org"]),
        (["--source", "learned", "--kind", "client"], []),
    ],
)
def test_filters(sqlite_line: CommandLine, arguments: list[str], values: list[str]) -> None:
    sqlite_line.fill([LEARNED, TRAPPED])
    sqlite_line("entries", "add", "trap", "old@example.org")
    sqlite_line("entries", "add", "client", "a.example")
    assert [value for _ignored, value, _ignored_too, _ignored_as_well in listed(sqlite_line, *arguments)] == values


def test_people_see_a_table(sqlite_line: CommandLine) -> None:
    sqlite_line.fill([LEARNED])
    sqlite_line("entries", "add", "trap", "old@example.org", "--note", "\x1b[1mnobody\u202e")
    result = sqlite_line("entries", "list")
    sender, trap = result.rows
    assert sender[:4] == ["sender", "joe@example.net", "allow", "learned"]
    assert (trap[:3], trap[-1]) == (["trap", "old@example.org", "operator"], "\\u001b[1mnobody\\u202e")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["add", "client", "192.0.2.1/24"], "the network is 192.0.2.0/24"),
        (["add", "client", "0.0.0.0/0"], "greylist.mode"),
        (["add", "client", "x y\x1b"], '"x y\\u001b"'),
        (["add", "sender", "joe@"], "joe@"),
        (["add", "planet", "mars"], "invalid choice"),
        (["add", "trap", "old@example.org", "--action", "block"], "a trap has no action"),
        (["add", "client", "192.0.2.1", "--expires", "2001-01-01"], "has passed already"),
        (["add", "client", "192.0.2.1", "--note", "x" * 501], "501 characters"),
        (["add", "client", "192.0.2.1", "--note", "caf\udce9"], "'caf\\udce9': not UTF-8 text"),
        (["add", "client"], "VALUE"),
        (["remove", "client", "192.0.2.1/24"], "the network is 192.0.2.0/24"),
        (["list", "--kind", "planet"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage(sqlite_line: CommandLine, arguments: list[str], error: str) -> None:
    sqlite_line.fill()
    result = sqlite_line("entries", *arguments)
    assert (result.status, result.out) == (2, "")
    assert error in result.err
    assert "\x1b" not in result.err
    assert listed(sqlite_line) == []
