# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Valkey store on one real server: what its keys look like, and what only this store must do."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest
from greylist_proxy.config_values import ServerAddress
from greylist_proxy.log import Log
from greylist_proxy.policy import COUNT_EVERY, Earned, Identity, Record, Rules, Triplet, earn, judge
from greylist_proxy.store import (
    Action,
    Allowance,
    Entry,
    Kind,
    Limits,
    Logged,
    Remembered,
    Removed,
    Source,
    StoreError,
    Wanted,
)
from greylist_proxy.store.valkey import ValkeyStore, decisions
from greylist_proxy.store.valkey.keys import Keys, member, triplet
from greylist_proxy.store.valkey.servers import Access
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .stores import Clock
from .valkey_servers import Server, single

RULES = Rules(delay=60, retry_window=600, lifetime=3600, auto_allow_after=2, max_pending=10)
NETWORK = Identity("192.0.2.0/24", "192.0.2.9")
DOMAIN = Identity("spf:far.test", "spf:far.test")
SENDER, RECIPIENT = "a@far.test", "u@here.test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with single(tmp_path_factory.mktemp("valkey")) as started:
        yield started


@pytest.fixture(autouse=True)
def _empty(server: Server) -> None:
    server.say("FLUSHALL")


class Maker:
    """Makes stores on the server, and closes them when the play is over."""

    def __init__(self, server: Server) -> None:
        self.address = ServerAddress("single", False, (server.endpoint,))
        self.said = io.StringIO()
        self._made: list[ValkeyStore] = []

    def __call__(self, clock: Clock | None = None, limits: Limits | None = None, **options: Any) -> ValkeyStore:
        store = ValkeyStore(
            self.address,
            options.pop("rules", RULES),
            limits or Limits(timeout=20),
            Log(self.said),
            clock=clock,
            **options,
        )
        self._made.append(store)
        return store

    def run(self, play: Coroutine[Any, Any, Any]) -> Any:
        async def whole() -> Any:
            try:
                return await play
            finally:
                for store in self._made:
                    await store.close()
                assert asyncio.all_tasks() == {asyncio.current_task()}

        return asyncio.run(whole())

    def warnings(self) -> list[str]:
        return [json.loads(line)["message"] for line in self.said.getvalue().splitlines()]


@pytest.fixture
def make(server: Server) -> Maker:
    return Maker(server)


async def verdict(store: ValkeyStore, *identities: Identity, sender: str = SENDER, recipient: str = RECIPIENT) -> str:
    sighting = await store.observe(identities, sender, recipient)
    return str(judge(list(zip(identities, sighting.found, strict=True)), sighting.now, RULES).reason)


def test_the_servers_clock_decides(make: Maker, server: Server) -> None:
    async def play() -> None:
        store = make()
        before = server.say("TIME")[0]
        sighting = await store.observe([NETWORK], SENDER, RECIPIENT)
        assert before <= sighting.now <= server.say("TIME")[0] + 1
        again = await store.observe([NETWORK], SENDER, RECIPIENT)
        assert again.found[0].record == Record(sighting.now)
        assert again.now >= sighting.now

    make.run(play())


def test_a_retry_at_another_proxy_passes(make: Maker) -> None:
    async def play() -> None:
        clock = Clock()
        one, other = make(clock), make(clock)
        assert await verdict(one, NETWORK, DOMAIN) == "new"
        clock.step(RULES.delay)
        assert await verdict(other, NETWORK, DOMAIN) == "retried"
        # from elsewhere, vouched for by the same domain
        assert await verdict(other, Identity("198.51.100.0/24", "198.51.100.1"), DOMAIN) == "retried"
        await other.delivered([NETWORK, DOMAIN], SENDER, [RECIPIENT], counts=True)
        assert await verdict(one, NETWORK) == "known"

    make.run(play())


def test_one_of_many_at_once_is_the_first_sight(make: Maker) -> None:
    async def play() -> None:
        stores = [make(), make()]
        sightings = await asyncio.gather(
            *(stores[number % 2].observe([NETWORK, DOMAIN], SENDER, RECIPIENT) for number in range(500))
        )
        for which in range(2):
            records = [sighting.found[which].record for sighting in sightings]
            assert records.count(None) == 1
            assert len({record and record.first_seen for record in records}) == 2

    make.run(play())


