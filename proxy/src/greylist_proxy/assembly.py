# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What decides, put together from the configuration: for the server, and for commands that ask what it would do."""

from __future__ import annotations

from dataclasses import dataclass

from greylist_proxy.client import Identifier
from greylist_proxy.config import Config
from greylist_proxy.exemptions import Exemptions
from greylist_proxy.gate import Gate
from greylist_proxy.log import Log
from greylist_proxy.metrics.table import Cells
from greylist_proxy.resolver import Resolver
from greylist_proxy.spf import SpfChecker
from greylist_proxy.store import Store
from greylist_proxy.tasks import Tasks


@dataclass(frozen=True)
class Judgement:
    """The parts, from the client's identity to the verdict."""

    resolver: Resolver
    identifier: Identifier
    exemptions: Exemptions
    gate: Gate

    async def close(self) -> None:
        """Let go of sockets and of the store, after everything that was asked of it."""
        await self.gate.close()
        await self.resolver.close()


def assemble(config: Config, store: Store, log: Log, tasks: Tasks, cells: Cells | None = None) -> Judgement:
    """Build the parts; `cells` is where is counted what they do. ListError: a list can't be read."""
    dns = config.dns
    resolver = Resolver(dns.servers, dns.timeout, dns.max_in_flight, dns.cache_size)
    exemptions = Exemptions(config.allow, config.trap, resolver)
    gate = Gate(
        store,
        exemptions,
        config.greylist.rules,
        config.store.on_failure,
        log,
        tasks,
        trap_block=config.trap.block,
        cells=cells,
    )
    identifier = Identifier(resolver, SpfChecker(resolver, dns.timeout), config.greylist.client_key, dns.timeout, log)
    return Judgement(resolver, identifier, exemptions, gate)
