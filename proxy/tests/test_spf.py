# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who vouches for a client: SPF records of all shapes on a real name server, and which passes count."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from typing import Any, TypeVar

import pytest
from greylist_proxy.resolver import FAILURE_TTL, Address, Resolver
from greylist_proxy.spf import MAX_QUERIES, MAX_RECORD, Spf, SpfChecker
from hypothesis import given, settings
from hypothesis import strategies as st

from .dns_server import DnsServer, Misbehaviour
from .peers import until
from .stores import Clock

T = TypeVar("T")
MakeDns = Callable[..., DnsServer]

V4 = "192.0.2.1"
V6 = "2001:db8::1"


def run(dns: DnsServer, use: Callable[[SpfChecker], Awaitable[T]], timeout: float = 10, **settings: Any) -> T:
    """Let a test use a checker."""

    async def go() -> T:
        options = {"timeout": timeout, "max_in_flight": 50, "cache_size": 1000} | settings
        resolver = Resolver([dns.endpoint], **options)
        try:
            return await use(SpfChecker(resolver, timeout))
        finally:
            await resolver.close()

    return asyncio.run(go())


def check(dns: DnsServer, address: str, sender: str = "joe@example.net", helo: str = "helo.example.org") -> Spf:
    return run(dns, lambda checker: checker.check(ip_address(address), sender, helo))