async def one_of_each(store: ValkeyStore, clock: Clock) -> None:
    """Leave something of every kind in the store."""
    for number in range(RULES.max_pending + 1):
        await store.observe([NETWORK], SENDER, f"{number}@here.test")
    clock.step(RULES.delay)
    await store.delivered([NETWORK, DOMAIN], SENDER, [RECIPIENT], counts=True)
    await store.put_entry(Entry(Kind.CLIENT, "192.0.2.1", Action.BLOCK, expires=clock() + 60))
    await store.put_entry(Entry(Kind.SENDER, "far.test", Action.ALLOW))
    await store.remove_entry(Kind.SENDER, "far.test")
    store.note(Logged(clock(), "defer", "new", "192.0.2.9", "192.0.2.0/24", SENDER, RECIPIENT, 60, "id"))
    await store.flush()
    await store.load([Remembered(Triplet("198.51.100.0/24", SENDER, RECIPIENT), Record(clock() - 100, clock() - 50))])
    await store.load([Remembered(Triplet("198.51.100.0/24", SENDER, "v@here.test"), Record(clock() - 100))])
    await store.load([Allowance("198.51.100.1", Earned(1, clock() - 100, clock() - 100))])


def test_all_keys_begin_with_the_prefix_and_triplets_end_by_themselves(make: Maker, server: Server) -> None:
    clock = Clock()
    make.run(one_of_each(make(clock, prefix="mail.test-1"), clock))
    with server.client() as client:
        lives = {key: client.pttl(key) / 1000 for key in client.scan_iter()}
    assert all(key.startswith(b"mail.test-1:") for key in lives)
    expected = {
        b"k:{192.0.2.0/24}a@far.test\0u@here.test": RULES.lifetime,
        b"k:{spf:far.test}a@far.test\0u@here.test": RULES.lifetime,
        b"k:{198.51.100.0/24}a@far.test\0u@here.test": RULES.lifetime - 50,
        b"p:{192.0.2.0/24}": RULES.retry_window,
        b"p:{198.51.100.0/24}": RULES.retry_window - 100,
        b"s:{192.0.2.0/24}": RULES.retry_window,
        b"e:{192.0.2.9}": RULES.lifetime,
        b"e:{spf:far.test}": RULES.lifetime,
        b"e:{198.51.100.1}": RULES.lifetime - 100,
    }
    slack = 60  # so much later than they stop counting
    for key, life in expected.items():
        assert life < lives.pop(b"mail.test-1:" + key) <= life + slack, key
    names = ["entries", "changes", "meta", "expiry", "graves"]
    assert set(lives) == {f"mail.test-1:{name}:{{mail.test-1}}".encode() for name in names} | {b"mail.test-1:decisions"}


def test_a_lifetime_that_is_raised_counts_for_what_is_known_already(make: Maker, server: Server) -> None:
    key = b"greylist:k:{192.0.2.0/24}a@far.test\0u@here.test"

    async def play() -> None:
        store = make()
        await store.delivered([NETWORK], SENDER, [RECIPIENT], counts=False)
        with server.client() as client:
            store.rules = replace(RULES, lifetime=2 * RULES.lifetime)
            await store.observe([NETWORK], SENDER, RECIPIENT, record=False)
            assert client.ttl(key) <= RULES.lifetime + 60
            assert await verdict(store, NETWORK) == "known"
            assert client.ttl(key) > RULES.lifetime + 60
            # There is nothing to do again, which replicas would have to do as well.
            writes = client.info("commandstats").get("cmdstat_pexpire")
            assert await verdict(store, NETWORK) == "known"
            assert client.info("commandstats").get("cmdstat_pexpire") == writes

    make.run(play())


def test_prefixes_keep_stores_apart(make: Maker) -> None:
    async def play() -> None:
        clock = Clock()
        one, other = make(clock, prefix="one"), make(clock, prefix="other")
        await one_of_each(one, clock)
        assert await verdict(other, NETWORK) == "new"
        assert [item async for item in other.allowances(Wanted())] == []
        assert (await other.changes(None)).changed == ()
        assert (await other.counts()).known == 0

    make.run(play())


def test_what_expired_does_not_count_before_the_server_removes_it(make: Maker) -> None:
    async def play() -> None:
        clock = Clock()
        store = make(clock)
        await one_of_each(store, clock)
        clock.step(RULES.lifetime + 1)
        assert await verdict(store, NETWORK) == "new"
        assert {item.triplet async for item in store.triplets(Wanted())} == {Triplet(NETWORK.key, SENDER, RECIPIENT)}
        assert [item async for item in store.allowances(Wanted())] == []

    make.run(play())


