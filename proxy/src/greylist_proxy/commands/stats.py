# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`stats`: how much is remembered, what was decided lately, and how much of what was deferred came back."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

from greylist_proxy.commands import DONE, on_store
from greylist_proxy.commands.arguments import Commands, add_command
from greylist_proxy.commands.comebacks import Comebacks, Result
from greylist_proxy.commands.output import Column, local_time, show_fields, show_json, show_table, span
from greylist_proxy.commands.progress import Working
from greylist_proxy.config import Config
from greylist_proxy.lists.operator import count_entries
from greylist_proxy.moments import iso_time
from greylist_proxy.policy import Verdict
from greylist_proxy.store import Counts, Logged, Store, Wanted

DAY = 86400.0  # seconds
MAX_READ = 1_000_000  # decisions; the newest ones, so that memory and time have a bound
TOP = 10  # networks that are shown


@dataclass
class Day:
    """What was decided in the last 24 hours."""

    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)  # by verdict and reason
    would: Counter[str] = field(default_factory=Counter)  # the verdicts that mode `observe` did not carry out
    deferred_networks: Counter[str] = field(default_factory=Counter)

    def add(self, logged: Logged) -> None:
        """Count a decision."""
        self.verdicts[logged.verdict] += 1
        self.reasons[logged.verdict, logged.reason] += 1
        if logged.would:
            self.would[logged.would] += 1
        if logged.verdict == Verdict.DEFER:
            self.deferred_networks[logged.network] += 1

    def by_reason(self) -> list[tuple[str, str, int]]:
        """Return reason, verdict and number, the most frequent first."""
        counted = [(reason, verdict, number) for (verdict, reason), number in self.reasons.items()]
        return sorted(counted, key=lambda row: (-row[2], row[:2]))


@dataclass(frozen=True)
class Figures:
    """All that is shown."""

    counts: Counts
    entries: Counter[str]  # by kind, and for clients, senders and recipients by action: `client allow`
    day: Day
    comebacks: Result
    oldest: float | None  # of the decisions that `comebacks` is about


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "stats",
        "count what is remembered and what was decided; may take seconds with millions of triplets",
        on_store(run),
        "stats",
        "stats --json",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, times in UTC, durations in seconds")


async def run(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Gather and show."""
    async with Working("counting what is remembered"):
        counts = await store.counts()
    async with Working("counting entries") as work:
        entries = await count_entries(store.entries(), work.advance)
    day, comebacks, oldest = Day(), Comebacks(), None
    day_began = time.time() - DAY
    async with Working("reading decisions", min(counts.decisions, MAX_READ) or None) as work:
        async for logged in store.decisions(Wanted()):
            if logged.time >= day_began:
                day.add(logged)
            comebacks.add(logged)
            oldest = logged.time
            work.advance()
            if work.done == MAX_READ:
                break
    figures = Figures(counts, entries, day, comebacks.result(), oldest)
    if options.json:
        show_json(_as_json(figures))
    else:
        _show(figures)
    return DONE


def _as_json(figures: Figures) -> dict[str, object]:
    day, comebacks = figures.day, figures.comebacks
    return {
        "store": asdict(figures.counts),
        "entries": dict(figures.entries),
        "last_24h": {
            "verdicts": dict(day.verdicts),
            "would": dict(day.would),
            "reasons": [
                {"verdict": verdict, "reason": reason, "count": count} for reason, verdict, count in day.by_reason()
            ],
            "deferred_networks": [
                {"network": network, "count": count} for network, count in day.deferred_networks.most_common(TOP)
            ],
        },
        "deliveries": {
            "since": iso_time(figures.oldest),
            "deferred": comebacks.deferred,
            "came_back": comebacks.came_back,
            "median_seconds": None if comebacks.median is None else round(comebacks.median, 3),
        },
    }


def _show(figures: Figures) -> None:
    counts, day, comebacks = figures.counts, figures.day, figures.comebacks
    show_fields(
        [
            ("pending triplets", f"{counts.pending:,}"),
            ("known triplets", f"{counts.known:,}"),
            ("earners", f"{counts.earners:,}"),
            ("decisions", f"{counts.decisions:,}"),
            ("entries", f"{counts.entries:,}"),
            *((f"  {what}", f"{count:,}") for what, count in sorted(figures.entries.items())),
        ],
        "remembered",
    )
    print()
    if comebacks.deferred:
        share = f"{comebacks.came_back / comebacks.deferred:.1%} of {comebacks.deferred:,}"
        median = span(comebacks.median) if comebacks.median is not None else ""
        fields = [("came back", share), ("after (median)", median)]
        show_fields(fields, f"deferred deliveries since {local_time(figures.oldest)}")
    else:
        print("no deferred deliveries in the log")
    print()
    total = day.verdicts.total()
    if not total:
        print("no decisions in the last 24 hours")
        return
    show_fields(
        [(verdict, f"{count:,}  {count / total:.1%}") for verdict, count in sorted(day.verdicts.items())],
        f"{total:,} decisions in the last 24 hours",
    )
    if day.would:
        fields = [(verdict, f"{count:,}") for verdict, count in sorted(day.would.items())]
        show_fields(fields, "mode observe would have decided")
    print()
    reasons = (Column("reason", 0), Column("verdict", 1, coloured=True), Column("decisions", 2, right=True))
    show_table(reasons, [(reason, verdict, f"{count:,}") for reason, verdict, count in day.by_reason()])
    if day.deferred_networks:
        print()
        networks = (Column("network", 0), Column("deferrals", 1, right=True))
        show_table(networks, [(network, f"{count:,}") for network, count in day.deferred_networks.most_common(TOP)])
