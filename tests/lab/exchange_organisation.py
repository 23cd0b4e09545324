# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an Exchange organisation knows: servers, receive connectors, who may do what by way of them.

No PowerShell and no I/O: cmdlets (exchange_cmdlets.py) read and change it, and the SMTP listeners ask it at
each reply, because Exchange's settings count at once. The lab's hosts share one organisation, as the servers
of a real one share Active Directory; `lock` is held while a cmdlet runs.

The five connectors of a server are those that setup makes on Exchange 2016 and 2019, with the ports, roles,
mechanisms and permission groups of Microsoft's page "Receive connectors". The access control entries behind
the groups are the extended rights of that page, less those that have nothing to do with SMTP.
"""

from __future__ import annotations

import ipaddress
import threading
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

DOMAIN: Final = "lab.test"
DOMAIN_CONTROLLER: Final = "dc01.lab.test"
CONFIGURATION: Final = "CN=Lab,CN=Microsoft Exchange,CN=Services,CN=Configuration,DC=lab,DC=test"
_GROUP: Final = "CN=Exchange Administrative Group (FYDIBOHF23SPDLT),CN=Administrative Groups"

FRONTEND: Final = "FrontendTransport"
HUB: Final = "HubTransport"
DEFAULT_TARPIT: Final = 5
MAX_TARPIT: Final = 600

ANONYMOUS: Final = r"NT AUTHORITY\ANONYMOUS LOGON"
ANY_RECIPIENT: Final = "ms-Exch-SMTP-Accept-Any-Recipient"
EXTERNAL: Final = "ExternalAuthoritative"
EVERYBODY: Final = ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "0.0.0.0-255.255.255.255")
MECHANISMS: Final = "Tls, Integrated, BasicAuth, BasicAuthRequireTLS, ExchangeServer"

_SUBMIT: Final = "ms-Exch-SMTP-Submit"
_ROUTING: Final = "ms-Exch-Accept-Headers-Routing"
_ANY_SENDER: Final = "ms-Exch-SMTP-Accept-Any-Sender"
_DOMAIN_SENDER: Final = "ms-Exch-SMTP-Accept-Authoritative-Domain-Sender"
_NO_SPAM: Final = "ms-Exch-Bypass-Anti-Spam"
_SERVER_RIGHTS: Final = (_SUBMIT, ANY_RECIPIENT, _ANY_SENDER, _DOMAIN_SENDER, _ROUTING, _NO_SPAM)
# Whom a permission group stands for, and what it gives them.
_GROUPS: Final = {
    "AnonymousUsers": ((ANONYMOUS,), (_SUBMIT, _ANY_SENDER, _DOMAIN_SENDER, _ROUTING)),
    "ExchangeUsers": ((r"NT AUTHORITY\Authenticated Users",), (_SUBMIT, ANY_RECIPIENT, _NO_SPAM, _ROUTING)),
    "ExchangeServers": (
        (r"LAB\Exchange Servers", r"MS Exchange\Hub Transport Servers", r"MS Exchange\Externally Secured Servers"),
        _SERVER_RIGHTS,
    ),
    "ExchangeLegacyServers": ((r"LAB\ExchangeLegacyInterop",), _SERVER_RIGHTS),
}

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Permission:
    """An access control entry of a connector: what Add-ADPermission writes. No right: GenericAll, inherited."""

    user: str
    right: str | None
    deny: bool = False


@dataclass(eq=False)
class Connector:
    """A receive connector. Lists and flags are as the administrator wrote them."""

    server: str
    name: str
    role: str
    bindings: list[str]
    groups: str
    auth: str = MECHANISMS
    remote: list[str] = field(default_factory=lambda: list(EVERYBODY))
    enabled: bool = True
    tarpit_seconds: int = DEFAULT_TARPIT
    permissions: list[Permission] = field(default_factory=list)
    guid: uuid.UUID = field(default_factory=uuid.uuid4)

    def __post_init__(self) -> None:
        """Give what the permission groups stand for, as Exchange does where they are set."""
        self.permissions.append(Permission(r"LAB\Organization Management", None))
        for group in flags(self.groups):
            users, rights = _GROUPS[group]
            self.permissions += [Permission(user, right) for user in users for right in rights]

    @property
    def identity(self) -> str:
        r"""EX01\Default Frontend EX01."""
        return f"{self.server}\\{self.name}"

    @property
    def distinguished_name(self) -> str:
        """Its place in Active Directory."""
        return f"CN={self.name},CN=SMTP Receive Connectors,CN=Protocols,{server_dn(self.server)}"

    @property
    def relays(self) -> bool:
        """May a client that does not log in send to anybody by way of it?"""
        held = {one.right for one in self.permissions if one.user == ANONYMOUS and not one.deny}
        held -= {one.right for one in self.permissions if one.user == ANONYMOUS and one.deny}
        return ANY_RECIPIENT in held or EXTERNAL in flags(self.auth)

    def listens_on(self, port: int) -> bool:
        """Does one of its bindings name the port?"""
        return any(binding.rpartition(":")[2] == str(port) for binding in self.bindings)

    def distance(self, client: _Address) -> int | None:
        """How many addresses the narrowest of its ranges has that the client is in; None where it is in none."""
        sizes = []
        for text in self.remote:
            first, last = read_range(text)
            if first.version == client.version and int(first) <= int(client) <= int(last):
                sizes.append(int(last) - int(first) + 1)
        return min(sizes, default=None)


@dataclass
class TransportConfig:
    """The organisation's transport settings, as far as this collection changes them."""

    internal_smtp_servers: list[str] = field(default_factory=list)