NASTY = ["", "{", "}", "{}", "}{x}", "%", "%7D", "%00", "\0", "a\0b", "*", "?[a]", "\\", "\r\n", "ü@ü.test", "\udcff"]


def test_hostile_names_stay_apart_and_come_back_as_they_were(make: Maker) -> None:
    async def play() -> None:
        store = make(rules=replace(RULES, max_pending=100))
        wanted = {Triplet(client, sender, RECIPIENT) for client in NASTY for sender in NASTY}
        wanted |= {Triplet(NETWORK.key, SENDER, recipient) for recipient in NASTY}
        for client, sender, recipient in wanted:
            assert await verdict(store, Identity(client, client), sender=sender, recipient=recipient) == "new"
        for client, sender, recipient in wanted:
            assert await verdict(store, Identity(client, client), sender=sender, recipient=recipient) == "early"
        assert {item.triplet async for item in store.triplets(Wanted())} == wanted
        for client, sender, recipient in wanted:
            await store.delivered([Identity(client, client)], sender, [recipient], counts=True)
        assert {item.triplet async for item in store.triplets(Wanted())} == wanted
        for client in NASTY:
            found = {item.triplet async for item in store.triplets(Wanted(client=client))}
            assert found == {one for one in wanted if one.client == client}
        assert {item.earner async for item in store.allowances(Wanted())} == {*filter(None, NASTY), NETWORK.key}
        assert await store.remove_triplets(list(wanted)) == len(wanted)
        assert (await store.counts()).known == 0

    make.run(play())


@given(st.text(), st.text(), st.text())
def test_keys_can_be_read_back(client: str, sender: str, recipient: str) -> None:
    keys = Keys("greylist")
    name = member(sender, recipient)
    [key] = keys.known(client, [name])
    assert keys.split(key) == (b"k", client, name)
    assert triplet(client, name) == Triplet(client, sender, recipient)


