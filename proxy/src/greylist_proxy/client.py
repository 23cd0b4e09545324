# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is the client: its address, the network by which it is greylisted (RFC 6647 sections 5.5 and 7), and what the DNS
says of it.

The network is always one of its identities. A domain that vouches for the address (`spf.py`), or that its confirmed
name belongs to (`names.py`), is another, and lets a sender's pool of addresses be one sender. The DNS is asked when
somebody wants to know, once for each question, and is given `timeout` seconds for all of them together: if it
fails, the client is its network, as it would be without.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, TypeVar

from greylist_proxy.log import Log
from greylist_proxy.names import confirmed_name, looks_dynamic, registrable_domain
from greylist_proxy.patience import in_a_task, within
from greylist_proxy.policy import Identity
from greylist_proxy.resolver import Address, Resolver
from greylist_proxy.spf import Spf, SpfChecker

T = TypeVar("T")
ClientKey = Literal["spf", "ptr", "network"]


class Client:
    """A client as the decision sees it; `text` is its address in its canonical form."""

    __slots__ = ("_address", "network", "text")

    def __init__(self, text: str, network: str) -> None:
        self.text = text
        self.network = network
        self._address: Address | None = None

    @property
    def address(self) -> Address:
        """The address as an object, which most clients never need: it takes as long as all else that is here."""
        if self._address is None:
            self._address = ipaddress.ip_address(self.text)
        return self._address

    @property
    def literal(self) -> str:
        """The address literal of RFC 5321 section 4.1.3, as a trace header wants it."""
        return f"[IPv6:{self.text}]" if ":" in self.text else f"[{self.text}]"


def identify(peer: str, ipv4_prefix: int, ipv6_prefix: int) -> Client:
    """Make a Client of a socket's peer address.

    An IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`) is the IPv4 client that it stands for, and a scope
    (`fe80::1%eth0`) says something about our interfaces, not about the client. ValueError: no IP address.
    """
    try:
        octets = socket.inet_pton(socket.AF_INET, peer)
    except (OSError, ValueError):
        address: Address = ipaddress.ip_address(peer.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        prefix = ipv4_prefix if address.version == 4 else ipv6_prefix
        return Client(str(address), str(ipaddress.ip_network((address, prefix), strict=False)))
    # Many times as fast, for the most frequent kinds by far.
    if ipv4_prefix == 24:
        return Client(peer, f"{peer[: peer.rindex('.')]}.0/24")
    network = int.from_bytes(octets) >> 32 - ipv4_prefix << 32 - ipv4_prefix
    return Client(peer, f"{socket.inet_ntoa(network.to_bytes(4))}/{ipv4_prefix}")


class Origin:
    """One client with one sender, and what is found out about them; made by `Identifier.origin`.

    `helo` and `sender` are as the client gave them, the null sender is "".
    """

    __slots__ = ("_identifier", "_identities", "_lock", "_names", "_seconds_left", "_spf", "client", "helo", "sender")

    def __init__(self, identifier: Identifier, client: Client, helo: str, sender: str) -> None:
        self.client = client
        self.helo = helo
        self.sender = sender
        self._identifier = identifier
        self._lock: asyncio.Lock | None = None
        self._seconds_left = identifier.timeout
        self._names: tuple[str, ...] | None = None
        self._spf: Spf | None = None
        self._identities: tuple[Identity, ...] | None = None

    async def names(self) -> tuple[str, ...]:
        """Return the client's forward-confirmed names, in lower case; none where the DNS fails."""
        if self._names is None:
            async with self._alone():
                if self._names is None:
                    nobody: tuple[str, ...] = ()
                    self._names = await self._ask(self._identifier.find_names, nobody)
        return self._names

    @property
    def known_names(self) -> tuple[str, ...]:
        """The confirmed names as far as somebody has asked for them; nothing is asked here."""
        return self._names or ()

    async def spf(self) -> Spf:
        """Return what SPF says of client and sender (of client and HELO name, for the null sender)."""
        if self._spf is None:
            async with self._alone():
                if self._spf is None:
                    self._spf = await self._ask(self._identifier.check_spf, Spf("temperror"))
        return self._spf

    async def identities(self) -> tuple[Identity, ...]:
        """Return how the client is recognised: by its network first, then by what `client_key` adds."""
        if self._identities is None:
            network = Identity(self.client.network, self.client.text)
            further = () if self._identifier.client_key == "network" else await self._further()
            self._identities = (network, *further)
        return self._identities

    def known_identities(self) -> tuple[Identity, ...] | None:
        """Return the `identities` if nobody has to be asked for them, else None."""
        if self._identities is None and self._identifier.client_key == "network":
            self._identities = (Identity(self.client.network, self.client.text),)
        return self._identities

    async def _further(self) -> Sequence[Identity]:
        if self._identifier.client_key == "spf":
            domain = (await self.spf()).domain
            return [Identity(f"spf:{domain}", f"spf:{domain}")] if domain else ()
        address = self.client.address
        domains = [registrable_domain(name) for name in await self.names() if not looks_dynamic(name, address)]
        # A hoster's domain is in the names of all its customers: it earns nothing.
        return [Identity(f"ptr:{domain}", "") for domain in dict.fromkeys(domains) if domain]

    def _alone(self) -> asyncio.Lock:
        """Return what makes each question be asked once; most origins need none."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        return self._lock

    async def _ask(self, question: Callable[[Origin], Coroutine[Any, Any, T]], otherwise: T) -> T:
        # Only what is waited for the DNS counts: a client may take its time between two recipients, or we with it.
        await in_a_task()
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            return await within(question(self), began + self._seconds_left)
        except TimeoutError:
            return otherwise
        except Exception as error:  # noqa: BLE001 - mail goes on by the network; the log has what went wrong
            self._identifier.failed(error)
            return otherwise
        finally:
            self._seconds_left -= clock() - began


class Identifier:
    """Makes origins. Without a resolver or a checker there are no names and no SPF; `timeout` is in seconds."""

    def __init__(
        self,
        resolver: Resolver | None,
        spf_checker: SpfChecker | None,
        client_key: ClientKey,
        timeout: float,
        log: Log,
    ) -> None:
        self.client_key = client_key
        self.timeout = timeout
        self._resolver = resolver
        self._spf_checker = spf_checker
        self._log = log
        self._logged: set[type[Exception]] = set()

    def origin(self, client: Client, helo: str, sender: str) -> Origin:
        """Make an origin; nothing is asked yet."""
        return Origin(self, client, helo, sender)

    async def find_names(self, origin: Origin) -> tuple[str, ...]:
        """Ask the DNS for the client's confirmed names."""
        return await confirmed_name(self._resolver, origin.client.address) if self._resolver else ()

    async def check_spf(self, origin: Origin) -> Spf:
        """Check the sender."""
        if self._spf_checker is None:
            return Spf("none")
        return await self._spf_checker.check(origin.client.address, origin.sender, origin.helo)

    def failed(self, error: Exception) -> None:
        """Log a fault of ours, the first of each kind: clients must not be able to fill the log with it."""
        if type(error) not in self._logged:
            self._logged.add(type(error))
            self._log.exception("identifying a client failed", error)
