# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The databases that the store benchmark fills: a file, and a server that it starts and ends itself.

Each is made empty for one size and removed after it. How triplets expire differs. The file's store removes them step
by step, so its clock is set ahead until half of all have expired. The server removes keys by itself when their time
has come, in its own time: half of all keys get the same moment to end at, and what is waited for are nine tenths of
them, as the server is content with a tenth that is overdue. Meanwhile a decision is asked for a hundred times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from greylist_proxy.config_sections import StoreSection
from greylist_proxy.log import Log
from greylist_proxy.policy import Rules
from greylist_proxy.store import Counts, Limits, Store
from greylist_proxy.store.factory import make_store
from greylist_proxy.store.sqlite import SqliteStore
from stores_data import Population
from stores_figures import Expiry
from valkey import Valkey
from valkey.exceptions import ConnectionError as NotConnected

SERVERS = ("valkey-server", "redis-server")
LIMITS = Limits(timeout=30.0)  # a benchmark wants to see a slow answer, not none
PATIENCE = 20.0  # seconds for the server to start
# Half of all keys are to end at one moment. SCAN gives a script each key at least once.
END_HALF = """
local found = redis.call('SCAN', ARGV[1], 'COUNT', 10000)
local ended = 0
for i = 1, #found[2], 2 do
  ended = ended + redis.call('PEXPIREAT', found[2][i], ARGV[2])
end
return { found[1], ended }
"""

Ask = Callable[[], Awaitable[object]]


class Unmeasurable(Exception):
    """There is not what a measurement needs; the text says what."""


class Clock:
    """The time, and how many seconds it is set ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        """Return seconds since 1970."""
        return time.time() + self.ahead


class Database(Protocol):
    """One database, and the store that works on it."""

    name: str
    on_disk: bool

    def open(self, clock: Clock) -> Store:
        """Make a store; what another one has left is there."""

    def bytes(self) -> int:
        """How much the data takes now."""

    def settle(self, *, forget: bool = False) -> None:
        """Wait until all is on the disk, and let the system `forget` what it has of it. No store may be open."""

    async def expire(self, store: Store, population: Population, clock: Clock, ask: Ask) -> Expiry:
        """Let half of all triplets expire; `ask` makes a decision."""


class File:
    """A SQLite database in a folder."""

    name = "sqlite"
    on_disk = True

    def __init__(self, folder: Path) -> None:
        self._path = folder / "greylist.db"

    def open(self, clock: Clock) -> Store:
        """Open the file."""
        return SqliteStore(self._path, Rules(), LIMITS, Log(), clock)

    def bytes(self) -> int:
        """Count the file, its write-ahead log and its index."""
        return sum(path.stat().st_size for path in self._path.parent.glob(f"{self._path.name}*"))

    def settle(self, *, forget: bool = False) -> None:
        """Write the files out; what the system still had to write would slow down what is measured next."""
        for path in self._path.parent.glob(f"{self._path.name}*"):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                if forget:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    async def expire(self, store: Store, population: Population, clock: Clock, ask: Ask) -> Expiry:
        """Set the clock ahead, and take steps until there is nothing more to do."""
        before = await store.counts()
        clock.ahead = population.seconds_until_half_expired()
        steps: list[float] = []
        async with _asked(ask) as waits:
            began = time.perf_counter()
            more = True
            while more:
                step = time.perf_counter()
                more = await store.expire()
                steps.append(time.perf_counter() - step)
                await asyncio.sleep(0)
            seconds = time.perf_counter() - began
        await store.flush()
        there, gone = await _gone(store, before)
        return Expiry(there, gone, seconds, len(steps), max(steps), max(waits), None)  # a file keeps its size


class Server:
    """A server of the Valkey or Redis kind, on a loopback port, that keeps nothing on disk and evicts nothing."""

    name = "valkey"
    on_disk = False

    def __init__(self, port: int) -> None:
        self._port = port
        self._direct: Any = Valkey("127.0.0.1", port)  # its types say that each answer may be a coroutine

    def answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the server answers; False where it has ended, or does not answer in time."""
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(NotConnected):
                return bool(self._direct.ping())
            time.sleep(0.05)
        return False

    def open(self, clock: Clock) -> Store:
        """Connect; the server's own clock counts, as it always does."""
        section = StoreSection.model_validate({"url": f"valkey://127.0.0.1:{self._port}/0", "timeout": LIMITS.timeout})
        return make_store(section, Rules(), Log())

    def bytes(self) -> int:
        """Count what the server's allocator gave out."""
        return int(self._direct.info("memory")["used_memory"])

    def settle(self, *, forget: bool = False) -> None:
        """There is no disk behind."""

    async def expire(self, store: Store, population: Population, clock: Clock, ask: Ask) -> Expiry:
        """Give half of the keys a moment to end at, and see when the server has removed them."""
        before, size = await store.counts(), self.bytes()
        keys = self._keys()
        end = time.time() + 2 + keys / 200_000
        ended, cursor = 0, b"0"
        script = self._direct.register_script(END_HALF)
        while True:
            cursor, some = script(args=[cursor, round(end * 1000)])
            ended += some
            if cursor == b"0":
                break
        if time.time() > end:
            raise Unmeasurable(f"giving {ended:,} keys a time to end took longer than was planned for it")
        await asyncio.sleep(end - time.time())
        async with _asked(ask) as waits:
            while self._keys() > keys - ended * 0.9:  # noqa: ASYNC110 - another process does it, and tells nobody
                await asyncio.sleep(0.05)
            seconds = time.time() - end
        freed = size - self.bytes()
        there, gone = await _gone(store, before)
        return Expiry(there, gone, seconds, None, None, max(waits), freed)

    def _keys(self) -> int:
        return int(self._direct.dbsize())


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[Database]:
    """Make a file's database."""
    yield File(folder)


