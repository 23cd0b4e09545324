# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection to the SQLite file: how it is opened, what its errors mean, and what happens when it is damaged.

A damaged file is set aside: it and its journal are renamed to `NAME.damaged-TIME`, the entries that can still be
read go over into a new file, and mail goes on; greylisting then starts afresh, which costs deferrals and no mail.

Several processes, and several threads of each, have the file open. All that opens, closes or renames it happens
under a `flock` of its *folder*, which leaves no lock file behind that belongs to the wrong user. Under it
nobody sets aside a file that another one has just made: what is renamed must be the one that was opened, by
its inode. Everybody notices by the inode as well that the path has become another file, and opens that one.

Two traps of POSIX locks decide the rest. Closing *any* descriptor of a file drops all locks that the process
holds on it, so only SQLite ever opens the file, except once, to make it. And the last one to close a database deletes
its journal by name, which SQLite leaves be only where the file has been renamed *before*.

The journal is a write-ahead log: readers never wait for writers. Memory-mapped reading is left off: a file that
is cut short would end the program by a signal, not by an error.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from greylist_proxy.log import Log
from greylist_proxy.store import StoreError
from greylist_proxy.store.sqlite import schema

T = TypeVar("T")

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_MENDS = {
    sqlite3.SQLITE_FULL: "free some space there",
    sqlite3.SQLITE_READONLY: "let the program's user write the file and its folder",
    sqlite3.SQLITE_PERM: "let the program's user write the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "let the program's user write the file and its folder",
    sqlite3.SQLITE_BUSY: "another process has locked it for too long",
}
_SALVAGE = """
SELECT kind, value, action, source, created, expires, note, changed FROM entries WHERE action IS NOT NULL
"""
_KEEP_ENTRY = """
INSERT OR IGNORE INTO entries (kind, value, action, source, created, expires, note, changed, seq)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class DatabaseFile:
    """One connection, for a thread at a time, opened on first use and again after errors.

    `patience`: seconds to wait for another process's lock.
    """

    def __init__(self, path: Path, patience: float, log: Log) -> None:
        # SQLite keeps the journal beside what a symbolic link points to.
        self._path = Path(os.path.realpath(path))
        self._name = str(path)
        self._patience = patience
        self._log = log
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """What to call the file in messages."""
        return self._name

    def use(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Let `work` use the connection; after damage once more, on a new file. StoreError says what to mend."""
        try:
            try:
                return work(self._ready())
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._drop()
                self._set_aside(error)
                return work(self._ready())
        except sqlite3.Error as error:
            self._recover(error)
            raise StoreError(f"{self._name}: {_explain(error)}") from error
        except OSError as error:
            self._drop()
            raise StoreError(f"{self._name}: {_explain_os(error, self._path)}") from error
        except StoreError as error:
            self._drop()
            raise StoreError(f"{self._name}: {error}") from error
        except BaseException:
            self._drop()
            raise

    def opened(self) -> sqlite3.Connection | None:
        """Return the connection where it is open, and the path is still that file; OSError: the path can't be seen."""
        return self._connection if self._inode == self._inode_of_path() else None

    def close(self) -> None:
        """Close the connection; no error."""
        self._drop()

    def _ready(self) -> sqlite3.Connection:
        if self._connection is not None and self._inode != self._inode_of_path():
            self._drop()
        if self._connection is None:
            with self._folder_locked():
                self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        with contextlib.suppress(FileExistsError):
            self._make()
        if self._path.is_dir():
            raise IsADirectoryError
        # Before anything is read: damage may show while the file is opened.
        self._inode = self._inode_of_path()
        # One thread at a time uses it, but the loop's is opened and closed by another (`inline.py`).
        connection = sqlite3.connect(self._path, timeout=self._patience, isolation_level=None, check_same_thread=False)
        try:
            # First, so that a file that is not for us stays as it is.
            schema.prepare(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            # What a statement would need to undo itself would go into a file from 64 KiB on.
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"PRAGMA journal_size_limit = {64 << 20:d}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make(self) -> None:
        """Make an empty file. FileExistsError: there is one."""
        # Who mails whom is nobody's business: SQLite gives its -wal and -shm files the same mode and owner.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                # What an administrator's command makes is for the server, whose user the folder belongs to.
                folder = self._path.parent.stat()
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, folder.st_uid, folder.st_gid)
        finally:
            os.close(descriptor)

    def _recover(self, error: sqlite3.Error) -> None:
        """Undo the transaction; a connection that only had to wait goes on, any other is opened afresh."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if self._connection is not None and code & 0xFF == sqlite3.SQLITE_BUSY:
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
            return
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, StoreError):
                stack.enter_context(self._folder_locked())
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _inode_of_path(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    @contextlib.contextmanager
    def _folder_locked(self) -> Iterator[None]:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            end = time.monotonic() + self._patience
            while True:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise StoreError("another process has been opening it for too long") from None
                time.sleep(0.005)
            yield
        finally:
            os.close(folder)

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Rename the damaged file, unless somebody has, and make a new one with the entries that can be read."""
        with self._folder_locked():
            if self._inode_of_path() != self._inode:
                return
            now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            aside = self._path.with_name(f"{self._path.name}.damaged-{now}")
            for suffix in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    self._beside(self._path, suffix).rename(self._beside(aside, suffix))
            self._connection = self._open()
            kept = _salvage(aside, self._connection)
        self._log.event(
            "store", state="damaged", store=self._name, error=str(error), set_aside=str(aside), entries_kept=kept
        )

    @staticmethod
    def _beside(path: Path, suffix: str) -> Path:
        return path.with_name(path.name + suffix)


def _salvage(damaged: Path, new: sqlite3.Connection) -> int:
    """Take the entries over, as far as they can be read: they alone can't be learned again. Return how many."""
    rows: list[tuple[object, ...]] = []
    # Read up to the first error: what came before it is good.
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(damaged)) as old:
        # Or a file that was cut short would be refused whole, for the tables of which the first page is gone.
        old.execute("PRAGMA writable_schema = ON")
        rows.extend(old.execute(_SALVAGE))
    new.execute("BEGIN IMMEDIATE")
    for number, row in enumerate(rows, 1):
        new.execute(_KEEP_ENTRY, (*row, number))
    new.execute("UPDATE meta SET value = ? WHERE name = 'seq'", (len(rows),))
    new.execute("COMMIT")
    return len(rows)


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGED or code == sqlite3.SQLITE_IOERR_SHORT_READ


def _explain(error: sqlite3.Error) -> str:
    mend = _MENDS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    return f"{error}: {mend}" if mend else str(error)


def _explain_os(error: OSError, path: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the folder {path.parent} is missing: make it, and give it to the program's user"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{error.strerror}: let the program's user write the file and the folder {path.parent}"
    if isinstance(error, IsADirectoryError):
        return "it is a directory: let store.url name a file"
    return error.strerror or str(error)
