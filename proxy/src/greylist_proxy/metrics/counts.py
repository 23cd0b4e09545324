# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of all workers, in memory that they share (see `table.py` for what is in them).

A worker writes its own rows only, and whoever is asked reads them all, so no lock is needed: a cell is written in one
piece. A worker that takes a dead one's place goes on with its counters, as a sum that goes back would look like a
restart of the whole program; how things were with the dead one, its parent clears.
"""

from __future__ import annotations

import mmap

from greylist_proxy.metrics.table import BEAT, COUNTING_CELLS, STATE_CELLS, Cells, Counter, Gauge, Histogram

WIDTH = 8  # octets


def blank() -> Cells:
    """Return a row of counters that nobody else sees."""
    return memoryview(bytearray(COUNTING_CELLS * WIDTH)).cast("d")


class Counts:
    """The rows. To be made before the workers are forked."""

    def __init__(self, workers: int = 1) -> None:
        size = COUNTING_CELLS + STATE_CELLS
        self._memory = mmap.mmap(-1, workers * size * WIDTH)
        cells = memoryview(self._memory).cast("d")
        rows = [cells[number * size : (number + 1) * size] for number in range(workers)]
        self.counting = [row[:COUNTING_CELLS] for row in rows]
        self.states = [row[COUNTING_CELLS:] for row in rows]

    def clear(self, number: int) -> None:
        """Forget how things were with a worker that is dead, but not what it has counted."""
        state = self.states[number]
        state[:] = memoryview(bytes(len(state) * WIDTH)).cast("d")

    def alive(self) -> list[Cells]:
        """Return the states of the workers whose event loop has begun to run."""
        return [state for state in self.states if state[BEAT]]

    def total(self, cell: int) -> float:
        """Return a counting cell's sum over all workers."""
        return sum(row[cell] for row in self.counting)

    def of(self, counter: Counter) -> dict[tuple[str, ...], float]:
        """Return a counter's value for each combination of its labels."""
        return {words: self.total(cell) for words, cell in counter.cells.items()}

    def buckets(self, histogram: Histogram) -> tuple[list[float], float]:
        """Return how many values lay below each bound and above all of them, each counted once, and their sum."""
        cells = range(histogram.cell, histogram.sum_cell)
        return [self.total(cell) for cell in cells], self.total(histogram.sum_cell)

    def now(self, gauge: Gauge) -> float:
        """Return a gauge's sum over the workers."""
        return sum(state[gauge.cell] for state in self.states)
