# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all sessions of a process share; `greylist_proxy.services` makes it of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from greylist_proxy.client import Identifier
from greylist_proxy.gate import Gate
from greylist_proxy.log import Log
from greylist_proxy.metrics.counts import blank
from greylist_proxy.metrics.table import Cells
from greylist_proxy.smtp.events import Limits, Offers
from greylist_proxy.smtp.limits import Connections, Prevalence
from greylist_proxy.smtp.pool import Backends
from greylist_proxy.smtp.recipients import Acceptance
from greylist_proxy.smtp.settings import SessionSettings
from greylist_proxy.smtp.tarpit import Tarpit
from greylist_proxy.smtp.tls import Tls
from greylist_proxy.smtp.turns import Shares
from greylist_proxy.smtp.verification import Harvesters, Verifier
from greylist_proxy.tasks import Tasks

# Sessions that may hold a backend connection for a recipient which will be deferred at DATA.
MAX_CALLOUTS = 20
MAX_CALLOUTS_PER_CLIENT = 5  # of these


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
    verifier: Verifier = field(default_factory=Verifier)
    harvesters: Harvesters = field(default_factory=Harvesters)
    shares: Shares = field(default_factory=lambda: Shares(25))  # each client's of the connections to backends
    callouts: Shares = field(default_factory=lambda: Shares(MAX_CALLOUTS_PER_CLIENT))
    cells: Cells = field(default_factory=blank)  # where sessions count
