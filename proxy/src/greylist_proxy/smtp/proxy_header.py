# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PROXY protocol, versions 1 and 2: a load balancer before us names the client that it stands for. No I/O.

The header comes before anything else. It is read to its end here, with a limit, and parsed by aiosmtpd, whose
coroutine is stepped by hand over the complete header and so never waits. Who may send one is the session's business.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from aiosmtpd.proxy_protocol import AF, PROTO, V2_CMD, V2_SIGNATURE, ProxyData, get_proxy

MAX_V1 = 107  # octets with CRLF: what the specification says suffices for any line
V2_PREFIX = 16  # octets: signature, version and command, family, length
MAX_V2 = 4096  # octets; addresses take 36 at most, the rest are notes (TLVs) that we do not read
# aiosmtpd takes a little more than the specification: other words that end in 4 or 6, and 1_0 as a number.
V1 = re.compile(
    rb"PROXY\ (?: UNKNOWN (?:\ [\x20-\x7e]*)?"
    rb"| TCP4 (?:\ [0-9.]{7,15}){2} (?:\ [0-9]{1,5}){2}"
    rb"| TCP6 (?:\ [0-9A-Fa-f:.]{2,39}){2} (?:\ [0-9]{1,5}){2} ) \r\n",
    re.VERBOSE,
)

# It warns of each bad header in words of its own. Ours go to the log, with the peer that sent it.
logging.getLogger("mail.debug").setLevel(logging.ERROR)


class HeaderError(Exception):
    """What came is not a PROXY header; the text says why."""


@dataclass(frozen=True, slots=True)
class Named:
    """Whom a header names: the client, and the address of the proxy that it came to, with their ports."""

    address: str
    port: int
    local_address: str
    local_port: int


@dataclass(frozen=True, slots=True)
class Unnamed:
    """A header that names nobody: UNKNOWN or LOCAL, such as a load balancer's own health check."""


class HeaderReader:
    """Takes what a proxy sends first, in pieces of any size."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Named | Unnamed | None:
        """Take more; None while the header is not all there, after which `rest` has what follows it.

        HeaderError: no header, at the first octet that shows it.
        """
        self._buffer += data
        length = self._length()
        if length is None or len(self._buffer) < length:
            return None
        header = bytes(self._buffer[:length])
        del self._buffer[:length]
        return parse(header)

    @property
    def rest(self) -> bytes:
        """What came after the header."""
        return bytes(self._buffer)

    def _length(self) -> int | None:
        start = bytes(self._buffer[: len(V2_SIGNATURE)])
        if V2_SIGNATURE.startswith(start):
            if len(self._buffer) < V2_PREFIX:
                return None
            length = V2_PREFIX + int.from_bytes(self._buffer[14:16])
            if length > MAX_V2:
                raise HeaderError(f"a header of {length} octets")
            return length
        if not (start[:6] == b"PROXY " or b"PROXY ".startswith(start)):
            raise HeaderError("no PROXY header")
        end = self._buffer.find(b"\n", 0, MAX_V1)
        if end < 0 and len(self._buffer) >= MAX_V1:
            raise HeaderError("a line without an end")
        return end + 1 if end >= 0 else None


def parse(header: bytes) -> Named | Unnamed:
    """Parse one whole header. HeaderError: malformed, or not for TCP."""
    if header.startswith(b"PROXY") and not V1.fullmatch(header):
        raise HeaderError("a malformed line")
    data = _step(header)
    if data.error:
        raise HeaderError(data.error)
    if data.command == V2_CMD.LOCAL or data.family == AF.UNSPEC or data.protocol == PROTO.UNSPEC:
        return Unnamed()
    source, target = data.src_addr, data.dst_addr
    if data.protocol != PROTO.STREAM or not _is_address(source) or not _is_address(target):
        raise HeaderError("not a TCP connection")
    return Named(str(source), data.src_port or 0, str(target), data.dst_port or 0)


def _is_address(value: object) -> bool:
    return isinstance(value, IPv4Address | IPv6Address)


class _Whole:
    """What aiosmtpd takes for a stream: a header that is there as a whole."""

    def __init__(self, header: bytes) -> None:
        self._left = header

    async def read(self, count: int = -1) -> bytes:
        taken, self._left = (self._left, b"") if count < 0 else (self._left[:count], self._left[count:])
        return taken

    async def readexactly(self, count: int) -> bytes:
        return await self.read(count)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        return await self.read(self._left.find(separator) + len(separator))


def _step(header: bytes) -> ProxyData:
    coroutine = get_proxy(_Whole(header))
    try:
        coroutine.send(None)
    except StopIteration as ended:
        data: ProxyData = ended.value
        return data
    coroutine.close()
    raise HeaderError("an incomplete header")
