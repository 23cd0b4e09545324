# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: TOML, checked as a whole before anything starts.

Each key's `description` is what an error says is allowed, so the two can't drift apart. All errors are found
at once and given one line each: file, key, value, what is allowed. Unknown keys are errors: a misspelt
`dealy` must not leave somebody with a default that he did not choose.
"""

from __future__ import annotations

import re
import socket
import tomllib
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from greylist_proxy.config_values import (
    AbsolutePath,
    Backends,
    DnsLists,
    Domain,
    Duration,
    Endpoint,
    FileAddress,
    Listeners,
    Nameservers,
    OptionalPath,
    ReplyText,
    Size,
    StoreUrl,
)
from greylist_proxy.log import json_line
from greylist_proxy.policy import Mode, Rules

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
PASSWORD = re.compile(r"://[^/@]*(?:@[^/@]*)*@")  # what must not be shown of an address
MAX_FILE_SIZE = 1 << 20  # no configuration is larger; /dev/zero is


class ConfigError(Exception):
    """The configuration can't be used; `lines` has one sentence for each thing that is wrong."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


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

    mode: Literal["enforce", "observe", "off"] = Field(
        default="enforce",
        description='"enforce", "observe" (log what would happen, let everything pass) or "off"',
    )
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
    client_key: Literal["spf", "ptr", "network"] = Field(
        default="spf",
        description='"spf" (the sender\'s domain where SPF vouches for the client, else its network), "ptr" (the '
        'domain of its forward-confirmed name, else its network) or "network"',
    )
    auto_allow_after: int = Field(
        default=5, ge=0, le=1000, description="a whole number of passed triplets, from 0 (never) to 1000"
    )
    max_pending_per_network: int = Field(
        default=1000, ge=10, le=1_000_000, description="a whole number of triplets, from 10 to 1000000"
    )
    reply: ReplyText = Field(
        default="Greylisted, try again in {seconds} seconds ({id})",
        description="one line of printable ASCII with {id} in it, and {seconds} where wanted, up to 400 characters",
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
        return Rules(
            delay=self.delay,
            retry_window=self.retry_window,
            lifetime=self.lifetime,
            auto_allow_after=self.auto_allow_after,
            max_pending=self.max_pending_per_network,
            mode=Mode(self.mode),
        )


class AllowSection(_Section):
    """`[allow]`: who is never greylisted, besides the entries that are made at run time."""

    client_files: list[AbsolutePath] = Field(
        default=[],
        description="a list of absolute paths: files in the format of postgrey's whitelist_clients, or a folder with "
        "files named whitelist_clients*",
    )
    recipient_files: list[AbsolutePath] = Field(
        default=[],
        description="a list of absolute paths: files in the format of postgrey's whitelist_recipients, or a folder "
        "with files named whitelist_recipients*",
    )
    well_known: bool = Field(
        default=True, description="true (senders known to retry badly are exempt, as the shipped list has it) or false"
    )
    dns_lists: DnsLists = Field(
        default=[],
        description="a list of DNS allow-lists with the answers that count, such as "
        '["list.dnswl.org=127.0.[0..255].[2..3]"]',
    )


class TrapSection(_Section):
    """`[trap]`: recipients that nobody writes to who means well."""

    recipient_files: list[AbsolutePath] = Field(
        default=[], description="a list of absolute paths: files with one address or domain a line"
    )
    block: Duration = Field(
        default=3600, ge=0, le=3600, description="a duration such as 30m or seconds, from 0s (do not block) to 1h"
    )
    tarpit: Duration = Field(
        default=10,
        ge=0,
        le=60,
        description="a duration such as 10s or seconds that each refusal of such a client waits, from 0s to 60s",
    )


class DnsSection(_Section):
    """`[dns]`: how clients are looked up."""

    servers: Nameservers = Field(
        default=[],
        description='a list of IP addresses, with ports where not 53, such as ["127.0.0.1", "[::1]:5353"]; none: the '
        "system's own",
    )
    timeout: Duration = Field(
        default=5, ge=0.1, le=30, description="a duration such as 5s or seconds for one client, from 0.1 to 30s"
    )
    max_in_flight: int = Field(default=500, ge=1, le=10_000, description="a whole number of queries, from 1 to 10000")
    cache_size: int = Field(
        default=50_000, ge=100, le=10_000_000, description="a whole number of answers, from 100 to 10000000"
    )


class StoreSection(_Section):
    """`[store]`: where triplets are remembered."""

    url: StoreUrl = Field(
        default=FileAddress(Path("/var/lib/greylist-proxy/greylist.db")),
        description="sqlite:/// and an absolute path, such as sqlite:////var/lib/greylist-proxy/greylist.db, or "
        "valkey://host:6379/0, valkey+sentinel://host:26379,host:26379/NAME/0, valkey+cluster://host:6379,host:6379 "
        "(valkeys for TLS; redis and rediss are the same), without a password: that goes into password_file",
    )
    on_failure: Literal["accept", "defer"] = Field(
        default="accept", description='"accept" (mail goes on ungreylisted) or "defer"'
    )
    timeout: Duration = Field(
        default=2, ge=0.05, le=30, description="a duration such as 2s or seconds, from 0.05 to 30s"
    )
    username: str = Field(default="", max_length=255, description="the name of a user of the Valkey server, or empty")
    password_file: OptionalPath = Field(
        default=None, description="the absolute path of a file that holds the Valkey password, or empty"
    )
    sentinel_password_file: OptionalPath = Field(
        default=None, description="the absolute path of a file that holds the sentinels' password, or empty"
    )
    ca_file: OptionalPath = Field(
        default=None,
        description="the absolute path of a file with the authorities that may sign the Valkey server's certificate, "
        "or empty: the system's own",
    )
    prefix: str = Field(
        default="greylist",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="up to 64 letters, digits, dots, hyphens or underscores that begin every key in Valkey",
    )
    decisions_lifetime: Duration = Field(
        default=7 * 86400,
        ge=0,
        le=400 * 86400,
        description="a duration such as 7d or seconds, from 0s (keep none) to 400d",
    )
    max_decisions: int = Field(
        default=1_000_000, ge=0, le=100_000_000, description="a whole number of decisions to keep, from 0 to 100000000"
    )


class Config(_Section):
    """The whole file."""

    smtp: SmtpSection
    backend: BackendSection
    greylist: GreylistSection
    allow: AllowSection
    trap: TrapSection
    dns: DnsSection
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
    text = PASSWORD.sub("://***@", json_line(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
