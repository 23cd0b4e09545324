# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several processes on the same listening sockets, and the one that looks after them.

The parent has the sockets, forks the workers, and does nothing else but pass signals on and start again what has
died. It has neither an event loop nor a thread, as neither survives a fork. The first worker goes ahead: what it can't
start with, such as a list that can't be read, none of them could, and then the program ends with its status.

    parent -> worker    SIGTERM, SIGHUP; a pipe that ends when the parent is gone, however it went
    worker -> parent    a pipe with a byte for each time that it is ready: at the start, and after a reload

SIGTERM to a single worker ends it politely, and another one takes its place.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from greylist_proxy.log import Log
from greylist_proxy.systemd import notify
from greylist_proxy.watchdog import Watchdog

STOP_PATIENCE = 630.0  # seconds; a backend may take ten minutes over the end of data (RFC 5321 section 4.5.3.2.6)
KILL_AFTER = STOP_PATIENCE + 10  # seconds from SIGTERM on, for a worker that does not end by itself
LEAST_BACK_OFF = 1.0  # seconds until a worker that died is started again
MOST_BACK_OFF = 30.0
STEADY = 60.0  # seconds after which a worker that dies is not one that can't live
PASSED_ON = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
HEARD = PASSED_ON | {signal.SIGCHLD}


def processors() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


class Parent:
    """What a worker knows of its parent: which of the workers it is, a descriptor that ends with it, and its ear."""

    def __init__(self, number: int, life: int, ear: int) -> None:
        self.number = number
        self.life = life
        self._ear = ear

    def hear(self) -> None:
        """Let the signals through that have waited since the fork. To be called once they are handled."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)

    def tell(self, state: str) -> None:
        """Say that this worker is ready, in systemd's words; other words are not for the parent."""
        if state == "READY=1":
            with contextlib.suppress(OSError):
                os.write(self._ear, b"r")


@dataclass
class _Worker:
    number: int
    pid: int = 0  # 0: it does not run
    ear: int = -1  # the end of its pipe that we read, -1: closed
    is_ready: bool = False
    started: float = 0.0
    back_off: float = 0.0
    again_at: float = 0.0  # when it is to be started, 0: not known yet

    def stop_listening(self) -> None:
        """Close the pipe."""
        if self.ear >= 0:
            os.close(self.ear)
            self.ear = -1


