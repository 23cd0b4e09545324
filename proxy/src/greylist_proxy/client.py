# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is the client: its address, and the network by which it is greylisted (RFC 6647 sections 5.5 and 7).

`origin.py` adds what the DNS knows of it.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Client:
    """A client as the decision sees it."""

    address: Address
    network: str

    @property
    def literal(self) -> str:
        """The address literal of RFC 5321 section 4.1.3, as a trace header wants it."""
        return f"[IPv6:{self.address}]" if self.address.version == 6 else f"[{self.address}]"


def identify(peer: str, ipv4_prefix: int, ipv6_prefix: int) -> Client:
    """Make a Client of a socket's peer address.

    An IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`) is the IPv4 client that it stands for, and a scope
    (`fe80::1%eth0`) says something about our interfaces, not about the client. ValueError: no IP address.
    """
    address: Address = ipaddress.ip_address(peer.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    prefix = ipv4_prefix if address.version == 4 else ipv6_prefix
    return Client(address, str(ipaddress.ip_network((address, prefix), strict=False)))
