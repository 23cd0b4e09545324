# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the configuration says about sessions: how long they may take, and who may speak the PROXY protocol."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Times are in seconds. A reload puts another one into `Services`; sessions look there when they need it."""

    command_timeout: float = 300.0  # for a whole command, RFC 5321 section 4.5.3.2.7
    data_timeout: float = 180.0  # without a byte of the message, section 4.5.3.2.5
    session_timeout: float = 3600.0  # for everything, whatever the client does
    min_data_rate: int = 100  # bytes a second of the message, on average after its first minute; 0: none
    greet_delay: float = 0.0  # before the banner
    proxy_timeout: float = 15.0  # for the whole PROXY header
    handshake_timeout: float = 30.0  # for STARTTLS
    close_timeout: float = 10.0  # for our last words to be read
    proxy_networks: tuple[Network, ...] = ()  # who must speak the PROXY protocol, and is believed

    def is_proxy(self, host: str) -> bool:
        """Say whether the peer with this address is one that has to name its client. ValueError: no address."""
        if not self.proxy_networks:
            return False
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self.proxy_networks)
