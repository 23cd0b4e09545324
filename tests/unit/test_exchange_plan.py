# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which receive connectors are meant, and what their values say: tables, without a session."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange import (
    Holder,
    read_connector,
    relay_causes,
    seconds_of,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_plan import (
    ALL_ROLES,
    FRONTEND,
    HUB,
    Connector,
    Selection,
    SelectionError,
    check_range,
    missing_ranges,
    parse_seconds,
    present_ranges,
    serving,
    write_duration,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_session import ExchangeError
from hypothesis import given
from hypothesis import strategies as st


def connector(identity: str, role: str = FRONTEND, port: int = 25, **more: Any) -> Connector:
    values: dict[str, Any] = {
        "server": identity.partition("\\")[0],
        "bindings": (f"[::]:{port}", f"0.0.0.0:{port}"),
        "tarpit_seconds": 5,
        "anonymous": True,
        "enabled": True,
    }
    return Connector(identity=identity, transport_role=role, **values | more)


FRONT = connector(r"EX01\Default Frontend EX01")
HUBBED = connector(r"EX01\Default EX01", HUB, 2525)
CLIENTS = connector(r"EX01\Client Frontend EX01", FRONTEND, 587)
OTHER = connector(r"EX02\Default Frontend EX02")
THERE = [FRONT, HUBBED, CLIENTS, OTHER]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:05", 5),
        ("00:10:00", 600),
        ("0:0:5", 5),
        ("1.00:00:01", 86401),
        ("-00:00:05", -5),
        ("00:00:00.5000000", 0.5),
        (" 00:00:30 ", 30),
        ("PT5S", 5),
        ("PT10M", 600),
        ("PT0.5S", 0.5),
        ("P1DT1S", 86401),
        ("PT1H2M3S", 3723),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "P", "PT", "five", "00:05", "00:00:05x", "1:2:3:4", "\u0660\u0660:\u0660\u0660:\u0660\u0665"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_seconds(text)


@given(st.integers(min_value=0, max_value=600))
def test_a_written_duration_is_read_again(seconds: int) -> None:
    assert parse_seconds(write_duration(seconds)) == seconds


def an_object(text: str | None = None, **adapted: object) -> SimpleNamespace:
    return SimpleNamespace(to_string=text, adapted_properties=adapted, extended_properties={})


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(an_object("00:00:30", Ticks=300_000_000, TotalSeconds=30.0), id="EnhancedTimeSpan"),
        pytest.param(an_object("00:00:30"), id="an object with its string only"),
        pytest.param(an_object(None, TotalSeconds=30.0), id="an object without its string"),
        pytest.param(an_object("30 Sekunden", Ticks=300_000_000), id="a string in another language"),
        pytest.param("PT30S", id="TimeSpan"),
        pytest.param("00:00:30", id="string"),
        pytest.param(datetime.timedelta(seconds=30), id="timedelta"),
    ],
)
def test_every_form_of_an_interval(value: object) -> None:
    assert seconds_of(value, "EX01\\X") == 30


@pytest.mark.parametrize("value", [None, "Unlimited", an_object("soon")])
def test_an_interval_that_is_none(value: object) -> None:
    with pytest.raises(ExchangeError, match=r"EX01\\X: TarpitInterval cannot be read: '.*' is no duration"):
        seconds_of(value, "EX01\\X")


@pytest.mark.parametrize(
    ("selection", "queries"),
    [
        (Selection(), [{}]),
        (Selection(servers=("EX01", "EX02")), [{"Server": "EX01"}, {"Server": "EX02"}]),
        (Selection(servers=("EX01", "ex01")), [{"Server": "EX01"}]),
        (Selection(identities=(r"EX01\A", r"ex01\B", r"EX02\A")), [{"Server": "EX01"}, {"Server": "EX02"}]),
        (Selection(identities=("A", r"EX01\B")), [{"Server": "EX01"}, {"Identity": "A"}]),
    ],
)
def test_one_query_a_server(selection: Selection, queries: list[dict[str, str]]) -> None:
    assert list(selection.queries) == queries


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(servers=("EX01",)), [FRONT]),
        (Selection(servers=("ex01.example.org",)), [FRONT]),
        (Selection(servers=("EX01", "EX02")), [FRONT, OTHER]),
        (Selection(servers=("EX01",), port=0), [FRONT, CLIENTS]),
        (Selection(servers=("EX01",), transport_role=ALL_ROLES, port=0), [FRONT, HUBBED, CLIENTS]),
        (Selection(servers=("EX01",), transport_role=HUB, port=2525), [HUBBED]),
        (Selection(identities=(r"ex01\default frontend ex01",)), [FRONT]),
        (Selection(identities=(r"EX01\Default EX01", r"EX02\Default Frontend EX02")), [HUBBED, OTHER]),
        (Selection(identities=("Default Frontend EX02",)), [OTHER]),
        (Selection(transport_role=ALL_ROLES, port=0), THERE),
    ],
)
def test_choosing(selection: Selection, chosen: list[Connector]) -> None:
    # The queries bring the connectors of the servers that are named, and no others.
    servers = {query["Server"].partition(".")[0].casefold() for query in selection.queries if "Server" in query}
    there = [one for one in THERE if not servers or one.server.casefold() in servers]
    assert selection.choose(there) == chosen


