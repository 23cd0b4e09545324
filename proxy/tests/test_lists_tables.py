# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables, against models that are too short to be wrong, and against their own growth."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable

import pytest
from greylist_proxy.lists.entries import Network
from greylist_proxy.lists.runtime import LEAST_TIDIED, RuntimeEntries
from greylist_proxy.lists.tables import MAX_PATTERNS, Domains, Mailboxes, Match, Networks, PatternError, Patterns
from greylist_proxy.resolver import Address
from greylist_proxy.store import Action, Entry, Kind, Source
from hypothesis import given, settings
from hypothesis import strategies as st

from .costs import cost

NOW = 1000.0
EXPIRES = st.none() | st.sampled_from([NOW - 1, NOW, NOW + 1])

# Few different values, so that what is looked for is often there.
NETWORKS4 = st.builds(
    lambda number, prefix: ipaddress.IPv4Network((number, prefix), strict=False),
    st.sampled_from([0, 1, 255, 256, 0x0A000000, 0x0A000001, 0xFFFFFFFF]),
    st.integers(0, 32),
)
NETWORKS6 = st.builds(
    lambda number, prefix: ipaddress.IPv6Network((number, prefix), strict=False),
    st.sampled_from([0, 1, 1 << 64, (1 << 64) + 1, 1 << 127, (1 << 128) - 1]),
    st.integers(0, 128),
)
ADDRESSES = st.sampled_from([0, 1, 2, 255, 256, 0x0A000001, 0x0A000101, 0xFFFFFFFF]).map(ipaddress.IPv4Address) | (
    st.sampled_from([0, 1, 1 << 64, 1 << 127, (1 << 128) - 1]).map(ipaddress.IPv6Address)
)
LABELS = st.sampled_from(["a", "b", "ab", "net"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
LOCALS = st.sampled_from(["u", "u+x", "u+x+y", "v", "+", "u@a"])
KEYS = st.one_of(
    st.builds(lambda local, domain: f"{local}@{domain}", st.sampled_from(["u", "u+x", "v"]), NAMES),
    st.sampled_from(["u@", "v@"]),
    NAMES.map("@{}".format),
)


def live(rules: dict[str, float | None]) -> set[str]:
    return {key for key, expires in rules.items() if expires is None or expires > NOW}


@settings(max_examples=300)
@given(
    st.lists(st.tuples(NETWORKS4 | NETWORKS6, EXPIRES)),
    st.lists(st.tuples(NETWORKS4 | NETWORKS6, st.booleans())),
    ADDRESSES,
)
def test_networks_find_the_longest_that_counts(
    added: list[tuple[Network, float | None]], removed: list[tuple[Network, bool]], address: Address
) -> None:
    table, model = Networks(), dict[Network, float | None]()
    for network, expires in added:
        table.add(network, str(network), expires)
        model[network] = expires
    for network, only_expired in removed:
        table.remove(network, NOW if only_expired else None)
        if not only_expired or str(network) not in live({str(key): value for key, value in model.items()}):
            model.pop(network, None)
    assert len(table) == len(model)
    holding = [
        network
        for network, expires in model.items()
        if network.version == address.version and address in network and (expires is None or expires > NOW)
    ]
    found = table.find(address, NOW)
    if not holding:
        assert found is None
    else:
        longest = max(holding, key=lambda network: network.prefixlen)
        assert found == Match(str(longest), model[longest])


@given(st.dictionaries(NAMES, EXPIRES), NAMES)
def test_a_domain_matches_itself_and_what_is_below(rules: dict[str, float | None], name: str) -> None:
    table = Domains()
    for domain, expires in rules.items():
        table.add(domain, domain, expires)
    matching = [domain for domain in live(rules) if f".{name}".endswith(f".{domain}")]
    found = table.find(name, NOW)
    assert (found.rule if found else "") == max(matching, key=len, default="")


@given(st.dictionaries(KEYS, EXPIRES), LOCALS, NAMES, st.sets(KEYS))
def test_mailboxes(rules: dict[str, float | None], local: str, domain: str, gone: set[str]) -> None:
    table = Mailboxes()
    for key, expires in rules.items():
        table.add(key, key, expires)
    for key in gone:
        table.remove(key)
        rules.pop(key, None)
    assert len(table) == len(rules)
    locals_ = {local, local.partition("+")[0]}
    matching = {
        key
        for key in live(rules)
        if (key.startswith("@") and f".{domain}".endswith(f".{key[1:]}"))
        or key in {f"{one}@{domain}" for one in locals_}
        or key in {f"{one}@" for one in locals_}
    }
    found = table.find(local, domain, NOW)
    assert (found is not None) == bool(matching)
    assert found is None or found.rule in matching


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"^mx[0-9]+\.example\.net$", "mx12.example.net", True),
        (r"^mx[0-9]+\.example\.net$", "MX12.EXAMPLE.NET", True),
        (r"^mx[0-9]+\.example\.net$", "mx12.example.net.evil.example", False),
        (r"example", "an.example.net", True),
        (r"^a", "a" * 513, False),
        (r"^a", "a" * 512, True),
        (r"(\d{1,3}-){3}", "a-10-20-30-b", True),
        (r"[+*)(]+x", "*x", True),
        (r"\d", "\u0661", False),
    ],
)
def test_patterns(pattern: str, text: str, matches: bool) -> None:
    patterns = Patterns()
    patterns.add(pattern, "a rule")
    assert patterns.find(text) == (Match("a rule") if matches else None)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(a+)+$", "repeated group"),
        ("(a*)*$", "repeated group"),
        (r"^(([a-z])+.)+[A-Z]", "repeated group"),
        ("(?:a+b?)*$", "repeated group"),
        ("(a{2,})+$", "repeated group"),
        ("(a+){1,100}$", "repeated group"),
        (r"([()]+x\(*)+", "repeated group"),
        ("(", "not a regular expression"),
        (r"\p{L}", "not a regular expression"),
        ("a{99999999999}", "not a regular expression"),
    ],
)
def test_patterns_that_are_refused(pattern: str, told: str) -> None:
    patterns = Patterns()
    with pytest.raises(PatternError, match=told):
        patterns.add(pattern, "a rule")
    assert len(patterns) == 0


