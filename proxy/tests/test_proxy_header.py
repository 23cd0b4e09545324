# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""PROXY headers: what is one, whom it names, and that the input may be cut anywhere."""

from __future__ import annotations

import socket
import struct

import pytest
from greylist_proxy.smtp.proxy_header import HeaderError, HeaderReader, Named, Unnamed
from hypothesis import given
from hypothesis import strategies as st

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(command: int, family: int, payload: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(payload)) + payload


def addresses(family: socket.AddressFamily, source: str, target: str, ports: tuple[int, int] = (4711, 25)) -> bytes:
    return socket.inet_pton(family, source) + socket.inet_pton(family, target) + struct.pack("!HH", *ports)


FOUR = addresses(socket.AF_INET, "192.0.2.1", "198.51.100.2")
SIX = addresses(socket.AF_INET6, "2001:db8::1", "2001:db8::2")
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 4711 25\r\n"
CLIENT = Named("192.0.2.1", 4711, "198.51.100.2", 25)
CLIENT6 = Named("2001:db8::1", 4711, "2001:db8::2", 25)

GOOD = [
    (V1, CLIENT),
    (b"PROXY TCP6 2001:db8::1 2001:DB8::2 4711 25\r\n", CLIENT6),
    (b"PROXY UNKNOWN\r\n", Unnamed()),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", Unnamed()),
    (v2(0x21, 0x11, FOUR), CLIENT),
    (v2(0x21, 0x21, SIX), CLIENT6),
    (v2(0x21, 0x11, FOUR + b"\x04\x00\x03abc"), CLIENT),  # a note
    (v2(0x21, 0x11, FOUR + b"\x04\xff\xffabc"), CLIENT),  # a broken one, which nobody reads
    (v2(0x21, 0x11, FOUR + bytes(4000)), CLIENT),
    (v2(0x20, 0x00, b""), Unnamed()),  # LOCAL
    (v2(0x20, 0x11, FOUR), Unnamed()),  # LOCAL: the addresses don't count
    (v2(0x21, 0x00, b""), Unnamed()),  # UNSPEC
]


@pytest.mark.parametrize(("header", "found"), GOOD)
def test_headers_cut_anywhere(header: bytes, found: Named | Unnamed) -> None:
    stream = header + b"EHLO x\r\n"
    for cut in [*range(1, min(len(header), 60)), len(header) - 1, len(header), len(header) + 1]:
        reader = HeaderReader()
        result = reader.feed(stream[:cut])
        if cut < len(header):
            assert result is None
            result = reader.feed(stream[cut:])
            assert reader.rest == b"EHLO x\r\n"
        assert result == found


def test_headers_octet_by_octet() -> None:
    for header, found in GOOD:
        reader = HeaderReader()
        results = [reader.feed(header[n : n + 1]) for n in range(len(header))]
        assert results[:-1] == [None] * (len(header) - 1)
        assert results[-1] == found
        assert reader.rest == b""


BAD = [
    b"EHLO client.test\r\n",
    b"GET / HTTP/1.1\r\n",
    b"PROXY\r\n",
    b"PROXYTCP4 192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY  TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
    b"proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1 1_0\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 2\r\n",
    b"PROXY TCP4 192.0.2.256 198.51.100.2 1 2\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY TCPx4 192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\rMAIL\r\n",
    b"PROXY UNKNOWN\x00\r\n",
    b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
    b"PROXY UNKNOWN " + b"x" * 107 + b"\r\n",
    b"\r\n\r\n\x00\r\nQUIX\n" + bytes(4),
    SIGNATURE + struct.pack("!BBH", 0x11, 0x11, 12) + FOUR,  # another version
    v2(0x22, 0x11, FOUR),  # no such command
    v2(0x21, 0x41, FOUR),  # no such family
    v2(0x21, 0x13, FOUR),  # no such protocol
    v2(0x21, 0x12, FOUR),  # UDP
    v2(0x21, 0x31, bytes(216)),  # a Unix socket
    v2(0x21, 0x11, FOUR[:8]),
    v2(0x21, 0x21, FOUR),
    v2(0x21, 0x11, FOUR + bytes(5000)),
    b"\x16\x03\x01\x02\x00",
]


def feed_all(reader: HeaderReader, data: bytes, step: int) -> None:
    for start in range(0, len(data), step):
        assert reader.feed(data[start : start + step]) is None


@pytest.mark.parametrize("data", BAD)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_what_is_no_header(data: bytes, step: int) -> None:
    reader = HeaderReader()
    with pytest.raises(HeaderError, match="."):
        feed_all(reader, data, step)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda tail: SIGNATURE + tail)))
def test_anything_is_a_header_or_an_error_or_unfinished(data: bytes) -> None:
    reader = HeaderReader()
    try:
        found = reader.feed(data)
    except HeaderError:
        return
    if found is None:
        assert reader.rest == data
    else:
        assert data.endswith(reader.rest)


@given(st.sampled_from([header for header, _found in GOOD]), st.integers(0, 200), st.integers(0, 255))
def test_one_octet_changed(header: bytes, place: int, octet: int) -> None:
    changed = bytearray(header)
    changed[place % len(header)] = octet
    reader = HeaderReader()
    try:
        found = reader.feed(bytes(changed))
    except HeaderError:
        return
    assert found is None or isinstance(found, Named | Unnamed)