# For each record of example.net: the zone's other lines, the client, the result.
RECORDS = [
    # the terms of the RFC, one by one
    ("v=spf1 ip4:192.0.2.0/24 -all", "", V4, "pass"),
    ("v=spf1 ip4:192.0.2.1 -all", "", V4, "pass"),
    ("v=spf1 ip4:198.51.100.0/24 -all", "", V4, "fail"),
    ("v=spf1 ip4:198.51.100.0/24 ~all", "", V4, "softfail"),
    ("v=spf1 ip4:198.51.100.0/24 ?all", "", V4, "neutral"),
    ("v=spf1 ip4:198.51.100.0/24", "", V4, "neutral"),
    ("v=spf1 ip6:2001:db8::/32 -all", "", V6, "pass"),
    ("v=spf1 ip6:2001:db8::/32 -all", "", V4, "fail"),
    ("v=spf1 ip4:192.0.2.0/24 -all", "", V6, "fail"),
    ("v=spf1 a -all", "example.net A 192.0.2.1", V4, "pass"),
    ("v=spf1 a -all", "example.net A 192.0.2.2", V4, "fail"),
    ("v=spf1 a/24 -all", "example.net A 192.0.2.200", V4, "pass"),
    ("v=spf1 a/24//64 -all", "example.net AAAA 2001:db8::ffff", V6, "pass"),
    ("v=spf1 a:pool.example.org -all", "pool.example.org A 192.0.2.9 \n pool.example.org A 192.0.2.1", V4, "pass"),
    ("v=spf1 mx -all", "example.net MX 5 m.example.org \n m.example.org A 192.0.2.1", V4, "pass"),
    ("v=spf1 mx/24 -all", "example.net MX 5 m.example.org \n m.example.org A 192.0.2.7", V4, "pass"),
    ("v=spf1 mx -all", "example.net MX 5 m.example.org \n m.example.org AAAA 2001:db8::1", V6, "pass"),
    ("v=spf1 mx -all", "example.net MX 0 .", V4, "fail"),
    ("v=spf1 include:a.example.org -all", "a.example.org TXT v=spf1 ip4:192.0.2.0/24 -all", V4, "pass"),
    ("v=spf1 include:a.example.org -all", "a.example.org TXT v=spf1 -ip4:192.0.2.0/24 +all", V4, "fail"),
    ("v=spf1 redirect=a.example.org", "a.example.org TXT v=spf1 ip4:192.0.2.0/24 -all", V4, "pass"),
    ("V=SPF1 IP4:192.0.2.0/24 -ALL", "", V4, "pass"),
    ("v=spf1 -ip4:192.0.2.0/24 ip4:192.0.0.0/16", "", V4, "fail"),
    ("v=spf1 include:a.example.org -all", "a.example.org TXT v=spf1 redirect=b.example.org \n"
     "b.example.org TXT v=spf1 include:c.example.org -all \n c.example.org TXT v=spf1 a:d.example.org \n"
     "d.example.org A 192.0.2.1", V4, "pass"),
    # no record, or one that is not to be understood
    ("some other text", "", V4, "none"),
    ("v=spf10 +all", "", V4, "none"),
    ("v=spf1 ip4:192.0.2.1", "example.net TXT v=spf1 -all", V4, "permerror"),
    ("v=spf1 nonsense -all", "", V4, "permerror"),
    ("v=spf1 ip4:300.0.2.1", "", V4, "permerror"),
    ("v=spf1 ip6:2001:db8::9%eth0/64 -all", "", V6, "pass-macro"),  # not the RFC's grammar, and no harm
    ("v=spf1 a:%{l" + "9" * 5000 + "}.example.org", "", V4, "temperror"),  # longer than MAX_RECORD
    ("v=spf1 include:missing.example.org ip4:192.0.2.1 -all", "", V4, "permerror"),
    ("v=spf1 redirect=missing.example.org", "", V4, "permerror"),
    # everybody passes
    ("v=spf1 +all", "", V4, "pass-all"),
    ("v=spf1 all", "", V6, "pass-all"),
    ("v=spf1 ip4:198.51.100.1 +all", "", V4, "pass-all"),
    ("v=spf1 include:a.example.org -all", "a.example.org TXT v=spf1 +all", V4, "pass-all"),
    ("v=spf1 redirect=a.example.org", "a.example.org TXT v=spf1 +all", V4, "pass-all"),
    # his own name server decides about each
    ("v=spf1 exists:a.example.org -all", "a.example.org A 127.0.0.2", V4, "pass-exists"),
    ("v=spf1 exists:%{ir}.example.org -all", "*.example.org A 127.0.0.2", V4, "pass-exists"),
    ("v=spf1 ptr -all", "1.2.0.192.in-addr.arpa PTR a.example.net \n a.example.net A 192.0.2.1", V4, "pass-ptr"),
    ("v=spf1 include:%{ir}.example.org -all", "*.example.org TXT v=spf1 ip4:192.0.2.1", V4, "pass-macro"),
    ("v=spf1 a:%{i}.example.org -all", "192.0.2.1.example.org A 192.0.2.1", V4, "pass-macro"),
    ("v=spf1 mx:%{d} -all", "example.net MX 5 m.example.org \n m.example.org A 192.0.2.1", V4, "pass-macro"),
    ("v=spf1 redirect=%{ir}.example.org", "*.example.org TXT v=spf1 ip4:192.0.2.1", V4, "pass-macro"),
    ("v=spf1 redirect=%{p}", "1.2.0.192.in-addr.arpa PTR a.example.org \n a.example.org A 192.0.2.1 \n"
     "a.example.org TXT v=spf1 a", V4, "pass-macro"),
    ("v=spf1 include:a.example.org", "a.example.org TXT v=spf1 redirect=%{i}.example.com \n"
     "*.example.com TXT v=spf1 ip4:192.0.2.1", V4, "pass-macro"),
    ("v=spf1 include:%{d}.example.org", "*.example.org TXT v=spf1 include:b.example.com \n"
     "b.example.com TXT v=spf1 ip4:192.0.2.1", V4, "pass-macro"),
    ("v=spf1 include:a.example.org", "a.example.org TXT v=spf1 exists:b.example.org \n"
     "b.example.org A 127.0.0.2", V4, "pass-exists"),
    # what came before and did not match, or comes after, is of no account
    ("v=spf1 exists:%{i}.example.org ptr include:%{i}.example.com ip4:192.0.2.1 +all",
     "*.example.com TXT v=spf1 -all", V4, "pass"),
    ("v=spf1 ip4:192.0.2.1 exists:%{i}.example.org redirect=%{i}.example.com", "", V4, "pass"),
    # too many addresses in one network ...
    ("v=spf1 ip4:192.0.0.0/12 -all", "", V4, "pass"),
    ("v=spf1 ip4:192.0.0.0/11 -all", "", V4, "pass-too-wide"),
    ("v=spf1 ip4:0.0.0.0/0 -all", "", V4, "pass-too-wide"),
    ("v=spf1 ip6:2001:d00::/24 -all", "", V6, "pass"),
    ("v=spf1 ip6:2001:c00::/23 -all", "", V6, "pass-too-wide"),
    ("v=spf1 a/12 -all", "example.net A 192.0.2.9", V4, "pass"),
    ("v=spf1 a/11 -all", "example.net A 192.0.2.9", V4, "pass-too-wide"),
    ("v=spf1 mx//20 -all", "example.net MX 5 m.example.org \n m.example.org AAAA 2001:db8::9", V6, "pass-too-wide"),
    ("v=spf1 redirect=a.example.org", "a.example.org TXT v=spf1 ip4:192.0.0.0/8 -all", V4, "pass-too-wide"),
    # ... or in several together, also across includes and addresses of a name
    ("v=spf1 ip4:10.0.0.0/13 ip4:192.0.0.0/13 -all", "", V4, "pass"),
    ("v=spf1 ip4:10.0.0.0/13 ip4:11.0.0.1 ip4:192.0.0.0/13 -all", "", V4, "pass-too-wide"),
    ("v=spf1 " + " ".join(f"ip4:10.{n}.0.0/16" for n in range(15)) + " ip4:192.0.0.0/16", "", V4, "pass"),
    ("v=spf1 " + " ".join(f"ip4:10.{n}.0.0/16" for n in range(16)) + " ip4:192.0.0.0/16", "", V4, "pass-too-wide"),
    ("v=spf1 ip4:10.0.0.0/12 include:a.example.org -all", "a.example.org TXT v=spf1 ip4:192.0.2.1", V4,
     "pass-too-wide"),
    ("v=spf1 include:a.example.org ip4:192.0.2.1 -all", "a.example.org TXT v=spf1 ip4:10.0.0.0/12 -all", V4,
     "pass-too-wide"),
    ("v=spf1 a/13 -all", "example.net A 10.0.0.1 \n example.net A 11.0.0.1 \n example.net A 192.0.2.1", V4,
     "pass-too-wide"),
    ("v=spf1 mx/13 -all", "example.net MX 1 a.example.net \n example.net MX 1 b.example.net \n"
     "example.net MX 1 c.example.net \n a.example.net A 10.0.0.1 \n b.example.net A 11.0.0.1 \n"
     "c.example.net A 192.0.2.1", V4, "pass-too-wide"),
    ("v=spf1 mx/13 -all", "example.net MX 1 a.example.net \n example.net MX 1 b.example.net \n"
     "a.example.net A 192.0.2.1 \n b.example.net A 11.0.0.1", V4, "pass"),
    # one network named twice is one network
    ("v=spf1 include:a.example.org ip4:10.0.0.0/13 ip4:192.0.0.0/13 -all", "a.example.org TXT v=spf1 ip4:10.0.0.0/13",
     V4, "pass"),
    # what is wide but after the match, of the other family, or frees nobody
    ("v=spf1 ip4:192.0.2.1 ip4:0.0.0.0/0 -all", "", V4, "pass"),
    ("v=spf1 ip6:::/0 ip4:192.0.2.1 -all", "", V4, "pass"),
    ("v=spf1 ip4:0.0.0.0/0 ip6:2001:db8::/32 -all", "", V6, "pass"),
    ("v=spf1 -ip4:10.0.0.0/8 ~ip4:11.0.0.0/8 ?ip4:12.0.0.0/8 ip4:192.0.2.1 -all", "", V4, "pass"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "zone", "address", "result"), RECORDS)
