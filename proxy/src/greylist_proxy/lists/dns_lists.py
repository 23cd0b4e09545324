# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS allow-lists (RFC 5782): a client's address, reversed, under a list's zone; its A records are the answer.

A list that is shut down, sold, or asked too often may answer yes to everything, so only the answers that the operator
named count. 127.0.0.255 and 127.255.255.0/24 are how lists say that they refuse to answer, and an address outside
127.0.0.0/8 is a parked domain or a resolver that lies: either makes the whole answer a no.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence

from greylist_proxy.config_values import DnsList
from greylist_proxy.resolver import Address, Resolver

ANSWERS = ipaddress.IPv4Network("127.0.0.0/8")  # RFC 5782 section 2.1
REFUSED = (ipaddress.IPv4Network("127.0.0.255/32"), ipaddress.IPv4Network("127.255.255.0/24"))


async def listed(resolver: Resolver, address: Address, lists: Sequence[DnsList]) -> str:
    """Ask all lists at once; return the zone of the first, in the order given, that names the client, or ""."""
    reverse = address.reverse_pointer.rsplit(".", 2)[0]  # without in-addr.arpa or ip6.arpa
    answers = await asyncio.gather(*(resolver.lookup(f"{reverse}.{item.zone}", "A") for item in lists))
    return next(
        (item.zone for item, answer in zip(lists, answers, strict=True) if _counts(answer.values, item)),
        "",
    )


def _counts(values: Sequence[str], item: DnsList) -> bool:
    try:
        found = [ipaddress.IPv4Address(value) for value in values]
    except ValueError:
        return False
    if any(value not in ANSWERS or any(value in network for network in REFUSED) for value in found):
        return False
    return any(all(octet in wanted for octet, wanted in zip(value.packed, item.octets, strict=True)) for value in found)
