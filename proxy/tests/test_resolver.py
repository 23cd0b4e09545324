# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS lookups against a real server: answers, what goes wrong, the cache, and who shares a query."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from greylist_proxy.config_values import Endpoint
from greylist_proxy.resolver import FAILURE_TTL, MAX_NEGATIVE_TTL, MAX_TTL, MIN_TTL, Answer, Kind, Resolver, Status
from hypothesis import given, settings
from hypothesis import strategies as st

from .dns_server import DnsServer, Misbehaviour
from .peers import until
from .stores import Clock

T = TypeVar("T")
MakeDns = Callable[..., DnsServer]

ZONE = f"""
    mail.example.net            A      192.0.2.1
    mail.example.net            A      192.0.2.2
    mail.example.net            AAAA   2001:DB8:0::1
    example.net                 MX     10 mail.example.net
    1.2.0.192.in-addr.arpa      PTR    Mail.Example.Net
    example.net                 TXT    v=spf1 -all
    long.example.net            TXT    v=spf1 {"ip4:192.0.2.1 " * 60}-all
    strings.example.net         TXT    "v=spf1 a" " -all"
    bytes.example.net           TXT    "v=spf1\\255a"
    alias.example.net 60        CNAME  mail.example.net
    nowhere.example.net         CNAME  missing.example.net
"""


def run(dns: DnsServer | Endpoint, use: Callable[[Resolver], Awaitable[T]], **settings: Any) -> T:
    """Let a test use a resolver."""

    async def go() -> T:
        endpoint = dns if isinstance(dns, Endpoint) else dns.endpoint
        options = {"timeout": 10, "max_in_flight": 50, "cache_size": 1000} | settings
        resolver = Resolver([endpoint], **options)
        try:
            return await use(resolver)
        finally:
            await resolver.close()

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("name", "kind", "status", "values"),
    [
        ("mail.example.net", "A", "ok", ["192.0.2.1", "192.0.2.2"]),
        ("MAIL.Example.net.", "A", "ok", ["192.0.2.1", "192.0.2.2"]),
        ("mail.example.net", "AAAA", "ok", ["2001:db8::1"]),
        ("example.net", "MX", "ok", ["mail.example.net"]),
        ("1.2.0.192.in-addr.arpa", "PTR", "ok", ["Mail.Example.Net"]),
        ("example.net", "TXT", "ok", ["v=spf1 -all"]),
        ("long.example.net", "TXT", "ok", ["v=spf1 " + "ip4:192.0.2.1 " * 60 + "-all"]),
        ("strings.example.net", "TXT", "ok", ["v=spf1 a -all"]),
        ("bytes.example.net", "TXT", "ok", ["v=spf1\ufffda"]),
        ("alias.example.net", "A", "ok", ["192.0.2.1", "192.0.2.2"]),
        # the name is there, such a record is not
        ("mail.example.net", "TXT", "ok", []),
        ("0.192.in-addr.arpa", "PTR", "ok", []),
        ("missing.example.net", "A", "nxdomain", []),
        ("nowhere.example.net", "A", "nxdomain", []),
    ],
)
def test_an_answer(make_dns: MakeDns, name: str, kind: Kind, status: Status, values: list[str]) -> None:
    answer = run(make_dns(ZONE), lambda resolver: resolver.lookup(name, kind))
    assert (answer.status, sorted(answer.values)) == (status, values)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..example.net",
        "b\u00fccher.example",
        "a b.example",
        "a\\.example",
        "a\0.example",
        "x" * 64,
        "a." * 128,
    ],
)
def test_what_is_no_name_is_not_asked_for(make_dns: MakeDns, name: str) -> None:
    dns = make_dns(ZONE)
    assert run(dns, lambda resolver: resolver.lookup(name, "A"))[:2] == ("nxdomain", ())
    assert dns.queries == []


@pytest.mark.parametrize("how", ["drop", "servfail", "garbage"])
def test_no_answer(make_dns: MakeDns, how: Misbehaviour) -> None:
    dns = make_dns(ZONE)
    dns.misbehave("mail.example.net", how)
    answer = run(dns, lambda resolver: resolver.lookup("mail.example.net", "A"), timeout=0.4)
    assert answer[:2] == ("failed", ())
    assert dns.count("mail.example.net") >= 1


def test_a_server_that_is_not_there(make_dns: MakeDns) -> None:
    dns = make_dns(ZONE)
    dns.close()
    assert run(dns, lambda resolver: resolver.lookup("mail.example.net", "A"), timeout=0.4).status == "failed"


