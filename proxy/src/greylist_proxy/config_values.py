# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The values of the configuration file: durations, sizes, endpoints, store addresses; text in, checked values out.

Each validator raises ValueError without words: what is allowed is said by the key's description in `config.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, PlainValidator

from greylist_proxy.smtp.address import is_domain
from greylist_proxy.smtp.capabilities import Capabilities

DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
ENDPOINT = re.compile(
    r"""
    (?: \[ ([0-9A-Fa-f:.]+) \]     # an IPv6 address in brackets,
    |   ([^\[\]:\s]+)             # or an IPv4 address, or a name
    ) : ([0-9]{1,5})               # the port
    """,
    re.VERBOSE,
)


class Endpoint(NamedTuple):
    """A host (an address, or a name where names are allowed) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _with_unit(value: object, units: dict[str, int]) -> float:
    """Turn `90s` or `35MiB` (a whole number and a unit), or a plain number, into a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"([0-9]{1,12})([A-Za-z]+)", value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise ValueError("not a number with a unit")
    return int(match[1]) * units[match[2]]


def parse_duration(value: object) -> float:
    """Return the seconds of `90s`, `5m`, `24h`, `36d`, or of a plain number of seconds. ValueError: none of these."""
    try:
        return float(_with_unit(value, DURATION_UNITS))
    except OverflowError:
        raise ValueError("more than a number can be") from None


def _size(value: object) -> float:
    return _with_unit(value, SIZE_UNITS)


def _endpoint(value: object, *, names: bool) -> Endpoint:
    match = ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[3]) > 65535:
        raise ValueError("not host:port")
    host = match[1] or match[2]
    if match[1]:
        host = str(IPv6Address(host))
    elif not (names and is_domain(host) and not re.fullmatch(r"[0-9.]+", host)):
        host = str(ip_address(host))
    return Endpoint(host, int(match[3]))


def _listener(value: object) -> Endpoint:
    return _endpoint(value, names=False)


def _optional_listener(value: object) -> Endpoint | None:
    return None if value == "" else _listener(value)


def _backend(value: object) -> Endpoint:
    endpoint = _endpoint(value, names=True)
    if endpoint.port == 0:
        raise ValueError("port 0")
    return endpoint


def _domain(value: str) -> str:
    if not is_domain(value):
        raise ValueError("not a domain")
    return value.lower()


def _unique(values: list[Any]) -> list[Any]:
    fixed = [value for value in values if not (isinstance(value, Endpoint) and value.port == 0)]
    if len(set(fixed)) != len(fixed):
        raise ValueError("named twice")
    return values


SQLITE = "sqlite:///"
SERVER = re.compile(
    r"""
    (valkey|valkeys|redis|rediss)    # the last letter s: TLS
    (?: \+ (sentinel|cluster) )?
    :// ([^/@]+)                     # hosts with ports, commas between them; no user, no password
    (?: / ([^/]*) (?: / ([^/]*) )? )?
    """,
    re.VERBOSE,
)
SENTINEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")


@dataclass(frozen=True, slots=True)
class FileAddress:
    """A SQLite file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A Valkey or Redis server, the sentinels that know it by `master`, or some nodes of a cluster."""

    kind: Literal["single", "sentinel", "cluster"]
    tls: bool
    hosts: tuple[Endpoint, ...]
    master: str = ""
    database: int = 0

    def __str__(self) -> str:
        scheme = "valkeys" if self.tls else "valkey"
        if self.kind != "single":
            scheme += f"+{self.kind}"
        path = "".join(
            f"/{part}" for part in (self.master, "" if self.kind == "cluster" else self.database) if part != ""
        )
        return f"{scheme}://{','.join(map(str, self.hosts))}{path}"


StoreAddress = FileAddress | ServerAddress


def _store_address(value: object) -> StoreAddress:
    """Read `sqlite:////path`, `valkey://host:port/0`, `valkey+sentinel://hosts/name/0` or `valkey+cluster://hosts`."""
    if not isinstance(value, str):
        raise ValueError("not text")
    if value.startswith(SQLITE):
        # Three slashes are the scheme's; the fourth begins the absolute path.
        path = value.removeprefix(SQLITE)
        if not path.startswith("/") or path.endswith("/") or any(mark in path for mark in "\0?#"):
            raise ValueError("not sqlite:////path")
        return FileAddress(Path(path))
    match = SERVER.fullmatch(value)
    if match is None:
        raise ValueError("not a store's address")
    scheme, kind, hosts, first, second = match.groups()
    tls = scheme in ("valkeys", "rediss")
    endpoints = tuple(_backend(host) for host in hosts.split(","))
    if kind == "sentinel":
        if not SENTINEL_NAME.fullmatch(first or ""):
            raise ValueError("no master name")
        return ServerAddress("sentinel", tls, endpoints, first, _database(second))
    if second is not None or (kind == "cluster" and first) or (kind is None and len(endpoints) > 1):
        raise ValueError("too many parts")
    if kind == "cluster":
        return ServerAddress("cluster", tls, endpoints)
    return ServerAddress("single", tls, endpoints, database=_database(first))


