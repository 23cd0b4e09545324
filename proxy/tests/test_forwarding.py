# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""XCLIENT and the PROXY protocol: what is written, and what it means to others who read it."""

from __future__ import annotations

import asyncio
import re
from ipaddress import ip_address

import pytest
from aiosmtpd.proxy_protocol import ProxyData, get_proxy
from greylist_proxy.smtp.forwarding import MAX_COMMAND, Introduction, ehlo_name, proxy_header, xclient
from hypothesis import given
from hypothesis import strategies as st

from .relays import CLIENT

ATTRIBUTES = ("NAME", "HELO", "PROTO", "ADDR", "PORT", "LOGIN", "DESTADDR", "DESTPORT")
SIX = CLIENT._replace(address=ip_address("2001:db8::7"), local_address="2001:db8::25")
LONG = ".".join(["x" * 62] * 4)


def client(**changes: object) -> Introduction:
    return CLIENT._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("introduction", "pairs"),
    [
        (CLIENT, "NAME=mail.far.test PORT=40123 LOGIN=[UNAVAILABLE] DESTADDR=192.0.2.25 DESTPORT=25 "
                 "HELO=helo.far.test PROTO=ESMTP ADDR=192.0.2.7"),
        (SIX, "NAME=mail.far.test PORT=40123 LOGIN=[UNAVAILABLE] DESTADDR=IPV6:2001:db8::25 "
              "DESTPORT=25 HELO=helo.far.test PROTO=ESMTP ADDR=IPV6:2001:db8::7"),
        (client(name=None, helo="not a name", local_address="", esmtp=False),
         "NAME=[UNAVAILABLE] PORT=40123 LOGIN=[UNAVAILABLE] DESTADDR=[UNAVAILABLE] DESTPORT=25 "
         "HELO=[UNAVAILABLE] PROTO=SMTP ADDR=192.0.2.7"),
        (client(helo="[192.0.2.7]", local_address="::ffff:192.0.2.25"),
         "NAME=mail.far.test PORT=40123 LOGIN=[UNAVAILABLE] DESTADDR=192.0.2.25 DESTPORT=25 "
         "HELO=[192.0.2.7] PROTO=ESMTP ADDR=192.0.2.7"),
    ],
)  # fmt: skip
def test_every_attribute_is_set(introduction: Introduction, pairs: str) -> None:
    assert xclient(ATTRIBUTES, introduction) == [f"XCLIENT {pairs}".encode()]


def test_only_what_is_advertised_is_said() -> None:
    assert xclient(("PORT", "ADDR"), CLIENT) == [b"XCLIENT PORT=40123 ADDR=192.0.2.7"]
    assert xclient(("ADDR", "NEWEST"), CLIENT) == [b"XCLIENT NEWEST=[UNAVAILABLE] ADDR=192.0.2.7"]
    assert xclient((), CLIENT) == []


def test_long_names_take_several_commands() -> None:
    first, second = xclient(ATTRIBUTES, client(name=LONG, helo=LONG))
    assert first.startswith(b"XCLIENT NAME=")
    # An XCLIENT without the first two would make Postfix forget them, and after the third it takes no other.
    assert second == b"XCLIENT HELO=%b PROTO=ESMTP ADDR=192.0.2.7" % LONG.encode()


@given(st.text(max_size=600), st.text(max_size=600), st.text(max_size=60))
def test_nothing_that_a_client_says_makes_a_line_of_its_own(name: str, helo: str, local: str) -> None:
    introduction = client(name=name, helo=helo, local_address=local)
    lines = xclient(ATTRIBUTES, introduction)
    for line in lines:
        assert len(line) + 2 <= MAX_COMMAND
        assert re.fullmatch(rb"XCLIENT( [A-Z]+=[\x21-\x3c\x3e-\x7e]+)+", line)
    pairs = [pair.split(b"=")[0].decode() for line in lines for pair in line.split()[1:]]
    assert sorted(pairs) == sorted(ATTRIBUTES)
    assert re.fullmatch(r"[\x21-\x7e]{1,255}", ehlo_name(introduction, "mx.test"))
    assert proxy_header(1, introduction).count(b"\r\n") == 1


@pytest.mark.parametrize(
    ("helo", "name"),
    [("far.test", "far.test"), ("[192.0.2.7]", "[192.0.2.7]"), ("two words", "mx.test"), ("", "mx.test"),
     ("x\r\nMAIL FROM:<>", "mx.test")],
)  # fmt: skip
def test_the_name_in_ehlo(helo: str, name: str) -> None:
    assert ehlo_name(client(helo=helo), "mx.test") == name


def read_by_another(header: bytes) -> ProxyData:
    """Return what aiosmtpd makes of a header."""

    async def read() -> ProxyData:
        reader = asyncio.StreamReader()
        reader.feed_data(header + b"EHLO")
        data = await get_proxy(reader)
        assert await reader.read(4) == b"EHLO"  # and not one octet more
        return data

    return asyncio.run(read())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("introduction", "source", "destination"),
    [
        (CLIENT, "192.0.2.7", "192.0.2.25"),
        (SIX, "2001:db8::7", "2001:db8::25"),
        (client(local_address="::ffff:192.0.2.25"), "192.0.2.7", "192.0.2.25"),
        (client(local_address=""), "192.0.2.7", "0.0.0.0"),
        (client(address=SIX.address, local_address=""), "2001:db8::7", "::"),
        (client(address=SIX.address, local_address="fe80::1%eth0"), "2001:db8::7", "fe80::1"),
        (client(local_address="2001:db8::25"), "::ffff:192.0.2.7", "2001:db8::25"),
    ],
)
def test_proxy_headers(version: int, introduction: Introduction, source: str, destination: str) -> None:
    data = read_by_another(proxy_header(1 if version == 1 else 2, introduction))
    assert data.valid
    assert not data.error
    assert ip_address(str(data.src_addr)) == ip_address(source)
    assert ip_address(str(data.dst_addr)) == ip_address(destination)
    assert (int(data.src_port or 0), int(data.dst_port or 0)) == (40123, 25)
