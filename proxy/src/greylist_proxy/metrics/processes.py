# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures that Prometheus expects of every program, `process_*`, of all worker processes together."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

START = "process_start_time_seconds"
CPU = "process_cpu_seconds"


class _OneProcess(ProcessCollector):
    """One process, where /proc shows nothing but processes (systemd's `ProcSubset=pid`)."""

    def _boot_time(self) -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def of_processes(pids: Iterable[int], cpu_seconds: float) -> list[Metric]:
    """Return the families. `cpu_seconds` is what all have used, with those that are dead: it must not go back."""
    values: dict[str, float] = {}
    meanings: dict[str, str] = {}
    for pid in pids:
        for family in _of_process(pid):
            value = family.samples[0].value
            meanings[family.name] = family.documentation
            if family.name == START:
                values[START] = min(value, values.get(START, value))
            else:
                values[family.name] = values.get(family.name, 0.0) + value
    values.pop(CPU, None)
    return [
        CounterMetricFamily(CPU, "Total user and system CPU time spent in seconds.", cpu_seconds),
        *(GaugeMetricFamily(name, meanings[name], value) for name, value in values.items()),
    ]


def _of_process(pid: int) -> list[Metric]:
    try:
        return list(_OneProcess(pid=lambda: pid, registry=None).collect())
    except (OSError, ValueError):
        return []  # it has just ended, or its limit is "unlimited", which is no number
