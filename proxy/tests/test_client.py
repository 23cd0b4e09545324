# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""By what a client is recognised, with a real name server, and what that means for those who send from a pool."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, get_args

import pytest
from greylist_proxy.client import Client, ClientKey, Identifier, Origin, identify
from greylist_proxy.log import Log
from greylist_proxy.policy import Decision, Found, Identity, Reason, Record, Rules, judge, seen
from greylist_proxy.resolver import Resolver
from greylist_proxy.spf import Spf, SpfChecker

from .dns_server import DnsServer, Misbehaviour
from .peers import until

T = TypeVar("T")
MakeDns = Callable[..., DnsServer]

ZONE = """
    example.net                TXT  v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all
    1.2.0.192.in-addr.arpa     PTR  mail1.example.net
    mail1.example.net          A    192.0.2.1
    2.2.0.192.in-addr.arpa     PTR  c2.dsl.example.net
    c2.dsl.example.net         A    192.0.2.2
    3.2.0.192.in-addr.arpa     PTR  mail1.example.net
    4.2.0.192.in-addr.arpa     PTR  a.example.net
    4.2.0.192.in-addr.arpa     PTR  b.example.net
    4.2.0.192.in-addr.arpa     PTR  mail.example.org
    4.2.0.192.in-addr.arpa     PTR  github.io
    a.example.net              A    192.0.2.4
    b.example.net              A    192.0.2.4
    mail.example.org           A    192.0.2.4
    github.io                  A    192.0.2.4
"""


def run(
    dns: DnsServer,
    key: ClientKey,
    use: Callable[[Identifier], Awaitable[T]],
    timeout: float = 10,
    log: Log | None = None,
) -> T:
    """Let a test use an identifier."""

    async def go() -> T:
        resolver = Resolver([dns.endpoint], timeout=60, max_in_flight=50, cache_size=1000)
        try:
            checker = SpfChecker(resolver, timeout=60)
            return await use(Identifier(resolver, checker, key, timeout, log or Log(io.StringIO())))
        finally:
            await resolver.close()

    return asyncio.run(go())


def identities(dns: DnsServer, key: ClientKey, peer: str, sender: str, helo: str = "x") -> tuple[Identity, ...]:
    return run(dns, key, lambda identifier: identifier.origin(client(peer), helo, sender).identities())


def client(peer: str) -> Client:
    return identify(peer, 24, 64)


NETWORK = Identity("192.0.2.0/24", "192.0.2.1")
NET = Identity("spf:example.net", "spf:example.net")


@pytest.mark.parametrize(
    ("key", "peer", "sender", "helo", "expected"),
    [
        ("spf", "192.0.2.1", "joe@Example.NET", "x", [NETWORK, NET]),
        ("spf", "::ffff:192.0.2.1", "joe@example.net", "x", [NETWORK, NET]),
        ("spf", "2001:db8::1", "joe@example.net", "x", [Identity("2001:db8::/64", "2001:db8::1"), NET]),
        ("spf", "203.0.113.1", "joe@example.net", "x", [Identity("203.0.113.0/24", "203.0.113.1")]),
        ("spf", "192.0.2.1", "joe@example.org", "mail.example.net", [NETWORK]),
        ("spf", "192.0.2.1", "", "mail7.example.net", [NETWORK, NET]),
        ("spf", "192.0.2.1", "", "mail7.example.org", [NETWORK]),
        ("ptr", "192.0.2.1", "joe@example.org", "x", [NETWORK, Identity("ptr:example.net", "")]),
        # a name of a line, and one that does not lead back
        ("ptr", "192.0.2.2", "joe@example.net", "x", [Identity("192.0.2.0/24", "192.0.2.2")]),
        ("ptr", "192.0.2.3", "joe@example.net", "x", [Identity("192.0.2.0/24", "192.0.2.3")]),
        # several names: each domain once, and no public suffix
        (
            "ptr",
            "192.0.2.4",
            "",
            "x",
            [
                Identity("192.0.2.0/24", "192.0.2.4"),
                Identity("ptr:example.net", ""),
                Identity("ptr:example.org", ""),
            ],
        ),
        ("network", "192.0.2.1", "joe@example.net", "x", [NETWORK]),
    ],
)
def test_identities(
    make_dns: MakeDns, key: ClientKey, peer: str, sender: str, helo: str, expected: list[Identity]
) -> None:
    assert identities(make_dns(ZONE), key, peer, sender, helo) == tuple(expected)


