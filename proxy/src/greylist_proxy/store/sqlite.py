# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Triplets in one SQLite file, which several processes may share.

Each change is one `BEGIN IMMEDIATE` transaction: it takes the write lock before it reads, so that two
processes never judge the same sighting on the same old record. The journal is a write-ahead log with
`synchronous = NORMAL`: a crash of the program loses nothing, a power failure may lose the last moments (a
sender then waits once more), and neither corrupts the file.

`PRAGMA user_version` holds the schema's version: 0 is an empty file, 1 is the table below.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from greylist_proxy import policy
from greylist_proxy.policy import Decision, Record, Rules, Triplet
from greylist_proxy.store import StoreError

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE triplets (
    network TEXT NOT NULL,
    sender TEXT NOT NULL,
    recipient TEXT NOT NULL,
    first_seen REAL NOT NULL,
    last_used REAL,
    PRIMARY KEY (network, sender, recipient)
) WITHOUT ROWID
"""
SELECT = "SELECT first_seen, last_used FROM triplets WHERE network = ? AND sender = ? AND recipient = ?"
UPSERT = """
INSERT INTO triplets (network, sender, recipient, first_seen, last_used) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (network, sender, recipient)
DO UPDATE SET first_seen = excluded.first_seen, last_used = excluded.last_used
"""
# The SQL twin of policy.is_expired; a test holds the two together.
EXPIRE = """
DELETE FROM triplets WHERE (network, sender, recipient) IN (
    SELECT network, sender, recipient FROM triplets
    WHERE CASE WHEN last_used IS NULL THEN ? - first_seen > ? ELSE ? - last_used > ? END
    LIMIT ?
)
"""
# Seconds to wait for another process's write lock; longer than any transaction here takes.
LOCK_PATIENCE = 2.0


class SqliteStore:
    """A `Store` in a file. It is opened on first use, and again after every error."""

    def __init__(self, path: Path, rules: Rules) -> None:
        self._path = path
        self._rules = rules
        self._connection: sqlite3.Connection | None = None

    def observe(self, triplet: Triplet, now: float) -> Decision:
        """Judge a sighting and keep its record, in one transaction."""
        with self._transaction() as connection:
            record = _read(connection, triplet)
            following, decision = policy.observe(record, now, self._rules)
            if following != record:
                _write(connection, triplet, following)
            return decision

    def delivered(self, triplets: Iterable[Triplet], now: float) -> None:
        """Note a delivered message for all of its triplets, in one transaction."""
        with self._transaction() as connection:
            for triplet in triplets:
                _write(connection, triplet, policy.delivered(_read(connection, triplet), now))

    def expire(self, now: float, limit: int) -> int:
        """Remove up to `limit` expired records."""
        with self._transaction() as connection:
            rules = self._rules
            return connection.execute(EXPIRE, (now, rules.retry_window, now, rules.lifetime, limit)).rowcount

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None:
                self._connection = self._open()
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError, StoreError) as error:
            # Closing rolls back, and the next call starts from a clean file handle.
            self.close()
            raise StoreError(f"{self._path}: {error}") from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> sqlite3.Connection:
        # Making a new file's journal a write-ahead log does not wait for locks as everything else does, so where
        # several processes start on a new file at once, all but the first one try again.
        end = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                return self._open_now()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def _open_now(self) -> sqlite3.Connection:
        # Who mails whom is nobody's business: SQLite gives its -wal and -shm files the same mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # Calls come one at a time, but not always from the thread that opened the file.
        connection = sqlite3.connect(self._path, timeout=LOCK_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.execute(SCHEMA)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION:d}")
            elif version != SCHEMA_VERSION:
                raise StoreError(f"schema version {version} is not {SCHEMA_VERSION}, which this program knows")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection


def _read(connection: sqlite3.Connection, triplet: Triplet) -> Record | None:
    row = connection.execute(SELECT, triplet).fetchone()
    return Record(*row) if row else None


def _write(connection: sqlite3.Connection, triplet: Triplet, record: Record) -> None:
    connection.execute(UPSERT, (*triplet, record.first_seen, record.last_used))
