# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of metrics that `docs/monitoring.md` has to have: `python -m tests.metric_table` prints it."""

from __future__ import annotations

import os

from greylist_proxy.metrics.counts import Counts
from greylist_proxy.metrics.exposition import Exposition
from greylist_proxy.metrics.table import BACKENDS, BEAT, PID, BackendState
from greylist_proxy.smtp.limits import Connections
from prometheus_client.core import Metric


def rows() -> list[str]:
    """Return a row for each metric, as Prometheus is told of it."""
    counts = Counts()
    for cell, value in ((BEAT, 1.0), (PID, os.getpid()), (BACKENDS, BackendState.UP)):
        counts.states[0][cell] = value
    return [_row(family) for family in Exposition(counts, Connections(1, 1)).collect()]


def _row(family: Metric) -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    return f"| `{name}` | {family.type} | {' '.join(f'`{each}`' for each in labels)} | {family.documentation} |"


if __name__ == "__main__":
    print("\n".join(rows()))
