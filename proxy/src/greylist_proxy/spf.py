# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which domain vouches for a client: SPF (RFC 7208), for keys that outlive a change of address.

Who sends from a pool of addresses retries from another one, and is new there. A domain whose SPF record lists all of
them is the same sender all along. So a pass gives the client a second key, the domain, and what the domain has waited
for and earned holds for every address that it lists.

Which is why not every pass counts. A domain costs a few euros, and `v=spf1 +all` makes a pass for each address of a
botnet: one of them would wait, or earn, for all the others. A pass counts only if the addresses that a domain can
free are few, whatever its record says, and known from what was read:

    pass           counts
    pass-all       by `all`: everybody passes
    pass-exists    by `exists`: the domain's name server says yes or no to each address as it likes
    pass-ptr       by `ptr`: everybody who has a name of theirs, however many they are
    pass-macro     through a term with a macro: each address may be sent to a record of its own, that frees it alone
    pass-too-wide  the networks of all terms up to the matching one are more than a /12 together (IPv6: a /24)

The last is a sum, or sixteen terms of a /13 each would do what one /9 may not. Terms before the match are always the
same ones for a family, so that no two clients find different ones within the limit. (Terms with macros before it
may differ, but can only stop somebody.) What is left: who changes his record from hour to hour, following his bots,
gets on. Each has then to be told to the DNS before it sends, which is more work than to wait a minute and come back.

The domain is that of MAIL FROM. The null sender has none, and RFC 7208 section 2.4 takes the HELO name. Here the
registrable domain of that name comes first, for hosts of a pool have one each, and then the name itself. Whichever
vouches is the key, and never another: subdomains are free, and each can list another /12.

All is asked for postmaster, and with the domain as HELO name. So an answer depends on domain and address alone and may
be kept, and nobody's address goes into the DNS by a macro. spftrace walks the records and keeps the limits of
RFC 7208 section 4.6.4; what it went through is read from its trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, NamedTuple, cast

from spftrace import BaseResolver, Evaluator, Event, Limits
from spftrace.resolver import NOERROR, NXDOMAIN, SERVFAIL

from greylist_proxy.memo import Memo, Told
from greylist_proxy.names import public_domain, registrable_domain
from greylist_proxy.resolver import FAILURE_TTL, MAX_TTL, Address, Kind, Resolver

MAX_QUERIES = 30  # DNS queries of one check: ten terms, the RFC's limit, take 11, and more only by `mx` and `ptr`
MAX_RECORD = 4096  # characters; the RFC (section 3.4) advises 450. Walking them costs CPU
MAX_PREFIX = {4: 12, 6: 24}  # by IP version: a network as large as all that a domain can free
BITS = {4: 32, 6: 128}

NULL_SENDERS = ("", "<>")


class Spf(NamedTuple):
    """The result, one of the RFC's words or of those above, and the domain that vouches ("": none does)."""

    result: str
    domain: str = ""


class SpfChecker:
    """Checks senders. `timeout` bounds the check of a domain as a whole, in seconds; one ends with its resolver."""

    def __init__(self, resolver: Resolver, timeout: float) -> None:
        self._resolver = resolver
        self._timeout = timeout
        self._memo: Memo[tuple[str, Address], Spf] = Memo(resolver.cache_size, resolver.max_in_flight, resolver.clock)

    async def check(self, address: Address, sender: str, helo: str) -> Spf:
        """Check a client with this sender (an address; "" or <>: the null sender) and HELO name.

        Whatever the DNS has to say is a result: `temperror` where it fails or takes too long, `none` where there is
        nothing to ask for.
        """
        if sender in NULL_SENDERS:
            return await self._check_name(address, public_domain(helo))
        return await self._check_domain(address, public_domain(sender.rpartition("@")[2]))

    async def _check_name(self, address: Address, name: str) -> Spf:
        base = registrable_domain(name)
        spf = await self._check_domain(address, base)
        return spf if spf.domain or name == base else await self._check_domain(address, name)

    async def _check_domain(self, address: Address, domain: str) -> Spf:
        if not domain:
            return Spf("none")
        told = await self._memo.get((domain, address), partial(self._ask, domain, address))
        return Spf("temperror") if told is None else told.value

    async def _ask(self, domain: str, address: Address) -> Told[Spf]:
        transport = _Transport(self._resolver)
        evaluator = Evaluator(transport, Limits(max_queries=MAX_QUERIES, time_limit=self._timeout))
        try:
            async with asyncio.timeout(self._timeout):
                found = await evaluator.evaluate(str(address), f"postmaster@{domain}", domain)
        except TimeoutError:
            return Told(Spf("temperror"), FAILURE_TTL)
        except Exception:  # noqa: BLE001 - strangers write the records: one that the library stumbles over is malformed
            return Told(Spf("permerror"), transport.ttl)
        result, ttl = found.result, transport.ttl
        if result == "pass":
            result = _how_it_passed(found.trace.events, address.version)
        elif result == "temperror":
            ttl = min(ttl, FAILURE_TTL)
        return Told(Spf(result, domain if result == "pass" else ""), ttl)


class _Transport(BaseResolver):
    """Gives one check its answers, and notes for how long all of them hold."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self.ttl = MAX_TTL

    async def _lookup(self, name: str, rtype: str) -> tuple[str, list[str]]:
        answer = await self._resolver.lookup(name, cast(Kind, rtype))
        self.ttl = min(self.ttl, answer.ttl)
        if answer.status == "failed" or any(len(value) > MAX_RECORD for value in answer.values):
            return SERVFAIL, []
        # In an order of its own, a name server could show each client another exchange first, and so a narrow sum.
        return NXDOMAIN if answer.status == "nxdomain" else NOERROR, sorted(answer.values)


def _how_it_passed(events: Sequence[Event], version: int) -> str:
    """Say in one of the words above how a check passed; `version` is that of the client's address."""
    path: list[tuple[str, str]] = []  # name and text of the terms from the domain's own record to the one at work
    deciding: list[tuple[str, str]] = []
    networks: set[IPv4Network | IPv6Network] = set()
    mechanism: dict[str, Any] = {}
    for event in events:
        data = event.data
        addresses: Sequence[str] = ()
        if event.kind == "mech_start":
            mechanism = data
            path[event.depth :] = [(data["mechanism"], data["raw"])]
            if data["mechanism"] == f"ip{version}":
                addresses = (data["arg"],)
        elif event.kind == "macro_expand" and data.get("mechanism") == "redirect":
            path[event.depth :] = [("redirect", data["before"])]
        elif (
            event.kind == "dns_lookup" and data["rtype"] in ("A", "AAAA") and mechanism.get("mechanism") in ("a", "mx")
        ):
            addresses = data["answers"]
        elif event.kind == "mech_match" and data["mechanism"] != "include":
            deciding = list(path)  # the last one: after a match only the includes around it follow
        if addresses and mechanism["qualifier"] == "pass":  # any other frees nobody
            prefix = mechanism[f"cidr{version}"]
            length = BITS[version] if prefix is None else prefix
            networks.update(ip_network((address, length), strict=False) for address in addresses)
    last = deciding[-1][0]
    if last in ("all", "exists", "ptr"):
        return f"pass-{last}"
    if any("%" in text for _name, text in deciding):
        return "pass-macro"
    widest = 1 << (BITS[version] - MAX_PREFIX[version])
    return "pass-too-wide" if sum(network.num_addresses for network in networks) > widest else "pass"
