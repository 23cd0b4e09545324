# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signs of life: from the event loop of each worker, through the shared rows, to systemd's watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from greylist_proxy import watchdog as watchdog_module
from greylist_proxy.metrics.counts import Counts
from greylist_proxy.metrics.table import (
    BACKENDS,
    BEAT,
    CPU_SECONDS,
    LOOP_DELAY,
    MODE,
    MODES,
    PHASE,
    PID,
    STORE_FAILING,
    TARPITTED,
    TARPITTED_LIMIT,
    BackendState,
    Phase,
)
from greylist_proxy.pulse import Pulse
from greylist_proxy.systemd import watchdog_seconds
from greylist_proxy.watchdog import ALIVE, Watchdog

from .conftest import MakeServices
from .peers import Proxy, Sink, until, wait_until

StartProxy = Callable[..., Proxy]
LIMIT = 2.0  # seconds


@pytest.mark.parametrize(
    ("microseconds", "process", "seconds"),
    [
        ("30000000", None, 30),
        ("30000000", "own", 30),
        ("30000000", "1", None),  # meant for another process
        (None, None, None),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
        ("\u0663", None, None),
    ],
)
def test_what_systemd_wants(
    monkeypatch: pytest.MonkeyPatch, microseconds: str | None, process: str | None, seconds: float | None
) -> None:
    for name, value in (
        ("WATCHDOG_USEC", microseconds),
        ("WATCHDOG_PID", str(os.getpid()) if process == "own" else process),
    ):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_seconds() == seconds


@pytest.mark.parametrize(
    ("beats", "is_told"),
    [
        ([100], True),
        ([95.1, 100], True),
        ([94.9, 100], False),  # more than half of the time is over for one of them
        ([0, 100], True),  # one has not begun, or was just buried
        ([0, 0], True),
    ],
)
def test_all_workers_must_live(monkeypatch: pytest.MonkeyPatch, beats: list[float], is_told: bool) -> None:
    monkeypatch.setattr(watchdog_module, "watchdog_seconds", lambda: 10.0)
    counts, told = Counts(2), list[str]()
    for state, beat in zip(counts.states, beats, strict=False):
        state[BEAT] = beat
    watchdog = Watchdog(counts, told.append, lambda: 100.0)
    watchdog.look()
    assert told == [ALIVE] * is_told
    assert (watchdog.watches, watchdog.every) == (True, 1)
    watchdog.alive()
    assert told[-1] == ALIVE


def test_without_a_watchdog_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    told: list[str] = []
    watchdog = Watchdog(Counts(), told.append)
    watchdog.look()
    watchdog.alive()
    assert (told, watchdog.watches) == ([], False)


def test_a_pulse_stands_still_with_its_loop(make_services: MakeServices) -> None:
    async def live() -> None:
        counts, beats = Counts(2), list[float]()
        services = make_services(9)
        pulse = Pulse(counts, 1, services, lambda: beats.append(time.monotonic()), every=0.01)
        beating = asyncio.create_task(pulse.keep_beating())
        await until(lambda: len(beats) > 3)
        before = len(beats)
        time.sleep(0.3)  # noqa: ASYNC251 - it is what is looked for
        assert len(beats) == before
        await until(lambda: len(beats) > before)
        beating.cancel()
        late = counts.counting[1][LOOP_DELAY.sum_cell]
        assert late >= 0.25
        assert not any(counts.counting[0])
        await services.backends.close()
        await services.gate.close()

    asyncio.run(live())


def test_how_things_are_is_written_down(make_services: MakeServices, monkeypatch: pytest.MonkeyPatch) -> None:
    async def live() -> None:
        counts = Counts(2)
        services = make_services(9)
        services.tarpit.max_waiting = 50
        services.tarpit.waiting = 3
        monkeypatch.setattr(services.backends, "states", lambda: [BackendState.DOWN, BackendState.UP])
        monkeypatch.setattr(services.gate, "_failing", True)
        before = time.monotonic()
        pulse = Pulse(counts, 1, services, lambda: None)
        pulse.beat()
        state = counts.states[1]
        assert before <= state[BEAT] <= time.monotonic()
        assert state[PHASE] == Phase.STARTING
        pulse.enter(Phase.SERVING)
        assert state[PHASE] == Phase.SERVING
        assert state[PID] == os.getpid()
        assert MODES[int(state[MODE]) - 1] is services.gate.rules.mode
        assert (state[TARPITTED.cell], state[TARPITTED_LIMIT.cell], state[STORE_FAILING.cell]) == (3, 50, 1)
        assert list(state[BACKENDS : BACKENDS + 3]) == [BackendState.DOWN, BackendState.UP, BackendState.ABSENT]
        assert counts.total(CPU_SECONDS) == pytest.approx(time.process_time(), rel=0.2)
        assert not any(counts.states[0])
        await services.backends.close()
        await services.gate.close()

    asyncio.run(live())


class Manager:
    """Listens as systemd does."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.settimeout(LIMIT)

    def hears(self, word: str) -> bool:
        """Wait for a word; False: nothing at all came for LIMIT seconds."""
        with contextlib.suppress(TimeoutError):
            while self._sock.recv(100) != word.encode():
                pass
            return True
        return False

    def empty(self) -> None:
        """Forget what was said."""
        self._sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._sock.recv(100):
                pass
        self._sock.settimeout(LIMIT)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        yield Manager(sock)


def start(start_proxy: StartProxy, sink: Sink, tmp_path: Path, workers: int) -> Proxy:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(int(LIMIT * 1e6))}
    return start_proxy(sink.port, smtp={"workers": workers}, environment=environment)


def test_the_program_says_that_it_lives(start_proxy: StartProxy, sink: Sink, tmp_path: Path, manager: Manager) -> None:
    proxy = start(start_proxy, sink, tmp_path, 1)
    for _n in range(3):
        assert manager.hears(ALIVE)
    assert proxy.stop() == 0


def test_a_worker_that_stands_still_is_not_kept_secret(
    start_proxy: StartProxy, sink: Sink, tmp_path: Path, manager: Manager
) -> None:
    proxy = start(start_proxy, sink, tmp_path, 2)
    pids = [line["pid"] for line in proxy.select("worker", state="ready")]
    assert manager.hears("READY=1")
    for _n in range(3):
        assert wait_until(lambda: manager.hears(ALIVE), "a sign of life")
    os.kill(pids[1], signal.SIGSTOP)

    def is_silent() -> bool:
        manager.empty()
        return not manager.hears(ALIVE)

    assert wait_until(is_silent, "the parent to fall silent")
    os.kill(pids[1], signal.SIGCONT)
    assert wait_until(lambda: manager.hears(ALIVE), "the parent to say again that all live")
    # One that is dead is replaced, and is no reason to end the others.
    os.kill(pids[0], signal.SIGKILL)
    proxy.wait_for("worker", 3, state="ready")
    manager.empty()
    assert wait_until(lambda: manager.hears(ALIVE), "a sign of life")
    assert proxy.stop() == 0
