# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stores that the contract tests run on.

`Stores` makes stores of one kind. Those with the same `data` share it, as two processes would. A new kind is a
context manager that takes a folder and gives its `Stores`, and an entry in `KINDS`.
"""

from __future__ import annotations

import asyncio
import io
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
from greylist_proxy.config_values import ServerAddress
from greylist_proxy.log import Log
from greylist_proxy.policy import Rules
from greylist_proxy.store import Limits, Store
from greylist_proxy.store.sqlite import SqliteStore
from greylist_proxy.store.sqlite.inline import InlineReader
from greylist_proxy.store.valkey import ValkeyStore

from .valkey_servers import shared_cluster, single

T = TypeVar("T")
START = 1_700_000_000.0  # where a test's clock begins


class Clock:
    """The time that a test decides, in whole milliseconds, as stores keep it."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def step(self, seconds: float) -> float:
        """Go on (or, with a negative number, back), and return the time then."""
        self.now = round(self.now + seconds, 3)
        return self.now


class Stores(ABC):
    """Stores of one kind, under one clock; `run` closes what a test made."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.said = io.StringIO()
        self._made: list[Store] = []

    @abstractmethod
    def build(self, data: str, rules: Rules, limits: Limits, log: Log, clock: Callable[[], float]) -> Store:
        """Make a store over the data of this name, which is empty when the name is new."""

    def make(self, rules: Rules | None = None, limits: Limits | None = None, *, data: str = "data") -> Store:
        """Make a store that is closed when the test is over."""
        store = self.build(data, rules or Rules(), limits or Limits(timeout=20), Log(self.said), self.clock)
        self._made.append(store)
        return store

    async def reopen(self, store: Store, rules: Rules | None = None, *, data: str = "data") -> Store:
        """Close a store, and make another one over the same data."""
        await store.close()
        return self.make(rules, data=data)

    def run(self, play: Coroutine[Any, Any, T]) -> T:
        """Run a test's coroutine in an event loop of its own, then close its stores."""

        async def whole() -> T:
            try:
                return await play
            finally:
                for store in self._made:
                    await store.close()
                self._made.clear()

        return asyncio.run(whole())


class SqliteStores(Stores):
    """Files in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def build(self, data: str, rules: Rules, limits: Limits, log: Log, clock: Callable[[], float]) -> Store:
        """Make a store in the file of this name."""
        return SqliteStore(self._folder / f"{data}.db", rules, limits, log, clock)


@contextmanager
def sqlite_stores(folder: Path) -> Iterator[Stores]:
    """SQLite needs nothing but a folder."""
    yield SqliteStores(folder)


@contextmanager
def sqlite_by_thread_stores(folder: Path) -> Iterator[Stores]:
    """The way in which a file is read that is too slow for the event loop."""
    with mock.patch.object(InlineReader, "open"):
        yield SqliteStores(folder)


class ValkeyStores(Stores):
    """Prefixes on a server, or in a cluster."""

    def __init__(self, address: ServerAddress) -> None:
        super().__init__()
        self._address = address
        self._prefix = secrets.token_hex(4)

    def build(self, data: str, rules: Rules, limits: Limits, log: Log, clock: Callable[[], float]) -> Store:
        """Make a store with the prefix of this name."""
        return ValkeyStore(self._address, rules, limits, log, prefix=f"{self._prefix}-{data}", clock=clock)


@contextmanager
def valkey_stores(folder: Path) -> Iterator[Stores]:
    """A server for each test starts in a moment."""
    with single(folder) as server:
        yield ValkeyStores(ServerAddress("single", False, (server.endpoint,)))


@contextmanager
def valkey_cluster_stores(folder: Path) -> Iterator[Stores]:
    """A cluster takes seconds, and is shared by the tests of a process."""
    yield ValkeyStores(shared_cluster().address)


KINDS: dict[str, Callable[[Path], AbstractContextManager[Stores]]] = {
    "sqlite": sqlite_stores,
    "sqlite-by-thread": sqlite_by_thread_stores,
    "valkey": valkey_stores,
    "valkey-cluster": valkey_cluster_stores,
}


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    """Each kind of store in turn."""
    with KINDS[request.param](tmp_path) as made:
        yield made
