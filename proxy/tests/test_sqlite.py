# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SQLite's own: the file, its damage, older versions, other processes, and disks that fail."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.log import Log
from greylist_proxy.policy import Identity, Record, Rules, Triplet, is_expired, judge
from greylist_proxy.store import Action, Counts, Entry, Kind, Limits, Logged, StoreError, Wanted
from greylist_proxy.store import sqlite_behind as behind_module
from greylist_proxy.store import sqlite_sightings as sightings_module
from greylist_proxy.store.sqlite import SqliteStore
from greylist_proxy.store.sqlite_lookup import Question, look_up
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .stores import START, Clock, SqliteStores

RULES = Rules(delay=60, retry_window=600, lifetime=7200)
NET = Identity("192.0.2.0/24", "192.0.2.1")
A, U = "a@far.test", "u@here.test"
ENTRY = Entry(Kind.CLIENT, "192.0.2.1", Action.ALLOW, created=START, note="the boss")
DECISION = Logged(START, "defer", "new", "192.0.2.1", NET.key, A, U, 60, "id")


class Files(SqliteStores):
    """Stores in a folder, and the one file most tests are about."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.path = folder / "data.db"

    def impatient(self, timeout: float = 0.3) -> SqliteStore:
        store = self.make(RULES, Limits(timeout=timeout))
        assert isinstance(store, SqliteStore)
        return store

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def damaged(self) -> list[Path]:
        return [path for path in self.folder.glob("data.db.damaged-*") if not path.name.endswith(("-wal", "-shm"))]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.said.getvalue().splitlines()]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def reason(store: Any, sender: str = A, rules: Rules = RULES) -> str:
    sighting = await store.observe([NET], sender, U)
    return judge([(NET, sighting.found[0])], sighting.now, rules).reason


async def sweep(store: Any) -> int:
    steps = 1
    while await store.expire():
        steps += 1
    return steps


# -- the file --


def test_nobody_else_may_read_it(files: Files) -> None:
    async def play() -> None:
        store = files.make(RULES)
        await reason(store)
        await store.flush()
        modes = {path.name: path.stat().st_mode & 0o777 for path in files.folder.iterdir()}
        assert modes == {"data.db": 0o600, "data.db-wal": 0o600, "data.db-shm": 0o600}

    files.run(play())


def test_a_closed_store_leaves_one_file_and_answers_no_more(files: Files) -> None:
    async def play() -> None:
        store = files.make(RULES)
        await reason(store)
        await store.close()
        assert [path.name for path in files.folder.iterdir()] == ["data.db"]
        for call in (store.observe([NET], A, U), store.flush(), store.put_entry(ENTRY), store.counts()):
            with pytest.raises(StoreError, match="closed"):
                await call
        store.note(DECISION)

    files.run(play())


def test_a_symbolic_link_is_followed(files: Files, tmp_path: Path) -> None:
    async def play() -> None:
        (tmp_path / "elsewhere").mkdir()
        files.path.symlink_to("elsewhere/real.db")
        store = files.make(RULES)
        assert await reason(store) == "new"
        await store.close()
        assert (tmp_path / "elsewhere" / "real.db").is_file()
        assert files.path.is_symlink()

    files.run(play())


def folder_missing(path: Path) -> None:
    path.parent.rmdir()


def is_a_directory(path: Path) -> None:
    path.mkdir()


def is_newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 77")


def is_not_ours(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE accounts (id INTEGER)")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (folder_missing, "the folder .* is missing: make it"),
        (is_a_directory, "it is a directory: let store.url name a file"),
        (is_newer, "of version 77, and this program knows those up to 2: start the newer program"),
        (is_not_ours, "some other program"),
    ],
)
def test_errors_say_what_to_mend_and_pass_when_it_is(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    files = Files(folder)

    async def play() -> None:
        spoil(files.path)
        before = files.path.read_bytes() if files.path.is_file() else b""
        store = files.make(RULES)
        for call in (store.observe([NET], A, U), store.put_entry(ENTRY), store.changes(None), store.expire()):
            with pytest.raises(StoreError, match=f"^{files.path}: .*{message}"):
                await call
        with pytest.raises(StoreError, match=message):
            [item async for item in store.triplets(Wanted())]
        if before:
            assert files.path.read_bytes() == before
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        assert await reason(store) == "new"
        await store.flush()

    files.run(play())


# Who has become nobody may not be able to import what asyncio imports late.
WITHOUT_RIGHTS = """
import asyncio, concurrent.futures.thread, os, sys
from pathlib import Path
from greylist_proxy.log import Log
from greylist_proxy.policy import Identity, Rules
from greylist_proxy.store import Limits, StoreError
from greylist_proxy.store.sqlite import SqliteStore

