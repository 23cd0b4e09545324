# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Triplets in SQLite, and what the gate makes of a store that fails."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from greylist_proxy import gate as gate_module
from greylist_proxy.gate import Gate
from greylist_proxy.log import Log
from greylist_proxy.policy import Decision, Reason, Record, Rules, Triplet, Verdict, is_expired, observe
from greylist_proxy.store import StoreError
from greylist_proxy.store.sqlite import SqliteStore
from greylist_proxy.tasks import Tasks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .peers import until

RULES = Rules(delay=60, retry_window=600, lifetime=3600)
T = 1_000_000.0
TRIPLET = Triplet("192.0.2.0/24", "a@far.test", "u@here.test")
OTHER = Triplet("192.0.2.0/24", "a@far.test", "v@here.test")


def reasons(store: SqliteStore, *times: float, triplet: Triplet = TRIPLET) -> list[str]:
    return [store.observe(triplet, now).reason for now in times]


def test_what_is_seen_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    store = SqliteStore(path, RULES)
    assert reasons(store, T, T + 1, T + 60) == ["new", "early", "retried"]
    store.delivered([TRIPLET, OTHER], T + 61)
    assert reasons(store, T + 1000) == ["known"]
    store.close()
    # after a restart
    store = SqliteStore(path, RULES)
    assert reasons(store, T + 1001) == ["known"]
    assert reasons(store, T + 1001, triplet=OTHER) == ["known"]
    assert reasons(store, T + 61 + 3601) == ["new"]
    store.close()
    store.close()


def test_values_are_never_sql(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "x.db", RULES)
    for nasty in ("'; DROP TABLE triplets; --", '"', "%", "\\", "?", ""):
        triplet = Triplet(nasty, nasty, nasty)
        assert reasons(store, T, T + 1, triplet=triplet) == ["new", "early"]
    store.close()


@given(
    st.lists(st.tuples(st.floats(T - 10_000, T + 10_000), st.none() | st.floats(T - 10_000, T + 10_000)), max_size=20)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_expiry_agrees_with_the_policy(tmp_path: Path, times: list[tuple[float, float | None]]) -> None:
    path = tmp_path / "x.db"
    path.unlink(missing_ok=True)
    store = SqliteStore(path, RULES)
    store.expire(T, 1)  # makes the table
    connection = sqlite3.connect(path)
    rows = [("net", "sender", str(number), *pair) for number, pair in enumerate(times)]
    connection.executemany("INSERT INTO triplets VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()
    expired = [row for row in rows if is_expired(Record(*row[3:]), T, RULES)]
    assert store.expire(T, 1000) == len(expired)
    left = connection.execute("SELECT * FROM triplets").fetchall()
    assert sorted(left) == sorted(set(rows) - set(expired))
    connection.close()
    store.close()


def test_expiry_takes_a_few_at_a_time(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "x.db", RULES)
    for number in range(10):
        store.observe(Triplet("net", "sender", str(number)), T)
    assert [store.expire(T + 601, 4) for _n in range(4)] == [4, 4, 2, 0]
    store.close()


OBSERVE_MANY = """
import sys
from pathlib import Path
from greylist_proxy.policy import Rules, Triplet
from greylist_proxy.store.sqlite import SqliteStore

store = SqliteStore(Path(sys.argv[1]), Rules())
print("ready", flush=True)
sys.stdin.readline()
for number in range(1000):
    print(store.observe(Triplet("net", "sender", str(number)), 1e6).reason)
store.close()
"""


def test_processes_share_a_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OBSERVE_MANY, str(tmp_path / "x.db")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _n in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # all at the same time, over the same triplets in the same order
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    seen = [reason for process in processes for reason in process.communicate(timeout=30)[0].split()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    # Every triplet was new to exactly one of them.
    assert (seen.count("new"), seen.count("early")) == (1000, 2000)


def test_threads_share_a_file(tmp_path: Path) -> None:
    seen: list[str] = []
    start = threading.Barrier(4)

    def work() -> None:
        store = SqliteStore(tmp_path / "x.db", RULES)
        start.wait(30)
        for number in range(300):
            seen.append(store.observe(Triplet("net", "sender", str(number)), T).reason)
        store.close()

    threads = [threading.Thread(target=work) for _n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (seen.count("new"), seen.count("early")) == (300, 900)


def test_a_locked_file_is_an_error_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greylist_proxy.store.sqlite.LOCK_PATIENCE", 0.1)
    store = SqliteStore(tmp_path / "x.db", RULES)
    store.observe(TRIPLET, T)
    with sqlite3.connect(tmp_path / "x.db", isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        store.close()
        with pytest.raises(StoreError, match="locked"):
            store.observe(TRIPLET, T)
        connection.execute("ROLLBACK")
    assert reasons(store, T + 1) == ["early"]
    store.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"not a database " * 100), "not a database"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.symlink_to("missing/x.db"), "No such file"),
    ],
)
def test_errors_say_what_and_where_and_pass(tmp_path: Path, spoil: object, message: str) -> None:
    path = tmp_path / "x.db"
    assert callable(spoil)
    spoil(path)
    store = SqliteStore(path, RULES)
    for call in (
        lambda: store.observe(TRIPLET, T),
        lambda: store.delivered([TRIPLET], T),
        lambda: store.expire(T, 9),
    ):
        with pytest.raises(StoreError, match=rf"{path}: .*{message}"):
            call()
    path.rename(tmp_path / "away")
    assert reasons(store, T) == ["new"]
    store.close()


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match="schema version 7 is not 1"):
        SqliteStore(tmp_path / "x.db", RULES).observe(TRIPLET, T)


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "x.db", RULES)
    store.observe(TRIPLET, T)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"x.db": 0o600, "x.db-wal": 0o600, "x.db-shm": 0o600}
    store.close()


