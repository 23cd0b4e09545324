# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SQLite with other processes, and on disks that are locked, full or hang."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.policy import Identity, Rules
from greylist_proxy.store import Counts, StoreError, Wanted
from greylist_proxy.store.sqlite import SqliteStore
from greylist_proxy.store.sqlite import behind as behind_module
from greylist_proxy.store.sqlite import sightings as sightings_module
from greylist_proxy.store.sqlite.inline import InlineReader
from greylist_proxy.store.sqlite.lookup import look_up

from .peers import the_loop_is_free, until
from .sqlite_files import DECISION, ENTRY, NET, A, Files, U, reason

UNEARNED = Identity(NET.key, "")

CHILD = """
import asyncio, sys
from pathlib import Path
from greylist_proxy.log import Log
from greylist_proxy.policy import Identity, Rules, judge
from greylist_proxy.store import Action, Entry, Kind, Limits
from greylist_proxy.store.sqlite import SqliteStore

NET = Identity("192.0.2.0/24", "192.0.2.1")
RULES = Rules(max_pending=1_000_000)

async def observe(store, sender):
    sighting = await store.observe([NET], sender, "u@here.test")
    return judge([(NET, sighting.found[0])], sighting.now, RULES).reason.value

async def play(store):
    ROLE

async def main():
    store = SqliteStore(Path(sys.argv[1]), RULES, Limits(timeout=30), Log())
    await play(store)
    await store.close()

asyncio.run(main())
"""
WRITE_FOR_EVER = """
    number = 0
    while True:
        for _n in range(20):
            await observe(store, f"{number}@far.test")
            number += 1
        await store.flush()
        await store.put_entry(Entry(Kind.CLIENT, f"10.0.0.{number % 200}", Action.ALLOW))
        print(number, flush=True)
        for _n in range(7):  # some that are not yet committed when the end comes
            await observe(store, f"{number}@far.test")
            number += 1
"""
HAMMER = """
    print("ready", flush=True)
    sys.stdin.readline()
    words = []
    for number in range(500):
        words.append(await observe(store, f"{number}@far.test"))
        if number % 5 == 0:
            await store.delivered([NET], f"{number}@far.test", ["u@here.test"], counts=True)
        if number % 100 == 0:
            await store.put_entry(Entry(Kind.CLIENT, f"10.0.0.{number // 100}", Action.ALLOW))
            await store.expire()
    await store.flush()
    print(*words, flush=True)
"""


