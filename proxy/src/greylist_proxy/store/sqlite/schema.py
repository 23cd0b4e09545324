# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of the SQLite store, and the way there from every older version.

`PRAGMA user_version` holds the schema's version: 0 is an empty file, 1 had one table of triplets, 2 is below.
Each step of `STEPS` and its version are one transaction, so that a step that is killed has not happened. Processes
that open a file at once take their turn by `file.py`'s lock; the transaction would do alone.

Pending triplets have a table of their own, so that counting a client's (rule 7) reads a short, closed range of the
primary key. There is no index on times: each would cost a second write for every sighting, and only the removal of
what has expired would use it, which has time to walk the primary keys (`expire.py`). Tables without a rowid
keep their rows in the primary key itself: one tree to read and write. Times of triplets are whole milliseconds.
"""

from __future__ import annotations

import sqlite3

from greylist_proxy.store import StoreError

VERSION = 2

_TABLES = (
    """
    CREATE TABLE pending (
        client TEXT NOT NULL, sender TEXT NOT NULL, recipient TEXT NOT NULL,
        first_seen INTEGER NOT NULL,
        PRIMARY KEY (client, sender, recipient)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE known (
        client TEXT NOT NULL, sender TEXT NOT NULL, recipient TEXT NOT NULL,
        first_seen INTEGER NOT NULL, last_used INTEGER NOT NULL,
        PRIMARY KEY (client, sender, recipient)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE earned (
        earner TEXT NOT NULL PRIMARY KEY,
        passes INTEGER NOT NULL, counted_at INTEGER NOT NULL, last_used INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    # An entry that was removed stays for a day as a row without an action, for those who ask for changes.
    # `changed` is when the row became what it is, `seq` the number of that change.
    """
    CREATE TABLE entries (
        kind TEXT NOT NULL, value TEXT NOT NULL,
        action TEXT, source TEXT, created REAL, expires REAL, note TEXT,
        changed REAL NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY (kind, value)
    ) WITHOUT ROWID
    """,
    "CREATE UNIQUE INDEX entries_seq ON entries (seq)",
    """
    CREATE TABLE decisions (
        id INTEGER PRIMARY KEY,
        time INTEGER NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL, client TEXT NOT NULL,
        network TEXT NOT NULL, sender TEXT NOT NULL, recipient TEXT NOT NULL, seconds_left INTEGER NOT NULL,
        mail_id TEXT NOT NULL, "key" TEXT NOT NULL, rule TEXT NOT NULL, would TEXT
    )
    """,
    "CREATE INDEX decisions_time ON decisions (time)",
    # Which of its commits a process finds in what it reads (`overlay.py`).
    "CREATE TABLE writers (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, used INTEGER NOT NULL)",
    "CREATE TABLE meta (name TEXT NOT NULL PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    # The epoch tells this file from any other that had the same path: `seq` starts anew with it. `floor` is the
    # highest number of a change that has been forgotten.
    "INSERT INTO meta (name, value) VALUES ('epoch', lower(hex(randomblob(8)))), ('seq', 0), ('floor', 0)",
)

_FROM_1 = (
    """
    INSERT INTO known (client, sender, recipient, first_seen, last_used)
    SELECT network, sender, recipient, CAST(round(first_seen * 1000) AS INTEGER),
        CAST(round(last_used * 1000) AS INTEGER)
    FROM triplets WHERE last_used IS NOT NULL
    """,
    """
    INSERT INTO pending (client, sender, recipient, first_seen)
    SELECT network, sender, recipient, CAST(round(first_seen * 1000) AS INTEGER)
    FROM triplets WHERE last_used IS NULL
    """,
    "DROP TABLE triplets",
)

# From which version to which, by which statements.
STEPS: dict[int, tuple[int, tuple[str, ...]]] = {0: (2, _TABLES), 1: (2, _TABLES + _FROM_1)}


def prepare(connection: sqlite3.Connection) -> None:
    """Bring the file to this program's version. StoreError: it is newer, or some other program's."""
    # Looked at first without the write lock, which somebody may hold for long.
    while _version(connection) != VERSION:
        connection.execute("BEGIN IMMEDIATE")
        version = _version(connection)
        if version == VERSION:
            connection.execute("ROLLBACK")
            return
        if version not in STEPS:
            raise StoreError(
                f"its schema is of version {version}, and this program knows those up to {VERSION}: "
                "start the newer program that made it, or let store.url name another file"
            )
        if version == 0 and connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            raise StoreError("it is a database of some other program: let store.url name another file")
        to, statements = STEPS[version]
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {to:d}")
        connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