class TroubledStore:
    """A store in memory that fails, or hangs, when told to."""

    def __init__(self) -> None:
        self.trouble: Exception | float | None = None
        self.records: dict[Triplet, Record] = {}
        self.expired: list[int] = []

    def _check(self) -> None:
        if isinstance(self.trouble, Exception):
            raise self.trouble
        time.sleep(self.trouble or 0)

    def observe(self, triplet: Triplet, now: float) -> Decision:
        self._check()
        self.records[triplet], decision = observe(self.records.get(triplet), now, RULES)
        return decision

    def delivered(self, triplets: Iterable[Triplet], now: float) -> None:
        self._check()
        for triplet in triplets:
            self.records[triplet] = Record(now, now)

    def expire(self, now: float, limit: int) -> int:
        self._check()
        self.expired.append(limit)
        return limit if len(self.expired) < 3 else 0

    def close(self) -> None:
        self.trouble = StoreError("closed")


@pytest.mark.parametrize(("on_failure", "verdict"), [("accept", Verdict.ALLOW), ("defer", Verdict.DEFER)])
@pytest.mark.parametrize("trouble", [StoreError("disk full"), ValueError("a bug"), 0.3])
def test_a_failing_store_does_not_stop_mail(
    monkeypatch: pytest.MonkeyPatch, on_failure: str, verdict: Verdict, trouble: Exception | float
) -> None:
    monkeypatch.setattr(gate_module, "STORE_PATIENCE", 0.1)
    stream = io.StringIO()
    store = TroubledStore()

    async def play() -> None:
        log = Log(stream)
        tasks = Tasks(log)
        gate = Gate(store, on_failure, log, tasks, clock=lambda: T)
        assert (await gate.decide(TRIPLET)).reason is Reason.NEW
        store.trouble = trouble
        for _n in range(3):
            assert await gate.decide(TRIPLET) == Decision(verdict, Reason.STORE_FAILED)
        gate.delivered([TRIPLET])
        await until(lambda: not tasks)
        store.trouble = None
        await asyncio.sleep(0.4)
        assert (await gate.decide(TRIPLET)).reason in (Reason.EARLY, Reason.KNOWN)
        await gate.close()

    asyncio.run(play())
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    # Said once when it failed and once when it worked again, not for every mail.
    assert [event["state"] for event in events] == ["failed", "working"]
    assert events[0]["error"] == (str(trouble) if isinstance(trouble, Exception) else "no answer within 0.1 seconds")


def test_a_delivery_is_seen_by_the_next_decision() -> None:
    async def play() -> None:
        log = Log(io.StringIO())
        gate = Gate(TroubledStore(), "accept", log, Tasks(log), clock=lambda: T)
        for number in range(50):
            triplet = Triplet("net", "sender", str(number))
            gate.delivered([triplet])
            assert (await gate.decide(triplet)).reason is Reason.KNOWN
        await gate.close()

    asyncio.run(play())


def test_the_house_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "EXPIRE_EVERY", 0.01)
    store = TroubledStore()

    async def play() -> None:
        log = Log(io.StringIO())
        gate = Gate(store, "accept", log, Tasks(log))
        housekeeper = asyncio.create_task(gate.keep_house())
        await asyncio.sleep(0.1)
        store.trouble = StoreError("for a while")
        await asyncio.sleep(0.1)
        store.trouble = None
        before = len(store.expired)
        await asyncio.sleep(0.1)
        assert len(store.expired) > before
        housekeeper.cancel()
        await gate.close()

    asyncio.run(play())
    assert store.expired[:3] == [1000, 1000, 1000]
