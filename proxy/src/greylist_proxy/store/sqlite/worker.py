# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A thread that does what must not block the event loop, one thing after the other, on its own connection.

What hangs (a network file system, a dying disk) holds up the thread, not its callers: they are answered with an error
in time, and once too much waits, at once. The thread is a daemon, so that one that hangs does not keep the program
from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from greylist_proxy.store import StoreError
from greylist_proxy.store.sqlite.file import DatabaseFile

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
Done = Callable[[Any, StoreError | None], None]

MAX_WAITING = 100  # things to do


class _Job(NamedTuple):
    loop: asyncio.AbstractEventLoop
    work: Work[Any]
    done: Done
    is_wanted: Callable[[], bool]


class Worker:
    """The thread; started on first use."""

    def __init__(self, name: str, file: DatabaseFile) -> None:
        self._name = name
        self._file = file
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting = 0
        self._thread: threading.Thread | None = None

    def submit(self, work: Work[T], done: Callable[[T, StoreError | None], None]) -> None:
        """Let the thread do something; `done(result, error)` is then called in the event loop.

        StoreError: too much is waiting.
        """
        self._put(_Job(asyncio.get_running_loop(), work, done, lambda: True))

    async def call(self, work: Work[T], patience: float) -> T:
        """Let the thread do something and wait for it; what has not begun in time is not begun."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def done(result: T, error: StoreError | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        self._put(_Job(loop, work, done, lambda: not future.cancelled()))
        try:
            return await asyncio.wait_for(future, patience)
        except TimeoutError:
            raise StoreError(f"{self._file.name}: no answer within {patience:g} seconds") from None

    async def close(self, patience: float) -> None:
        """Let the thread finish and end; give up on it after `patience` seconds."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            self._jobs.put(None)
            await asyncio.to_thread(thread.join, patience)

    def _put(self, job: _Job) -> None:
        if self._waiting >= MAX_WAITING:
            raise StoreError(f"{self._file.name}: too much waits for it")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._waiting += 1
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            result, error = self._do(job)
            # The loop is closed where nobody waits any more.
            with contextlib.suppress(RuntimeError):
                job.loop.call_soon_threadsafe(self._finish, job.done, result, error)
        self._file.close()

    def _do(self, job: _Job) -> tuple[Any, StoreError | None]:
        if not job.is_wanted():
            return None, StoreError(f"{self._file.name}: nobody waits for the answer")
        try:
            return self._file.use(job.work), None
        except StoreError as error:
            return None, error
        except Exception as error:  # noqa: BLE001 - a thread that ends by an exception would be silent for ever
            return None, StoreError(f"{self._file.name}: {type(error).__name__}: {error}")

    def _finish(self, done: Done, result: Any, error: StoreError | None) -> None:
        self._waiting -= 1
        done(result, error)