def test_a_record(make_dns: MakeDns, record: str, zone: str, address: str, result: str) -> None:
    dns = make_dns(f"example.net TXT {record} \n {zone}")
    assert check(dns, address) == Spf(result, "example.net" if result == "pass" else "")


def chain(length: int) -> str:
    """A record that includes one that includes one ..., of which the last knows the client."""
    lines = [f"n{n}.example.org TXT v=spf1 include:n{n + 1}.example.org -all" for n in range(length)]
    return "\n".join([*lines, f"n{length}.example.org TXT v=spf1 ip4:{V4}"])


@pytest.mark.parametrize(
    ("record", "zone", "result", "most"),
    [
        # RFC 7208 section 4.6.4: ten terms that ask the DNS, not eleven
        ("v=spf1 include:n0.example.org", chain(9), "pass", 11),
        ("v=spf1 include:n0.example.org", chain(10), "permerror", 11),
        ("v=spf1 include:n0.example.org", chain(20), "permerror", 11),
        ("v=spf1 " + " ".join(f"a:n{n}.example.org" for n in range(20)), "*.example.org A 10.0.0.1", "permerror", 11),
        # records that include themselves, or each other
        ("v=spf1 include:example.net", "", "permerror", 1),
        ("v=spf1 redirect=example.net", "", "permerror", 1),
        ("v=spf1 include:a.example.org", "a.example.org TXT v=spf1 include:example.net", "permerror", 2),
        # two answers without anything in them, not three
        ("v=spf1 a:a.example.org a:b.example.org ip4:192.0.2.1", "", "pass", 3),
        ("v=spf1 a:a.example.org a:b.example.org a:c.example.org ip4:192.0.2.1", "", "permerror", 4),
        # ten exchanges for each of ten terms: the limit is ours
        (
            "v=spf1 " + " ".join(f"mx:m{n}.example.org" for n in range(10)),
            "\n".join(f"m{n}.example.org MX 5 x{n}{k}.example.org" for n in range(10) for k in range(10))
            + "\n *.example.org A 10.0.0.1",
            "permerror",
            MAX_QUERIES,
        ),
    ],
)
def test_a_record_that_asks_for_much(make_dns: MakeDns, record: str, zone: str, result: str, most: int) -> None:
    dns = make_dns(f"example.net TXT {record} \n {zone}")
    assert check(dns, V4).result == result
    assert len(dns.queries) <= most


