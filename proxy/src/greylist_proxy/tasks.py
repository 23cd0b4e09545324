# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that outlives the client that caused it: a commit at the backend, a polite QUIT.

asyncio keeps only weak references to tasks, so somebody has to hold them; and a stop must wait for them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from greylist_proxy.log import Log

if TYPE_CHECKING:
    from greylist_proxy.errand import Errand

T = TypeVar("T")


class Tasks:
    """The tasks that run; each leaves when it is done, and one that fails is logged. `errands` are tasks to us, too."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._running: set[asyncio.Task[Any]] = set()
        self.errands: set[Errand[Any]] = set()  # each comes and goes by itself

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task. Where Python can (3.12), its first step is made at once: it may be done on return."""
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 12):
            task = asyncio.Task(coroutine, loop=loop, eager_start=True)
        else:
            task = loop.create_task(coroutine)
        if task.done():
            self._done(task)
        else:
            self._running.add(task)
            task.add_done_callback(self._done)
        return task

    def __len__(self) -> int:
        return len(self._running) + len(self.errands)

    def give_up(self) -> None:
        """Cancel the errands: unlike tasks they are not known to the loop, which cancels those at its end."""
        for errand in list(self.errands):
            errand.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.report(error)

    def report(self, error: BaseException) -> None:
        """Log an exception that nobody else would hear of."""
        self._log.exception("a background task failed", error)