@pytest.mark.parametrize(
    ("key", "asked"), [("spf", {"TXT"}), ("ptr", {"PTR", "A"}), ("network", set())], ids=["spf", "ptr", "network"]
)
def test_the_dns_is_asked_for_what_is_needed_only_and_once(make_dns: MakeDns, key: ClientKey, asked: set[str]) -> None:
    dns = make_dns(ZONE)

    async def use(identifier: Identifier) -> None:
        origin = identifier.origin(client("192.0.2.1"), "x", "joe@example.net")
        assert dns.queries == []
        first = await origin.identities()
        assert {query.kind for query in dns.queries} == asked
        # whatever else is asked, and whatever becomes of the name server: what was said stays said
        assert await origin.names() == ("mail1.example.net",)
        assert await origin.spf() == Spf("pass", "example.net")
        number = len(dns.queries)
        dns.write("")
        assert await origin.names() == ("mail1.example.net",)
        assert await origin.identities() == first
        assert len(dns.queries) == number == 3

    run(dns, key, use)


@pytest.mark.parametrize("key", ["spf", "ptr"])
@pytest.mark.parametrize("how", ["servfail", "hold"])
def test_without_an_answer_the_client_is_its_network(make_dns: MakeDns, key: ClientKey, how: Misbehaviour) -> None:
    dns, stream = make_dns(ZONE), io.StringIO()
    for name in ("example.net", "1.2.0.192.in-addr.arpa"):
        dns.misbehave(name, how)

    async def use(identifier: Identifier) -> None:
        origin = identifier.origin(client("192.0.2.1"), "x", "joe@example.net")
        assert await origin.identities() == (NETWORK,)
        # the time is one for all questions: this one gets none
        if how == "hold":
            before = len(dns.queries)
            assert (await origin.names(), await origin.spf()) == ((), Spf("temperror", ""))
            assert len(dns.queries) <= before + 1

    run(dns, key, use, timeout=0.2 if how == "hold" else 10, log=Log(stream))
    assert stream.getvalue() == ""  # a stranger's name server is no error of ours


def test_a_pause_of_the_client_takes_no_time_from_the_dns(make_dns: MakeDns, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(identifier: Identifier) -> None:
        origin, loop = identifier.origin(client("192.0.2.1"), "x", "joe@example.net"), asyncio.get_running_loop()
        assert await origin.names() == ("mail1.example.net",)
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + 3600)
        assert await origin.spf() == Spf("pass", "example.net")

    run(make_dns(ZONE), "spf", use)


def test_a_client_that_leaves_does_not_end_the_lookup_for_the_next(make_dns: MakeDns) -> None:
    dns = make_dns(ZONE)
    dns.misbehave("example.net", "hold")

    async def use(identifier: Identifier) -> None:
        first, second = (identifier.origin(client("192.0.2.1"), "x", f"{name}@example.net") for name in ("joe", "sue"))
        leaving = asyncio.create_task(first.identities())
        await until(lambda: dns.queries)
        staying = asyncio.create_task(second.identities())
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        dns.release()
        assert await staying == (NETWORK, NET)

    run(dns, "spf", use)
    assert dns.count("example.net") == 1


def test_without_dns_there_is_the_network() -> None:
    async def go() -> None:
        for key in get_args(ClientKey):
            identifier = Identifier(None, None, key, 5, Log(io.StringIO()))
            origin = identifier.origin(client("192.0.2.1"), "mail.example.net", "")
            assert await origin.identities() == (NETWORK,)
            assert await origin.names() == ()
            assert await origin.spf() == Spf("none", "")

    asyncio.run(go())


def test_a_fault_of_ours_is_logged_once_and_stops_no_mail() -> None:
    class Broken:
        async def lookup(self, _name: str, _kind: str) -> None:
            raise ZeroDivisionError("a fault of ours")

    stream = io.StringIO()

    async def go() -> None:
        identifier = Identifier(cast("Resolver", Broken()), None, "ptr", 5, Log(stream))
        for last in range(1, 4):
            origin = identifier.origin(client(f"192.0.2.{last}"), "x", "")
            assert await origin.identities() == (Identity("192.0.2.0/24", f"192.0.2.{last}"),)

    asyncio.run(go())
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line["event"] == "error"
    assert "a fault of ours" in line["traceback"]


# -- what it is for: a sender's pool, judged by the policy over records in a dictionary --