@pytest.mark.parametrize("how", ["servfail", "drop", "garbage"])
@pytest.mark.parametrize("name", ["example.net", "a.example.org"])
def test_a_server_that_fails(make_dns: MakeDns, how: Misbehaviour, name: str) -> None:
    dns = make_dns(f"example.net TXT v=spf1 include:a.example.org \n a.example.org TXT v=spf1 ip4:{V4}")
    dns.misbehave(name, how)
    assert run(dns, lambda checker: checker.check(ip_address(V4), "a@example.net", ""), 0.3) == Spf("temperror", "")


def test_a_check_is_bounded_in_time_as_a_whole(make_dns: MakeDns) -> None:
    dns = make_dns(f"example.net TXT v=spf1 include:a.example.org \n a.example.org TXT v=spf1 ip4:{V4}")
    dns.misbehave("a.example.org", "hold")

    async def go() -> Spf:
        resolver = Resolver([dns.endpoint], timeout=60, max_in_flight=5, cache_size=10)
        spf = await SpfChecker(resolver, 0.2).check(ip_address(V4), "joe@example.net", "")
        await resolver.close()
        return spf

    assert asyncio.run(go()) == Spf("temperror", "")


@pytest.mark.parametrize(
    ("sender", "helo", "asked", "spf"),
    [
        ("Joe@EXAMPLE.Net", "x", "example.net", Spf("pass", "example.net")),
        ("joe@example.net.", "x", "example.net", Spf("pass", "example.net")),
        ('"a@b"@example.net', "x", "example.net", Spf("pass", "example.net")),
        ("postmaster@example.net", "x", "example.net", Spf("pass", "example.net")),
        ("joe@b\u00fccher.example", "x", "xn--bcher-kva.example", Spf("pass", "xn--bcher-kva.example")),
        ("joe@XN--BCHER-KVA.example", "x", "xn--bcher-kva.example", Spf("pass", "xn--bcher-kva.example")),
        # nothing that could be asked for
        ("postmaster", "example.net", None, Spf("none", "")),
        ("joe@", "example.net", None, Spf("none", "")),
        ("joe@[192.0.2.1]", "example.net", None, Spf("none", "")),
        ("joe@localhost", "example.net", None, Spf("none", "")),
        ("joe@mail.local", "example.net", None, Spf("none", "")),
        ("joe@192.0.2.1", "example.net", None, Spf("none", "")),
        ("joe@" + "a." * 200 + "example", "example.net", None, Spf("none", "")),
        # the null sender: the registrable domain of the HELO name, else the name itself, and never one for the other
        ("", "m7.pool.EXAMPLE.net", "example.net", Spf("pass", "example.net")),
        ("<>", "example.net", "example.net", Spf("pass", "example.net")),
        ("", "m7.example.com", "m7.example.com", Spf("pass", "m7.example.com")),
        ("", "m8.example.com", "m8.example.com", Spf("none", "")),
        ("", "[192.0.2.1]", None, Spf("none", "")),
        ("", "localhost", None, Spf("none", "")),
        ("", "", None, Spf("none", "")),
    ],
)
def test_whose_domain_is_asked_for(make_dns: MakeDns, sender: str, helo: str, asked: str | None, spf: Spf) -> None:
    dns = make_dns(
        f"example.net TXT v=spf1 ip4:{V4} -all \n xn--bcher-kva.example TXT v=spf1 ip4:{V4} -all\n"
        f"m7.example.com TXT v=spf1 a -all \n m7.example.com A {V4}"
    )
    assert check(dns, V4, sender, helo) == spf
    names = [query.name for query in dns.queries]
    assert names == [] if asked is None else asked in names


