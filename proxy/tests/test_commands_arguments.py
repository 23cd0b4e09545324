# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What commands take: moments, numbers, clients and addresses as people write them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import pytest
from greylist_proxy.commands import WrongUsage
from greylist_proxy.commands.arguments import (
    bare,
    count,
    decision_client,
    expiry,
    rcpt_key,
    sender_key,
    since,
    triplet_client,
    wanted_address,
)
from greylist_proxy.config_sections import GreylistSection


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("12h", 43200), ("2d", 172800), ("0s", 0)])
def test_since_a_duration_is_so_long_ago(text: str, seconds: float) -> None:
    before = time.time()
    assert before - seconds <= since(text) <= time.time() - seconds


@pytest.mark.usefixtures("vienna")
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2023-11-14", 1_699_916_400),
        ("2023-11-14T23:13:20", 1_700_000_000),
        ("2023-11-14 23:13:20", 1_700_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000),
        ("2023-11-14T22:13:20.000+00:00", 1_700_000_000),
    ],
)
def test_since_a_time_which_is_local_where_it_names_no_zone(text: str, seconds: float) -> None:
    assert since(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2 d",
        "-2d",
        "2w",
        "90",
        "2023-13-01",
        "0001-01-01T00:00",
        "1\x1b[2J",
        *("9" * n + "d" for n in (12, 13)),
    ],
)
def test_what_is_no_moment_is_said_so(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        since(text)
    assert str(caught.value).startswith(repr(text))
    assert "90s, 12h, 2d" in str(caught.value)


def test_an_expiry_is_ahead() -> None:
    before = time.time()
    assert before + 3600 <= expiry("1h") <= time.time() + 3600


@pytest.mark.parametrize(
    ("text", "error"), [("0s", "has passed"), ("2001-01-01", "has passed"), ("99999d", "100 years")]
)
def test_an_expiry_that_can_not_be_meant(text: str, error: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=error):
        expiry(text)


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("1000", 1000), ("10000000", 10_000_000)])
def test_a_number_of_rows(text: str, number: int) -> None:
    assert count(text) == number


@pytest.mark.parametrize("text", ["", "-1", "1.5", "10000001", "٣", "1" * 5000])
def test_what_is_no_number_of_rows(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        count(text)


@pytest.mark.parametrize(
    ("text", "triplets", "decisions"),
    [
        ("192.0.2.7", "192.0.2.0/24", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.0/24", "192.0.2.7"),
        ("192.0.2.0/24", "192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.7/24", "192.0.2.0/24", "192.0.2.0/24"),
        ("2001:DB8::0:1", "2001:db8::/64", "2001:db8::1"),
        ("2001:db8::/64", "2001:db8::/64", "2001:db8::/64"),
        ("spf:Example.NET", "spf:example.net", "spf:example.net"),
        ("PTR:example.net", "ptr:example.net", "ptr:example.net"),
        ("example.net", "spf:example.net", "spf:example.net"),
        ("bücher.example", "spf:xn--bcher-kva.example", "spf:xn--bcher-kva.example"),
    ],
)
def test_clients(text: str, triplets: str, decisions: str) -> None:
    assert triplet_client(text, GreylistSection()) == triplets
    assert decision_client(text, GreylistSection()) == decisions


def test_clients_are_kept_as_the_configuration_says() -> None:
    settings = GreylistSection(ipv4_prefix=32, ipv6_prefix=56, client_key="ptr")
    assert triplet_client("192.0.2.7", settings) == "192.0.2.7/32"
    assert triplet_client("2001:db8:0:12::1", settings) == "2001:db8::/56"
    assert triplet_client("example.net", settings) == "ptr:example.net"


@pytest.mark.parametrize(
    "text", ["", "192.0.2.300", "spf:", "spf:192.0.2.1", "a b", "fe80::1%eth0", "x\x1b[2J", "1/2/3"]
)
@pytest.mark.parametrize("read", [triplet_client, decision_client])
def test_what_is_no_client(read: Callable[[str, GreylistSection], str], text: str) -> None:
    with pytest.raises(WrongUsage):
        read(text, GreylistSection())


@pytest.mark.parametrize(
    ("text", "key", "wanted"),
    [
        (None, sender_key, None),
        ("", sender_key, ""),
        ("<>", sender_key, ""),
        ("<Joe@Example.NET>", sender_key, "Joe@example.net"),
        ("joe+shop@example.net", sender_key, "joe@example.net"),
        ("joe+shop@Example.ORG", rcpt_key, "joe+shop@example.org"),
        ("joe+shop@Example.ORG", bare, "joe+shop@Example.ORG"),
        ("Example.NET", sender_key, "@example.net"),
        ("@Example.NET", bare, "@example.net"),
        ("postmaster", rcpt_key, "postmaster"),
    ],
)
def test_senders_and_recipients(text: str | None, key: Callable[[str], str], wanted: str | None) -> None:
    assert wanted_address(text, key) == wanted


@pytest.mark.parametrize("text", ["@", "@a b", "exa mple.net", "@example..net"])
def test_what_is_neither_an_address_nor_a_domain(text: str) -> None:
    with pytest.raises(WrongUsage):
        wanted_address(text)
