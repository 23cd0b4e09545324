# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One transaction, from MAIL to the end of data: what each recipient is told, and why. (Skeleton.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from greylist_proxy.client import Client, Identifier
from greylist_proxy.gate import Gate
from greylist_proxy.log import Log
from greylist_proxy.smtp.events import Limits, Offers
from greylist_proxy.smtp.limits import Connections, Prevalence
from greylist_proxy.smtp.recipients import Acceptance
from greylist_proxy.smtp.replies import Reply
from greylist_proxy.smtp.settings import SessionSettings
from greylist_proxy.smtp.tarpit import Tarpit
from greylist_proxy.smtp.tls import Tls
from greylist_proxy.smtp.verification import Harvesters
from greylist_proxy.tasks import Tasks

if TYPE_CHECKING:
    from greylist_proxy.smtp.capabilities import Capabilities
    from greylist_proxy.smtp.parameters import Parameter
    from greylist_proxy.smtp.pool import Backends
    from greylist_proxy.smtp.protocol import Hello, Mail
    from greylist_proxy.smtp.relay import Flow


@dataclass
class Services:
    """What every session shares. A reload replaces single fields; sessions read them each time."""

    hostname: str
    acceptance: Acceptance
    ipv4_prefix: int
    ipv6_prefix: int
    greylisted_reply: str  # with {seconds} and {id}
    identifier: Identifier
    backends: Backends
    gate: Gate
    log: Log
    tasks: Tasks
    tarpit: Tarpit
    offers: Offers
    connections: Connections
    limits: Limits = field(default_factory=Limits)
    settings: SessionSettings = field(default_factory=SessionSettings)
    tls: Tls = field(default_factory=Tls)
    prevalence: Prevalence = field(default_factory=Prevalence)
    max_recipients: int = 1000  # a transaction
    verify_recipient_first: bool = False
    harvesters: Harvesters = field(default_factory=Harvesters)
    callouts: int = 0  # how many of MAX_CALLOUTS are taken


class Visitor(NamedTuple):
    """Who is connected, and how."""

    client: Client
    port: int
    local_address: str
    local_port: int
    tls: str = ""  # version and cipher, such as "TLSv1.3 TLS_AES_256_GCM_SHA384"; "": in clear
    early: bool = False  # it talked before the banner


class Transaction:
    """`promised` is what the EHLO reply told this client that it may use (None: no backend was known then)."""

    def __init__(
        self,
        services: Services,
        visitor: Visitor,
        hello: Hello,
        mail: Mail,
        flow: Flow,
        promised: Capabilities | None,
    ) -> None:
        self.is_trapped = False  # this client mails spam traps
        self.slow = visitor.early  # its refusals are to go out byte by byte: trapped, blocked, or an early talker

    async def rcpt(self, address: str, parameters: Sequence[Parameter]) -> Reply:
        """Answer RCPT TO:<address>."""
        raise NotImplementedError

    async def data(self) -> Reply:
        """Answer DATA: 354 means that the message may come; 503 keeps the transaction; anything else ends it."""
        raise NotImplementedError

    def write(self, piece: bytes) -> None:
        """Pass a piece of the message on, dot-stuffed as it came."""
        raise NotImplementedError

    async def commit(self) -> Reply:
        """End the message at the backend and return its word. To be run as a task of its own: the client may leave."""
        raise NotImplementedError

    def fail(self) -> None:
        """Go on as with a backend that was lost: something unexpected happened, nothing here is sure any more."""
        raise NotImplementedError

    def abandon(self, outcome: str, reply: Reply | None = None) -> None:
        """End the transaction without a message; a message that is under way never gets its final dot."""
        raise NotImplementedError