def _database(value: str | None) -> int:
    if value and not (value.isascii() and value.isdigit() and len(value) <= 5):
        raise ValueError("not a database number")
    return int(value or 0)


def _nameserver(value: object) -> Endpoint:
    if isinstance(value, str) and not value.startswith("[") and value.count(":") != 1:
        return Endpoint(str(ip_address(value)), 53)
    endpoint = _endpoint(value, names=False)
    if endpoint.port == 0:
        raise ValueError("port 0")
    return endpoint


Network = IPv4Network | IPv6Network
MAPPED = IPv6Network("::ffff:0:0/96")  # all of IPv4, written in IPv6


def _trusted_network(value: object) -> Network:
    if not isinstance(value, str):
        raise ValueError("not text")
    network = ip_network(value)
    # Who may say for whom he speaks can't be everybody.
    if network.prefixlen == 0 or (network.version == 6 and network.supernet_of(MAPPED)):
        raise ValueError("everybody")
    return network


def _capability_words(words: list[str]) -> list[str]:
    Capabilities.configured(words)
    if len({word.split(" ")[0].upper() for word in words}) != len(words):
        raise ValueError("named twice")
    return words


def _absolute(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError("not an absolute path")
    return Path(value)


def _optional_path(value: object) -> Path | None:
    return None if value == "" else _absolute(value)


def _socket_path(value: object) -> Path | Literal["off"] | None:
    return "off" if value == "off" else _optional_path(value)


def _reply_text(value: str) -> str:
    if not (value.isascii() and value.isprintable() and len(value) <= 400 and "{id}" in value):
        raise ValueError("not a reply")
    if re.search(r"[{}]", value.replace("{id}", "").replace("{seconds}", "")):
        raise ValueError("an unknown placeholder")
    return value


class DnsList(NamedTuple):
    """A DNS allow-list (RFC 5782), and the answers that count: for each octet the numbers that it may be."""

    zone: str
    octets: tuple[frozenset[int], ...]

    def __str__(self) -> str:
        return self.zone


def _dns_list(value: object) -> DnsList:
    """Read `zone=d.d.d.d`, where d is a number or `[1;3;5..9]`, as Postfix's postscreen_dnsbl_sites has it."""
    zone, equals, pattern = value.partition("=") if isinstance(value, str) else ("", "", "")
    fields = re.findall(r"\[[0-9.;]+\]|[0-9]+", pattern)
    if not equals or not is_domain(zone) or len(fields) != 4 or ".".join(fields) != pattern:
        raise ValueError("not zone=d.d.d.d")
    octets = tuple(frozenset(_octets(field.strip("[]"))) for field in fields)
    if octets[0] != {127}:
        raise ValueError("not 127.d.d.d")
    return DnsList(zone.lower(), octets)


def _octets(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(";"):
        first, dots, last = part.partition("..")
        low, high = int(first), int(last if dots else first)
        if not low <= high <= 255:
            raise ValueError("not an octet")
        numbers += range(low, high + 1)
    return numbers


CapabilityWords = Annotated[list[str], AfterValidator(_capability_words)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(_size)]
Domain = Annotated[str, AfterValidator(_domain)]
Listeners = Annotated[list[Annotated[Endpoint, PlainValidator(_listener)]], AfterValidator(_unique)]
OptionalListener = Annotated[Endpoint | None, PlainValidator(_optional_listener)]
Backends = Annotated[list[Annotated[Endpoint, PlainValidator(_backend)]], AfterValidator(_unique)]
Nameservers = Annotated[list[Annotated[Endpoint, PlainValidator(_nameserver)]], AfterValidator(_unique)]
Networks = Annotated[list[Annotated[Network, PlainValidator(_trusted_network)]], AfterValidator(_unique)]
StoreUrl = Annotated[StoreAddress, PlainValidator(_store_address)]
AbsolutePath = Annotated[Path, PlainValidator(_absolute)]
OptionalPath = Annotated[Path | None, PlainValidator(_optional_path)]
SocketPath = Annotated[Path | Literal["off"] | None, PlainValidator(_socket_path)]
ReplyText = Annotated[str, AfterValidator(_reply_text)]
DnsLists = Annotated[list[Annotated[DnsList, PlainValidator(_dns_list)]], AfterValidator(_unique)]
