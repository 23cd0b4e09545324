# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An event loop that goes one round at a time, under a clock of its own, and transports of memory.

So each order of events can be had, and be had again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

START = 1_000_000.0  # where the clock begins
MOST_ROUNDS = 2000  # of a loop that has something to do; more is a circle


class Loop(asyncio.SelectorEventLoop):
    """An event loop that goes by rounds, under a clock that the test moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.faults: list[dict[str, Any]] = []
        self.answer: Callable[[asyncio.Protocol], None] = lambda _protocol: None  # to who connects
        self.set_exception_handler(lambda _loop, context: self.faults.append(context))

    def time(self) -> float:
        return self.now

    async def create_connection(  # type: ignore[override]
        self, factory: Callable[[], Any], *_where: Any, **_how: Any
    ) -> Any:
        """Connect to who answers."""
        self.answer(protocol := factory())
        return None, protocol

    def round(self) -> None:
        """Run what is ready now, and not what that makes ready."""
        self.call_soon(self.stop)
        self.run_forever()

    def rest(self) -> None:
        """Go on until nothing is ready."""
        for _n in range(MOST_ROUNDS):
            self.round()
            if not self._ready:  # type: ignore[attr-defined]
                return
        raise AssertionError("the loop never rests")

    def step(self, seconds: float) -> None:
        """Let time go by, timer by timer."""
        end = self.now + seconds
        while True:
            self.rest()
            times = [each.when() for each in self._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
            following = min(times, default=end)
            if following >= end:
                break
            self.now = max(self.now, following)
        self.now = end
        self.rest()


class Pipe(asyncio.Transport):
    """A transport of memory: `hear` takes what is written, unless the other side is `stalled`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: Any, host: str, hear: Callable[[bytes], object]
    ) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._host = host
        self._hear = hear
        self._coming: deque[bytes | None] = deque()  # None: the end
        self._waiting = b""
        self._high, self._low = 64 << 10, 16 << 10
        self._is_reading = True
        self._is_paused = False
        self._is_closing = False
        self.stalled = False
        self.is_over = False

    # -- the proxy's side --

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": (self._host, 40000), "sockname": ("192.0.2.1", 25)}.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high, self._low = high or 0, low or 0

    def get_write_buffer_size(self) -> int:
        return len(self._waiting)

    def is_closing(self) -> bool:
        return self._is_closing

    def write(self, data: Any) -> None:
        if self._is_closing:
            return
        if not self.stalled:
            self._hear(bytes(data))
            return
        self._waiting += data
        if len(self._waiting) > self._high and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        assert not self._is_reading, "asyncio forbids it"
        self._is_reading = True
        self._loop.call_soon(self._bring)

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self._waiting:
                self._loop.call_soon(self._end, None)

    def abort(self) -> None:
        self._is_closing = True
        self._waiting = b""
        self._loop.call_soon(self._end, None)

    # -- the other side --

    def bring(self, data: bytes | None) -> None:
        """Let data come, or the end (None)."""
        self._coming.append(data)
        self._loop.call_soon(self._bring)

    def reset(self) -> None:
        """Break the connection."""
        self._loop.call_soon(self._end, ConnectionResetError("by peer"))

    def take(self) -> None:
        """Take what was written meanwhile, and be quick again."""
        self.stalled = False
        data, self._waiting = self._waiting, b""
        if data:
            self._hear(data)
        if self._is_closing:
            self._loop.call_soon(self._end, None)
        elif self._is_paused:
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._is_paused and not self.is_over and len(self._waiting) <= self._low:
            self._is_paused = False
            self._protocol.resume_writing()

    def _bring(self) -> None:
        if not self._coming or not self._is_reading or self._is_closing:
            return
        data = self._coming.popleft()
        if data is not None:
            self._protocol.data_received(data)
        elif not self._protocol.eof_received():
            self.close()
        if self._coming:
            self._loop.call_soon(self._bring)

    def _end(self, error: Exception | None) -> None:
        if not self.is_over:
            self.is_over = self._is_closing = True
            protocol, self._protocol = self._protocol, None
            protocol.connection_lost(error)