@pytest.mark.parametrize(
    ("selection", "there", "message"),
    [
        (
            Selection(identities=(r"EX02\Relay",)),
            [OTHER],
            r"there is no receive connector EX02\Relay: there is EX02\Default Frontend EX02 (FrontendTransport,"
            " [::]:25, 0.0.0.0:25)",
        ),
        (
            Selection(identities=(r"EX01\A", r"EX01\B")),
            [],
            r"there is no receive connector EX01\A or EX01\B: there is none",
        ),
        (
            Selection(servers=("EX01", "EX02"), port=2525, transport_role=HUB),
            [HUBBED, OTHER],
            "EX02 has no receive connector with transport role HubTransport on port 2525: there are"
            r" EX01\Default EX01 (HubTransport, [::]:2525, 0.0.0.0:2525); EX02\Default Frontend EX02"
            " (FrontendTransport, [::]:25, 0.0.0.0:25)",
        ),
        (
            Selection(servers=("EX03",), transport_role=ALL_ROLES, port=0),
            [],
            "EX03 has no receive connector: there is none",
        ),
    ],
)
def test_nothing_that_fits(selection: Selection, there: list[Connector], message: str) -> None:
    with pytest.raises(SelectionError) as raised:
        selection.choose(there)
    assert str(raised.value) == message


WORLD = connector(
    r"EX01\World", remote_ranges=("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "0.0.0.0-255.255.255.255")
)
NET = connector(r"EX01\Net", remote_ranges=("10.0.0.0/8",))
ONE = connector(r"EX01\One", remote_ranges=("10.0.0.5", "10.0.0.9"))
DISABLED = connector(r"EX01\Disabled", remote_ranges=("10.0.0.6",), enabled=False)
ELSEWHERE = connector(r"EX01\Elsewhere", port=587, remote_ranges=("10.0.0.6",))


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("10.0.0.5", ONE),
        ("10.0.0.6", NET),
        ("192.0.2.1", WORLD),
        ("2001:db8::1", WORLD),
    ],
)
def test_the_narrowest_range_serves(client: str, expected: Connector) -> None:
    assert serving([WORLD, NET, ONE, DISABLED, ELSEWHERE], client, 25) is expected
    assert serving([ELSEWHERE, DISABLED, ONE, NET, WORLD], client, 25) is expected


def test_nobody_serves() -> None:
    assert serving([NET, DISABLED], "192.0.2.1", 25) is None


def test_ranges_are_compared_as_ranges() -> None:
    there = ["10.0.0.1", "10.1.0.0/16", "10.2.0.0-10.2.0.255", "2001:DB8::1"]
    assert missing_ranges(["10.0.0.1/32", "10.2.0.0/24", "2001:db8::1"], there) == []
    assert missing_ranges(["10.0.0.2", "10.1.0.0/17"], there) == ["10.0.0.2", "10.1.0.0/17"]
    assert present_ranges(["10.2.0.0/24", "10.9.9.9"], there) == ["10.2.0.0-10.2.0.255"]


@pytest.mark.parametrize("text", ["", "mx1", "10.0.0.1-", "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "10.0.0.0/33"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        check_range(text)


@pytest.mark.parametrize(
    ("users", "auth", "causes"),
    [
        ([r"NT AUTHORITY\ANONYMOUS LOGON"], "Tls", 1),
        ([r"NT-AUTORITÄT\Anonymous Logon"], "Tls", 1),
        (["S-1-5-7"], "Tls", 1),
        ([r"LAB\Exchange Servers"], "Tls", 0),
        ([], "Tls, ExternalAuthoritative", 1),
        ([r"NT AUTHORITY\ANONYMOUS LOGON"], "ExternalAuthoritative", 2),
    ],
)
def test_why_it_relays(users: list[str], auth: str, causes: int) -> None:
    assert len(relay_causes(connector(r"EX01\Relay", auth_mechanism=auth), [Holder(user) for user in users])) == causes


def test_a_connector_is_read() -> None:
    read = read_connector(
        {
            "Identity": an_object(r"EX01\Default Frontend EX01"),
            "Server": an_object("EX01"),
            "TransportRole": an_object("FrontendTransport"),
            "Bindings": ["[::]:25", an_object("0.0.0.0:25")],
            "RemoteIPRanges": [an_object("0.0.0.0-255.255.255.255")],
            "PermissionGroups": an_object("AnonymousUsers, ExchangeServers"),
            "AuthMechanism": an_object("Tls, ExternalAuthoritative"),
            "Enabled": True,
            "TarpitInterval": an_object("00:00:05"),
        }
    )
    assert read == connector(
        r"EX01\Default Frontend EX01",
        remote_ranges=("0.0.0.0-255.255.255.255",),
        auth_mechanism="Tls, ExternalAuthoritative",
    )
    assert read.ports == {25}