def test_the_number_of_patterns_is_bounded() -> None:
    patterns = Patterns()
    for number in range(MAX_PATTERNS):
        patterns.add(f"^{number}$", "a rule")
    with pytest.raises(PatternError, match="more than 1000"):
        patterns.add("a", "a rule")


def test_a_hundred_times_the_networks_are_not_slower() -> None:
    chance = random.Random(1)  # noqa: S311 - the same in every run
    prefixes = [12, 16, 20, 22, 24, 28, 32]

    def network() -> Network:
        return ipaddress.IPv4Network((chance.getrandbits(32), chance.choice(prefixes)), strict=False)

    small, large = Networks(), Networks()
    for table, size in ((small, 1_000), (large, 100_000)):
        while len(table) < size:
            table.add(network(), "whitelist_clients:1")
    assert len(large) == 100_000
    asked = [ipaddress.IPv4Address(chance.getrandbits(32)) for _ignored in range(300)]

    def lookups(table: Networks) -> Callable[[], object]:
        return lambda: [table.find(address, NOW) for address in asked]

    assert cost(lookups(large), runs=15) < 10 * cost(lookups(small), runs=15)


def test_a_thousand_times_the_addresses_are_not_slower() -> None:
    small, large = Mailboxes(), Mailboxes()
    for table, size in ((small, 1_000), (large, 1_000_000)):
        for number in range(size):
            table.add(f"user{number}@host{number % 500}.example.net", "whitelist_recipients:1")
    assert len(large) == 1_000_000
    found = [(f"user{number}", f"host{number % 500}.example.net") for number in range(300)]
    missed = [("nobody+tag", f"a.b.host{number}.example.org") for number in range(300)]
    for asked in (found, missed):
        times = [
            cost(lambda table=table, asked=asked: [table.find(*address, NOW) for address in asked], runs=15)  # type: ignore[misc]
            for table in (large, small)
        ]
        assert times[0] < 10 * times[1]
    assert all(large.find(*address, NOW) for address in found)
    assert not any(large.find(*address, NOW) for address in missed)


def test_entries_that_are_learned_anew_each_day_take_no_more_memory_and_end() -> None:
    runtime, number = RuntimeEntries(), LEAST_TIDIED
    for day in range(20):
        for name in range(number):
            entry = Entry(Kind.SENDER, f"partner-{name}.example", Action.ALLOW, Source.LEARNED, expires=NOW + day)
            runtime.put(entry)
        assert len(runtime._expiring) <= 2 * number
    runtime.expire(NOW + 18)
    assert len(runtime.learned.senders) == number
    runtime.expire(NOW + 19)
    assert len(runtime.learned.senders) == 0
    assert runtime._expiring == []
