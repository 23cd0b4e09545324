# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wanted of receive connectors, and what has to be done for it: pure, no session, no clock.

Exchange is asked for whole connectors, and all of choosing and comparing happens here, so that it is the same
whatever form a version of Exchange sends its values in.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t
from dataclasses import dataclass

FRONTEND, HUB, ALL_ROLES = "FrontendTransport", "HubTransport", "all"
# Set-ReceiveConnector, -TarpitInterval: 00:00:00 to 00:10:00.
MOST_SECONDS = 600
# Its page warns that more than a few seconds can cause time-outs.
SENSIBLE_SECONDS = 10

# The string of a .NET TimeSpan (format "c") and of an EnhancedTimeSpan: [d.]hh:mm:ss[.fffffff]
_CLOCK = re.compile(
    r"""
    (?P<sign>-)?
    (?:(?P<days>\d+)\.)?
    (?P<hours>\d{1,2}):(?P<minutes>\d{1,2}):(?P<seconds>\d{1,2}(?:\.\d+)?)
    """,
    re.VERBOSE | re.ASCII,
)
# An xs:duration, as PowerShell serialises a plain TimeSpan ([MS-PSRP] 2.2.5.1.8).
_DURATION = re.compile(
    r"""
    (?P<sign>-)?P
    (?:(?P<days>\d+)D)?
    (?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?
    """,
    re.VERBOSE | re.ASCII,
)

TICKS_A_SECOND = 10_000_000  # System.TimeSpan.TicksPerSecond


class SelectionError(Exception):
    """No such connector, or none that fits; the message lists what there is."""


@dataclass(frozen=True)
class Connector:
    """A receive connector as far as this collection looks at it; `tarpit_seconds` may have a fraction."""

    identity: str
    server: str
    transport_role: str
    bindings: tuple[str, ...]
    tarpit_seconds: float
    anonymous: bool
    enabled: bool
    remote_ranges: tuple[str, ...] = ()
    auth_mechanism: str = ""

    @property
    def ports(self) -> frozenset[int]:
        """The ports that it listens on."""
        return frozenset(int(port) for _host, _colon, port in (b.rpartition(":") for b in self.bindings) if port)


@dataclass(frozen=True)
class Selection:
    """Which connectors are meant: by identity, or by server, role and port. Nothing given: all there are."""

    identities: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    transport_role: str = FRONTEND
    port: int = 25

    @property
    def queries(self) -> tuple[dict[str, str], ...]:
        """The parameters of the Get-ReceiveConnector calls that bring all that can be meant.

        One call for each server: a connector's full identity, SERVER\\Name, tells where it is.
        """
        servers: dict[str, str] = {}
        alone: dict[str, str] = {}
        for identity in self.identities:
            server, backslash, _name = identity.partition("\\")
            if backslash:
                servers.setdefault(server.casefold(), server)
            else:
                alone.setdefault(identity.casefold(), identity)
        for server in self.servers:
            servers.setdefault(server.casefold(), server)
        if not servers and not alone:
            return ({},)
        return (*({"Server": server} for server in servers.values()), *({"Identity": one} for one in alone.values()))

    def choose(self, there: t.Sequence[Connector]) -> list[Connector]:
        """Those that are meant, of those that the queries brought. Raise SelectionError where one is missing."""
        if not self.identities:
            return self._filter(there)
        by_identity = {connector.identity.casefold(): connector for connector in there}
        chosen: dict[str, Connector] = {}
        missing = []
        for identity in self.identities:
            if "\\" in identity:
                connector = by_identity.get(identity.casefold())
            else:  # a bare name: the query for it brought it
                connector = next(
                    (c for c in there if c.identity.partition("\\")[2].casefold() == identity.casefold()), None
                )
            if connector is None:
                missing.append(identity)
            else:
                chosen[connector.identity] = connector
        if missing:
            raise SelectionError(f"there is no receive connector {' or '.join(missing)}: there {_list(there)}")
        return list(chosen.values())

    def _filter(self, there: t.Sequence[Connector]) -> list[Connector]:
        chosen = [
            connector
            for connector in there
            if self.transport_role in (ALL_ROLES, connector.transport_role)
            and (self.port == 0 or self.port in connector.ports)
        ]
        # Each server on its own: one that has none must not hide behind another.
        have = {connector.server.casefold() for connector in chosen}
        for server in self.servers:
            short = server.partition(".")[0].casefold()
            if short not in have and server.casefold() not in have:
                role = "" if self.transport_role == ALL_ROLES else f" with transport role {self.transport_role}"
                port = f" on port {self.port}" if self.port else ""
                raise SelectionError(f"{server} has no receive connector{role}{port}: there {_list(there)}")
        return chosen


def _list(there: t.Sequence[Connector]) -> str:
    if not there:
        return "is none"
    told = (f"{c.identity} ({c.transport_role}, {', '.join(c.bindings)})" for c in there)
    return f"{'is' if len(there) == 1 else 'are'} {'; '.join(told)}"


def parse_seconds(text: str) -> float:
    """Seconds of a duration as Exchange writes it: [d.]hh:mm:ss, or an xs:duration. Raise ValueError for others."""
    match = _CLOCK.fullmatch(text.strip()) or _DURATION.fullmatch(text.strip())
    if match is None or not any(match.group(name) for name in ("days", "hours", "minutes", "seconds")):
        raise ValueError(f"'{text}' is no duration")
    part = {name: float(value) for name, value in match.groupdict(default="0").items() if name != "sign"}
    seconds = ((part["days"] * 24 + part["hours"]) * 60 + part["minutes"]) * 60 + part["seconds"]
    return -seconds if match["sign"] else seconds


def write_duration(seconds: int) -> str:
    """The value of -TarpitInterval: hh:mm:ss."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


def serving(connectors: t.Sequence[Connector], client: str, port: int) -> Connector | None:
    """The connector that takes a client's connections: enabled, on that port, the narrowest range that holds it.

    Exchange takes the connector with the most specific match of RemoteIPRanges.
    """
    address = ipaddress.ip_address(client)
    best: tuple[int, Connector] | None = None
    for connector in connectors:
        if not connector.enabled or port not in connector.ports:
            continue
        for text in connector.remote_ranges:
            first, last = _range(text)
            if first.version != address.version or not int(first) <= int(address) <= int(last):
                continue
            width = int(last) - int(first)
            if best is None or width < best[0]:
                best = width, connector
    return best[1] if best else None


def missing_ranges(wanted: t.Sequence[str], there: t.Sequence[str]) -> list[str]:
    """Those addresses or ranges that are not there yet, in whatever way they are written."""
    have = {_range(text) for text in there}
    return [text for text in wanted if _range(text) not in have]


def present_ranges(unwanted: t.Sequence[str], there: t.Sequence[str]) -> list[str]:
    """Those that are there, as they are written there."""
    out = {_range(text) for text in unwanted}
    return [text for text in there if _range(text) in out]


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _range(text: str) -> tuple[Address, Address]:
    """First and last address of an IPRange: an address, a network, or two addresses with a hyphen. Or ValueError."""
    first, hyphen, last = text.strip().partition("-")
    if hyphen:
        return ipaddress.ip_address(first.strip()), ipaddress.ip_address(last.strip())
    network = ipaddress.ip_network(first, strict=False)
    return network[0], network[-1]


def check_range(text: str) -> None:
    """Raise ValueError for what is no address, network or range."""
    first, last = _range(text)
    if first.version != last.version or int(first) > int(last):
        raise ValueError(f"{text} is no range")
