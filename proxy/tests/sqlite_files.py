# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A SQLite store's file, as its tests see it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.policy import Identity, Rules, judge
from greylist_proxy.store import Action, Entry, Kind, Limits, Logged
from greylist_proxy.store.sqlite import SqliteStore

from .stores import START, SqliteStores

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

    def impatient(self, timeout: float = 1.0) -> SqliteStore:
        # The file gives up on a lock after four fifths of it: the rest must do for a busy machine to say so.
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