def test_the_next_server_is_asked() -> None:
    async def go() -> Answer:
        resolver = Resolver([dead.endpoint, dns.endpoint], 10, 50, 1000)
        return await resolver.lookup("mail.example.net", "A")

    dead, dns = DnsServer(ZONE), DnsServer(ZONE)
    dead.misbehave("mail.example.net", "servfail")
    try:
        assert set(asyncio.run(go()).values) == {"192.0.2.1", "192.0.2.2"}
    finally:
        dead.close()
        dns.close()
    assert dead.count("mail.example.net") == 1


def test_without_servers_the_system_s_own_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import dns.resolver

    def read(self: dns.resolver.Resolver, _path: object) -> None:
        self.nameservers = ["192.0.2.53", "2001:db8::53"]

    def fail(_self: dns.resolver.Resolver, _path: object) -> None:
        raise dns.resolver.NoResolverConfiguration

    def servers() -> list[str]:
        return list(map(str, Resolver([], 1, 1, 1)._stub.nameservers))

    monkeypatch.setattr(dns.resolver.Resolver, "read_resolv_conf", read)
    assert servers() == ["Do53:192.0.2.53@53", "Do53:2001:db8::53@53"]
    monkeypatch.setattr(dns.resolver.Resolver, "read_resolv_conf", fail)
    assert servers() == ["Do53:127.0.0.1@53"]


def test_a_truncated_answer_is_asked_for_over_tcp(make_dns: MakeDns) -> None:
    dns = make_dns(ZONE)
    dns.misbehave("mail.example.net", "truncate")
    answer = run(dns, lambda resolver: resolver.lookup("mail.example.net", "A"))
    assert set(answer.values) == {"192.0.2.1", "192.0.2.2"}
    assert [query.transport for query in dns.queries] == ["udp", "tcp"]


@pytest.mark.parametrize(
    ("line", "copies", "status"),
    [
        ("big.example.net TXT {n:03}" + "x" * 1000, 12, "ok"),
        ("big.example.net TXT {n:03}" + "x" * 1000, 20, "failed"),  # larger than MAX_MESSAGE
        ("big.example.net TXT {n}", 290, "ok"),
        ("big.example.net TXT {n}", 310, "failed"),  # more than MAX_RECORDS
    ],
)
def test_a_large_answer(make_dns: MakeDns, line: str, copies: int, status: Status) -> None:
    dns = make_dns("\n".join(line.format(n=n) for n in range(copies)))
    answer = run(dns, lambda resolver: resolver.lookup("big.example.net", "TXT"))
    assert (answer.status, len(answer.values)) == (status, copies if status == "ok" else 0)
    assert {query.transport for query in dns.queries} == {"udp", "tcp"}


@pytest.mark.parametrize(
    ("zone", "negative_ttl", "status", "kept"),
    [
        ("mail.example.net 300 A 192.0.2.1", 0, "ok", 300),
        ("mail.example.net 0 A 192.0.2.1", 0, "ok", MIN_TTL),
        ("mail.example.net 604800 A 192.0.2.1", 0, "ok", MAX_TTL),
        ("alias.example.net 900 A 192.0.2.1 \n mail.example.net 60 CNAME alias.example.net", 0, "ok", 60),
        ("mail.example.net AAAA 2001:db8::1", 90, "ok", 90),
        ("", 90, "nxdomain", 90),
        ("", 0, "nxdomain", MIN_TTL),
        ("", 86400, "nxdomain", MAX_NEGATIVE_TTL),
    ],
)
def test_answers_are_kept_for_their_ttl(
    make_dns: MakeDns, zone: str, negative_ttl: int, status: Status, kept: float
) -> None:
    dns, clock = make_dns(zone), Clock()
    dns.negative_ttl = negative_ttl

    async def use(resolver: Resolver) -> None:
        first = await resolver.lookup("mail.example.net", "A")
        assert (first.status, first.ttl) == (status, kept)
        clock.now += kept - 1
        assert await resolver.lookup("mail.example.net.", "A") == first._replace(ttl=1)
        assert dns.count("mail.example.net") == 1
        clock.now += 1
        assert await resolver.lookup("mail.example.net", "A") == first
        assert dns.count("mail.example.net") == 2

    run(dns, use, clock=clock)


def test_a_failure_is_kept_for_some_seconds(make_dns: MakeDns) -> None:
    dns, clock = make_dns(ZONE), Clock()
    dns.misbehave("mail.example.net", "servfail")

    async def use(resolver: Resolver) -> None:
        assert (await resolver.lookup("mail.example.net", "A")).status == "failed"
        dns.behave()
        assert (await resolver.lookup("mail.example.net", "A")).status == "failed"
        clock.now += FAILURE_TTL
        assert (await resolver.lookup("mail.example.net", "A")).status == "ok"

    run(dns, use, clock=clock)


