# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What monitoring asks for: /healthz, /readyz, /metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from aiohttp import web

from greylist_proxy.admin.answers import Route
from greylist_proxy.admin.state import State
from greylist_proxy.health import Health, Worker, judge_life, judge_readiness, worker_of
from greylist_proxy.metrics.exposition import CONTENT_TYPE, Exposition


async def healthz(state: State, request: web.Request) -> web.StreamResponse:
    """Say whether the program lives, or had better be started again."""
    return _answer(state, judge_life)


async def readyz(state: State, request: web.Request) -> web.StreamResponse:
    """Say whether the program can answer SMTP."""
    return _answer(state, judge_readiness)


async def metrics(state: State, request: web.Request) -> web.StreamResponse:
    """Say how much of everything there was."""
    state.pulse.beat()
    text = Exposition(state.pulse.counts, state.services.connections).render()
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


def _answer(state: State, judge: Callable[[Sequence[Worker]], Health]) -> web.StreamResponse:
    state.pulse.beat()
    now = time.monotonic()
    health = judge([worker_of(each, now) for each in state.pulse.counts.alive()])
    return web.json_response(health.body, status=health.status)


ROUTES: tuple[Route, ...] = (
    ("GET", "/healthz", healthz),
    ("HEAD", "/healthz", healthz),
    ("GET", "/readyz", readyz),
    ("HEAD", "/readyz", readyz),
    ("GET", "/metrics", metrics),
)
# What anybody may ask who can connect: a load balancer has no token, and HTTP/1.0 no Host. They name nobody.
OPEN = frozenset({"/healthz", "/readyz"})
