# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the program is, in the words of a health check. Pure.

    healthz    does it live? No: end it and start it again. A worker whose event loop stands still does not live.
    readyz     shall it get connections? Yes as long as it can answer SMTP, whatever it would answer. Mail servers that
               are down, or a store that does not work, make it *degraded*, and that is all: they are the same for all
               proxies, and a load balancer that took each of them out would turn a dead store into no mail at all.

Neither tells names or addresses: a load balancer asks without a password.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

from greylist_proxy.metrics.table import (
    BACKENDS,
    BEAT,
    MOST_BACKENDS,
    PHASE,
    STORE_FAILING,
    BackendState,
    Cells,
    Phase,
)

STALLED_AFTER = 30.0  # seconds without a turn of the event loop


@dataclass(frozen=True)
class Worker:
    """How one process is. `silent_for` is how long ago its event loop last ran, in seconds."""

    phase: Phase
    silent_for: float = 0.0
    store_fails: bool = False
    backends: Sequence[BackendState] = ()

    @property
    def is_stalled(self) -> bool:
        """Tell whether its event loop stands still."""
        return self.silent_for > STALLED_AFTER


class Health(NamedTuple):
    """An HTTP status, and the members of a JSON object."""

    status: HTTPStatus
    body: dict[str, object]


def worker_of(state: Cells, now: float) -> Worker:
    """Read a worker's row; `now` is time.monotonic()."""
    return Worker(
        Phase(int(state[PHASE])),
        now - state[BEAT],
        bool(state[STORE_FAILING.cell]),
        [BackendState(int(number)) for number in state[BACKENDS : BACKENDS + MOST_BACKENDS] if number],
    )


def judge_life(workers: Sequence[Worker]) -> Health:
    """Tell whether the program lives."""
    stalled = sum(worker.is_stalled for worker in workers)
    if stalled:
        return Health(
            HTTPStatus.SERVICE_UNAVAILABLE, {"status": "stalled", "workers": len(workers), "stalled": stalled}
        )
    return Health(HTTPStatus.OK, {"status": "ok", "workers": len(workers)})


def judge_readiness(workers: Sequence[Worker]) -> Health:
    """Tell whether the program can answer SMTP, and what is wrong with what it does then."""
    serving = [worker for worker in workers if worker.phase is Phase.SERVING and not worker.is_stalled]
    if not serving:
        return Health(HTTPStatus.SERVICE_UNAVAILABLE, {"status": _why_not(workers)})
    degraded = []
    if any(worker.is_stalled for worker in workers):
        degraded.append("worker")
    if any(worker.store_fails for worker in serving):
        degraded.append("store")
    hosts = max(len(worker.backends) for worker in serving)
    degraded += [f"backend {number + 1}" for number in range(hosts) if any(_is_down(each, number) for each in serving)]
    return Health(HTTPStatus.OK, {"status": "degraded" if degraded else "ready", "degraded": degraded})


def _is_down(worker: Worker, number: int) -> bool:
    return number < len(worker.backends) and worker.backends[number] is BackendState.DOWN


def _why_not(workers: Sequence[Worker]) -> str:
    if any(worker.is_stalled for worker in workers):
        return "stalled"
    return "stopping" if any(worker.phase is Phase.STOPPING for worker in workers) else "starting"