def test_subdomains_do_not_add_up(make_dns: MakeDns) -> None:
    """A domain with a HELO name for each bot frees none of them for another."""
    bots = [f"10.{n}.0.1" for n in range(8)]
    dns = make_dns("\n".join(f"b{n}.example.com TXT v=spf1 ip4:{bot} -all" for n, bot in enumerate(bots)))
    domains = {check(dns, bot, "", f"b{n}.example.com").domain for n, bot in enumerate(bots)}
    assert domains == {f"b{n}.example.com" for n in range(8)}


def test_nobody_s_address_goes_into_the_dns(make_dns: MakeDns) -> None:
    dns = make_dns(f"example.net TXT v=spf1 exists:%{{l}}.%{{h}}.example.org ip4:{V4} -all")
    assert check(dns, V4, "secret@example.net", "secret.example.com").domain == "example.net"
    assert dns.count("postmaster.example.net.example.org") == 1
    assert not any("secret" in query.name for query in dns.queries)


@pytest.mark.parametrize(("size", "result"), [(MAX_RECORD, "pass"), (MAX_RECORD + 1, "temperror")])
def test_a_record_has_a_size(make_dns: MakeDns, size: int, result: str) -> None:
    dns = make_dns(f"example.net TXT {f'v=spf1 ip4:{V4} x='.ljust(size, 'x')}")
    assert check(dns, V4).result == result


def test_results_are_kept_for_the_least_ttl_seen(make_dns: MakeDns) -> None:
    zone = "example.net 900 TXT v=spf1 include:a.example.org -all \n a.example.org 60 TXT v=spf1 ip4:{} -all"
    dns, clock = make_dns(zone.format(V4)), Clock()

    async def use(checker: SpfChecker) -> None:
        async def checked(address: str = V4) -> str:
            return (await checker.check(ip_address(address), "joe@example.net", "")).result

        assert await checked() == "pass"
        dns.write(zone.format("198.51.100.1"))
        clock.now += 59
        assert await checked() == "pass"
        assert await checked("192.0.2.2") == "fail"
        assert len(dns.queries) == 2
        clock.now += 1
        assert await checked() == "fail"
        assert dns.count("example.net") == 1
        assert dns.count("a.example.org") == 2

    run(dns, use, clock=clock)


def test_a_failure_is_kept_for_some_seconds(make_dns: MakeDns) -> None:
    dns, clock = make_dns(f"example.net TXT v=spf1 ip4:{V4} -all"), Clock()
    dns.misbehave("example.net", "servfail")

    async def use(checker: SpfChecker) -> None:
        for behaves, passes, result in ((False, 0, "temperror"), (True, 0, "temperror"), (True, FAILURE_TTL, "pass")):
            if behaves:
                dns.behave()
            clock.now += passes
            assert (await checker.check(ip_address(V4), "joe@example.net", "")).result == result

    run(dns, use, clock=clock)


def test_checks_of_the_same_are_one(make_dns: MakeDns) -> None:
    dns = make_dns(f"example.net TXT v=spf1 ip4:{V4} -all")
    dns.misbehave("example.net", "hold")

    async def use(checker: SpfChecker) -> list[Spf]:
        checks = [
            asyncio.create_task(checker.check(ip_address(V4), sender, f"h{n}.example.org"))
            for n, sender in enumerate(["joe@example.net", "jim@EXAMPLE.net", "sue@example.net."] * 5)
        ]
        await until(lambda: dns.queries)
        checks.pop(0).cancel()
        dns.release()
        return await asyncio.gather(*checks)

    assert set(run(dns, use)) == {Spf("pass", "example.net")}
    assert len(dns.queries) == 1


