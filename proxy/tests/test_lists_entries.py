# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may stand in a list, and that two ways of writing the same are one entry."""

from __future__ import annotations

import pytest
from greylist_proxy.lists.entries import EntryError, canonical, fold, quoted
from greylist_proxy.store import Kind
from hypothesis import given
from hypothesis import strategies as st

ADDRESSED = [Kind.SENDER, Kind.RECIPIENT, Kind.TRAP]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1/32", "192.0.2.1"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8::/32"),
        # IPv4 in IPv6 clothes is the IPv4 client
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("Example.NET", "example.net"),
        (".example.net", "example.net"),
        ("example.net.", "example.net"),
        ("_mail.example.net", "_mail.example.net"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("B\u00dcCHER.Example", "xn--bcher-kva.example"),
    ],
)
def test_clients(value: str, written: str) -> None:
    assert canonical(Kind.CLIENT, value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("User@Example.NET", "user@example.net"),
        ("user@example.net.", "user@example.net"),
        ("user+tag@example.net", "user+tag@example.net"),
        ('"user"@example.net', "user@example.net"),
        ("example.net", "example.net"),
        ("@example.net", "example.net"),
        (".example.net", "example.net"),
        ("user@b\u00fccher.example", "user@xn--bcher-kva.example"),
        ("J\u00dcRGEN@b\u00fccher.example", "j\u00fcrgen@xn--bcher-kva.example"),
        ("ju\u0308rgen@example.net", "j\u00fcrgen@example.net"),
    ],
)
@pytest.mark.parametrize("kind", ADDRESSED)
def test_addresses_and_domains(kind: Kind, value: str, written: str) -> None:
    assert canonical(kind, value) == written


@pytest.mark.parametrize("kind", [Kind.RECIPIENT, Kind.TRAP])
def test_a_local_part_at_any_domain(kind: Kind) -> None:
    assert canonical(kind, "User@") == "user@"


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        # the mend is in the sentence
        (Kind.CLIENT, "192.0.2.1/24", "the network is 192.0.2.0/24"),
        (Kind.CLIENT, "2001:db8::1/32", "the network is 2001:db8::/32"),
        (Kind.CLIENT, "*.example.net", "write it without *."),
        (Kind.CLIENT, "0.0.0.0/0", 'greylist.mode = "off"'),
        (Kind.CLIENT, "::/0", 'greylist.mode = "off"'),
        (Kind.CLIENT, "stra\u00dfe.example", "give the xn-- form"),
        # half an address is not a domain
        (Kind.CLIENT, "192.0.2", "allowed is an IP address"),
        (Kind.CLIENT, "host.192", "allowed is an IP address"),
        (Kind.CLIENT, "192.0.2.256", "allowed is"),
        (Kind.CLIENT, "192.0.2.0/33", "allowed is"),
        (Kind.CLIENT, "fe80::1%eth0", "allowed is"),
        (Kind.CLIENT, "user@example.net", "allowed is"),
        (Kind.CLIENT, "", "allowed is"),
        (Kind.CLIENT, ".", "allowed is"),
        (Kind.CLIENT, "a..b", "allowed is"),
        (Kind.CLIENT, "-a.example", "allowed is"),
        (Kind.CLIENT, "example.net\n", "allowed is"),
        (Kind.CLIENT, "example .net", "allowed is"),
        (Kind.CLIENT, "a." * 200 + "net", "allowed is"),
        (Kind.CLIENT, "\u00fc" * 100_000, "allowed is"),
        (Kind.CLIENT, "1" * 100_000, "allowed is"),
        (Kind.SENDER, "user@", "allowed is an address"),
        (Kind.SENDER, "", "allowed is an address"),
        (Kind.SENDER, "<>", "allowed is an address"),
        (Kind.SENDER, "<user@example.net>", "allowed is"),
        (Kind.SENDER, "user@[192.0.2.1]", "allowed is"),
        (Kind.SENDER, "us er@example.net", "allowed is"),
        (Kind.SENDER, '"us er"@example.net', "allowed is"),
        (Kind.SENDER, "user@example.net\x00", "allowed is"),
        (Kind.SENDER, "user@example.net@example.org", "allowed is"),
        (Kind.SENDER, "\u202euser@example.net", "allowed is"),
        (Kind.SENDER, "us\u00a0er@example.net", "allowed is"),
        (Kind.SENDER, "us\ud800er@example.net", "allowed is"),
        (Kind.RECIPIENT, "u" * 600 + "@example.net", "longer than 512"),
        (Kind.RECIPIENT, "@", "allowed is"),
        (Kind.TRAP, "user@@", "allowed is"),
    ],
)
def test_what_can_not_stand_in_a_list(kind: Kind, value: str, told: str) -> None:
    with pytest.raises(EntryError) as caught:
        canonical(kind, value)
    sentence = str(caught.value)
    assert told in sentence
    assert sentence.isascii()
    assert sentence.isprintable()
    assert len(sentence) < 1000


@given(st.sampled_from(list(Kind)), st.text(max_size=80) | st.text('aA.@+/:19"\\ -', max_size=20))
def test_the_canonical_form_is_its_own(kind: Kind, value: str) -> None:
    try:
        written = canonical(kind, value)
    except EntryError:
        return
    assert canonical(kind, written) == written
    assert written.isprintable()
    assert written == written.lower()


@pytest.mark.parametrize(
    ("address", "local", "domain"),
    [
        ("User@Example.NET", "user", "example.net"),
        ("user@example.net.", "user", "example.net"),
        ('"us\\er"@example.net', "user", "example.net"),
        # the last @ decides, so nobody smuggles a domain into a local part
        ('"user@example.net"@evil.example', "user@example.net", "evil.example"),
        ("user@example.net@evil.example", "user@example.net", "evil.example"),
        ("J\u00dcRGEN@B\u00dcCHER.example", "j\u00fcrgen", "xn--bcher-kva.example"),
        ("ju\u0308rgen@example.net", "j\u00fcrgen", "example.net"),
        ("", "", ""),
        ("<>", "", ""),
    ],
)
def test_an_envelopes_address_is_folded(address: str, local: str, domain: str) -> None:
    assert fold(address) == (local, domain)


@given(st.text())
def test_what_is_shown_is_one_line_of_ascii(text: str) -> None:
    shown = quoted(text)
    assert shown.isascii()
    assert shown.isprintable()