RULES = Rules(delay=60)
POOL = [f"198.51.{n}.7" for n in range(100, 115)]  # fifteen networks, one address in each
POOL_ZONE = (
    "example.net TXT v=spf1 include:pool.example.org -all\n"
    f"pool.example.org TXT v=spf1 {' '.join(f'ip4:{address}' for address in POOL)} -all\n"
    "botnet.example TXT v=spf1 +all\n"
    "wide.example TXT v=spf1 ip4:128.0.0.0/1 ip4:0.0.0.0/1 -all\n"
    "exists.example TXT v=spf1 exists:%{ir}.list.example -all\n"
    "*.list.example A 127.0.0.2\n"
    + "".join(f"7.{n}.51.198.in-addr.arpa PTR out{n}.example.net\n" for n in range(100, 115))
    + "".join(f"out{n}.example.net A 198.51.{n}.7\n" for n in range(100, 115))
)


class Greylist:
    """The decision over records in a dictionary, one mail from `sender` at a time."""

    def __init__(self, dns: DnsServer, key: ClientKey, sender: str = "joe@example.net") -> None:
        self._dns, self._key, self._sender = dns, key, sender
        self._records: dict[str, Record] = {}

    def attempt(self, peer: str, now: float) -> Decision:
        keys = identities(self._dns, self._key, peer, self._sender)
        decision = judge([(key, Found(self._records.get(key.key))) for key in keys], now, RULES)
        for key in keys:
            self._records[key.key] = seen(self._records.get(key.key), now, RULES)
        return decision

    def attempts(self, peers: list[str]) -> list[Reason]:
        """Return what each of the peers gets, who come one after the other, ten minutes apart."""
        return [self.attempt(peer, 600.0 * n).reason for n, peer in enumerate(peers)]


@pytest.mark.parametrize("key", ["spf", "ptr"])
def test_a_pool_of_fifteen_networks_passes_at_its_second_attempt(make_dns: MakeDns, key: ClientKey) -> None:
    assert Greylist(make_dns(POOL_ZONE), key).attempts(POOL) == [Reason.NEW] + [Reason.RETRIED] * 14


def test_by_network_alone_it_is_deferred_fifteen_times(make_dns: MakeDns) -> None:
    assert Greylist(make_dns(POOL_ZONE), "network").attempts(POOL) == [Reason.NEW] * 15


@pytest.mark.parametrize("sender", ["joe@botnet.example", "joe@wide.example", "joe@exists.example"])
def test_a_domain_that_vouches_for_everybody_frees_nobody(make_dns: MakeDns, sender: str) -> None:
    bots = [f"{n}.0.2.1" for n in range(100, 110)]
    assert Greylist(make_dns(POOL_ZONE), "spf", sender).attempts(bots) == [Reason.NEW] * 10


def test_who_is_not_authorised_gets_nothing_from_the_pool_s_attempts(make_dns: MakeDns) -> None:
    greylist = Greylist(make_dns(POOL_ZONE), "spf")
    assert greylist.attempts([POOL[0], "203.0.113.9", POOL[1]]) == [Reason.NEW, Reason.NEW, Reason.RETRIED]


def test_a_dns_failure_does_not_start_the_delay_anew(make_dns: MakeDns) -> None:
    dns = make_dns(POOL_ZONE)
    greylist = Greylist(dns, "spf")
    assert greylist.attempt(POOL[0], 0).reason is Reason.NEW
    dns.misbehave("example.net", "servfail")
    # the network is known from the first attempt, and what the domain has waited for is not lost
    assert greylist.attempt(POOL[0], 600).reason is Reason.RETRIED
    assert greylist.attempt(POOL[1], 700).reason is Reason.NEW
    dns.behave()
    assert greylist.attempt(POOL[2], 710).reason is Reason.RETRIED


def test_an_origin_keeps_what_it_was_given(make_dns: MakeDns) -> None:
    async def use(identifier: Identifier) -> Origin:
        return identifier.origin(client("192.0.2.1"), "Mail.Example.NET", "Joe@Example.NET")

    origin = run(make_dns(), "spf", use)
    assert (origin.client.text, origin.helo, origin.sender) == ("192.0.2.1", "Mail.Example.NET", "Joe@Example.NET")


@pytest.mark.parametrize(
    ("peer", "network", "literal"),
    [
        ("192.0.2.77", "192.0.2.0/24", "[192.0.2.77]"),
        ("::ffff:192.0.2.77", "192.0.2.0/24", "[192.0.2.77]"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64", "[IPv6:2001:db8:1:2:3::4]"),
        ("fe80::1%eth0", "fe80::/64", "[IPv6:fe80::1]"),
    ],
)
def test_clients(peer: str, network: str, literal: str) -> None:
    found = identify(peer, 24, 64)
    assert (found.network, found.literal) == (network, literal)


def test_prefixes() -> None:
    assert identify("192.0.2.77", 32, 64).network == "192.0.2.77/32"
    assert identify("2001:db8:1:2::1", 24, 48).network == "2001:db8:1::/48"