@contextlib.contextmanager
def on_server(folder: Path) -> Iterator[Database]:
    """Start a server, and end it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "server.log").open("w+") as output:
        process = subprocess.Popen(
            [
                find_server(),
                *("--bind", "127.0.0.1", "--port", str(port), "--dir", folder),
                *("--save", "", "--appendonly", "no", "--maxmemory", "0", "--maxmemory-policy", "noeviction"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            server = Server(port)
            if not server.answers(process):
                output.seek(0)
                raise Unmeasurable(f"the server did not start:\n{output.read()[-2000:]}")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def find_server() -> str:
    """Return the path of a server's program."""
    for name in SERVERS:
        if path := shutil.which(name):
            return path
    raise Unmeasurable(f"neither {' nor '.join(SERVERS)} is installed: apt-get install redis-server")


@dataclass(frozen=True)
class Kind:
    """A kind of database: how to make one, what it needs for each triplet, and what it is, with its version."""

    make: Callable[[Path], AbstractContextManager[Database]]
    disk: int  # bytes
    memory: int  # bytes
    version: Callable[[], str]

    def check(self, triplets: int, folder: Path) -> None:
        """Raise Unmeasurable where disk or memory will not do for so many triplets."""
        for needed, free, what in (
            (triplets * self.disk, shutil.disk_usage(folder).free, f"of disk below {folder}"),
            (triplets * self.memory, _free_memory(), "of memory"),
        ):
            if needed > free:
                raise Unmeasurable(
                    f"{triplets:,} triplets need {needed / 1e9:.1f} GB {what}, and {free / 1e9:.1f} GB are free"
                )


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise Unmeasurable("/proc/meminfo does not say how much memory is free")


def _server_version() -> str:
    said = subprocess.run([find_server(), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    version = re.search(r"v=([0-9.]+)", said)
    return f"{Path(find_server()).name} {version[1] if version else '?'}"


# What is asked for before a run begins: what was measured, with room for a write-ahead log or a table that doubles.
KINDS = {
    "sqlite": Kind(in_folder, disk=300, memory=50, version=lambda: f"SQLite {sqlite3.sqlite_version}"),
    "valkey": Kind(on_server, disk=0, memory=300, version=_server_version),
}


async def _gone(store: Store, before: Counts) -> tuple[int, int]:
    """Return how many triplets there were, and how many of them are gone."""
    after = await store.counts()
    there = before.pending + before.known
    return there, there - after.pending - after.known


@contextlib.asynccontextmanager
async def _asked(ask: Ask) -> AsyncIterator[list[float]]:
    """Ask for a decision a hundred times a second, and note how long each took, in seconds; one at least."""
    waits: list[float] = []

    async def ask_once() -> None:
        began = time.perf_counter()
        await ask()
        waits.append(time.perf_counter() - began)

    async def asking() -> None:
        while True:
            await ask_once()
            await asyncio.sleep(0.01)

    task = asyncio.create_task(asking())
    try:
        yield waits
        await ask_once()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
