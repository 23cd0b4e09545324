# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a store costs at one size, how sizes compare, and whether that is good enough. Pure: figures in, text out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """How long decisions took, in microseconds. `each`: of the clock for each, which with many at once is less."""

    decisions: int
    each: float
    median: float
    p99: float
    medians: Mapping[str, float]  # of each kind of sighting


def timing(seconds: float, taken: Mapping[str, Sequence[float]]) -> Timing:
    """Sum up how long each decision took by kind of sighting, and all of them by the clock; in seconds."""
    every = sorted(took for kind in taken.values() for took in kind)
    return Timing(
        decisions=len(every),
        each=seconds / len(every) * 1e6,
        median=statistics.median(every) * 1e6,
        p99=every[math.ceil(len(every) * 0.99) - 1] * 1e6,
        medians={kind: statistics.median(kinds) * 1e6 for kind, kinds in taken.items() if kinds},
    )


@dataclass(frozen=True)
class Expiry:
    """What it takes to forget `expired` of the triplets that there were; times in seconds.

    `steps` and `longest_step` are of a store that has to do it itself, `bytes_freed` of one that gives anything back.
    `longest_wait` is the longest decision meanwhile.
    """

    triplets: int
    expired: int
    seconds: float
    steps: int | None
    longest_step: float | None
    longest_wait: float
    bytes_freed: int | None


@dataclass(frozen=True)
class Figures:
    """One store at one size; times in seconds unless a `Timing` holds them."""

    store: str
    triplets: int
    fill_seconds: float
    filled_bytes: int  # with a journal, where there is one
    bytes: int
    single: Timing
    concurrent: Timing
    cold: Timing | None  # with nothing of the file in the system's cache
    expiry: Expiry


@dataclass(frozen=True)
class Growth:
    """How many times slower the greatest size is than the smallest: one at a time, and with many at once."""

    store: str
    small: int
    great: int
    single: float
    concurrent: float

    def __str__(self) -> str:
        return (
            f"{self.store}: from {self.small:,} to {self.great:,} triplets a decision takes {self.single:.2f} times as "
            f"long one at a time, {self.concurrent:.2f} times with many at once"
        )

    def shortfalls(self, most: float) -> list[str]:
        """Sentences about what grew more than `most` times."""
        return [
            f"{self.store}: a decision, {how}, takes {ratio:.2f} times as long with {self.great:,} triplets as with "
            f"{self.small:,}, and the target is {most:g} at most"
            for how, ratio in (("one at a time", self.single), ("many at once", self.concurrent))
            if ratio > most
        ]


def growths(measured: Sequence[Figures]) -> list[Growth]:
    """Compare the greatest size of each store with its smallest, where there are two."""
    found = []
    for store in dict.fromkeys(figures.store for figures in measured):
        sizes = sorted((figures for figures in measured if figures.store == store), key=lambda one: one.triplets)
        small, great = sizes[0], sizes[-1]
        if small is not great:
            single = great.single.median / small.single.median
            concurrent = great.concurrent.each / small.concurrent.each
            found.append(Growth(store, small.triplets, great.triplets, single, concurrent))
    return found


def table(measured: Sequence[Figures]) -> str:
    """All figures as text: a line for each, a column for each store and size."""
    columns = [_column(figures) for figures in measured]
    rows = [[cells[0][0], *(text for _name, text in cells)] for cells in zip(*columns, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(line) for line in lines)


def _column(figures: Figures) -> list[tuple[str, str]]:
    single, concurrent, cold, expiry = figures.single, figures.concurrent, figures.cold, figures.expiry
    return [
        ("", figures.store),
        ("triplets", f"{figures.triplets:,}"),
        ("one decision at a time, µs: median", f"{single.median:.0f}"),
        *((f"    {kind}", f"{median:.0f}") for kind, median in single.medians.items()),
        ("    p99", f"{single.p99:.0f}"),
        ("many at once, µs: of the clock for each", f"{concurrent.each:.0f}"),
        ("    median until answered", f"{concurrent.median:.0f}"),
        ("    p99 until answered", f"{concurrent.p99:.0f}"),
        ("one at a time, cold cache, µs: median", f"{cold.median:.0f}" if cold else "-"),
        ("    p99", f"{cold.p99:.0f}" if cold else "-"),
        ("bytes a triplet", f"{figures.bytes / figures.triplets:.0f}"),
        ("    while it was filled", f"{figures.filled_bytes / figures.triplets:.0f}"),
        ("filled in, s", f"{figures.fill_seconds:.1f}"),
        ("    triplets a second", f"{figures.triplets / figures.fill_seconds:,.0f}"),
        ("triplets that expired", f"{expiry.expired:,}"),
        ("    gone in, s", f"{expiry.seconds:.1f}"),
        ("    steps", f"{expiry.steps:,}" if expiry.steps else "-"),
        ("    longest step, ms", f"{expiry.longest_step * 1000:.1f}" if expiry.longest_step else "-"),
        ("    longest decision meanwhile, ms", f"{expiry.longest_wait * 1000:.1f}"),
        ("    bytes freed for each", f"{expiry.bytes_freed / expiry.expired:.0f}" if expiry.bytes_freed else "-"),
    ]
