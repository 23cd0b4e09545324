# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The housekeeping of a SQLite file, and how it is looked up."""

from __future__ import annotations

import asyncio
import io
import sqlite3
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from greylist_proxy.log import Log
from greylist_proxy.policy import Earned, Identity, Record, Triplet, is_expired
from greylist_proxy.store import Counts, Limits, Wanted
from greylist_proxy.store.sqlite import SqliteStore, listing
from greylist_proxy.store.sqlite.lookup import Question, look_up
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .sqlite_files import DECISION, ENTRY, NET, RULES, A, Files, U, reason, sweep
from .stores import START

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
        assert await store.counts() == Counts(2500, 2500, 2500, 1, 2500)
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
            assert "CONSTANT ROW" in line or "asked" in line or "subquery" in line, plan


def test_a_store_can_be_used_with_the_real_clock(tmp_path: Path) -> None:
    async def play() -> None:
        store = SqliteStore(tmp_path / "x.db", RULES, Limits(), Log(io.StringIO()))
        assert await reason(store) == "new"
        assert await reason(store) == "early"
        await store.close()

    asyncio.run(play())


def test_what_has_been_used_is_not_removed_before_that_is_committed(files: Files) -> None:
    async def play() -> None:
        store = files.make(RULES)
        await store.delivered([NET], A, [U], counts=True)
        await store.flush()
        files.clock.step(RULES.lifetime)
        await store.delivered([NET], A, [], counts=False)
        files.clock.step(0.001)
        await sweep(store)
        await store.flush()
        [allowance] = [item async for item in store.allowances(Wanted())]
        assert allowance.earned == Earned(1, START, START + RULES.lifetime)

    files.run(play())


def test_a_count_that_takes_long_holds_nothing_up(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened to the entries is asked every second, and a store that does not tell in time is a failing one."""
    real, begun, go_on = listing.counts, threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> Counts:
        begun.set()
        assert go_on.wait(10)
        return real(connection)

    async def play() -> None:
        store = files.make(RULES)
        await store.put_entry(ENTRY)
        monkeypatch.setattr(listing, "counts", slow)
        counting = asyncio.create_task(store.counts())
        await asyncio.to_thread(begun.wait, 10)
        assert len((await store.changes(None)).changed) == 1
        assert [entry async for entry in store.entries()] == [ENTRY]
        assert not counting.done()
        go_on.set()
        assert (await counting).entries == 1
        await store.close()

    asyncio.run(play())
