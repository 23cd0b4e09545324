# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client's names: confirmed or not, who registered them, and whether a provider made them up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from greylist_proxy.names import MAX_NAMES, confirmed_name, looks_dynamic, public_domain, registrable_domain
from greylist_proxy.resolver import Resolver
from greylist_proxy.smtp.address import a_labels
from hypothesis import given
from hypothesis import strategies as st

from .dns_server import DnsServer

MakeDns = Callable[..., DnsServer]

REVERSE = {
    "192.0.2.1": "1.2.0.192.in-addr.arpa",
    "2001:db8::5": "5." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa",
}


def names_of(dns: DnsServer, address: str) -> tuple[str, ...]:
    async def go() -> tuple[str, ...]:
        resolver = Resolver([dns.endpoint], 10, 50, 1000)
        found = await confirmed_name(resolver, ip_address(address))
        await resolver.close()
        return found

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("address", "names", "forward", "confirmed"),
    [
        ("192.0.2.1", ["Mail.Example.net"], "mail.example.net A 192.0.2.1", ("mail.example.net",)),
        ("2001:db8::5", ["mail.example.net"], "mail.example.net AAAA 2001:0DB8::0:5", ("mail.example.net",)),
        # one address of several is enough, and so is an alias
        ("192.0.2.1", ["m.example.net"], "m.example.net A 192.0.2.9 \n m.example.net A 192.0.2.1", ("m.example.net",)),
        (
            "192.0.2.1",
            ["m.example.net"],
            "m.example.net CNAME a.b.example \n a.b.example A 192.0.2.1",
            ("m.example.net",),
        ),
        # whoever has the address can write any name
        ("192.0.2.1", ["mail.example.com"], "mail.example.com A 203.0.113.9", ()),
        ("192.0.2.1", ["mail.example.com"], "mail.example.com AAAA 2001:db8::5", ()),
        ("192.0.2.1", ["mail.example.com"], "", ()),
        ("192.0.2.1", [], "", ()),
        ("192.0.2.1", ["a.example.net", "b.example.net"], "b.example.net A 192.0.2.1", ("b.example.net",)),
        # no names of hosts
        ("192.0.2.1", ["localhost", "a\\032b.example.net", "*.example.net"], "*.example.net A 192.0.2.1", ()),
    ],
)
def test_a_name_counts_when_it_leads_back(
    make_dns: MakeDns, address: str, names: list[str], forward: str, confirmed: tuple[str, ...]
) -> None:
    pointers = "\n".join(f"{REVERSE[address]} PTR {name}" for name in names)
    assert names_of(make_dns(f"{pointers}\n{forward}"), address) == confirmed


def test_an_address_with_many_names_costs_few_lookups(make_dns: MakeDns) -> None:
    pointers = "\n".join(f"{REVERSE['192.0.2.1']} PTR n{n:02}.example.net" for n in range(50))
    dns = make_dns(f"{pointers}\n*.example.net A 192.0.2.1")
    assert names_of(dns, "192.0.2.1") == tuple(f"n{n:02}.example.net" for n in range(MAX_NAMES))
    assert sum(query.kind == "A" for query in dns.queries) == MAX_NAMES


@pytest.mark.parametrize("name", [REVERSE["192.0.2.1"], "mail.example.net"])
def test_a_server_that_fails_leaves_no_name(make_dns: MakeDns, name: str) -> None:
    dns = make_dns(f"{REVERSE['192.0.2.1']} PTR mail.example.net \n mail.example.net A 192.0.2.1")
    dns.misbehave(name, "servfail")
    assert names_of(dns, "192.0.2.1") == ()


@pytest.mark.parametrize(
    ("name", "registrable"),
    [
        ("example.net", "example.net"),
        ("mail12.EXAMPLE.net.", "example.net"),
        ("a.b.example.co.uk", "example.co.uk"),
        ("co.uk", ""),
        ("uk", ""),
        ("localhost", ""),
        ("", ""),
        (".", ""),
        ("a..b", ""),
        # everybody below a private suffix is his own registrant
        ("somebody.github.io", "somebody.github.io"),
        ("www.somebody.github.io", "somebody.github.io"),
        ("github.io", ""),
        # a top-level domain that the list does not have
        ("mail.example.nosuchtld", "example.nosuchtld"),
        # wildcards, exceptions, A-labels
        ("a.b.ck", "a.b.ck"),
        ("b.ck", ""),
        ("www.ck", "www.ck"),
        ("mail.example.xn--p1ai", "example.xn--p1ai"),
    ],
)
def test_registrable_domain(name: str, registrable: str) -> None:
    assert registrable_domain(name) == registrable


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Example.NET", "example.net"),
        ("example.net.", "example.net"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("B\u00dcCHER.Example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("m_1.example.net", "m_1.example.net"),
        # a different name by either IDNA
        ("stra\u00dfe.example", ""),
        ("\u1e9e.example", ""),
        # nobody's
        ("", ""),
        (".", ""),
        ("localhost", ""),
        ("mail.local", ""),
        ("a.invalid", ""),
        ("192.0.2.1", ""),
        ("[192.0.2.1]", ""),
        ("[IPv6:2001:db8::1]", ""),
        ("a..example", ""),
        ("-a.example", ""),
        ("a b.example", ""),
        ("x" * 64 + ".example", ""),
        ("a." * 128 + "example", ""),
        ("\u00fc" * 500 + ".example", ""),
        ("example.net\n", ""),
        ("\u00fc..example", ""),
    ],
)
def test_public_domain(text: str, domain: str) -> None:
    assert public_domain(text) == domain


