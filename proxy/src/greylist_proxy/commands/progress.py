# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""That a command is at work: a line on stderr, for people who wait for longer than a second.

It is seen on a terminal only, and not while results go into a pipe, since a pager would share the terminal with it.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from greylist_proxy.commands.output import visible

PATIENCE = 1.0  # seconds that somebody waits without asking himself what is going on


class _Line(Progress):
    """Reads the count when it draws: to be told of each of a million items would cost more than the items."""

    def __init__(self, work: Working) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=4,
            # Results that are printed meanwhile would go where this line goes.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._work = work
        self.add_task(visible(work.doing), total=work.total)

    def get_renderable(self) -> RenderableType:
        for task in self.task_ids:
            self.update(task, completed=self._work.done)
        return super().get_renderable()


class Working:
    """A piece of work: `async with Working("counting") as work`, and `work.advance()` for each item.

    `total` is how many there will be, None: nobody knows. `streams`: results are written meanwhile, so that a terminal
    which gets them shows that something goes on.
    """

    def __init__(self, doing: str, total: int | None = None, *, streams: bool = False) -> None:
        self.doing = doing
        self.total = total
        self.done = 0
        self._streams = streams
        self._timer: asyncio.TimerHandle | None = None
        self._line: _Line | None = None

    def advance(self, number: int = 1) -> None:
        """Count what is done."""
        self.done += number

    async def __aenter__(self) -> Working:
        if sys.stderr.isatty() and not _is_pipe() and not (self._streams and sys.stdout.isatty()):
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._show)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._line is not None:
            self._line.stop()

    def _show(self) -> None:
        self._line = _Line(self)
        self._line.start()


def _is_pipe() -> bool:
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except OSError:  # not a file
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