async def play():
    store = SqliteStore(Path(sys.argv[1]), Rules(), Limits(), Log())
    try:
        await store.observe([Identity("net", "")], "a@far.test", "u@here.test")
    except StoreError as error:
        print(error)
    await store.close()

if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
asyncio.run(play())
"""


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_rights_is_told(exists: bool) -> None:
    with tempfile.TemporaryDirectory() as name:  # a folder that another user can reach, unlike pytest's
        path = Path(name) / "x.db"
        if exists:
            with sqlite3.connect(path) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.close()
            path.chmod(0o444)
        path.parent.chmod(0o555)
        try:
            result = subprocess.run(
                [sys.executable, "-c", WITHOUT_RIGHTS, str(path)],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        finally:
            path.parent.chmod(0o700)
    assert result.stdout.startswith(f"{path}: ")
    assert "let the program's user write the file" in result.stdout


def test_a_file_that_is_taken_away_is_made_anew(files: Files) -> None:
    async def play() -> None:
        here, there = files.make(RULES), files.make(RULES)
        await here.put_entry(ENTRY)
        assert await reason(here) == "new"
        await here.flush()
        assert await reason(there) == "early"
        position = (await there.changes(None)).position
        for path in list(files.folder.iterdir()):
            path.unlink()
        assert await reason(there) == "new"
        await there.flush()
        assert await reason(here) == "early"
        # It is another file, and whoever keeps a copy of the entries is told so.
        changes = await here.changes(position)
        assert (changes.restart, changes.changed) == (True, ())

    files.run(play())


# -- versions --

VERSION_1 = """
CREATE TABLE triplets (
    network TEXT NOT NULL,
    sender TEXT NOT NULL,
    recipient TEXT NOT NULL,
    first_seen REAL NOT NULL,
    last_used REAL,
    PRIMARY KEY (network, sender, recipient)
) WITHOUT ROWID;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


def test_a_file_of_version_1_is_taken_over_by_many_at_once(files: Files) -> None:
    connection = sqlite3.connect(files.path)
    connection.executescript(VERSION_1)
    rows = [(NET.key, f"{number}@far.test", U, START - 0.25, START if number % 2 else None) for number in range(2000)]
    connection.executemany("INSERT INTO triplets VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()

    async def play() -> None:
        rules = replace(RULES, max_pending=5000)
        made = [files.make(rules) for _n in range(4)]
        words = await asyncio.gather(*(reason(store, f"{number}@far.test", rules) for number, store in enumerate(made)))
        assert words == ["early", "known", "early", "known"]
        records = {item.triplet.sender: item.record async for item in made[0].triplets(Wanted())}
        assert records == {row[1]: Record(row[3], row[4]) for row in rows}
        assert await made[0].counts() == Counts(1000, 1000, 0, 0, 0)

    files.run(play())
    assert files.rows("PRAGMA user_version") == [(2,)]
    assert files.rows("PRAGMA integrity_check") == [("ok",)]
    assert files.damaged() == []


def test_a_step_to_the_next_version_that_is_cut_short_has_not_happened(files: Files) -> None:
    connection = sqlite3.connect(files.path)
    connection.executescript(VERSION_1)
    # A table in the way of the step's last but one statement.
    connection.execute("INSERT INTO triplets VALUES ('net', 'a', 'u', 1e300, NULL)")
    connection.execute("CREATE TABLE meta (in_the_way INTEGER)")
    connection.commit()

    async def play() -> None:
        with pytest.raises(StoreError, match="meta already exists"):
            await reason(files.make(RULES))

    files.run(play())
    assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall() == [
        ("meta",),
        ("triplets",),
    ]
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()


# -- damage --


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database at all. " * 500)


def cut_to(size: int) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        os.truncate(path, size)

    return cut


def spoil_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(100))


