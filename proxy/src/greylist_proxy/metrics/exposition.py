# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sums of all workers, as Prometheus reads them. Any worker can be asked, all give the same answer."""

from __future__ import annotations

import platform
from collections import Counter as Tally
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from greylist_proxy import __version__
from greylist_proxy.metrics.counts import Counts
from greylist_proxy.metrics.processes import of_processes
from greylist_proxy.metrics.table import (
    BACKENDS,
    COUNTERS,
    CPU_SECONDS,
    GAUGES,
    HISTOGRAMS,
    MODE,
    MODES,
    MOST_BACKENDS,
    PID,
    PREFIX,
    BackendState,
)
from greylist_proxy.smtp.limits import Connections

__all__ = ["CONTENT_TYPE", "Exposition"]


class Exposition(Collector):
    """What /metrics says."""

    def __init__(self, counts: Counts, connections: Connections) -> None:
        self._counts = counts
        self._connections = connections

    def render(self) -> bytes:
        """Return the text, of the type CONTENT_TYPE, which every version of Prometheus reads."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Sum up, now."""
        counts = self._counts
        for counter in COUNTERS:
            family = CounterMetricFamily(counter.name, counter.meaning, labels=counter.labels)
            for words, value in counts.of(counter).items():
                family.add_metric(words, value)
            yield family
        for histogram in HISTOGRAMS:
            numbers, total = counts.buckets(histogram)
            bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
            yield HistogramMetricFamily(
                histogram.name,
                histogram.meaning,
                buckets=list(zip(bounds, accumulate(numbers), strict=True)),
                sum_value=total,
            )
        for gauge in GAUGES:
            yield GaugeMetricFamily(gauge.name, gauge.meaning, counts.now(gauge))
        yield from self._limits()
        yield from self._states()
        pids = [int(state[PID]) for state in counts.alive()]
        yield from of_processes(pids, counts.total(CPU_SECONDS))

    def _limits(self) -> Iterator[Metric]:
        yield _gauge("connections", "Connections that there are.", self._connections.total)
        yield _gauge("connections_limit", "How many there may be (smtp.max_connections).", self._connections.max_total)

    def _states(self) -> Iterator[Metric]:
        alive = self._counts.alive()
        yield _gauge("workers", "Processes that serve.", len(alive))
        modes = Tally(int(state[MODE]) for state in alive)
        family = _gauge("mode", "Workers whose greylist.mode this is.", labels=("mode",))
        for number, mode in enumerate(MODES, 1):
            family.add_metric((mode,), modes[number])
        yield family
        family = _gauge(
            "backend_state",
            "Workers that find a mail server behind up, down, or do not know yet; backend: its place in backend.hosts.",
            labels=("backend", "state"),
        )
        for number in range(MOST_BACKENDS):
            found = Tally(int(state[BACKENDS + number]) for state in alive)
            if set(found) <= {BackendState.ABSENT}:
                continue
            for which in (BackendState.UP, BackendState.DOWN, BackendState.UNKNOWN):
                family.add_metric((str(number + 1), which.name.lower()), found[which])
        yield family
        family = _gauge("build_info", "The program's version, and Python's.", labels=("version", "python"))
        family.add_metric((__version__, platform.python_version()), 1)
        yield family


def _gauge(
    name: str, meaning: str, value: float | None = None, labels: tuple[str, ...] | None = None
) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}{name}", meaning, value, labels)