def child(role: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.replace("    ROLE\n", role), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("lines", [1, 2, 7, 20])
def test_a_killed_process_loses_only_what_was_not_committed(files: Files, lines: int) -> None:
    process = child(WRITE_FOR_EVER, files.path)
    assert process.stdout is not None
    try:
        committed = [int(process.stdout.readline()) for _n in range(lines)][-1]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()

    async def play() -> None:
        store = files.make(Rules(max_pending=1_000_000))
        files.clock.now = 0  # its records lie in the future then, and live
        senders = {item.triplet.sender async for item in store.triplets(Wanted())}
        assert {f"{number}@far.test" for number in range(committed)} <= senders
        assert len([entry async for entry in store.entries()]) >= min(lines, 200)

    files.run(play())
    assert files.rows("PRAGMA integrity_check") == [("ok",)]
    assert files.damaged() == []


def test_four_processes_hammer_one_file(files: Files) -> None:
    processes = [child(HAMMER, files.path) for _n in range(4)]
    said = []
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        said.append(process.communicate(timeout=90)[0].split())
    assert [process.returncode for process in processes] == [0] * 4
    # Each was new to at least one of them, and nobody lost one.
    for number in range(500):
        words = [words[number] for words in said]
        assert "new" in words
        assert set(words) <= {"new", "early", "known"}
    assert files.rows("SELECT count(*) FROM pending") == [(400,)]
    assert files.rows("SELECT count(*) FROM known") == [(100,)]
    assert files.rows("SELECT passes FROM earned") == [(1,)]
    assert files.rows("SELECT count(*), count(DISTINCT seq) FROM entries") == [(5, 5)]
    assert files.rows("SELECT value FROM meta WHERE name = 'seq'") == [(20,)]
    assert files.rows("PRAGMA integrity_check") == [("ok",)]


class Locked:
    """Another process's write lock."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def __enter__(self) -> Locked:
        self._connection.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


async def fails_aside(call: Coroutine[Any, Any, object]) -> None:
    """Require that a call fails, and that others go on meanwhile."""
    async with the_loop_is_free():
        with pytest.raises(StoreError):
            await call


def test_a_locked_file_stops_neither_the_loop_nor_known_senders(files: Files) -> None:
    async def play() -> None:
        store = files.impatient()
        await store.delivered([NET], "known@far.test", [U], counts=False)
        await store.flush()
        with Locked(files.path):
            # Taken in good faith; it is written as soon as that can be.
            assert await reason(store) == "new"
            await fails_aside(store.flush())
            await fails_aside(store.put_entry(ENTRY))
            with pytest.raises(StoreError, match=f"^{files.path}: .*locked"):
                await reason(store, "other@far.test")
            assert await reason(store, "known@far.test") == "known"
            assert await reason(store) == "early"
            await store.delivered([NET], "kept@far.test", [U], counts=False)
            store.note(DECISION)
            # People may look meanwhile.
            assert [item.triplet.sender async for item in store.triplets(Wanted())] == ["known@far.test"]
        await store.flush()
        assert await reason(store, "other@far.test") == "new"
        assert await reason(store, "kept@far.test") == "known"
        await store.flush()
        assert await store.counts() == Counts(2, 2, 0, 0, 1)

    files.run(play())


def test_a_store_that_could_not_write_tries_again_by_itself(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind_module, "RETRY_EVERY", 0.05)

    async def play() -> None:
        store = files.impatient()
        await reason(store, "before@far.test")
        await store.flush()
        with Locked(files.path):
            await reason(store)
            with pytest.raises(StoreError, match="locked"):
                await store.flush()
        for _n in range(500):
            if files.rows("SELECT count(*) FROM pending") == [(2,)]:
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("it was not written")

    files.run(play())


def test_what_waits_to_be_written_is_bounded(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind_module, "MAX_RECORDS", 50)
    monkeypatch.setattr(behind_module, "MAX_DECISIONS", 20)

    async def play() -> None:
        store = files.impatient()
        await reason(store, "before@far.test")
        await store.flush()
        with Locked(files.path):
            for number in range(49):
                await store.delivered([NET], f"{number}@far.test", [U], counts=False)
            with pytest.raises(StoreError, match="too much waits"):
                await store.delivered([NET], "50@far.test", [U], counts=False)
            for _n in range(30):
                store.note(DECISION)
        await store.flush()
        counts = await store.counts()
        assert counts.known == 49
        assert counts.decisions == 20

    files.run(play())


def test_what_is_being_written_counts_as_well(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind_module, "MAX_RECORDS", 50)
    monkeypatch.setattr(behind_module, "MAX_DECISIONS", 20)

    async def play() -> None:
        store = files.make()
        assert isinstance(store, SqliteStore)
        await reason(store, "before@far.test")
        await store.flush()
        with Locked(files.path):
            for number in range(30):
                await store.delivered([UNEARNED], f"{number}@far.test", [U], counts=False)
                store.note(DECISION)
            await until(lambda: store._behind.overlay.sealed is not None)
            for number in range(30, 50):
                await store.delivered([UNEARNED], f"{number}@far.test", [U], counts=False)
                store.note(DECISION)
            with pytest.raises(StoreError, match="too much waits"):
                await store.delivered([UNEARNED], "50@far.test", [U], counts=False)
        await store.flush()
        counts = await store.counts()
        assert (counts.known, counts.decisions) == (50, 20)

    files.run(play())


def test_a_folder_that_is_locked_for_too_long_is_an_error(files: Files) -> None:
    async def play() -> None:
        store = files.impatient()
        folder = os.open(files.folder, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        await fails_aside(store.observe([NET], A, U))
        os.close(folder)
        assert await reason(store) == "new"

    files.run(play())


def test_a_disk_that_hangs_is_an_error_in_time_and_then_at_once(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()

    def hang(*arguments: Any) -> Any:
        hangs.wait(60)
        return look_up(*arguments)

    monkeypatch.setattr(InlineReader, "open", lambda _self: None)

    async def play() -> None:
        store = files.impatient(0.2)
        assert await reason(store) == "new"
        await store.flush()
        monkeypatch.setattr(sightings_module, "look_up", hang)
        late = [asyncio.create_task(reason(store)) for _n in range(3)]
        assert {str(error) for error in await asyncio.gather(*late, return_exceptions=True)} == {
            f"{files.path}: no answer within 0.2 seconds"
        }
        for _n in range(1000):
            with pytest.raises(StoreError, match="does not answer"):
                await store.observe([NET], A, U)
        # Everything else goes on.
        assert await store.put_entry(ENTRY)
        hangs.set()
        for _n in range(500):
            try:
                assert await reason(store) == "early"
                break
            except StoreError:
                await asyncio.sleep(0.02)
        else:
            pytest.fail("it did not recover")

    files.run(play())


FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from greylist_proxy.log import Log
from greylist_proxy.policy import Identity, Rules
from greylist_proxy.store import Limits, StoreError
from greylist_proxy.store.sqlite import SqliteStore

NET = Identity("192.0.2.0/24", "")

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def fill(store):
    number = 0
    while True:
        for _n in range(100):
            await store.observe([NET], f"{number}@far.test", "u@here.test")
            number += 1
        await store.flush()

async def play():
    store = SqliteStore(Path(sys.argv[1]), Rules(max_pending=10**6), Limits(timeout=30), Log())
    await store.delivered([NET], "known@far.test", ["u@here.test"], counts=False)
    await store.flush()
    limit(300_000)
    try:
        await fill(store)
    except StoreError as error:
        print(error)
    try:
        await store.observe([NET], "other@far.test", "u@here.test")
    except StoreError as error:
        print(error)
    sighting = await store.observe([NET], "known@far.test", "u@here.test")
    print(sighting.found[0].record.last_used is not None)
    limit(resource.RLIM_INFINITY)
    await store.flush()
    await store.observe([NET], "other@far.test", "u@here.test")
    await store.close()

asyncio.run(play())
"""


def test_a_full_disk_is_an_error_until_there_is_room(files: Files) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(files.path)], capture_output=True, text=True, timeout=90, check=True
    )
    first, second, known = result.stdout.splitlines()
    assert first.startswith(f"{files.path}: ")
    assert second == first
    assert known == "True"
    assert files.rows("SELECT count(*) FROM pending WHERE sender = 'other@far.test'") == [(1,)]
    assert files.rows("PRAGMA integrity_check") == [("ok",)]
    assert files.damaged() == []
