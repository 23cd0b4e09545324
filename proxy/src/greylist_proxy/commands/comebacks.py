# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many of the deferred came back, and after how long: what greylisting holds off, and what it costs.

One *delivery* is what a client's network tries from a sender to a recipient, from its first deferral in the log to
its first retry that passed. A pool of addresses that SPF or a name vouches for (`spf:DOMAIN`, `ptr:DOMAIN`) is one
client: where its retry passed under that key, its attempts from all networks are one delivery.

Only greylisting counts: what a trap or a failed store put off says nothing about it. Who was deferred a moment ago may
yet come back, so the share is a little too low, and in mode `observe`, where nobody is deferred, there is none.

The log is read from its end, once, with a number for each delivery instead of its addresses: a million decisions
take 200 MB at most. That two deliveries get the same 64-bit number does not happen.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from greylist_proxy.policy import Reason, Verdict
from greylist_proxy.store import Logged

DEFERRED = frozenset({Reason.NEW, Reason.EARLY, Reason.PENDING_CAP, Reason.TRANSACTION})
CAME_BACK = frozenset({Reason.RETRIED, Reason.TRANSACTION})


@dataclass(frozen=True, slots=True)
class Result:
    """How many deliveries were deferred, how many of these came back, and the median time to it in seconds."""

    deferred: int
    came_back: int
    median: float | None


class Comebacks:
    """Reads decisions, the newest first."""

    def __init__(self) -> None:
        self._deferrals: dict[int, tuple[int, float]] = {}  # by network: the mail, the earliest deferral so far
        self._by_network: dict[int, float] = {}  # the earliest pass so far
        self._by_domain: dict[int, float] = {}  # the same, by mail, where a domain's key passed

    def add(self, logged: Logged) -> None:
        """Take the next older decision."""
        mail = hash((logged.sender, logged.recipient))
        if logged.verdict == Verdict.DEFER and logged.reason in DEFERRED:
            self._deferrals[hash((logged.network, mail))] = (mail, logged.time)
        elif logged.verdict == Verdict.ALLOW and logged.reason in CAME_BACK:
            if logged.key.startswith(("spf:", "ptr:")):
                self._by_domain[mail] = logged.time
            else:
                self._by_network[hash((logged.network, mail))] = logged.time

    def result(self) -> Result:
        """Return what it comes to."""
        deferred = 0
        waits: list[float] = []
        pools: dict[int, float] = {}  # the first deferral of a mail that a pool came back with
        for delivery, (mail, first) in self._deferrals.items():
            if self._by_domain.get(mail, 0.0) > first:
                pools[mail] = min(first, pools.get(mail, first))
                continue
            deferred += 1
            if (passed := self._by_network.get(delivery, 0.0)) > first:
                waits.append(passed - first)
        waits += [self._by_domain[mail] - first for mail, first in pools.items()]
        return Result(deferred + len(pools), len(waits), statistics.median(waits) if waits else None)