class Supervisor:
    """The parent. `work` is run in each worker, and returns when that is to end.

    `on_ready` is called when all are ready for the first time, `on_death` with the number of each that has died,
    `on_reload` when they are to read the configuration again, `on_stop` when they are to end: it closes the sockets.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[Parent], int],
        log: Log,
        watchdog: Watchdog,
        *,
        on_ready: Callable[[], None],
        on_death: Callable[[int], None],
        on_reload: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        self._workers = [_Worker(number) for number in range(count)]
        self._work = work
        self._log = log
        self._watchdog = watchdog
        self._on_ready = on_ready
        self._on_death = on_death
        self._on_reload = on_reload
        self._on_stop = on_stop
        self._awaited = {worker.number for worker in self._workers}  # who has not said that it is ready
        self._was_ready = False
        self._stopping_since: float | None = None
        self._status = 0

    def run(self) -> int:
        """Start all, look after them until SIGTERM or SIGINT, and return the exit status."""
        # What is there now is shared by all; a collection would touch, and so copy, each page of it.
        gc.collect()
        gc.freeze()
        self._life, self._our_end = os.pipe()
        woken, waker = os.pipe()
        self._wake_up = (woken, waker)
        for end in self._wake_up:
            os.set_blocking(end, False)
        for number in HEARD:
            signal.signal(number, lambda *_ignored: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        self._start(self._workers[0])
        while self._running() or self._stopping_since is None:
            ears = {worker.ear: worker for worker in self._running() if worker.ear >= 0}
            readable, _ignored, _ignored = select.select([woken, *ears], [], [], self._seconds())
            for descriptor in readable:
                if descriptor == woken:
                    self._hear(woken)
                else:
                    self._listen_to(ears[descriptor])
            self._bury()
            self._start_again()
            self._watchdog.look()
        return self._status

    def _running(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.pid]

    # -- the life of a worker --

    def _start(self, worker: _Worker) -> None:
        ear, mouth = os.pipe()
        # A signal that comes between the fork and our handlers' end would be taken for one to the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(ear)
            os.close(mouth)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
            self._delay(worker, error=error.strerror)
            return
        if not pid:
            os.close(ear)
            self._become(Parent(worker.number, self._life, mouth))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
        os.close(mouth)
        worker.pid, worker.ear, worker.is_ready = pid, ear, False
        worker.started, worker.again_at = time.monotonic(), 0.0
        self._awaited.add(worker.number)

    def _become(self, parent: Parent) -> None:
        """Be that worker, and end. Never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in HEARD:
                signal.signal(number, signal.SIG_DFL)
            for end in (self._our_end, *self._wake_up):  # the first, or we would keep each other alive
                os.close(end)
            for other in self._running():
                other.stop_listening()
            # Signals stay blocked, until there are handlers: see `Parent.hear`.
            status = self._work(parent)
        except BaseException:  # noqa: BLE001 - nothing of the parent's may be run on the way out
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _bury(self) -> None:
        for worker, result in self._dead():
            worker.pid = 0
            worker.stop_listening()
            self._on_death(worker.number)
            status = os.waitstatus_to_exitcode(result)  # below 0: the signal that ended it
            if self._stopping_since is not None:
                self._status = self._status or int(status != 0)
            elif not self._was_ready and not worker.is_ready:
                # It can't even start: nor could the others, nor the next one.
                self._status = status if status > 0 else 1
                self._stop(signal.SIGTERM)
            else:
                self._delay(worker, status=status)
            if self._stopping_since is not None:
                self._log.event("worker", state="ended", number=worker.number, status=status)
            self._hear_ready(worker)

    def _dead(self) -> Iterator[tuple[_Worker, int]]:
        by_pid = {worker.pid: worker for worker in self._running()}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] in by_pid:
                    yield by_pid[ended[0]], ended[1]

    def _delay(self, worker: _Worker, **why: object) -> None:
        now = time.monotonic()
        is_steady = now - worker.started > STEADY
        worker.back_off = LEAST_BACK_OFF if is_steady else min(MOST_BACK_OFF, max(LEAST_BACK_OFF, 2 * worker.back_off))
        worker.again_at = now + worker.back_off
        self._log.event("worker", state="died", number=worker.number, seconds=worker.back_off, **why)

    def _start_again(self) -> None:
        if self._stopping_since is None:
            for worker in self._workers:
                if not worker.pid and worker.again_at and worker.again_at <= time.monotonic():
                    self._start(worker)

    # -- signals --

    def _hear(self, woken: int) -> None:
        numbers = set(os.read(woken, 4096))
        if signal.SIGHUP in numbers and self._was_ready and self._stopping_since is None:
            notify("RELOADING=1")
            self._awaited.update(worker.number for worker in self._running())
            self._on_reload()
            self._pass_on(signal.SIGHUP)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stop(signal.SIGTERM)

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            notify("STOPPING=1")
            self._on_stop()
        self._pass_on(number)

    def _pass_on(self, number: signal.Signals) -> None:
        for worker in self._running():
            os.kill(worker.pid, number)

    def _seconds(self) -> float | None:
        """How long to wait for something to happen."""
        bounds = (self._until_due(), self._watchdog.every if self._watchdog.watches else None)
        return min((seconds for seconds in bounds if seconds is not None), default=None)

    def _until_due(self) -> float | None:
        """How long until something is to be done; a worker that does not end is killed here."""
        now = time.monotonic()
        if self._stopping_since is not None:
            left = self._stopping_since + KILL_AFTER - now
            if left <= 0:
                self._pass_on(signal.SIGKILL)
                return None
            return left
        moments = [worker.again_at for worker in self._workers if not worker.pid and worker.again_at]
        return max(0.0, min(moments) - now) if moments else None

    # -- what workers say --

    def _listen_to(self, worker: _Worker) -> None:
        if not os.read(worker.ear, 4096):
            worker.stop_listening()  # it is about to end
            return
        if not worker.is_ready:
            worker.is_ready = True
            self._log.event("worker", state="ready", number=worker.number, pid=worker.pid)
        self._hear_ready(worker)

    def _hear_ready(self, worker: _Worker) -> None:
        if worker.number not in self._awaited:
            return
        self._awaited.discard(worker.number)
        if self._stopping_since is not None:
            return
        if not self._was_ready and worker.number == 0:
            for other in self._workers[1:]:
                if not other.started:  # else this one has died and come again before all were ready
                    self._start(other)
        if not self._awaited:
            if not self._was_ready:
                self._was_ready = True
                self._on_ready()
            notify("READY=1")
