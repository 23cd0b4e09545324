# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts without I/O: message bodies, addresses, replies, clients, trace fields, log lines."""

from __future__ import annotations

import datetime
import itertools
import re

import pytest
from greylist_proxy.client import Client, identify
from greylist_proxy.smtp.address import (
    AddressError,
    is_address_literal,
    is_domain,
    parse_recipient,
    parse_sender,
    split,
)
from greylist_proxy.smtp.body import BARE_LINE_END, LEADING_BLANK, Body
from greylist_proxy.smtp.replies import TOO_BIG, Reply, ReplyError, own_reply, take_reply
from greylist_proxy.smtp.trace import received
from hypothesis import example, given, settings
from hypothesis import strategies as st

# -- the message --

# Everything that matters for finding the end, and for what must not be passed on.
TRICKY = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"x", b" ", b"\r\n.\r\n"]), max_size=25).map(b"".join)


def model(stream: bytes, max_size: int) -> tuple[bytes | None, object, int, bytes]:
    """What a body should be: its bytes, its refusal, its size, and what follows. From the whole stream at once."""
    end = (b"\r\n" + stream).find(b"\r\n.\r\n")
    wire, rest = stream[: max(end, 0)], stream[end + 3 :]
    size = len(re.sub(rb"(^|\r\n)\.", rb"\1", wire))
    # The model has no opinion on which of several faults is named.
    faults = set()
    if wire[:1] in (b" ", b"\t"):
        faults.add(LEADING_BLANK)
    if re.search(rb"(?<!\r)\n|\r(?!\n)", wire):
        faults.add(BARE_LINE_END)
    if size > max_size:
        faults.add(TOO_BIG)
    return wire, faults, size, rest


@settings(max_examples=500, deadline=None)
@given(TRICKY, st.lists(st.integers(0, 60), max_size=8), st.sampled_from([3, 1000]))
@example(b" x", [], 1000)
@example(b"\r\n. x", [2], 1000)
@example(b"x\r", [1, 2], 1000)
def test_a_body_in_any_pieces(content: bytes, cuts: list[int], max_size: int) -> None:
    stream = content + b"\r\n.\r\nQUIT\r\n"
    expected, faults, size, rest = model(stream, max_size)
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    body = Body(max_size)
    out, not_given = b"", b""
    for start, end in itertools.pairwise(places):
        if body.ended:
            not_given += stream[start:end]
        else:
            out += body.feed(stream[start:end])
    assert body.ended
    assert body.rest + not_given == rest
    assert body.size == size
    if faults:
        assert body.refusal in faults  # type: ignore[operator]
    else:
        assert body.refusal is None
        assert out == expected
    assert re.search(rb"(?<!\r)\n|\r(?!\n)", out) is None


def test_a_body_byte_by_byte_comes_out_whole() -> None:
    stream = b"Subject: x\r\n\r\n..\r\n...\r\n\r\n.\r\n"
    body = Body(1000)
    out = b"".join(body.feed(bytes([byte])) for byte in stream)
    assert (out, body.size, body.ended, body.rest) == (stream[:-3], len(stream) - 5, True, b"")


def test_a_body_is_held_back_by_a_few_octets_only() -> None:
    body = Body(1 << 30)
    assert len(body.feed(b"x" * 100_000)) >= 100_000 - 4
    assert body.feed(b"y" * 10) == b"x" * 4 + b"y" * 6


# -- addresses --


@pytest.mark.parametrize(
    ("argument", "path", "parameters"),
    [
        (b"FROM:<a@far.test>", "a@far.test", []),
        (b"from: <a@far.test>  ", "a@far.test", []),
        (b"FROM:<>", "", []),
        (b"FROM:<> SIZE=10  Body=8bitMime", "", [("SIZE", "10"), ("BODY", "8bitMime")]),
        (b'FROM:<"a> b"@far.test> X', '"a> b"@far.test', [("X", "")]),
        (b'FROM:<"a\\"> b"@far.test>', '"a\\"> b"@far.test', []),
    ],
)
def test_arguments(argument: bytes, path: str, parameters: list[tuple[str, str]]) -> None:
    found, given = split(argument, b"FROM:")
    assert (found, [(each.keyword, each.value) for each in given]) == (path, parameters)
    assert all(each.raw.encode() in argument for each in given)


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        (b"", 501),
        (b"FROM", 501),
        (b"FROM:", 501),
        (b"TO:<a@far.test>", 501),
        (b"FROM:a@far.test", 501),
        (b"FROM:<a@far.test", 501),
        (b"FROM:<<a@far.test>>", 501),
        (b"FROM:<a@far.test>SIZE=1", 501),
        (b"FROM:<a b@far.test>", 501),
        (b"FROM:<a@far.test> (comment)", 501),
        (b"FROM:<a@far.test> SIZE=", 501),
        (b"FROM:<a@far.test> =1", 501),
        (b"FROM:<a@far.test> A=b=c", 501),
        (b"FROM:<a@far.test> X=\x00", 501),
        ("FROM:<ä@far.test>".encode(), 553),
    ],
)
def test_arguments_that_are_refused(argument: bytes, code: int) -> None:
    with pytest.raises(AddressError) as caught:
        split(argument, b"FROM:")
    assert caught.value.reply.code == code


