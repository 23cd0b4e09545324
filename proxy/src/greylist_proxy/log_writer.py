# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the log's lines into a file descriptor, so that nobody waits for whoever reads them.

A pipe to a log collector that is stuck takes no more, and a write into it may wait for ever. So a thread writes,
in batches: lines that may wait do so for `PATIENCE` at most, others go out at once with all that came before them.
What is killed loses that much. Over `MAX_WAITING` bytes lines are dropped; a line says how many when it works again.

Several processes may write into the same pipe: each write is of whole lines, and of no more bytes than the kernel
writes in one piece (PIPE_BUF), unless a single line is longer.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator

PATIENCE = 0.1  # seconds
MAX_WAITING = 4 << 20  # bytes
PIECE = select.PIPE_BUF
CLOSE_PATIENCE = 2.0  # seconds that a stuck reader may keep us from ending


class LineWriter:
    """Writes from a thread. `lost` makes a line that says how many were lost; `on_lost` is told of each as it happens.

    Not to be started before a fork: threads do not survive it.
    """

    def __init__(
        self,
        descriptor: int,
        lost: Callable[[int], str],
        max_waiting: int = MAX_WAITING,
        on_lost: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._descriptor = descriptor
        self._lost_line = lost
        self._max_waiting = max_waiting
        self._on_lost = on_lost  # with the lock held: two threads lose lines
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._size = 0
        self._lost = 0
        self._torn = False  # the last line was written in part
        self._any = threading.Event()  # there is a line
        self._now = threading.Event()  # there is one that shall not wait
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str, *, urgent: bool) -> None:
        """Take a line."""
        with self._lock:
            is_first = not self._lines  # else the thread has been woken up
            if self._size + len(line) >= self._max_waiting:
                self._lost += 1
                self._on_lost(1)
            else:
                self._lines.append(line)
                self._size += len(line) + 1
        if is_first:
            self._any.set()
        if urgent:
            self._now.set()

    def close(self) -> None:
        """Write what there is, and end; after `CLOSE_PATIENCE` in any case."""
        self._closing = True
        self._now.set()
        self._any.set()
        self._thread.join(CLOSE_PATIENCE)

    def _run(self) -> None:
        while True:
            self._any.wait()
            self._now.wait(PATIENCE)
            # Before the lines are taken: a line that comes from now on is for the next turn, or for this one too.
            closing = self._closing
            self._any.clear()
            self._now.clear()
            self._write_all()
            if closing:
                return

    def _write_all(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
            lost, self._lost = self._lost, 0
        if lost and self._write(_joined([self._lost_line(lost)])):
            lost = 0
        unwritten = sum(number for number, piece in pieces(lines) if not self._write(piece))
        with self._lock:
            if unwritten:
                self._on_lost(unwritten)
            self._lost += lost + unwritten
            # Only now: what is being written takes memory too.
            self._size = sum(len(line) + 1 for line in self._lines)

    def _write(self, piece: bytes) -> bool:
        if self._torn:
            piece = b"\n" + piece
        rest = memoryview(piece)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:
                    # Whoever shares our stderr may have made it so.
                    select.select([], [self._descriptor], [])
        except OSError:
            # No space, or nobody reads any more. Mail goes on.
            self._torn = self._torn or len(rest) < len(piece)
            return False
        self._torn = False
        return True


def pieces(lines: list[str]) -> Iterator[tuple[int, bytes]]:
    """Join lines, with their ends, into pieces of up to `PIECE` bytes; with each goes the number of its lines."""
    whole = _joined(lines) if lines else b""
    start = 0
    while start < len(whole):
        end = whole.rfind(b"\n", start, start + PIECE) + 1 or whole.index(b"\n", start + PIECE) + 1
        piece = whole[start:end]
        yield piece.count(b"\n"), piece
        start = end


def _joined(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("ascii", "backslashreplace")


class Sparing:
    """Writes at once, and only where that does not wait; for a process that must have no threads, and says little."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def put(self, line: str, *, urgent: bool) -> None:
        """Write a line, or drop it."""
        with contextlib.suppress(OSError):
            if select.select([], [self._descriptor], [], 0)[1]:
                os.write(self._descriptor, _joined([line]))