def test_the_least_recently_used_answer_goes_first(make_dns: MakeDns) -> None:
    dns = make_dns("*.example.net A 192.0.2.1")

    async def use(resolver: Resolver) -> None:
        for name in ("a", "b", "c", "a", "d", "a", "b"):
            assert (await resolver.lookup(f"{name}.example.net", "A")).values == ("192.0.2.1",)

    run(dns, use, cache_size=3)
    assert [dns.count(f"{name}.example.net") for name in "abcd"] == [1, 2, 1, 1]


def test_a_long_answer_takes_several_places(make_dns: MakeDns) -> None:
    dns = make_dns(f"*.example.net A 192.0.2.1 \n long.example.net TXT {'x' * 600}")

    async def use(resolver: Resolver) -> None:
        for name, kind in (("a", "A"), ("b", "A"), ("long", "TXT"), ("b", "A"), ("a", "A")):
            await resolver.lookup(f"{name}.example.net", "TXT" if kind == "TXT" else "A")

    run(dns, use, cache_size=4)
    assert [dns.count(f"{name}.example.net") for name in ("a", "b", "long")] == [2, 1, 1]


def test_equal_lookups_share_a_query(make_dns: MakeDns) -> None:
    dns = make_dns(ZONE)
    dns.misbehave("mail.example.net", "hold")

    async def use(resolver: Resolver) -> list[Answer]:
        lookups = [asyncio.create_task(resolver.lookup("mail.example.net", "A")) for _n in range(20)]
        await until(lambda: dns.count("mail.example.net"))
        lookups.append(asyncio.create_task(resolver.lookup("Mail.example.net.", "A")))
        dns.release()
        return await asyncio.gather(*lookups)

    answers = run(dns, use)
    assert len(set(answers)) == 1
    assert set(answers[0].values) == {"192.0.2.1", "192.0.2.2"}
    assert dns.count("mail.example.net") == 1


def test_who_leaves_does_not_take_the_answer_along(make_dns: MakeDns) -> None:
    dns = make_dns(ZONE)
    dns.misbehave("mail.example.net", "hold")

    async def use(resolver: Resolver) -> Answer:
        first, second = (asyncio.create_task(resolver.lookup("mail.example.net", "A")) for _n in range(2))
        await until(lambda: dns.count("mail.example.net"))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        dns.release()
        return await second

    assert run(dns, use).status == "ok"
    assert dns.count("mail.example.net") == 1


def test_too_many_lookups_at_once_fail_at_once(make_dns: MakeDns) -> None:
    dns = make_dns("*.example.net A 192.0.2.1")
    for name in "ab":
        dns.misbehave(f"{name}.example.net", "hold")

    async def use(resolver: Resolver) -> None:
        held = [asyncio.create_task(resolver.lookup(f"{name}.example.net", "A")) for name in "ab"]
        await until(lambda: len(dns.queries) == 2)
        assert (await resolver.lookup("c.example.net", "A")).status == "failed"
        dns.release()
        assert [answer.status for answer in await asyncio.gather(*held)] == ["ok", "ok"]
        # that failure says nothing about the name, and was not kept
        assert (await resolver.lookup("c.example.net", "A")).status == "ok"

    run(dns, use, max_in_flight=2)


def test_close_ends_what_is_under_way(make_dns: MakeDns) -> None:
    dns = make_dns(ZONE)
    dns.misbehave("mail.example.net", "hold")

    async def use(resolver: Resolver) -> None:
        lookup = asyncio.create_task(resolver.lookup("mail.example.net", "A"))
        await until(lambda: dns.count("mail.example.net"))
        await resolver.close()
        assert (await lookup).status == "failed"
        assert (await resolver.lookup("example.net", "TXT")).status == "failed"

    run(dns, use)
    assert dns.count("example.net") == 0


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.text(max_size=40))
def test_nothing_that_a_server_says_and_nothing_that_is_asked_raises(reply: bytes, name: str) -> None:
    async def go() -> Answer:
        class Liar(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                transport.sendto(data[:2] + reply, addr)

        loop = asyncio.get_running_loop()
        transport, _protocol = await loop.create_datagram_endpoint(
            Liar, local_addr=("127.0.0.1", 0), family=socket.AF_INET
        )
        resolver = Resolver([Endpoint("127.0.0.1", transport.get_extra_info("sockname")[1])], 0.05, 5, 5)
        await resolver.lookup(name, "A")
        answer = await resolver.lookup("mail.example.net", "A")
        await resolver.close()
        transport.close()
        return answer

    assert asyncio.run(go()).status == "failed"
