# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions in Valkey: one stream, written behind in batches.

A batch goes out `EVERY` seconds after its first decision, and with it the order to drop what is too old or too much.
While the server fails, decisions wait here, `MOST_WAITING` at most; then the oldest are lost. A batch that went out and
was not answered is not sent again: a server that is only slow would keep it once for each time. Nothing depends on
decisions, and each one is in the log as well.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import fields
from operator import attrgetter

from greylist_proxy.store import Limits, Logged, StoreError, Wanted
from greylist_proxy.store.valkey.keys import Command, Keys, Script, milliseconds
from greylist_proxy.store.valkey.servers import NoAnswer, Servers
from greylist_proxy.store.wanted import wants_decision

EVERY = 0.1  # seconds
AFTER_FAILURE = 1.0  # seconds
BATCH = 500  # decisions in one write
MOST_WAITING = 10_000
PAGE = 500

_fields = attrgetter(*(field.name for field in fields(Logged)))


class Decisions:
    """The decisions of one store."""

    def __init__(self, servers: Servers, keys: Keys, limits: Limits) -> None:
        self._servers = servers
        self._key = keys.decisions
        self._limits = limits
        self._waiting: deque[Logged] = deque(maxlen=MOST_WAITING)
        self._writer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._trim_script = Script("trim")

    def note(self, decision: Logged) -> None:
        """Keep a decision, soon."""
        if not self._limits.max_decisions or not self._limits.decisions_lifetime:
            return
        self._waiting.append(decision)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write_behind())

    async def flush(self) -> None:
        """Write what waits. StoreError: it could not be written, and waits still, unless there was no answer."""
        async with self._writing:
            while self._waiting:
                batch = [self._waiting.popleft() for _n in range(min(BATCH, len(self._waiting)))]
                try:
                    await self._servers.run([*map(self._add, batch), self._trim()])
                except NoAnswer:
                    raise
                except BaseException:
                    # Those that came meanwhile are newer: where there is no room, these are the ones to lose.
                    room = MOST_WAITING - len(self._waiting)
                    self._waiting.extendleft(reversed(batch[len(batch) - min(room, len(batch)) :]))
                    raise

    async def close(self) -> None:
        """Write what waits, if that works, and end the task that writes."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        try:
            await self.flush()
        except StoreError:
            self._waiting.clear()

    async def matching(self, wanted: Wanted, now: float) -> AsyncIterator[Logged]:
        """Give those that are wanted and young enough at `now`, newest first."""
        oldest = now - self._limits.decisions_lifetime
        left = self._limits.max_decisions  # the server keeps a few more, up to the end of a node of its stream
        before = b"+"
        while True:
            words = ("XREVRANGE", self._key, before, "-", "COUNT", PAGE)
            [page] = await self._servers.run([Command(self._key, words)])
            with self._servers.reading():
                found = [Logged(*json.loads(value)) for _ident, [_name, value] in page]
            for decision in found[:left]:
                if decision.time >= oldest and wants_decision(wanted, decision):
                    yield decision
            left -= len(page)
            if len(page) < PAGE or left <= 0:
                return
            before = b"(" + page[-1][0]

    def count_command(self) -> Command:
        """Make the command that counts them."""
        return Command(self._key, ("XLEN", self._key))

    def _add(self, decision: Logged) -> Command:
        value = json.dumps(_fields(decision), separators=(",", ":"))
        words = ("XADD", self._key, "MAXLEN", "~", self._limits.max_decisions, "*", "d", value)
        return Command(self._key, words)

    def _trim(self) -> Command:
        # By the server's clock: the stream numbers its items by it.
        return self._trim_script([self._key], milliseconds(self._limits.decisions_lifetime), "~")

    async def _write_behind(self) -> None:
        pause = EVERY
        while self._waiting:
            await asyncio.sleep(pause)
            try:
                await self.flush()
                pause = EVERY
            except StoreError:
                pause = AFTER_FAILURE
