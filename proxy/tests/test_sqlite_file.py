# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The SQLite file: who may read it, older versions, and what happens when it is damaged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.policy import Record, Triplet
from greylist_proxy.store import Action, Counts, Kind, Remembered, StoreError, Wanted
from greylist_proxy.store.sqlite.entries import changes as changes_since

from .sqlite_files import DECISION, ENTRY, NET, RULES, A, Files, U, reason
from .stores import START

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


def test_a_file_that_is_restored_in_place_has_its_entries_followed_anew(files: Files) -> None:
    async def play() -> None:
        store = files.make(RULES)
        entries = [replace(ENTRY, value=f"192.0.2.{number}") for number in range(4)]
        await store.put_entry(entries[0])
        copy = sqlite3.connect(":memory:")
        with contextlib.closing(sqlite3.connect(files.path)) as connection:
            connection.backup(copy)
        for entry in entries[1:]:
            await store.put_entry(entry)
        position = (await store.changes(None)).position
        with contextlib.closing(sqlite3.connect(files.path)) as connection:
            copy.backup(connection)
        copy.close()
        blocked = replace(ENTRY, value="198.51.100.1", action=Action.BLOCK)
        await store.put_entry(blocked)
        changes = await store.changes(position)
        assert (changes.restart, changes.changed) == (True, (entries[0], blocked))
        assert (await store.changes(changes.position))[:2] == (False, ())

    files.run(play())


class Failing(sqlite3.Connection):
    """A connection on which what is read fails so that SQLite ends the transaction."""

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if "SELECT" in statement:
            super().execute("ROLLBACK")
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(statement, *parameters)


def test_an_error_that_ends_the_transaction_is_the_one_that_is_told() -> None:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None, factory=Failing)) as connection:
        with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
            changes_since(connection, None)
        assert not connection.in_transaction


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


def test_a_file_that_was_cut_short_keeps_the_entries_that_it_still_has(files: Files) -> None:
    entries = [replace(ENTRY, kind=Kind.SENDER, value=f"partner-{number}.example") for number in range(50)]

    async def play() -> None:
        store = files.make(RULES)
        await store.load(entries)
        await store.load([Remembered(Triplet("net", f"{number}@far.test", U), Record(START)) for number in range(3000)])
        await store.close()
        [(last_root,)] = files.rows("SELECT max(rootpage) FROM sqlite_master")
        cut_to((last_root - 1) * 4096)(files.path)
        after = files.make(RULES)
        assert sorted([entry.value async for entry in after.entries()]) == sorted(entry.value for entry in entries)
        assert len(files.damaged()) == 1

    files.run(play())
