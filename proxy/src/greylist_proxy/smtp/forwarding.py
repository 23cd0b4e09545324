# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a backend is told whom its connection speaks for: Postfix's XCLIENT, HAProxy's PROXY protocol. No I/O.

What a client says about itself reaches a command line here, so only names and addresses do: anything else is
`[UNAVAILABLE]`, and values are written as xtext (RFC 3461 section 4), which has no white space and no line end.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal, NamedTuple

from greylist_proxy.resolver import Address
from greylist_proxy.smtp.address import is_address_literal, is_domain

# RFC 5321 section 4.5.3.1.4, with the CRLF; Postfix's documentation of XCLIENT keeps to it.
MAX_COMMAND = 512
UNAVAILABLE = b"[UNAVAILABLE]"
# These belong in the last command. Postfix forgets HELO and PROTO at an XCLIENT that does not name them; and once ADDR
# is set, it takes XCLIENT only where the client might have used it.
LAST = ("HELO", "PROTO", "ADDR")
NOT_XTEXT = re.compile(rb"[^\x21-\x2a\x2c-\x3c\x3e-\x7e]")

PROXY_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
VERSION_2_PROXY = 0x21
TCP_OVER_IPV4 = 0x11
TCP_OVER_IPV6 = 0x21


class Introduction(NamedTuple):
    """The client that a backend connection speaks for.

    `local_address` is where it connected to, "" where that is not known; `name` is its forward-confirmed name, None
    where it has none or nobody has asked; `helo` is what it called itself, whatever that is.
    """

    address: Address
    port: int
    local_address: str
    local_port: int
    name: str | None
    helo: str
    esmtp: bool


# Made where a backend is to be told: most are not, and a connection that is kept need not be told again.
Introduce = Callable[[], Introduction]


def ehlo_name(introduction: Introduction, hostname: str) -> str:
    """Return the name for the EHLO after XCLIENT: the client's where it is one, else ours."""
    helo = introduction.helo
    return helo if is_domain(helo) or is_address_literal(helo) else hostname


def xclient(attributes: Sequence[str], introduction: Introduction) -> list[bytes]:
    """Return the XCLIENT commands, without CRLF, that set every one of these attributes; each fits into a line."""
    pairs = {each: b" %b=%b" % (each.encode("ascii"), _value(each, introduction)) for each in attributes}
    last = b"".join(pairs.pop(each) for each in LAST if each in pairs)
    commands = [b"XCLIENT"]
    for group in [*pairs.values(), last]:
        if len(commands[-1]) + len(group) + 2 > MAX_COMMAND:
            commands.append(b"XCLIENT")
        commands[-1] += group
    return commands if attributes else []


def proxy_header(version: Literal[1, 2], introduction: Introduction) -> bytes:
    """Return the PROXY protocol's header.

    UNKNOWN and LOCAL, its words for a connection of our own, are not used: Postfix 3.7 knows no UNKNOWN.
    """
    source, destination = introduction.address, _destination(introduction)
    if source.version != destination.version:
        source, destination = _six(source), _six(destination)
    ports = introduction.port, introduction.local_port
    if version == 1:
        return b"PROXY TCP%d %b %b %d %d\r\n" % (
            source.version,
            str(source).encode("ascii"),
            str(destination).encode("ascii"),
            *ports,
        )
    addresses = source.packed + destination.packed + struct.pack("!HH", *ports)
    family = TCP_OVER_IPV4 if source.version == 4 else TCP_OVER_IPV6
    return PROXY_V2 + struct.pack("!BBH", VERSION_2_PROXY, family, len(addresses)) + addresses


def _value(attribute: str, introduction: Introduction) -> bytes:
    value: str | None = None
    match attribute:
        case "NAME":
            value = introduction.name if introduction.name and is_domain(introduction.name) else None
        case "ADDR":
            value = _prefixed(introduction.address)
        case "PORT":
            value = str(introduction.port)
        case "HELO":
            helo = introduction.helo
            value = helo if is_domain(helo) or is_address_literal(helo) else None
        case "PROTO":
            value = "ESMTP" if introduction.esmtp else "SMTP"
        case "DESTADDR":
            local = _local(introduction)
            value = _prefixed(local) if local is not None else None
        case "DESTPORT":
            value = str(introduction.local_port)
    # LOGIN, and what is not known here: said to be unknown, so that nothing of an earlier client remains.
    return UNAVAILABLE if value is None else NOT_XTEXT.sub(_hexadecimal, value.encode("ascii"))


def _hexadecimal(match: re.Match[bytes]) -> bytes:
    return b"+%02X" % match[0][0]


def _prefixed(address: Address) -> str:
    return f"IPV6:{address}" if address.version == 6 else str(address)


def _local(introduction: Introduction) -> Address | None:
    try:
        address: Address = ip_address(introduction.local_address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _destination(introduction: Introduction) -> Address:
    # The header has no word for "not known".
    unspecified: Address = IPv4Address(0) if introduction.address.version == 4 else IPv6Address(0)
    return _local(introduction) or unspecified


def _six(address: Address) -> Address:
    return IPv6Address(f"::ffff:{address}") if address.version == 4 else address