def spoil_pages(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


@pytest.mark.parametrize(
    "spoil",
    [garbage, cut_to(50), cut_to(100), cut_to(5000), spoil_header, spoil_pages],
    ids=lambda spoil: spoil.__name__,
)
def test_a_damaged_file_is_set_aside_and_mail_goes_on(files: Files, spoil: Callable[[Path], None]) -> None:
    async def play() -> None:
        store = files.make(replace(RULES, max_pending=5000))
        for number in range(300):
            await store.observe([NET], f"{number}@far.test", U)
        await store.close()
        spoil(files.path)
        spoiled = files.path.read_bytes()
        made = [files.make(RULES) for _n in range(3)]
        words = await asyncio.gather(*(reason(store) for store in made))
        assert set(words) == {"new"}
        await asyncio.gather(*(store.flush() for store in made))
        assert [await reason(store) for store in made] == ["early"] * 3
        # One of them set it aside, and the others did not touch the new one.
        [aside] = files.damaged()
        assert aside.read_bytes() == spoiled
        [event] = files.events()
        assert (event["event"], event["state"], event["set_aside"]) == ("store", "damaged", str(aside))

    files.run(play())
    assert files.rows("PRAGMA integrity_check") == [("ok",)]


def test_an_empty_file_is_a_new_one(files: Files) -> None:
    async def play() -> None:
        files.path.touch()
        assert await reason(files.make(RULES)) == "new"
        assert files.events() == []

    files.run(play())


def test_damage_while_it_runs_loses_triplets_and_no_entries(files: Files) -> None:
    async def play() -> None:
        rules = replace(RULES, max_pending=5000)
        here, there = files.make(rules), files.make(rules)
        await here.put_entry(ENTRY)
        for number in range(3000):
            await here.observe([NET], f"{number}@far.test", U)
        await here.flush()
        assert await reason(there, "2999@far.test", rules) == "early"
        connection = sqlite3.connect(files.path)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [(entries_root,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entries'").fetchall()
        [(triplets_root,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'pending'").fetchall()
        connection.close()
        assert entries_root != triplets_root
        with files.path.open("r+b") as file:
            file.seek((triplets_root - 1) * 4096)
            file.write(b"\xff" * 4096)
        await reason(here, "fresh@far.test", rules)
        await here.flush()
        await reason(there, "fresh@far.test", rules)
        assert [await reason(store, "fresh@far.test", rules) for store in (here, there)] == ["early"] * 2
        [aside] = files.damaged()
        assert [entry async for entry in there.entries()] == [ENTRY]
        [event] = files.events()
        assert event["entries_kept"] == 1
        assert sqlite3.connect(aside).execute("SELECT count(*) FROM entries").fetchone() == (1,)

    files.run(play())
    assert files.rows("PRAGMA integrity_check") == [("ok",)]


# -- other processes --

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


async def ticks_during(call: Coroutine[Any, Any, object]) -> int:
    """Count how often another task gets its turn while a call fails."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticker = asyncio.create_task(tick())
    with pytest.raises(StoreError):
        await call
    ticker.cancel()
    return ticks


def test_a_locked_file_stops_neither_the_loop_nor_known_senders(files: Files) -> None:
    async def play() -> None:
        store = files.impatient()
        await store.delivered([NET], "known@far.test", [U], counts=False)
        await store.flush()
        with Locked(files.path):
            # Taken in good faith; it is written as soon as that can be.
            assert await reason(store) == "new"
            assert await ticks_during(store.flush()) > 100
            assert await ticks_during(store.put_entry(ENTRY)) > 100
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


def test_a_folder_that_is_locked_for_too_long_is_an_error(files: Files) -> None:
    async def play() -> None:
        store = files.impatient()
        folder = os.open(files.folder, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert await ticks_during(store.observe([NET], A, U)) > 100
        os.close(folder)
        assert await reason(store) == "new"

    files.run(play())


def test_a_disk_that_hangs_is_an_error_in_time_and_then_at_once(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()

    def hang(*arguments: Any) -> Any:
        hangs.wait(60)
        return look_up(*arguments)

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


# -- housekeeping --

TIMES = st.integers(-10_000_000, 10_000_000).map(lambda milliseconds: START + milliseconds / 1000)


@given(st.lists(st.tuples(TIMES, st.none() | TIMES), max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_expiry_agrees_with_the_policy(tmp_path: Path, times: list[tuple[float, float | None]]) -> None:
    files = Files(Path(tempfile.mkdtemp(dir=tmp_path)))
    records = {Triplet("net", f"{number}@far.test", U): Record(*pair) for number, pair in enumerate(times)}

    async def play() -> None:
        store = files.make(RULES)
        await store.counts()  # makes the file
        connection = sqlite3.connect(files.path)
        for triplet, record in records.items():
            first_seen = round(record.first_seen * 1000)
            if record.last_used is None:
                connection.execute("INSERT INTO pending VALUES (?, ?, ?, ?)", (*triplet, first_seen))
            else:
                last_used = round(record.last_used * 1000)
                connection.execute("INSERT INTO known VALUES (?, ?, ?, ?, ?)", (*triplet, first_seen, last_used))
        connection.commit()
        connection.close()
        live = {triplet for triplet, record in records.items() if not is_expired(record, START, RULES)}
        assert {item.triplet async for item in store.triplets(Wanted())} == live
        await sweep(store)
        counts = await store.counts()
        assert counts.pending + counts.known == len(live)
        assert {item.triplet async for item in store.triplets(Wanted())} == live

    files.run(play())


def test_what_has_expired_is_removed_in_small_steps(files: Files) -> None:
    async def play() -> None:
        rules = replace(RULES, max_pending=10_000)
        store = files.make(rules, Limits(timeout=20, decisions_lifetime=60, max_decisions=1200))
        for number in range(2500):
            await store.observe([NET], f"{number}@far.test", U)
            await store.delivered([Identity(f"spf:{number}", f"spf:{number}")], A, [U], counts=True)
            store.note(replace(DECISION, time=START))
        await store.put_entry(replace(ENTRY, expires=START + 10))
        assert await store.counts() == Counts(2500, 2500, 2500, 1, 0) or (await store.counts()).decisions == 2500
        assert await sweep(store) > 8
        assert await store.counts() == Counts(2500, 2500, 2500, 1, 1200)
        files.clock.step(601)
        assert await sweep(store) > 8
        assert await store.counts() == Counts(0, 2500, 2500, 0, 0)
        files.clock.step(RULES.lifetime)
        await sweep(store)
        assert await store.counts() == Counts(0, 0, 0, 0, 0)
        files.clock.step(3 * 86400)
        await sweep(store)
        await store.close()

    files.run(play())
    assert files.rows("SELECT count(*) FROM entries") == [(0,)]
    assert files.rows("SELECT count(*) FROM writers") == [(0,)]


def test_lookups_go_by_primary_keys(files: Files) -> None:
    async def play() -> None:
        await reason(files.make(RULES))

    files.run(play())
    connection = sqlite3.connect(files.path)
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    look_up(connection, [Question(Triplet(NET.key, A, U), NET.earner, START)], 1, 1000, RULES)
    connection.set_trace_callback(None)
    [statement] = statements
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
    connection.close()
    searched = [line for line in plan if line.startswith("SEARCH")]
    for table in ("known", "pending", "shared", "earned", "other"):
        assert any(table in line and "PRIMARY KEY" in line for line in searched), plan
    for line in plan:
        if line.startswith("SCAN"):
            assert "VIRTUAL TABLE" in line or "asked" in line or "subquery" in line, plan


def test_a_store_can_be_used_with_the_real_clock(tmp_path: Path) -> None:
    async def play() -> None:
        store = SqliteStore(tmp_path / "x.db", RULES, Limits(), Log(io.StringIO()))
        assert await reason(store) == "new"
        assert await reason(store) == "early"
        await store.close()

    asyncio.run(play())
    assert Clock().now == START
