# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs cost, how two ways compare, and whether that is good enough. Pure: figures in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What one run cost, over all hosts."""

    requests: int
    bytes: int  # in and out, as they were on the wire
    seconds: float  # of the clock
    client_cpu: float  # seconds of ansible-playbook and its workers
    lab_cpu: float  # seconds of the lab, which stands for the hosts: within `seconds`, not within `client_cpu`


@dataclass(frozen=True)
class Targets:
    """How many times less we must cost than the peer, in each run."""

    requests: float
    bytes: float


@dataclass(frozen=True)
class Comparison:
    """One run, both ways."""

    name: str
    ours: Cost
    peer: Cost

    def ratio(self, figure: str) -> float:
        """How many times more the peer costs."""
        ours, peer = float(getattr(self.ours, figure)), float(getattr(self.peer, figure))
        return peer / ours if ours else 0.0

    def ratios(self) -> dict[str, float]:
        """All ratios by the figures' names; the lab's CPU is no cost of ours or theirs."""
        return {figure: self.ratio(figure) for figure in ("requests", "bytes", "seconds", "client_cpu")}

    def shortfalls(self, targets: Targets) -> list[str]:
        """Sentences about the targets that this run misses. Time is not judged: it depends on the machine."""
        return [
            f"{self.name}: {self.ratio(figure):.2f} times fewer {figure}, and the target is {least:g}"
            for figure, least in (("requests", targets.requests), ("bytes", targets.bytes))
            if self.ratio(figure) < least
        ]


HEADS = ("", "requests", "/host", "kB", "/host", "seconds", "/host", "client CPU s", "/host", "(lab CPU s)")


def table(comparison: Comparison, hosts: int, names: tuple[str, str]) -> str:
    """One run as text: both ways and the ratios, in all and for each host."""
    rows: list[tuple[str, ...]] = [HEADS]
    for name, cost in zip(names, (comparison.ours, comparison.peer), strict=True):
        rows.append(
            (
                name,
                *_pair(cost.requests, hosts, "{:.0f}", "{:.1f}"),
                *_pair(cost.bytes / 1000, hosts, "{:.0f}", "{:.1f}"),
                *_pair(cost.seconds, hosts, "{:.1f}", "{:.3f}"),
                *_pair(cost.client_cpu, hosts, "{:.1f}", "{:.3f}"),
                f"({cost.lab_cpu:.1f})",
            )
        )
    ratios = (cell for ratio in comparison.ratios().values() for cell in (f"{ratio:.1f} x", ""))
    rows.append(("the peer costs", *ratios, ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([comparison.name, *(f"  {line}".rstrip() for line in lines)])


def _pair(total: float, hosts: int, in_all: str, each: str) -> tuple[str, str]:
    return in_all.format(total), each.format(total / hosts)


def as_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The same figures for a program."""
    return [
        {
            "run": comparison.name,
            "ours": asdict(comparison.ours),
            "peer": asdict(comparison.peer),
            "ratios": {figure: round(ratio, 3) for figure, ratio in comparison.ratios().items()},
        }
        for comparison in comparisons
    ]