def test_a_check_ends_with_its_resolver(make_dns: MakeDns) -> None:
    dns = make_dns(f"example.net TXT v=spf1 include:a.example.org include:b.example.org ip4:{V4} -all")
    dns.misbehave("example.net", "hold")

    async def go() -> Spf:
        resolver = Resolver([dns.endpoint], timeout=60, max_in_flight=5, cache_size=10)
        check = asyncio.create_task(SpfChecker(resolver, 60).check(ip_address(V4), "joe@example.net", ""))
        await until(lambda: dns.queries)
        await resolver.close()
        return await check

    assert asyncio.run(go()) == Spf("temperror", "")


def test_too_many_checks_at_once_fail_at_once(make_dns: MakeDns) -> None:
    dns = make_dns(f"*.example.net TXT v=spf1 ip4:{V4} -all")
    for name in "ab":
        dns.misbehave(f"{name}.example.net", "hold")

    async def use(checker: SpfChecker) -> None:
        held = [asyncio.create_task(checker.check(ip_address(V4), f"joe@{name}.example.net", "")) for name in "ab"]
        await until(lambda: len(dns.queries) == 2)
        assert await checker.check(ip_address(V4), "joe@c.example.net", "") == Spf("temperror", "")
        dns.release()
        assert [spf.result for spf in await asyncio.gather(*held)] == ["pass", "pass"]
        assert (await checker.check(ip_address(V4), "joe@c.example.net", "")).result == "pass"

    run(dns, use, max_in_flight=2)


QUALIFIER = st.sampled_from(["", "+", "-", "~", "?"])
NAME = st.sampled_from(
    ["example.net", "a.example.org", "b.example.org", "c.example.org", "%{d}", "%{p}", "%{ir}.example.org"]
)
NETWORK = st.builds(
    "{}/{}".format, st.ip_addresses().map(lambda address: f"ip{address.version}:{address}"), st.integers(0, 128)
)
DUAL = st.sampled_from(["", "/8", "/24", "//20", "/16//64", "/99"])
TERM = st.one_of(
    st.builds("{}{}".format, QUALIFIER, NETWORK),
    st.builds("{}include:{}".format, QUALIFIER, NAME),
    st.builds("{}{}:{}{}".format, QUALIFIER, st.sampled_from(["a", "mx"]), NAME, DUAL),
    st.builds("{}exists:{}".format, QUALIFIER, NAME),
    st.builds("redirect={}".format, NAME),
    st.sampled_from(["a", "mx/24", "ptr", "-all", "+all", "exp=a.example.org", "x=%{s}", "%", "ip4:", "include:"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"\\'), min_size=1, max_size=12),
)
RECORD = st.lists(TERM, max_size=8).map(lambda terms: " ".join(["v=spf1", *terms]))
ELSEWHERE = [
    "a.example.org MX 1 b.example.org",
    "*.example.org A 192.0.2.1",
    "a.example.org A 192.0.2.1",
    "a.example.org AAAA 2001:db8::1",
]
WORDS = {"pass", "fail", "softfail", "neutral", "none", "temperror", "permerror"} | {
    f"pass-{how}" for how in ("all", "exists", "ptr", "macro", "too-wide")
}


@pytest.fixture(scope="module")
def shared_dns() -> Iterator[DnsServer]:
    with contextlib.closing(DnsServer()) as dns:
        yield dns


@settings(max_examples=150, deadline=None)
@given(records=st.lists(RECORD, min_size=4, max_size=4), address=st.ip_addresses())
def test_no_record_raises_or_costs_much(shared_dns: DnsServer, records: list[str], address: Address) -> None:
    names = ("example.net", "a.example.org", "b.example.org", "c.example.org")
    zone = [f"{name} TXT {record}" for name, record in zip(names, records, strict=True)]
    shared_dns.write("\n".join([*zone, *ELSEWHERE, f"{address.reverse_pointer} PTR a.example.org"]))
    shared_dns.queries.clear()
    spf = check(shared_dns, str(address))
    assert spf.result in WORDS
    assert (spf.domain == "example.net") == (spf.result == "pass")
    assert len(shared_dns.queries) <= MAX_QUERIES
