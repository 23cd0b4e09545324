# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was measured of the SMTP side, what it is compared with, and whether that is good enough. Pure.

Speeds are compared within a round, in which every server had its turn, and the median of the rounds' ratios counts: a
machine that is slow for a while is slow for all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Turn:
    """One server's turn in one round. `amount`: sessions, messages or bytes; seconds of the clock and of its CPU."""

    amount: float
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """How many a second."""
        return self.amount / self.seconds

    @property
    def cpu_each(self) -> float:
        """Microseconds of the server's CPU for each."""
        return self.cpu / self.amount * 1e6


@dataclass(frozen=True)
class Row:
    """A server's turns, one a round."""

    name: str
    turns: Sequence[Turn]

    @property
    def rate(self) -> float:
        """The median of how many a second."""
        return statistics.median(turn.rate for turn in self.turns)

    @property
    def cpu_each(self) -> float:
        """The median of the microseconds of CPU for each."""
        return statistics.median(turn.cpu_each for turn in self.turns)

    def rate_of(self, other: Row) -> float:
        """How many times as fast as another."""
        return statistics.median(a.rate / b.rate for a, b in zip(self.turns, other.turns, strict=True))

    def cpu_of(self, other: Row) -> float:
        """How many times the other's CPU it takes for each."""
        return statistics.median(a.cpu_each / b.cpu_each for a, b in zip(self.turns, other.turns, strict=True))


@dataclass(frozen=True)
class Target:
    """What a figure is to reach, and what is hoped for; `more`: greater is better."""

    key: str
    what: str
    to_reach: float | None
    goal: float | None
    more: bool
    unit: str = ""

    def relaxed(self, by: float) -> Target:
        """Make it easier by a factor, for machines on which others work."""
        if self.to_reach is None:
            return self
        return replace(self, to_reach=self.to_reach / by if self.more else self.to_reach * by)

    def reached(self, value: float) -> bool:
        """Tell whether a value is good enough."""
        return self._is_met(value, self.to_reach)

    def at_goal(self, value: float) -> bool:
        """Tell whether it is as good as hoped for."""
        return self.goal is not None and self._is_met(value, self.goal)

    def shown(self, value: float | None) -> str:
        """Write a value."""
        return "-" if value is None else f"{value:.3g} {self.unit}".rstrip()

    def _is_met(self, value: float, bound: float | None) -> bool:
        return bound is None or (value >= bound if self.more else value <= bound)


TARGETS = (
    Target("rate_of_stock", "deferred sessions a second, times stock aiosmtpd", 3.5, None, more=True),
    Target("rate_of_bare", "    as a share of the bare line protocol", None, 0.85, more=True),
    Target("cpu_of_stock", "server CPU a deferred session, as a share of stock's", 0.25, 0.143, more=False),
    Target("relay", "10 kB messages a second relayed, as a share of direct", 0.4, 0.6, more=True),
    Target("relay_kept", "    with many messages in a session", None, 0.4, more=True),
    Target("large", "25 MB messages, MB/s as a share of direct", 0.5, 0.9, more=True),
    Target("stuck", "memory a message with the backend stuck", 256, 64, more=False, unit="KiB"),
    Target("idle", "an idle session in clear", 4, 2, more=False, unit="KiB"),
    Target("idle_tls", "an idle session under TLS", 64, 48, more=False, unit="KiB"),
)


def judge(values: Mapping[str, float], targets: Sequence[Target] = TARGETS) -> list[str]:
    """Return sentences about what is not reached; what was not measured is not judged."""
    return [
        f"{target.what.strip()}: {target.shown(values[target.key])}, and to reach is {target.shown(target.to_reach)}"
        for target in targets
        if target.key in values and not target.reached(values[target.key])
    ]


def verdicts(values: Mapping[str, float], targets: Sequence[Target] = TARGETS) -> str:
    """All targets as a table."""
    rows = [["", "measured", "to reach", "goal", ""]]
    for target in targets:
        if (value := values.get(target.key)) is not None:
            word = "MISSED" if not target.reached(value) else "goal" if target.at_goal(value) else "reached"
            if target.to_reach is None and word == "reached":
                word = "below the goal"
            rows.append([target.what, *map(target.shown, (value, target.to_reach, target.goal)), word])
    return table(rows)


def rates(rows: Sequence[Row], unit: str, scale: float, others: Sequence[Row]) -> str:
    """The rows of one kind as a table: the rate in `unit` (an amount of `scale`), CPU, both compared with `others`."""
    heads = [
        "",
        f"{unit}/s",
        f"CPU µs/{unit}",
        *(f"{word} {row.name}" for row in others for word in ("rate of", "CPU")),
    ]
    lines = [heads]
    for row in rows:
        ratios = [f"{ratio:.2f}" for other in others for ratio in (row.rate_of(other), row.cpu_of(other))]
        lines.append([row.name, f"{row.rate / scale:,.0f}", f"{row.cpu_each * scale:,.0f}", *ratios])
    return table(lines)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words in columns: the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )
