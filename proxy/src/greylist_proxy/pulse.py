# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker's sign of life: from its event loop, once a second, it writes down how things are.

Metrics, health checks and systemd's watchdog go by it. What stops the event loop stops the pulse.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from greylist_proxy.metrics.counts import Counts
from greylist_proxy.metrics.table import (
    BACKENDS,
    BEAT,
    CPU_SECONDS,
    LOOP_DELAY,
    MODE,
    MODES,
    MOST_BACKENDS,
    PHASE,
    PID,
    STORE_FAILING,
    TARPITTED,
    TARPITTED_LIMIT,
    BackendState,
    Phase,
)
from greylist_proxy.smtp.shared import Services

EVERY = 1.0  # seconds


class Pulse:
    """Writes the rows of worker `number`; `signal` is called at each beat."""

    def __init__(
        self, counts: Counts, number: int, services: Services, signal: Callable[[], None], every: float = EVERY
    ) -> None:
        self.counts = counts
        self._counting = counts.counting[number]
        self._state = counts.states[number]
        self._services = services
        self._signal = signal
        self._every = every
        self._cpu_seconds = 0.0
        self.phase = Phase.STARTING

    async def keep_beating(self) -> None:
        """Beat from now on, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self.beat()
            due = loop.time() + self._every
            await asyncio.sleep(self._every)
            LOOP_DELAY.observe(self._counting, max(loop.time() - due, 0.0))

    def enter(self, phase: Phase) -> None:
        """Say how far this worker is."""
        self.phase = phase
        self.beat()

    def beat(self) -> None:
        """Write everything down, as it is now."""
        services, state = self._services, self._state
        cpu_seconds = time.process_time()
        self._counting[CPU_SECONDS] += cpu_seconds - self._cpu_seconds
        self._cpu_seconds = cpu_seconds
        state[PID] = os.getpid()
        state[PHASE] = self.phase
        state[MODE] = 1 + MODES.index(services.gate.rules.mode)
        state[STORE_FAILING.cell] = not services.gate.store_works
        state[TARPITTED.cell] = services.tarpit.waiting
        state[TARPITTED_LIMIT.cell] = services.tarpit.max_waiting
        backends = services.backends.states()[:MOST_BACKENDS]
        for n in range(MOST_BACKENDS):
            state[BACKENDS + n] = backends[n] if n < len(backends) else BackendState.ABSENT
        state[BEAT] = time.monotonic()
        self._signal()
