# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS questions and their answers, asynchronous, cached, and bounded in everything that a stranger can drive.

Who connects here decides which names are looked up, and often what the answer is. So a lookup never raises, never logs,
never waits longer than `timeout`, and an answer that is larger than any that mail needs is no answer. Three outcomes
are told apart, for they mean different things: `ok` (also without values: the name exists, this kind of record does
not), `nxdomain`, and `failed` (no answer, a server's failure, too many lookups at once), which says nothing about the
name.

dnspython speaks the protocol: random ids and source ports, answers matched with their questions, another server
when one does not answer. Validation (DNSSEC) is the business of the recursive server.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal, NamedTuple

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.query
import dns.rdata
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.TXT
import dns.resolver

from greylist_proxy.config_values import Endpoint
from greylist_proxy.memo import Memo, Told

Address = IPv4Address | IPv6Address
Kind = Literal["A", "AAAA", "MX", "TXT", "PTR"]
Status = Literal["ok", "nxdomain", "failed"]

# How long answers are kept, in seconds, whatever their zone says.
MIN_TTL = 5.0  # TTL 0 is "for the transaction in progress" (RFC 1035 section 3.2.1); ours takes some seconds
MAX_TTL = 86400.0  # a day: a typing error in a zone must not last for a week
MAX_NEGATIVE_TTL = 10800.0  # RFC 2308 section 5: one to three hours work well
FAILURE_TTL = 5.0  # RFC 9520 section 3.2: at least a second, at first not for long

# What an answer may be at most. Parsing costs 25 us a record, and one client can cause dozens of answers.
MAX_MESSAGE = 16384  # octets over TCP; the TXT records of a large company's domain take half of it
MAX_RECORDS = 300
ROOM = 256  # characters that take one place in the cache; a longer answer takes several

# Larger datagrams are fragmented on some paths, and fragments can be forged: what the DNS flag day of 2020 agreed on.
UDP_PAYLOAD = 1232
ATTEMPTS = 4  # within the timeout, over all servers: a datagram gets lost

NAME = re.compile(
    r"(?!\.)[!-\[\]-~]{1,253}"
)  # ASCII without blanks and without "\", which dnspython would take as an escape


class Answer(NamedTuple):
    """What a lookup gave: the values as text (names without a final dot), and for how many seconds they hold."""

    status: Status
    values: tuple[str, ...]
    ttl: float


FAILED = Answer("failed", (), FAILURE_TTL)
NO_NAME = Answer("nxdomain", (), MAX_NEGATIVE_TTL)


class _Nameserver(dns.nameserver.Do53Nameserver):
    """A server whose answers over TCP, where up to 64 KiB fit, are measured before they are parsed."""

    async def async_query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,  # noqa: ASYNC109 - dnspython's own signature
        source: str | None,
        source_port: int,
        max_size: bool,
        backend: Any,
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        """Ask over UDP, or, where `max_size` says that the answer did not fit into a datagram, over TCP."""
        if not max_size:
            return await super().async_query(request, timeout, source, source_port, max_size, backend)
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(self.address, self.port)
            try:
                wire = request.to_wire()
                writer.write(len(wire).to_bytes(2) + wire)
                length = int.from_bytes(await reader.readexactly(2))
                if length > MAX_MESSAGE:
                    raise dns.exception.FormError  # this server is not asked again
                wire = await reader.readexactly(length)
            finally:
                writer.close()
        # RFC 1035 section 4.1.1: the header ends with the numbers of answer, authority and additional records.
        if sum(int.from_bytes(wire[at : at + 2]) for at in (6, 8, 10)) > MAX_RECORDS:
            raise dns.exception.FormError
        response = dns.message.from_wire(wire)
        if not request.is_response(response):
            raise dns.query.BadResponse
        return response


class Resolver:
    """Looks names up at the given servers, or at the system's own where none are given.

    `timeout` bounds a lookup in seconds, `max_in_flight` how many there are at a time, `cache_size` how many answers
    are kept. One belongs to one event loop.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint],
        timeout: float,
        max_in_flight: int,
        cache_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_in_flight = max_in_flight
        self.cache_size = cache_size
        self.clock = clock
        self._timeout = timeout
        self._memo: Memo[tuple[str, Kind], Answer] = Memo(cache_size, max_in_flight, clock)
        self._stub = dns.asyncresolver.Resolver(configure=False)
        self._stub.nameservers = [_Nameserver(server.host, server.port) for server in servers or _system_servers()]
        self._stub.timeout = timeout / ATTEMPTS
        self._stub.lifetime = timeout
        self._stub.use_edns(0, 0, UDP_PAYLOAD)

    async def lookup(self, name: str, kind: Kind) -> Answer:
        """Look up a name, with or without a final dot. Text that is no name of the DNS does not exist there."""
        key = (name.lower().removesuffix("."), kind)
        told = await self._memo.get(key, partial(self._ask, *key))
        return FAILED if told is None else told.value._replace(ttl=told.ttl)

    async def close(self) -> None:
        """End the lookups that are under way: they have failed."""
        await self._memo.close()

    async def _ask(self, text: str, kind: Kind) -> Told[Answer]:
        answer = await self._answer(text, kind)
        return Told(answer, answer.ttl, 1 + sum(map(len, (text, *answer.values))) // ROOM)

    async def _answer(self, text: str, kind: Kind) -> Answer:
        if not NAME.fullmatch(text):
            return NO_NAME
        try:
            name = dns.name.from_text(text)
        except dns.exception.DNSException:
            return NO_NAME
        try:
            # dnspython keeps to its lifetime by the wall clock, which may be set.
            async with asyncio.timeout(self._timeout):
                found = await self._stub.resolve(name, kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN as error:
            response = error.kwargs["responses"][name]
            return Answer("nxdomain", (), _held(response.resolve_chaining().minimum_ttl, MAX_NEGATIVE_TTL))
        except Exception:  # noqa: BLE001 - a stranger's answer goes through a parser: whatever it does, there is none
            return FAILED
        chain = found.chaining_result
        if chain.answer is None:
            return Answer("ok", (), _held(chain.minimum_ttl, MAX_NEGATIVE_TTL))
        if len(chain.answer) > MAX_RECORDS:
            return FAILED
        return Answer("ok", tuple(map(_text, chain.answer)), _held(chain.minimum_ttl, MAX_TTL))


def _system_servers() -> list[Endpoint]:
    """Return what /etc/resolv.conf names; resolv.conf(5): without any, it is the local machine."""
    try:
        system = dns.resolver.Resolver()
    except dns.resolver.NoResolverConfiguration:
        return [Endpoint("127.0.0.1", 53)]
    return [Endpoint(str(address), system.port) for address in system.nameservers]


def _held(ttl: float, most: float) -> float:
    return min(max(ttl, MIN_TTL), most)


def _text(record: dns.rdata.Rdata) -> str:
    if isinstance(record, dns.rdtypes.ANY.TXT.TXT):
        # RFC 7208 section 3.3: the strings of a record are joined without blanks. What is not ASCII becomes U+FFFD, so
        # that no text is taken for what it is not.
        return b"".join(record.strings).decode("ascii", "replace")
    if isinstance(record, dns.rdtypes.ANY.MX.MX):
        return record.exchange.to_text(omit_final_dot=True)
    if isinstance(record, dns.rdtypes.ANY.PTR.PTR):
        return record.target.to_text(omit_final_dot=True)
    return record.to_text()