@pytest.mark.parametrize(
    "address",
    [
        "a@far.test",
        "A.b+c=d/e@FAR.test",
        ".dots..anywhere.@docomo.test",
        "bounces+x=y.test@list.test",
        "SRS0=abc=de=far.test=user@forwarder.test",
        '"quoted @ string"@far.test',
        "a@[192.0.2.1]",
        "a@[IPv6:2001:db8::1]",
        "a%b!c@far.test",
        "a@under_score.test",
        "a@" + "x" * 63 + ".test",
    ],
)
def test_senders(address: str) -> None:
    path = parse_sender(address)
    assert path.address == address
    assert path.domain == address.rpartition("@")[2].lower()


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
    ],
)
def test_senders_that_are_refused(address: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_sender(address)
    assert caught.value.reply.code == 501
    with pytest.raises(AddressError):
        parse_recipient(address)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=30))
def test_a_recipient_has_no_routing(address: str) -> None:
    try:
        path = parse_recipient(address)
    except AddressError:
        return
    assert not set("%!@\r\n\x00") & set(path.local)
    assert path.address == address


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


# -- replies --


@settings(deadline=None)
@given(
    st.integers(200, 599),
    st.lists(st.binary(max_size=40).map(lambda text: bytes(b for b in text if b >= 0x20 and b != 0x7F)), min_size=1),
    st.integers(0, 200),
)
def test_replies_survive_the_wire_in_any_pieces(code: int, lines: list[bytes], cut: int) -> None:
    reply = Reply(code, tuple(lines[:100]))
    wire = reply.wire()
    buffer = bytearray(wire[:cut])
    first = take_reply(buffer)
    if cut < len(wire):
        assert first is None
        assert buffer == wire[:cut]
        buffer += wire[cut:] + b"250 next"
        assert take_reply(buffer) == reply
        assert buffer == b"250 next"
    else:
        assert first == reply


@pytest.mark.parametrize(
    "wire",
    [
        b"hello\r\n",
        b"25 x\r\n",
        b"2500 x\r\n",
        b"150 x\r\n",
        b"650 x\r\n",
        b"\xb2\xb3\xb4 x\r\n",
        b"250-a\r\n251 b\r\n",
        b"250 a\x00b\r\n",
        b"250 a\r\r\n",
        b"250 " + b"x" * 3000,
        b"250-x\r\n" * 101,
    ],
)
def test_what_is_no_reply(wire: bytes) -> None:
    with pytest.raises(ReplyError):
        take_reply(bytearray(wire))


def test_our_own_replies() -> None:
    assert own_reply(250, "2.0.0", "OK").wire() == b"250 2.0.0 OK\r\n"
    assert str(Reply(550, (b"a\xff", b"b"))) == "550 a\\xff / b"


# -- clients --


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
    client = identify(peer, 24, 64)
    assert (client.network, client.literal) == (network, literal)


def test_prefixes() -> None:
    assert identify("192.0.2.77", 32, 64).network == "192.0.2.77/32"
    assert identify("2001:db8:1:2::1", 24, 48).network == "2001:db8:1::/48"


# -- trace fields --

CLIENT: Client = identify("192.0.2.1", 24, 64)
NOW = datetime.datetime(2026, 3, 1, 12, 0, 5, tzinfo=datetime.UTC)


def test_a_received_field() -> None:
    field = received(
        helo="c.test", esmtp=True, client=CLIENT, hostname="mx.test", ident="X1", recipient="u@here.test", now=NOW
    )
    assert field == (
        b"Received: from c.test ([192.0.2.1])\r\n"
        b" by mx.test (greylist-proxy) with ESMTP id X1\r\n"
        b" for <u@here.test>;\r\n"
        b" Sun, 01 Mar 2026 12:00:05 +0000\r\n"
    )


@settings(deadline=None)
@given(st.text(max_size=40))
@example("x\r\nBcc: y@z")
@example("(comment")
def test_a_helo_cannot_break_the_field(helo: str) -> None:
    field = received(helo=helo, esmtp=False, client=CLIENT, hostname="mx.test", ident="X", recipient=None, now=NOW)
    name = field.split(b" ")[2].decode()
    assert name == helo or name == "unknown"
    assert field.count(b"\r\n") == 3
    assert all(len(line) < 998 for line in field.split(b"\r\n"))