class Organisation:
    """Servers by name, their connectors, the transport configuration."""

    def __init__(self, servers: Sequence[str]) -> None:
        if not servers or len({name.casefold() for name in servers}) != len(servers):
            raise ValueError("an Exchange organisation needs servers, each with a name of its own")
        self.servers = tuple(servers)
        self.lock = threading.RLock()
        self.connectors: list[Connector] = []
        self.transport = TransportConfig()
        self.reset()

    def reset(self) -> None:
        """Make it as setup left it. The connectors keep their GUIDs."""
        with self.lock:
            known = {one.identity: one.guid for one in self.connectors}
            self.connectors = [one for server in self.servers for one in _default_connectors(server)]
            for one in self.connectors:
                one.guid = known.get(one.identity, one.guid)
            self.transport = TransportConfig()

    def find_server(self, name: str) -> str | None:
        """A server by its name, or its name in DNS; the name as it was set up."""
        wanted = name.casefold().removesuffix(f".{DOMAIN}")
        return next((server for server in self.servers if server.casefold() == wanted), None)

    def find(self, identity: str, local_server: str) -> Connector | None:
        """A connector by Server\\Name, GUID, distinguished name, or by its name alone on the local server."""
        server, backslash, name = identity.rpartition("\\")
        home = self.find_server(server) if backslash else local_server
        wanted = identity.casefold()
        for one in self.connectors:
            if wanted in (one.distinguished_name.casefold(), str(one.guid)):
                return one
            if one.server == home and one.name.casefold() == name.casefold():
                return one
        return None

    def serving(self, server: str, address: str, port: int = 25) -> Connector | None:
        """The connector that serves a client: of those on the port, the one with the narrowest range about it."""
        client = ipaddress.ip_address(address)
        with self.lock:
            found = [
                (distance, number, one)
                for number, one in enumerate(self.connectors)
                if one.server == server and one.enabled and one.listens_on(port)
                if (distance := one.distance(client)) is not None
            ]
        return min(found)[2] if found else None


def flags(text: str) -> list[str]:
    """The names in "Tls, Integrated"."""
    return [name for name in (part.strip() for part in text.split(",")) if name]


def server_dn(server: str) -> str:
    """A server's place in Active Directory."""
    return f"CN={server},CN=Servers,{_GROUP},{CONFIGURATION}"


def read_range(text: str) -> tuple[_Address, _Address]:
    """First and last address of "10.0.0.1", "10.0.0.0/24", "10.0.0.0(255.255.255.0)" or "a-b"; else ValueError."""
    text = text.strip()
    if "-" in text:
        first, _ignored, last = (part.strip() for part in text.partition("-"))
        pair = ipaddress.ip_address(first), ipaddress.ip_address(last)
        if pair[0].version != pair[1].version or int(pair[0]) > int(pair[1]):
            raise ValueError(f"{text!r} is no range of addresses")
        return pair
    if text.endswith(")"):
        text = text[:-1].replace("(", "/", 1)
    network = ipaddress.ip_network(text, strict=False)
    return network[0], network[-1]


def relay_connector(
    server: str, name: str, remote: Iterable[str], *, external: bool = False, tarpit_seconds: int = DEFAULT_TARPIT
) -> Connector:
    """A connector that relays for these addresses, in one of the two ways that Microsoft describes."""
    made = Connector(
        server,
        name,
        FRONTEND,
        ["0.0.0.0:25"],
        "ExchangeServers" if external else "AnonymousUsers",
        auth=f"Tls, {EXTERNAL}" if external else "Tls",
        remote=list(remote),
        tarpit_seconds=tarpit_seconds,
    )
    if not external:
        made.permissions.append(Permission(ANONYMOUS, ANY_RECIPIENT))
    return made


def _default_connectors(server: str) -> list[Connector]:
    def bound(port: int) -> list[str]:
        return [f"[::]:{port}", f"0.0.0.0:{port}"]

    login = "Tls, Integrated, BasicAuth, BasicAuthRequireTLS"
    inside = "ExchangeUsers, ExchangeServers, ExchangeLegacyServers"
    outside = "AnonymousUsers, ExchangeServers, ExchangeLegacyServers"
    return [
        Connector(server, f"Default {server}", HUB, bound(2525), inside),
        Connector(server, f"Client Proxy {server}", HUB, bound(465), "ExchangeUsers, ExchangeServers"),
        Connector(server, f"Default Frontend {server}", FRONTEND, bound(25), outside),
        Connector(server, f"Outbound Proxy Frontend {server}", FRONTEND, bound(717), "ExchangeServers"),
        Connector(server, f"Client Frontend {server}", FRONTEND, bound(587), "ExchangeUsers", auth=login),
    ]
