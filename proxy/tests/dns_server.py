# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real DNS server (UDP and TCP, one free loopback port) that has the zones a test writes, and fails as it is told.

    with closing(DnsServer('''
        example.net          TXT    v=spf1 ip4:192.0.2.0/24 -all
        mail.example.net 60  A      192.0.2.1
        *.example.org        CNAME  mail.example.net
    ''')) as dns:
        dns.misbehave("mail.example.net", "drop")
        resolver = Resolver([dns.endpoint], timeout=5, max_in_flight=10, cache_size=100)

A line is a name, a TTL (300 where it is left out), a type and its data. The text of a TXT record needs no quotes and
is cut into strings of 255 octets. Names that nobody wrote do not exist; with them comes an SOA record that lets that
be kept for `negative_ttl` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections import Counter
from typing import Literal, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
from greylist_proxy.config_values import Endpoint

from .peers import DEADLINE

Zone = dict[tuple[dns.name.Name, dns.rdatatype.RdataType], dns.rrset.RRset]
Misbehaviour = Literal["drop", "hold", "servfail", "garbage", "truncate"]


class Query(NamedTuple):
    name: str
    kind: str
    transport: str


class DnsServer:
    """Answers in a thread of its own, so that it serves coroutines and processes alike."""

    def __init__(self, zone: str = "") -> None:
        self.queries: list[Query] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.negative_ttl = 120
        self._zone: Zone = {}
        self._misbehaviour: dict[str, Misbehaviour] = {}
        self._loop = asyncio.new_event_loop()
        self._released = asyncio.Event()
        self.write(zone)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(DEADLINE)
        self.endpoint = Endpoint("127.0.0.1", port)

    def write(self, zone: str) -> None:
        """Replace the zones."""
        records: Zone = {}
        for line in filter(None, map(str.strip, zone.splitlines())):
            name, rest = line.split(None, 1)
            first, _blank, others = rest.partition(" ")
            ttl, rest = (int(first), others) if first.isdigit() else (300, rest)
            kind, data = [*rest.split(None, 1), ""][:2]
            if kind == "TXT" and not data.startswith('"'):
                data = " ".join(f'"{data[at : at + 255]}"' for at in range(0, max(len(data), 1), 255))
            owner = f"{name.removesuffix('.')}.".lower()
            rrset = dns.rrset.from_text_list(owner, ttl, "IN", kind, [data], origin=dns.name.root, relativize=False)
            known = records.setdefault((rrset.name, rrset.rdtype), rrset)
            if known is not rrset:
                for record in rrset:
                    known.add(record)
        self._zone = records

    def misbehave(self, name: str, how: Misbehaviour) -> None:
        """From now on, when asked for this name: say nothing, hold the answer until `release`, fail, send nonsense, or
        say over UDP that the answer does not fit."""
        self._misbehaviour[name] = how

    def behave(self) -> None:
        """Answer everything again."""
        self._misbehaviour = {}

    def release(self) -> None:
        """Let go of what is held, now and from now on."""
        self._loop.call_soon_threadsafe(self._released.set)

    def count(self, name: str, kind: str | None = None) -> int:
        """Tell how often a name was asked for."""
        return sum(query.name == name and kind in (None, query.kind) for query in self.queries)

    @property
    def asked(self) -> Counter[tuple[str, str]]:
        """Names and types, and how often each was asked for."""
        return Counter((query.name, query.kind) for query in self.queries)

    def close(self) -> None:
        """Be gone: from now on nothing listens at the port."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(DEADLINE)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(DEADLINE)
            self._loop.close()

    async def _listen(self) -> int:
        while True:
            self._tcp = await asyncio.start_server(self._talk, "127.0.0.1", 0)
            port: int = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _protocol = await self._loop.create_datagram_endpoint(
                    lambda: _Datagrams(self), local_addr=("127.0.0.1", port)
                )
            except OSError as error:
                self._tcp.close()
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port

    async def _stop(self) -> None:
        self._udp.close()
        self._tcp.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                length = int.from_bytes(await reader.readexactly(2))
                wire = await self.answer(await reader.readexactly(length), "tcp")
                if wire is not None:
                    writer.write(len(wire).to_bytes(2) + wire)
                    await writer.drain()

    async def answer(self, wire: bytes, transport: str) -> bytes | None:
        """Answer one query in wire form; None: say nothing."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.queries.append(Query(name, dns.rdatatype.to_text(question.rdtype), transport))
        how = self._misbehaviour.get(name)
        if how == "drop":
            return None
        if how == "hold":
            await self._released.wait()
        if how == "garbage":
            return wire[:4] + b"\xff" * 20
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if how == "servfail":
            response.set_rcode(dns.rcode.SERVFAIL)
        else:
            self._fill(response, question.name, question.rdtype)
        if transport == "tcp":
            return response.to_wire(max_size=65535)
        if how != "truncate":
            with contextlib.suppress(dns.exception.TooBig):
                return response.to_wire(max_size=query.payload or 512)
        response.flags |= dns.flags.TC
        response.answer = []
        return response.to_wire()

    def _fill(self, response: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> None:
        for _alias in range(8):
            written = self._written_name(name)
            if written is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                break
            for wanted in (kind, dns.rdatatype.CNAME):
                if rrset := self._zone.get((written, wanted)):
                    response.answer.append(dns.rrset.from_rdata_list(name, rrset.ttl, list(rrset)))
                    break
            else:
                break
            if wanted == kind:
                return
            name = rrset[0].target
        soa = f". . 1 1 1 1 {self.negative_ttl}"
        response.authority.append(dns.rrset.from_text(".", 86400, "IN", "SOA", soa))

    def _written_name(self, name: dns.name.Name) -> dns.name.Name | None:
        """Return the name whose records answer: itself (also where only names below it have some), or a wildcard."""
        names = [owner for owner, _kind in self._zone]
        if any(owner.is_subdomain(name) for owner in names):
            return name
        while name != dns.name.root:
            name = name.parent()
            if (wildcard := dns.name.Name((b"*", *name.labels))) in names:
                return wildcard
            if any(owner.is_subdomain(name) for owner in names):
                return None
        return None


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.get_running_loop().create_task(self._reply(data, addr))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    async def _reply(self, data: bytes, address: tuple[str, int]) -> None:
        if (wire := await self._server.answer(data, "udp")) is not None:
            self._transport.sendto(wire, address)