@given(
    st.none() | st.builds(Earned, st.integers(1, 9), st.integers(0, 9000), st.integers(0, 9000)),
    st.integers(4000, 9000),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_earning_agrees_with_the_policy(
    make: Maker, server: Server, before: Earned | None, later: int, counts: bool
) -> None:
    server.say("FLUSHALL")
    clock = Clock()
    start = clock()
    assert COUNT_EVERY == RULES.lifetime == 3600

    async def play() -> None:
        store = make(clock, rules=rules)
        expected = before and Earned(before.passes, start + before.counted_at, start + before.last_used)
        if expected is not None:
            await store.load([Allowance(NETWORK.earner, expected)])
        clock.step(later)
        await store.delivered([NETWORK], SENDER, [], counts=counts)
        expected = earn(expected, clock(), rules, counts=counts)
        found = [item.earned async for item in store.allowances(Wanted())]
        assert found == ([] if expected is None else [expected])

    rules = Rules(lifetime=3600)
    make.run(play())


def test_scripts_are_sent_again_to_a_server_that_forgot_them(make: Maker, server: Server) -> None:
    async def play() -> None:
        store = make()
        assert await verdict(store, NETWORK, DOMAIN) == "new"
        server.say("SCRIPT", "FLUSH")
        assert await verdict(store, NETWORK, DOMAIN) == "early"
        server.say("SCRIPT", "FLUSH")
        assert await store.put_entry(Entry(Kind.CLIENT, "192.0.2.1", Action.ALLOW))

    make.run(play())


def test_a_server_that_comes_back_empty_makes_readers_start_anew(make: Maker, server: Server) -> None:
    async def play() -> None:
        store = make()
        entry = Entry(Kind.CLIENT, "192.0.2.1", Action.ALLOW)
        await store.put_entry(entry)
        known = await store.changes(None)
        assert known.changed == (entry,)
        server.say("FLUSHALL")
        emptied = await store.changes(known.position)
        assert (emptied.restart, emptied.changed, emptied.more) == (True, (), False)
        unchanged = await store.changes(emptied.position)
        assert not unchanged.restart
        # Filled again meanwhile: it is another history, whatever the numbers.
        await store.put_entry(entry)
        filled = await store.changes(known.position)
        assert filled.restart
        assert filled.changed == (entry,)

    make.run(play())


def test_removed_entries_are_forgotten_after_a_day_and_readers_that_slept_start_anew(make: Maker) -> None:
    async def play() -> None:
        clock = Clock()
        store = make(clock)
        for number in range(3):
            await store.put_entry(Entry(Kind.CLIENT, f"192.0.2.{number}", Action.ALLOW))
        sleeper = await store.changes(None)
        await store.remove_entry(Kind.CLIENT, "192.0.2.1")
        awake = await store.changes(sleeper.position)
        assert awake.changed == (Removed(Kind.CLIENT, "192.0.2.1"),)
        clock.step(86401)
        assert await store.expire() is False
        assert (await store.changes(awake.position)).restart is False
        woken = await store.changes(sleeper.position)
        assert woken.restart
        assert [change.value for change in woken.changed] == ["192.0.2.0", "192.0.2.2"]
        # Its first page may end below what was forgotten: that is no reason to start anew for ever.
        assert (await store.changes(woken.position)).restart is False

    make.run(play())


@pytest.mark.parametrize("written", ["", "[]", '"text"', '{"expires": null, "source": "operator", "note": "\\udce9"}'])
def test_an_entry_that_cannot_be_read_stands_in_nobodys_way(make: Maker, server: Server, written: str) -> None:
    entry = Entry(Kind.CLIENT, "192.0.2.1", Action.ALLOW, Source.LEARNED)
    write = ("HSET", "greylist:entries:{greylist}", f"{entry.kind}\0{entry.value}", written)

    async def play() -> None:
        store = make()
        server.say(*write)
        assert await store.put_entry(entry)
        assert [item async for item in store.entries()] == [entry]
        server.say(*write)
        assert await store.remove_entry(entry.kind, entry.value)
        assert [item async for item in store.entries()] == []

    make.run(play())


def test_decisions_wait_while_the_server_is_busy_and_the_oldest_are_lost(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "MOST_WAITING", 20)
    monkeypatch.setattr(decisions, "BATCH", 7)

    async def play() -> None:
        store = make()
        now = (await store.observe([NETWORK], SENDER, RECIPIENT)).now
        for number in range(30):
            store.note(Logged(now, "defer", "new", "192.0.2.9", "net", SENDER, RECIPIENT, 60, str(number)))
        await store.flush()
        kept = [int(decision.id) async for decision in store.decisions(Wanted())]
        assert kept == list(range(29, 9, -1))

    make.run(play())


def test_decisions_are_kept_up_to_a_number_and_an_age(make: Maker, server: Server) -> None:
    async def play() -> None:
        clock = Clock()
        store = make(clock, Limits(timeout=20, decisions_lifetime=100, max_decisions=700))
        for number in range(2000):
            store.note(Logged(clock(), "defer", "new", "192.0.2.9", "net", SENDER, RECIPIENT, 60, str(number)))
        await store.flush()
        found = [int(decision.id) async for decision in store.decisions(Wanted())]
        assert found == list(range(1999, 1299, -1))
        assert 700 <= server.say("XLEN", "greylist:decisions") <= 900
        clock.step(101)
        assert [decision async for decision in store.decisions(Wanted())] == []

    make.run(play())


def test_an_eviction_policy_is_warned_of_once(make: Maker, server: Server) -> None:
    async def play() -> None:
        for _n in range(2):
            store = make()
            await asyncio.gather(*(store.observe([NETWORK], SENDER, RECIPIENT) for _m in range(10)))

    server.say("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        make.run(play())
    finally:
        server.say("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert len(make.warnings()) == 2  # one for each store
    assert "maxmemory-policy is allkeys-lru" in make.warnings()[0]


@pytest.mark.parametrize("password", ["", "secret"])
def test_an_open_way_beyond_this_host_is_warned_of(
    make: Maker, server: Server, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setattr("greylist_proxy.store.valkey.servers._is_loopback", lambda _endpoint: False)
    server.say("ACL", "SETUSER", "mail", "on", ">secret", "~*", "+@all")

    async def play() -> None:
        await make(access=Access(username="mail" if password else "", password=password)).changes(None)

    make.run(play())
    assert len(make.warnings()) == 1
    assert "without TLS and a password" in make.warnings()[0]
    assert "secret" not in make.warnings()[0]


def test_keys_of_another_program_are_an_error_with_the_way_out(make: Maker, server: Server) -> None:
    server.say("SET", "greylist:p:{192.0.2.0/24}", "x")

    async def play() -> None:
        store = make()
        with pytest.raises(StoreError, match="choose another store.prefix"):
            await store.observe([NETWORK], SENDER, RECIPIENT)
        assert await verdict(store, DOMAIN) == "new"

    make.run(play())
