# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What health checks are told, as tables."""

from __future__ import annotations

import pytest
from greylist_proxy.health import STALLED_AFTER, Worker, judge_life, judge_readiness, worker_of
from greylist_proxy.metrics.counts import Counts
from greylist_proxy.metrics.table import BACKENDS, BEAT, PHASE, STORE_FAILING, BackendState, Phase

UP, DOWN, UNKNOWN = BackendState.UP, BackendState.DOWN, BackendState.UNKNOWN

SERVING = Worker(Phase.SERVING)
STARTING = Worker(Phase.STARTING)
STOPPING = Worker(Phase.STOPPING)
STALLED = Worker(Phase.SERVING, STALLED_AFTER + 1)


def on(*backends: BackendState, store_fails: bool = False) -> Worker:
    return Worker(Phase.SERVING, 0, store_fails, backends)


@pytest.mark.parametrize(
    ("workers", "status", "word", "degraded"),
    [
        ([], 503, "starting", None),
        ([STARTING], 503, "starting", None),
        ([STOPPING], 503, "stopping", None),
        ([STOPPING, STARTING], 503, "stopping", None),
        ([STALLED], 503, "stalled", None),
        ([STALLED, STARTING], 503, "stalled", None),
        ([SERVING], 200, "ready", []),
        # One that can take connections is enough.
        ([STARTING, SERVING], 200, "ready", []),
        ([STOPPING, SERVING], 200, "ready", []),
        ([STALLED, SERVING], 200, "degraded", ["worker"]),
        ([Worker(Phase.SERVING, STALLED_AFTER)], 200, "ready", []),
        # Mail is still answered, by what store.on_failure says, or with a 451.
        ([on(store_fails=True)], 200, "degraded", ["store"]),
        ([on(), on(store_fails=True)], 200, "degraded", ["store"]),
        ([on(UP, UP)], 200, "ready", []),
        ([on(UNKNOWN)], 200, "ready", []),
        ([on(UP, DOWN)], 200, "degraded", ["backend 2"]),
        ([on(DOWN, DOWN, store_fails=True)], 200, "degraded", ["store", "backend 1", "backend 2"]),
        ([on(UP), on(DOWN)], 200, "degraded", ["backend 1"]),
        # While a reload goes round, they may have different ones.
        ([on(UP), on(UP, DOWN)], 200, "degraded", ["backend 2"]),
        # What one that ends or starts thinks of them does not count.
        ([SERVING, Worker(Phase.STOPPING, 0, True, [DOWN])], 200, "ready", []),
    ],
)
def test_whether_connections_are_wanted(
    workers: list[Worker], status: int, word: str, degraded: list[str] | None
) -> None:
    health = judge_readiness(workers)
    assert (health.status, health.body["status"], health.body.get("degraded")) == (status, word, degraded)


@pytest.mark.parametrize(
    ("workers", "status", "body"),
    [
        ([SERVING], 200, {"status": "ok", "workers": 1}),
        ([STARTING, STOPPING], 200, {"status": "ok", "workers": 2}),
        ([on(DOWN, store_fails=True)], 200, {"status": "ok", "workers": 1}),
        ([SERVING, STALLED], 503, {"status": "stalled", "workers": 2, "stalled": 1}),
    ],
)
def test_whether_it_lives(workers: list[Worker], status: int, body: dict[str, object]) -> None:
    assert judge_life(workers) == (status, body)


def test_a_worker_is_read_from_its_row() -> None:
    (state,) = Counts().states
    state[BEAT], state[PHASE], state[STORE_FAILING.cell] = 100.0, Phase.STOPPING, True
    state[BACKENDS], state[BACKENDS + 1] = DOWN, UNKNOWN
    assert worker_of(state, 107.5) == Worker(Phase.STOPPING, 7.5, True, [DOWN, UNKNOWN])
