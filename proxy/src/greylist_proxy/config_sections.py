# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sections of the configuration file: each key with its default, its range, and the words for what is allowed.

A key's `description` is what an error says is allowed, so the two can't drift apart. A rule between keys raises
ValueError(key, what is allowed).
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from greylist_proxy.config_values import (
    AbsolutePath,
    Backends,
    CapabilityWords,
    DnsLists,
    Domain,
    Duration,
    Endpoint,
    FileAddress,
    Listeners,
    Nameservers,
    Networks,
    OptionalListener,
    OptionalPath,
    ReplyText,
    Size,
    SocketPath,
    StoreUrl,
)
from greylist_proxy.policy import Mode, Rules


class Section(BaseModel):
    """What all sections share: unknown keys are errors, nothing is converted, nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SmtpSection(Section):
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
    proxy_protocol_from: Networks = Field(
        default=[],
        description='a list of networks that send a PROXY header, such as ["192.0.2.0/28", "2001:db8::7"], none of '
        "them a /0: its header is believed",
    )
    tls_certificate: OptionalPath = Field(
        default=None, description="the absolute path of a PEM file with the certificate and its chain, or empty"
    )
    tls_key: OptionalPath = Field(
        default=None, description="the absolute path of a PEM file with the certificate's key, or empty"
    )
    max_message_size: Size = Field(
        default=35 << 20,
        ge=1 << 16,  # RFC 5321 section 4.5.3.1.7
        le=1 << 30,
        description="a size such as 35MiB (B, KiB, MiB, GiB) or a number of bytes, from 64KiB to 1GiB",
    )
    max_connections: int = Field(
        default=5000, ge=1, le=1_000_000, description="a whole number of connections, from 1 to 1000000"
    )
    max_connections_per_client: int = Field(
        default=50, ge=1, le=1_000_000, description="a whole number of connections, from 1 to 1000000"
    )
    workers: int = Field(
        default=1, ge=0, le=256, description="a whole number of processes, from 1 to 256, or 0: one a CPU"
    )
    max_recipients: int = Field(
        default=1000, ge=1, le=100_000, description="a whole number of recipients of a message, from 1 to 100000"
    )
    command_timeout: Duration = Field(
        default=300, ge=0.1, le=3600, description="a duration such as 5m or seconds, from 0.1 to 1h"
    )
    data_timeout: Duration = Field(
        default=180, ge=0.1, le=3600, description="a duration such as 3m or seconds, from 0.1 to 1h"
    )
    session_timeout: Duration = Field(
        default=3600,
        ge=0.1,
        le=86400,
        description="a duration such as 1h or seconds, longer than command_timeout and data_timeout, to 24h",
    )
    min_data_rate: int = Field(
        default=100, ge=0, le=1_000_000, description="a whole number of bytes a second, from 0 (any) to 1000000"
    )
    bare_line_ends: Literal["normalise", "refuse"] = Field(
        default="normalise", description='"normalise" (a CR or LF alone becomes CRLF) or "refuse"'
    )
    max_header_size: Size = Field(
        default=1 << 20,
        ge=1 << 12,
        le=1 << 26,
        description="a size such as 1MiB or a number of bytes, from 4KiB to 64MiB",
    )
    max_hops: int = Field(default=50, ge=10, le=1000, description="a whole number of Received fields, from 10 to 1000")
    receive_buffer: Size = Field(
        default=1 << 16,
        ge=0,
        le=1 << 26,
        description="a size such as 64KiB or a number of bytes, to 64MiB, or 0: as the system has it",
    )

    @model_validator(mode="after")
    def _in_accord(self) -> SmtpSection:
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing, given = ("tls_key", "tls_certificate") if self.tls_certificate else ("tls_certificate", "tls_key")
            raise ValueError(missing, f"a file where {given} is one: both or neither")
        if self.session_timeout <= max(self.command_timeout, self.data_timeout):
            raise ValueError(
                "session_timeout",
                f"longer than command_timeout ({self.command_timeout:g} seconds) and data_timeout "
                f"({self.data_timeout:g} seconds)",
            )
        return self


class BackendSection(Section):
    """`[backend]`: the mail server behind, and whose mail it takes."""

    hosts: Backends = Field(
        min_length=1,
        description='a list of hosts with ports, such as ["mail01.example.org:25"], each once, tried in order',
    )
    domains: list[Domain] = Field(
        min_length=1,
        description='a list of mail domains, such as ["example.org"], international ones in their xn-- form',
    )
    unknown_domain: Literal["reject", "defer"] = Field(
        default="reject", description='"reject" (550) or "defer" (450, for the days of a cutover)'
    )
    recipients: OptionalPath = Field(
        default=None,
        description="the absolute path of a file with all recipients that there are, one address or @domain a line, "
        "or empty",
    )
    verify_recipient_first: bool = Field(
        default=False, description="true (the mail server is asked for a recipient before it is greylisted) or false"
    )
    send_client_address: Literal["none", "xclient", "proxy-v1", "proxy-v2"] = Field(
        default="none", description='"none", "xclient", "proxy-v1" or "proxy-v2"'
    )
    starttls: Literal["never", "opportunistic", "required", "verify"] = Field(
        default="opportunistic",
        description='"never", "opportunistic", "required" or "verify" (required, and the certificate is checked)',
    )
    ca_file: OptionalPath = Field(
        default=None,
        description="the absolute path of a file with the authorities that may sign the mail servers' certificates, "
        "or empty: the system's own",
    )
    capabilities: CapabilityWords = Field(
        default=[],
        description="a list of what the mail servers are known to offer, each once, of SIZE (with or without a "
        'number), 8BITMIME, SMTPUTF8, DSN, ENHANCEDSTATUSCODES and PIPELINING, such as ["SIZE 36700160", "8BITMIME"], '
        "or empty: they are asked",
    )
    max_connections: int = Field(
        default=100, ge=1, le=100_000, description="a whole number of connections to a host, from 1 to 100000"
    )
    max_connections_per_client: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="a whole number of connections, from 1 to 100000, or 0 (a quarter of max_connections)",
    )
    idle_connections: int = Field(
        default=20,
        ge=0,
        le=100_000,
        description="a whole number of connections to a host, from 0 (keep none) to 100000",
    )
    idle_timeout: Duration = Field(
        default=60, gt=0, le=3600, description="a duration such as 60s or seconds, over 0s, to 1h"
    )


class GreylistSection(Section):
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


class AllowSection(Section):
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


class TrapSection(Section):
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


class DnsSection(Section):
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


class StoreSection(Section):
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
    sentinel_username: str = Field(
        default="", max_length=255, description="the name of a user of the sentinels, or empty"
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


class TarpitSection(Section):
    """`[tarpit]`: how long refused clients wait, and all of them before they are greeted."""

    seconds: Duration = Field(
        default=0,
        ge=0,
        le=120,
        description="a duration such as 5s or seconds, from 0 (off) to 120: no session waits more",
    )
    max_waiting: int = Field(
        default=2000, ge=0, le=1_000_000, description="a whole number of sessions, below smtp.max_connections"
    )
    greet_delay: Duration = Field(
        default=0, ge=0, le=60, description="a duration such as 2s or seconds, from 0s (greet at once) to 60s"
    )


class AdminSection(Section):
    """`[admin]`: health and metrics over HTTP, and the socket that the proxy is controlled by."""

    listen: OptionalListener = Field(
        default=Endpoint("127.0.0.1", 8025),
        description="an IP address with a port, such as 127.0.0.1:8025, one beyond this host only with token_file, or "
        "empty: none",
    )
    socket: SocketPath = Field(
        default=None,
        description='the absolute path of a Unix socket, or "off", or empty: control.sock in the folder that systemd '
        "has made, else beside the SQLite file, else none",
    )
    token_file: OptionalPath = Field(
        default=None,
        description="the absolute path of a file that holds the token that requests to listen must have, or empty",
    )

    @model_validator(mode="after")
    def _in_accord(self) -> AdminSection:
        if self.listen is not None and self.token_file is None and not ip_address(self.listen.host).is_loopback:
            raise ValueError("listen", "an address of this host alone, such as 127.0.0.1:8025, without token_file")
        return self
