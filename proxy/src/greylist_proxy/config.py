# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: TOML, checked as a whole before anything starts.

Each key's `description` is what an error says is allowed, so the two can't drift apart. All errors are found
at once and given one line each: file, key, value, what is allowed. Unknown keys are errors: a misspelt
`dealy` must not leave somebody with a default that he did not choose.
"""

from __future__ import annotations

import json
import re
import socket
import tomllib
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from greylist_proxy.policy import Rules
from greylist_proxy.smtp.address import is_domain

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
SQLITE = "sqlite:///"
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
MAX_FILE_SIZE = 1 << 20  # no configuration is larger; /dev/zero is


class ConfigError(Exception):
    """The configuration can't be used; `lines` has one sentence for each thing that is wrong."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


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


def _duration(value: object) -> float:
    return float(_with_unit(value, DURATION_UNITS))


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


def _sqlite_path(value: object) -> Path:
    # Three slashes are the scheme's; the fourth begins the absolute path.
    path = value.removeprefix(SQLITE) if isinstance(value, str) and value.startswith(SQLITE) else ""
    if not path.startswith("/") or path.endswith("/") or "\0" in path or "?" in path or "#" in path:
        raise ValueError("not sqlite:////path")
    return Path(path)


Duration = Annotated[float, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]
Domain = Annotated[str, AfterValidator(_domain)]
Listeners = Annotated[list[Annotated[Endpoint, PlainValidator(_listener)]], AfterValidator(_unique)]
Backends = Annotated[list[Annotated[Endpoint, PlainValidator(_backend)]], AfterValidator(_unique)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SmtpSection(_Section):
    """`[smtp]`: the side that clients talk to."""

    listen: Listeners = Field(
        default=[Endpoint("0.0.0.0", 25), Endpoint("::", 25)],  # noqa: S104 - mail comes from everywhere
        min_length=1,
        description='a list of IP addresses with ports, such as ["0.0.0.0:25", "[::]:25"], each once',
    )
    hostname: Domain = Field(
        default_factory=socket.getfqdn,
        validate_default=True,
        description="this host's name in the DNS, such as mx1.example.org (default: the system's own)",
    )
    max_message_size: Size = Field(
        default=35 << 20,
        ge=1 << 16,  # RFC 5321 section 4.5.3.1.7
        le=1 << 30,
        description="a size such as 35MiB (B, KiB, MiB, GiB) or a number of bytes, from 64KiB to 1GiB",
    )


class BackendSection(_Section):
    """`[backend]`: the mail server behind, and whose mail it takes."""

    hosts: Backends = Field(
        min_length=1,
        description='a list of hosts with ports, such as ["mail01.example.org:25"], each once, tried in order',
    )
    domains: list[Domain] = Field(
        min_length=1,
        description='a list of mail domains, such as ["example.org"], international ones in their xn-- form',
    )


class GreylistSection(_Section):
    """`[greylist]`: the settings of the decision, in seconds."""

    delay: Duration = Field(
        default=60, ge=0, le=86400, description="a duration such as 90s, 5m, 24h or seconds, from 0s to 24h"
    )
    retry_window: Duration = Field(
        default=48 * 3600,
        gt=0,
        le=30 * 86400,
        description="a duration such as 90s, 48h, 2d or seconds, longer than delay, to 30d",
    )
    lifetime: Duration = Field(
        default=36 * 86400,
        gt=0,
        le=400 * 86400,
        description="a duration such as 24h, 36d or seconds, from retry_window to 400d",
    )
    ipv4_prefix: int = Field(default=24, ge=8, le=32, description="a whole number of bits, from 8 to 32")
    ipv6_prefix: int = Field(default=64, ge=16, le=128, description="a whole number of bits, from 16 to 128")

    @model_validator(mode="after")
    def _in_order(self) -> GreylistSection:
        if self.retry_window <= self.delay:
            raise ValueError("retry_window", f"longer than delay ({self.delay:g} seconds)")
        if self.lifetime < self.retry_window:
            raise ValueError("lifetime", f"at least retry_window ({self.retry_window:g} seconds)")
        return self

    @property
    def rules(self) -> Rules:
        """The settings as the decision wants them."""
        return Rules(self.delay, self.retry_window, self.lifetime)


class StoreSection(_Section):
    """`[store]`: where triplets are remembered."""

    url: Annotated[Path, PlainValidator(_sqlite_path)] = Field(
        default=Path("/var/lib/greylist-proxy/greylist.db"),
        description="sqlite:/// and an absolute path, such as sqlite:////var/lib/greylist-proxy/greylist.db",
    )
    on_failure: Literal["accept", "defer"] = Field(
        default="accept", description='"accept" (mail goes on ungreylisted) or "defer"'
    )


class Config(_Section):
    """The whole file."""

    smtp: SmtpSection
    backend: BackendSection
    greylist: GreylistSection
    store: StoreSection

    @model_validator(mode="after")
    def _no_loop(self) -> Config:
        for host in self.backend.hosts:
            if any(_is_reached_by(host, listener) for listener in self.smtp.listen):
                raise ValueError("backend.hosts", f"a mail server, not this proxy's own listener {host}")
        return self


def _is_reached_by(host: Endpoint, listener: Endpoint) -> bool:
    if host.port != listener.port:
        return False
    # A wildcard listens on loopback too. Which other addresses are ours is not known here.
    return host.host == listener.host or (listener.host in WILDCARDS and host.host in ("localhost", "127.0.0.1", "::1"))


def load(path: Path) -> Config:
    """Read and check the file. ConfigError: one line for each thing that is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_SIZE + 1)
        if len(text) > MAX_FILE_SIZE:
            raise ConfigError([f"{path}: larger than {MAX_FILE_SIZE} bytes, which no configuration is"])
        data = tomllib.loads(text.decode())
    except OSError as error:
        raise ConfigError([f"{path}: can't be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from error
    try:
        # A section that is left out is an empty one: its defaults are checked, its required keys missed.
        return Config.model_validate({name: {} for name in Config.model_fields} | data)
    except ValidationError as error:
        lines = [f"{path}: {_explain(detail, data)}" for detail in error.errors(include_url=False)]
        raise ConfigError(list(dict.fromkeys(lines))) from error


def advice(config: Config) -> list[str]:
    """Return a sentence for each value that works, but is outside what RFC 6647 section 5 advises."""
    greylist = config.greylist
    sentences = []
    if greylist.delay < 60:
        sentences.append(f"greylist.delay is {greylist.delay:g}s, RFC 6647 section 5.2 advises 60s or more")
    if greylist.lifetime < 7 * 86400:
        sentences.append(f"greylist.lifetime is {greylist.lifetime:g}s, RFC 6647 section 5.3 advises 7d or more")
    return sentences


def _explain(detail: ErrorDetails, data: object) -> str:
    """Say in one line what pydantic found: key, value (as the file has it), what is allowed."""
    location = [str(part) for part in detail["loc"] if not isinstance(part, int)]
    value = _written(data, detail)
    key = _json(".".join(location))[1:-1]
    if detail["type"] == "extra_forbidden":
        section = _section(location[:-1])
        kind = "key" if len(location) > 1 else "section"
        return f"{key}: unknown {kind}; known here: {', '.join(section.model_fields)}"
    if detail["type"] == "model_type":
        keys = ", ".join(_section(location).model_fields)
        return f"{key} = {_json(value)}: allowed is a section with the keys {keys}"
    if detail["type"] == "value_error" and len(location) < 2:
        # A rule between keys (the validators above): its arguments are the key and what is allowed.
        name, allowed = detail["ctx"]["error"].args
        section_value = value if isinstance(value, dict) else {}
        given = f" = {_json(section_value[name])}" if name in section_value else ""
        return f"{'.'.join([*location, name])}{given}: allowed is {allowed}"
    allowed = _section(location[:-1]).model_fields[location[-1]].description
    if detail["type"] == "missing":
        return f"{key}: is missing; allowed is {allowed}"
    return f"{key} = {_json(value)}: allowed is {allowed}"


def _section(location: list[str]) -> type[BaseModel]:
    annotation = Config.model_fields[location[0]].annotation if location else Config
    return cast("type[BaseModel]", annotation)


def _written(data: Any, detail: ErrorDetails) -> object:
    """Find the value in the file: pydantic may tell of what a validator made of it."""
    for part in detail["loc"]:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return detail["input"]
    return data


def _json(value: object) -> str:
    # JSON in ASCII: one line, and nothing that a terminal obeys, whatever was in the file.
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
