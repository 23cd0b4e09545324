# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for one short word, without a task.

A task that waits for a reply costs a future and three turns of the event loop until its result is where it is wanted:
half of what a short message takes. An errand is a coroutine that goes on in the very call that brings the reply:

    a Bell is what is awaited      bell.ring(), from the call that brings the news, goes on with who awaits it
    anything else                  a task leads the coroutine from there on (`in_a_task` says so beforehand)

So what is reached by an errand must not ask for the current task (`asyncio.timeout` does) before `in_a_task`. Whoever
awaits a Bell within a task waits as for any future.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from greylist_proxy.patience import go_on

if TYPE_CHECKING:
    from greylist_proxy.tasks import Tasks

T = TypeVar("T")


class Bell:
    """Wakes the one who awaits it; can be awaited again and again, by one at a time."""

    __slots__ = ("_errand", "_future")

    def __init__(self) -> None:
        self._errand: Errand[Any] | None = None
        self._future: asyncio.Future[None] | None = None

    def __await__(self) -> Generator[Any, None, None]:
        """Wait until it rings."""
        if asyncio.current_task() is None:
            yield self
            return
        self._future = asyncio.get_running_loop().create_future()
        try:
            yield from self._future
        finally:
            self._future = None

    @property
    def is_awaited(self) -> bool:
        """Tell whether somebody waits who has not been woken yet."""
        return self._errand is not None or (self._future is not None and not self._future.done())

    def ring(self) -> None:
        """Wake who waits; an errand goes on before this returns, so nothing should be left to do afterwards."""
        errand, self._errand = self._errand, None
        if errand is not None:
            errand.resume()
        elif self._future is not None and not self._future.done():
            self._future.set_result(None)

    def ring_soon(self) -> None:
        """Wake who waits, in a later turn of the loop."""
        errand, self._errand = self._errand, None
        if errand is not None:
            asyncio.get_running_loop().call_soon(errand.resume)
        else:
            self.ring()

    def lead(self, errand: Errand[Any]) -> None:
        """Take the errand that is to be woken."""
        self._errand = errand

    def leave(self, errand: Errand[Any]) -> bool:
        """Wake this errand no more; False: it has been woken already."""
        waited = self._errand is errand
        if waited:
            self._errand = None
        return waited


class Errand(Generic[T]):
    """A coroutine that has begun and awaits something. `on_end` is told its result, or its error, CancelledError too.

    `tasks` holds it until then, or until a task leads it.
    """

    __slots__ = ("_bell", "_coroutine", "_is_cancelled", "_on_end", "_task", "_tasks")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        on_end: Callable[[T | None, BaseException | None], None],
        tasks: Tasks,
    ) -> None:
        self._coroutine = coroutine
        self._on_end = on_end
        self._tasks = tasks
        self._bell: Bell | None = None
        self._task: asyncio.Task[tuple[T | None, Exception | None]] | None = None
        self._is_cancelled = False
        tasks.errands.add(self)

    def wait(self, awaited: Any) -> None:
        """Wait for what the coroutine has just given."""
        if isinstance(awaited, Bell):
            self._bell = awaited
            if self._is_cancelled:
                asyncio.get_running_loop().call_soon(self.resume)
            else:
                awaited.lead(self)
            return
        self._tasks.errands.discard(self)  # it is a task now
        task = self._task = self._tasks.spawn(self._led(awaited))
        if self._is_cancelled:
            task.cancel()
        if task.done():
            self._task_ended(task)
        else:
            task.add_done_callback(self._task_ended)

    def resume(self) -> None:
        """Go on: what was awaited is there, or the errand is cancelled."""
        try:
            if self._is_cancelled:
                self._is_cancelled = False
                awaited = self._coroutine.throw(asyncio.CancelledError())
            else:
                awaited = self._coroutine.send(None)
        except StopIteration as end:
            self._end(end.value, None)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it is for who asked
            self._end(None, error)
        else:
            self.wait(awaited)

    def cancel(self) -> None:
        """Let CancelledError be raised where it waits, in a later turn of the loop."""
        if self._task is not None:
            self._task.cancel()
        elif not self._is_cancelled:
            self._is_cancelled = True
            if self._bell is not None and self._bell.leave(self):
                asyncio.get_running_loop().call_soon(self.resume)

    async def _led(self, awaited: Any) -> tuple[T | None, Exception | None]:
        try:
            return await go_on(self._coroutine, awaited), None
        except Exception as error:  # noqa: BLE001 - it is for who asked
            return None, error

    def _task_ended(self, task: asyncio.Task[tuple[T | None, Exception | None]]) -> None:
        # A task that was cancelled keeps the frames that this went through, and those keep all that waited for it.
        self._task = None
        if task.cancelled():
            self._coroutine.close()  # the task may never have come to its first step
            self._end(None, asyncio.CancelledError())
        else:
            self._end(*task.result())

    def _end(self, result: T | None, error: BaseException | None) -> None:
        self._tasks.errands.discard(self)
        try:
            self._on_end(result, error)
        except Exception as trouble:  # noqa: BLE001 - it is not to hurt who rang, such as a backend's connection
            self._tasks.report(trouble)
