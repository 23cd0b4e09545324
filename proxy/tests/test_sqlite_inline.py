# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a SQLite file in the event loop's thread: when it is done there, and when a thread has to."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.policy import Identity, Rules, judge
from greylist_proxy.store import Limits, Wanted
from greylist_proxy.store.sqlite import SqliteStore, inline
from greylist_proxy.store.sqlite import sightings as sightings_module
from greylist_proxy.store.sqlite.inline import InlineReader
from greylist_proxy.store.sqlite.lookup import look_up

from .sqlite_files import NET, RULES, A, Files, U, reason


class Spy:
    """Stands for `look_up`, notes which thread called it, and does what a test wants first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.in_loop: list[bool] = []
        self.before: Callable[[], None] = lambda: None
        self._loop = threading.get_ident()
        monkeypatch.setattr(sightings_module, "look_up", self)

    def __call__(self, *arguments: Any) -> Any:
        self.in_loop.append(threading.get_ident() == self._loop)
        if self.in_loop[-1]:
            self.before()
        return look_up(*arguments)

    @property
    def last(self) -> bool:
        """Whether the last look was one of the loop's thread."""
        return self.in_loop[-1]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


async def until_inline(store: SqliteStore, spy: Spy) -> None:
    for _n in range(500):
        looks = len(spy.in_loop)
        await reason(store, "other@far.test")
        if spy.in_loop[looks]:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the file is never read in the loop")


def test_after_the_first_look_the_loop_reads_by_itself(files: Files, spy: Spy) -> None:
    async def play() -> None:
        store = files.impatient()
        assert await reason(store) == "new"
        assert spy.in_loop == [False]
        await until_inline(store, spy)
        await store.flush()
        looks = len(spy.in_loop)
        # Now no step of a sighting waits for anything.
        call = store.observe([NET], A, U)
        with pytest.raises(StopIteration) as end:
            call.send(None)
        sighting = end.value.value
        assert judge([(NET, sighting.found[0])], sighting.now, RULES).reason == "early"
        assert spy.in_loop[looks:] == [True]

    files.run(play())


def be_slow() -> None:
    time.sleep(inline.SLOW * 1.5)


def be_very_slow() -> None:
    time.sleep(inline.VERY_SLOW * 1.1)


def fail() -> None:
    raise sqlite3.OperationalError("database is locked")


def looks(files: Files, spy: Spy, trouble: Callable[[], None], sightings: int) -> list[bool]:
    """Return which looks are the loop's, once each of its own meets that trouble; every sighting has its answer."""

    async def play() -> list[bool]:
        store = files.impatient(5)
        await reason(store)
        await until_inline(store, spy)
        spy.before = trouble
        before = len(spy.in_loop)
        for _n in range(sightings):
            assert await reason(store) == "early"
        return spy.in_loop[before:]

    return files.run(play())


@pytest.mark.parametrize(("trouble", "times"), [(be_slow, 2), (be_very_slow, 1), (fail, 1)])
def test_a_slow_or_failing_look_does_not_hold_the_loop_for_long(
    files: Files, spy: Spy, trouble: Callable[[], None], times: int
) -> None:
    assert looks(files, spy, trouble, 20).count(True) == times
    assert not spy.last


def test_a_processor_that_is_taken_away_now_and_then_is_no_slow_disk(
    files: Files, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline, "SOON", 0.0)

    assert all(looks(files, spy, be_slow, 5))


def test_the_loop_stays_away_longer_each_time_and_comes_back(
    files: Files, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline, "HOLD_OFF", 0.2)
    monkeypatch.setattr(inline, "MAX_HOLD_OFF", 0.5)

    async def play() -> None:
        store = files.impatient(5)
        await reason(store)
        spy.before = fail
        waits = []
        for _n in range(4):
            await until_inline(store, spy)
            failed = time.monotonic()
            await until_inline(store, spy)
            waits.append(time.monotonic() - failed)
        for wait, least in zip(waits, (0.2, 0.4, 0.5, 0.5), strict=True):
            assert wait >= least * 0.95
        spy.before = lambda: None
        await until_inline(store, spy)
        await reason(store)
        assert spy.last

    files.run(play())


def test_a_file_that_is_taken_away_is_noticed_in_time(files: Files, spy: Spy) -> None:
    async def play() -> None:
        store = files.impatient(5)
        await reason(store)
        await until_inline(store, spy)
        await store.flush()
        assert await reason(store) == "early"
        for path in list(files.folder.iterdir()):
            path.unlink()
        for _n in range(500):
            if await reason(store) == "new":
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("it reads a file that is gone")
        await store.flush()
        assert files.rows("SELECT count(*) FROM pending") == [(1,)]

    files.run(play())


def test_the_loop_waits_for_no_lock(files: Files, spy: Spy) -> None:
    async def play() -> None:
        store = files.impatient(2)
        await reason(store)
        await until_inline(store, spy)
        await store.flush()
        # As another process's recovery of the journal would: even readers are locked out.
        held = sqlite3.connect(files.path, isolation_level=None)
        taken: list[float] = []

        def lock() -> None:
            began = time.perf_counter()
            try:
                connection = store._reader._connection
                assert connection is not None
                connection.execute("BEGIN IMMEDIATE")
            finally:
                taken.append(time.perf_counter() - began)

        held.execute("BEGIN IMMEDIATE")
        spy.before = lock
        assert await reason(store) == "early"
        assert taken[0] < 2  # what the store would wait for
        assert spy.in_loop[-2:] == [True, False]
        held.close()

    files.run(play())


