# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the file in the event loop's own thread, as long as that takes no time worth a thread.

A row that is in memory is read in microseconds; to have a thread do it costs ten times that, for two threads that wake
each other up and take turns at Python's global lock. But a file may be on a disk that is slow, or that hangs, and the
loop must not wait for it. So it never waits for a lock, never opens or closes the file (a thread does), and
when a read has failed or was slow it does not read again for a while, longer each time. A disk that hangs holds
the loop once, and what can't be answered here is asked again in a thread, where errors are understood (`file.py`).

On a busy machine a read may look slow only because another program had the processor. So one that is a little slow is
forgiven, if the next one does not follow soon.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from greylist_proxy.store import StoreError
from greylist_proxy.store.sqlite.file import DatabaseFile
from greylist_proxy.store.sqlite.worker import Worker

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

SLOW = 0.02  # seconds for one look; when it happens again soon, a thread looks for a while
SOON = 1.0  # seconds
VERY_SLOW = 0.2  # seconds for one look, after which a thread does it at once
HOLD_OFF = 5.0  # seconds, the first time; twice as long each time that it did not help
MAX_HOLD_OFF = 300.0
LOOK_AT_PATH_EVERY = 0.1  # seconds; whether the file is still there costs a quarter of what is read from it


class InlineReader:
    """A connection for the loop's thread; `worker` opens and closes it."""

    def __init__(self, file: DatabaseFile, worker: Worker) -> None:
        self._file = file
        self._worker = worker
        self._is_open = False  # while it is not, the worker alone has to do with the file
        self._is_opening = False
        self._is_closed = False
        self._opened = 0.0  # by the loop's clock
        self._not_before = 0.0
        self._hold_off = 0.0
        self._slow_at = float("-inf")  # when one was slow, by `time.perf_counter`
        self._seen_at = 0.0  # when the file was still the path's, by `time.perf_counter`
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Say that a thread could read the file: so it can be tried here again, unless it was slow a while ago."""
        now = asyncio.get_running_loop().time()
        if self._is_open or self._is_opening or self._is_closed or now < self._not_before:
            return
        self._is_opening = True
        try:
            self._worker.submit(lambda _connection: self._file.use(_do_not_wait), self._opens)
        except StoreError:
            self._is_opening = False

    def use(self, work: Callable[[sqlite3.Connection, *Ts], T], *arguments: *Ts) -> T | None:
        """Read, at once; None: it can't be done here now, and a thread should."""
        if not self._is_open:
            return None
        began = time.perf_counter()
        try:
            connection = self._connection
            if connection is None or began - self._seen_at >= LOOK_AT_PATH_EVERY:
                self._connection = connection = self._file.opened()
                self._seen_at = began
            if connection is None:  # the path is another file now
                self._give_up()
                return None
            result = work(connection, *arguments)
        except Exception:  # noqa: BLE001 - the thread runs into it as well, and says what it is
            self._hold()
            return None
        took = time.perf_counter() - began
        if took > SLOW:
            if took > VERY_SLOW or began - self._slow_at < SOON:
                self._hold()
            self._slow_at = began
        return result

    def close(self) -> None:
        """Let the worker close the file; nothing is read here any more."""
        self._is_closed = True
        self._give_up()

    def _opens(self, _result: object, error: StoreError | None) -> None:
        self._is_opening = False
        self._opened = asyncio.get_running_loop().time()
        # Where it was closed meanwhile, the worker has been told so already.
        self._is_open = error is None and not self._is_closed

    def _hold(self) -> None:
        now = asyncio.get_running_loop().time()
        did_not_help = now - self._opened < 10 * self._hold_off
        self._hold_off = min(2 * self._hold_off, MAX_HOLD_OFF) if did_not_help else HOLD_OFF
        self._not_before = now + self._hold_off
        self._give_up()

    def _give_up(self) -> None:
        self._is_open = False
        self._connection = None
        # Where too much waits already it stays open, and is closed when it is opened again.
        with contextlib.suppress(StoreError):
            self._worker.submit(lambda _connection: self._file.close(), lambda _nothing, _error: None)


def _do_not_wait(connection: sqlite3.Connection) -> None:
    """What a thread may wait for while it opens the file, the loop must not wait for."""
    connection.execute("PRAGMA busy_timeout = 0")