@given(st.text())
def test_any_text_is_a_public_domain_or_none(text: str) -> None:
    domain = public_domain(text)
    assert domain.isascii()
    assert public_domain(domain) == domain
    assert a_labels(domain) == domain


V4 = "203.0.113.7"
V6 = "2001:db8:12:345:6789:abcd:ef01:2345"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        # the address: decimal, either way round, joined by anything or nothing
        ("203-0-113-7.example.net", V4),
        ("host203.0.113.7.example.net", V4),
        ("7.113.0.203.example.net", V4),
        ("mail-7-113-0-203.example.net", V4),
        ("203x0x113x7.example.net", V4),
        ("ip-203-000-113-007.example.net", V4),
        ("h203000113007.example.net", V4),
        ("007113000203.example.net", V4),
        # most of it: the rest may be in the domain's name
        ("0-113-7.net203.example.net", V4),
        ("113-0-203.example.net", V4),
        # hexadecimal
        ("pcb007107.example.net", V4),
        ("077100cb.example.net", V4),
        ("cb-00-71-07.example.net", V4),
        # IPv6
        ("20010db8001203456789abcdef012345.example.net", V6),
        ("2001-db8-12-345-6789-abcd-ef01-2345.example.net", V6),
        ("host-6789-abcd-ef01-2345.example.net", V6),
        ("6789abcdef012345.v6.example.net", V6),
        ("5.4.3.2.1.0.f.e.d.c.b.a.9.8.7.6.5.4.3.0.2.1.0.0.8.b.d.0.1.0.0.2.example.net", V6),
        ("2001-db8-1-2-0-0-0-5.example.net", "2001:db8:1:2::5"),
        ("2001-db8-1-2--5.example.net", "2001:db8:1:2::5"),
        # words for lines
        ("dyn7.example.net", V4),
        ("a1b2.dynamic.example.net", V4),
        ("x.dhcp-42.example.co.uk", V4),
        ("pool12.example.net", V4),
        ("adsl_9.example.net", V4),
        ("ppp-3.example.net", V4),
        ("host1.cable.example.net", V4),
        ("dialup-7.example.net", V4),
        ("c7.client.example.net", V4),
        ("p5.dip0.example.net", V4),
        ("cust4711.example.net", V4),
        ("vdsl.customers.example.net", V4),
        ("unknown.example.net", V4),
        ("CPE-1.Example.NET", V4),
        ("ftth.home.example.net", V6),
    ],
)
def test_a_name_that_looks_dynamic(name: str, address: str) -> None:
    assert looks_dynamic(name, ip_address(address))


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("mail12.example.net", V4),
        ("o1.ptr123.example.com", V4),
        ("mx7.example.net", V4),
        ("mail-yw1-f113.example.com", V4),
        ("a113-7.smtp-out.example.com", V4),
        ("o1678971.outbound-mail.example.net", V4),
        ("mail-am6eur05on2107.outbound.protection.example.com", V4),
        ("server203.example.net", V4),
        ("smtp-pool3.example.net", V4),
        ("out-7.clients.example.net", V4),
        ("static.example.net", V4),
        # words inside words, and companies that are called like that
        ("dialog.example.net", V4),
        ("custom.dynamo.example.net", V4),
        ("mx.cable.net", V4),
        ("www.pool.co.uk", V4),
        ("cust-home.com", V4),
        ("203-0-113-7.com", V4),
        ("example.net", V4),
        ("", V4),
        ("mail.example.net", V6),
        ("mx-2001.example.net", V6),
        ("node-ef01-2345.example.net", V6),
    ],
)
def test_a_name_that_somebody_chose(name: str, address: str) -> None:
    assert not looks_dynamic(name, ip_address(address))


@given(st.text(), st.ip_addresses())
def test_any_name_looks_like_something(name: str, address: object) -> None:
    assert looks_dynamic(name, ip_address(str(address))) in (True, False)


@given(st.ip_addresses(v=4), st.sampled_from("-._x"), st.booleans(), st.booleans())
def test_every_address_is_found_in_a_name_made_of_it(address: object, mark: str, back: bool, padded: bool) -> None:
    octets = [octet.zfill(3) if padded else octet for octet in str(address).split(".")][:: -1 if back else 1]
    assert looks_dynamic(f"mail{mark}{mark.join(octets)}.example.net", ip_address(str(address)))