def test_a_thousand_pending_ones_are_counted_in_the_same_look(files: Files, spy: Spy) -> None:
    async def play() -> None:
        rules = Rules(delay=60, retry_window=600, lifetime=7200, max_pending=50)
        store = files.make(rules, Limits(timeout=5))
        await store.observe([NET], A, U)
        for _n in range(500):
            await store.observe([Identity("elsewhere", "")], A, U)
            if spy.last:
                break
            await asyncio.sleep(0.01)
        shared = []
        for number in range(60):
            if number == 25:
                await store.flush()
            sighting = await store.observe([NET], f"{number}@far.test", U)
            assert spy.last
            shared.append(sighting.found[0].shared)
        assert shared == [False] * 49 + [True] * 11
        await store.flush()
        # What is delivered is pending no more, also before that is committed.
        await store.delivered([NET], "1@far.test", [U], counts=False)
        await store.delivered([NET], "2@far.test", [U], counts=False)
        sighting = await store.observe([NET], "fresh@far.test", "u@elsewhere.test")
        assert not sighting.found[0].shared
        assert spy.last
        assert len([item async for item in store.triplets(Wanted(client=NET.key))]) == 51

    files.run(play())


async def with_pending(files: Files, spy: Spy, rules: Rules, count: int) -> SqliteStore:
    """Return a store that reads in the loop, and whose file has so many pending records of a client."""
    store = files.make(rules, Limits(timeout=5))
    assert isinstance(store, SqliteStore)
    await until_inline(store, spy)
    for number in range(count - 1):  # until_inline has made one
        await store.observe([NET], f"{number}@far.test", U)
    await store.flush()
    assert files.rows("SELECT count(*) FROM pending") == [(count,)]
    return store


# What is asked: how often the file is looked at for it, and whether it has to share a record.
CAP = Rules(delay=60, retry_window=600, lifetime=7200, max_pending=6)


@pytest.mark.parametrize(
    ("pending", "delivered", "looks", "shares"),
    [
        (4, 0, 1, False),
        (4, 1, 1, False),  # full it is not, whatever was delivered
        (5, 1, 1, False),
        (6, 0, 1, True),  # nothing was delivered that might make room
        (6, 1, 2, False),
        (6, 3, 2, False),
    ],
)
@pytest.mark.parametrize("now", [True, False])
def test_what_was_delivered_is_looked_up_where_the_cap_is_reached(
    files: Files, spy: Spy, pending: int, delivered: int, looks: int, shares: bool, now: bool
) -> None:
    async def play() -> None:
        store = await with_pending(files, spy, CAP, pending)
        for number in range(delivered):
            assert store.delivered_now([NET], f"{number}@far.test", [U], counts=False)
        before = len(spy.in_loop)
        if now:
            found = store.observe_now([NET], "fresh@far.test", U)
        else:
            found = await store.observe([NET], "fresh@far.test", U)
        assert found is not None
        assert found.found[0].shared is shares
        assert spy.in_loop[before:] == [True] * looks
        # As many as there is room for, and not one more.
        room = CAP.max_pending - (pending - delivered) - (not shares)
        shared = [(await store.observe([NET], f"more{n}@far.test", U)).found[0].shared for n in range(room + 2)]
        assert shared == [False] * room + [True] * 2

    files.run(play())


def test_a_delivery_to_others_makes_no_room(files: Files, spy: Spy) -> None:
    async def play() -> None:
        store = await with_pending(files, spy, CAP, CAP.max_pending)
        assert store.delivered_now([Identity("elsewhere", "")], "0@far.test", [U], counts=False)
        assert store.delivered_now([NET], "never seen@far.test", [U], counts=False)
        found = store.observe_now([NET], "fresh@far.test", U)
        assert found is not None
        assert found.found[0].shared

    files.run(play())


def test_what_is_answered_at_the_cap_is_of_the_second_look(files: Files, spy: Spy) -> None:
    """Another process may commit between the two: all of an answer is of one moment."""

    async def play() -> None:
        store = await with_pending(files, spy, CAP, CAP.max_pending)
        assert store.delivered_now([NET], "0@far.test", [U], counts=False)
        looks = len(spy.in_loop)

        def fill() -> None:
            if len(spy.in_loop) == looks + 2:
                with sqlite3.connect(files.path) as other:
                    other.execute(
                        "INSERT INTO pending SELECT client, 'another@far.test', recipient, first_seen FROM pending"
                        " WHERE sender = '1@far.test'"
                    )
                other.close()

        spy.before = fill
        found = store.observe_now([NET], "fresh@far.test", U)
        assert found is not None
        assert found.found[0].shared, "the place that was free is the other process's"
        assert spy.in_loop[looks:] == [True, True]

    files.run(play())


def test_no_connection_is_left_when_the_store_is_closed(files: Files, spy: Spy, tmp_path: Path) -> None:
    async def play() -> None:
        store = files.impatient(5)
        await reason(store)
        await until_inline(store, spy)
        await store.close()
        assert [path.name for path in files.folder.iterdir()] == ["data.db"]
        # One that has never been used, and one that is closed while its file is being opened.
        files.impatient(5)
        store = files.impatient(5)
        await reason(store)
        await store.close()
        assert [path.name for path in files.folder.iterdir()] == ["data.db"]
        assert InlineReader.use(store._reader, look_up) is None  # type: ignore[call-arg]

    files.run(play())
