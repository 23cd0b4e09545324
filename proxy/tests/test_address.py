# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths of MAIL and RCPT: what is one, what is refused, and that none has routing inside."""

from __future__ import annotations

import unicodedata

import pytest
from greylist_proxy.smtp.address import (
    AddressError,
    is_address_literal,
    is_domain,
    parse_recipient,
    parse_sender,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from .costs import cost


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("a@far.test", "far.test"),
        ("A.b+c=d/e@FAR.test", "far.test"),
        (".dots..anywhere.@docomo.test", "docomo.test"),
        ("bounces+x=y.test@list.test", "list.test"),
        ("SRS0=abc=de=far.test=user@forwarder.test", "forwarder.test"),
        ('"quoted @ string"@far.test', "far.test"),
        ("a@[192.0.2.1]", "[192.0.2.1]"),
        ("a@[IPv6:2001:DB8::1]", "[ipv6:2001:db8::1]"),
        ("a%b!c@far.test", "far.test"),
        ("a@under_score.test", "under_score.test"),
        ("a@" + "x" * 63 + ".test", "x" * 63 + ".test"),
        ("ä@far.test", "far.test"),
        ("用户@例子.test", "xn--fsqu00a.test"),
        ("a@BÜCHER.test", "xn--bcher-kva.test"),
        ("a@fa\u00df.test", "xn--fa-hia.test"),  # as IDNA 2008 has it
        ('"ä b"@far.test', "far.test"),
        ("ä" * 250 + "@far.test", "far.test"),
    ],
)
def test_senders(address: str, domain: str) -> None:
    path = parse_sender(address)
    assert (path.address, path.domain) == (address, domain)
    assert path.local == address[: len(path.local)]


def test_the_null_sender_and_postmaster() -> None:
    assert parse_sender("").domain == ""
    assert parse_recipient("PostMaster").local == "PostMaster"
    with pytest.raises(AddressError):
        parse_recipient("")


@pytest.mark.parametrize(
    "address",
    [
        "a",
        "@far.test",
        "a@",
        "a@.test",
        "a@far..test",
        "a@far.test.",
        "a@-far.test",
        "a@" + "x" * 64 + ".test",
        "a@b@far.test",
        "@relay.test:a@far.test",
        "a@[192.0.2]",
        "a@[not an address]",
        "a@[IPv6:fe80::1%eth0]",
        "a\x00@far.test",
        "a\x7f@far.test",
        '"a"b@far.test',
        "a(comment)@far.test",
        "x" * 510 + "@a.test",
        "ä" * 260 + "@far.test",
        "a\x85b@far.test",  # a line end to some
        "a\u2028b@far.test",
        "a\u00a0b@far.test",
        "a@b\u3000c.test",
        "a@\u2100.test",  # NFKC: a/c
        "a@ä" + "x" * 63 + ".test",
    ],
)
def test_senders_that_are_refused(address: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_sender(address)
    assert caught.value.reply.code == 501
    with pytest.raises(AddressError):
        parse_recipient(address)


@pytest.mark.parametrize(
    "address",
    [
        "user%other.test@here.test",
        "other.test!user@here.test",
        "@here.test:user@other.test",
        '"user@other.test"@here.test',
        '"user%other.test"@here.test',
        "user@other.test@here.test",
        "user\uff20other.test@here.test",  # NFKC makes these of them
        "user\uff05other.test@here.test",
        "other.test\uff01user@here.test",
        "user\ufe6bother.test@here.test",
        "IMCEASMTP-user+40other+2Etest@here.test",  # what Exchange unpacks
        '"imcea\\SMTP-user+40other+2Etest"@here.test',
        "\uff29MCEASMTP-user+40other+2Etest@here.test",
    ],
)
def test_routing_is_refused(address: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_recipient(address)
    assert (caught.value.routing, str(caught.value.reply)[:9]) == (True, "550 5.1.3")


def test_an_address_of_exchange_that_goes_nowhere_else() -> None:
    assert parse_recipient("IMCEAEX-_o=Org_cn=ann@here.test").domain == "here.test"
    assert parse_recipient("not-imceasmtp-u@here.test").domain == "here.test"


def test_no_recipient_takes_long() -> None:
    def refuse(size: int) -> None:
        address = "a" + "\u0315\u0316" * size + "@here.test"  # marks that NFKC has to sort, in the square of the time
        with pytest.raises(AddressError):
            parse_recipient(address)

    assert cost(lambda: refuse(20_000)) < 100 * cost(lambda: refuse(500))


@settings(deadline=None)
@given(st.one_of(st.text(max_size=30), st.text(st.characters(max_codepoint=127), max_size=30)))
def test_a_recipient_has_no_routing(text: str) -> None:
    for address in (text, f"{text}@here.test"):
        try:
            path = parse_recipient(address)
        except AddressError:
            continue
        assert not set("%!@\r\n\x00") & set(unicodedata.normalize("NFKC", path.local))
        assert path.address == address
        assert path.domain.isascii()


@pytest.mark.parametrize(
    ("text", "domain", "literal"),
    [
        ("mail.example.org", True, False),
        ("localhost", True, False),
        ("[192.0.2.1]", False, True),
        ("[ipv6:::1]", False, True),
        ("[::1]", False, False),
        ("a b", False, False),
        ("a\n", False, False),
        ("", False, False),
        ("x." * 127 + "xx", False, False),
    ],
)
def test_domains_and_literals(text: str, domain: bool, literal: bool) -> None:
    assert (is_domain(text), is_address_literal(text)) == (domain, literal)
