# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Valkey store behind sentinels and in a cluster: failover, redirections, nodes that go; and who has what."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.config_values import Endpoint, ServerAddress
from greylist_proxy.log import Log
from greylist_proxy.policy import Earned, Identity, Rules, Triplet
from greylist_proxy.store import Allowance, Limits, Store, StoreError, Wanted
from greylist_proxy.store.valkey import ValkeyStore
from greylist_proxy.store.valkey.errors import Explained
from greylist_proxy.store.valkey.keys import Keys
from greylist_proxy.store.valkey.servers import Access
from greylist_proxy.store.valkey.topology import Cluster, Sentinels
from valkey.crc import key_slot
from valkey.exceptions import ConnectionError as ServerGone

from .peers import DEADLINE, free_port, until
from .test_valkey_failures import RIGHTS
from .valkey_servers import ThreeNodes, cluster, make_certificate, watched

SENDER, RECIPIENT = "a@far.test", "u@here.test"
# The right that store/valkey/__init__.py documents.
SENTINEL_RIGHT = "+sentinel|get-master-addr-by-name"
NETWORKS = [Identity(f"192.0.{number}.0/24", f"192.0.{number}.9") for number in range(30)]


def run(
    where: ServerAddress,
    play: Callable[[ValkeyStore], Awaitable[Any]],
    timeout: float = 20,
    log: Log | None = None,
    **access: Any,
) -> None:
    async def whole() -> None:
        store = ValkeyStore(where, Rules(auto_allow_after=2), Limits(timeout), log or Log(), Access(**access))
        try:
            await play(store)
        finally:
            await store.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(whole())


async def known(store: Store, *identities: Identity) -> list[bool]:
    sighting = await store.observe(identities, SENDER, RECIPIENT)
    return [found.record is not None for found in sighting.found]


async def in_the_end(call: Callable[[], Awaitable[Any]]) -> tuple[Any, int]:
    """Call until it works, as the gate does; return what came, and how often it did not."""
    failures = 0
    end = asyncio.get_running_loop().time() + DEADLINE
    while True:
        try:
            return await call(), failures
        except StoreError:
            assert asyncio.get_running_loop().time() < end
            failures += 1
            await asyncio.sleep(0.05)


def test_a_failover_is_followed(tmp_path: Path) -> None:
    with watched(tmp_path) as servers:

        async def play(store: ValkeyStore) -> None:
            assert await known(store, NETWORKS[0]) == [False]
            # WAIT would wait for what its own connection wrote.
            await until(lambda: servers.replica.say("DBSIZE") == servers.primary.say("DBSIZE"))
            servers.primary.kill()
            found, failures = await in_the_end(lambda: known(store, NETWORKS[0]))
            assert found == [True]
            assert failures > 0
            # The old one comes back, and is made a replica: nothing of that is seen here.
            servers.primary.start()
            assert await known(store, NETWORKS[0], NETWORKS[1]) == [True, False]

        run(servers.address, play, 2)


def test_a_primary_that_falls_silent_is_left_and_not_taken_again(tmp_path: Path) -> None:
    with watched(tmp_path) as servers:

        async def play(store: ValkeyStore) -> None:
            assert await known(store, NETWORKS[0]) == [False]
            await until(lambda: servers.replica.say("DBSIZE") == servers.primary.say("DBSIZE"))
            servers.primary.pause()
            found, failures = await in_the_end(lambda: known(store, NETWORKS[0]))
            assert found == [True]
            assert failures > 0
            # It wakes, and takes itself for the primary still.
            servers.primary.resume()
            assert await known(store, NETWORKS[0], NETWORKS[1]) == [True, False]
            assert servers.replica.say("ROLE")[0] == b"master"
            assert servers.replica.say("DBSIZE") == 2

        run(servers.address, play, 0.5)


def test_who_waits_for_a_dead_primary_is_led_to_the_next_one(tmp_path: Path) -> None:
    with watched(tmp_path) as servers:

        async def play(store: ValkeyStore) -> None:
            assert await known(store, NETWORKS[0]) == [False]
            await until(lambda: servers.replica.say("DBSIZE") == servers.primary.say("DBSIZE"))
            servers.primary.pause()
            calls = [asyncio.create_task(known(store, NETWORKS[0])) for _n in range(10)]
            await until(lambda: servers.named() == servers.replica.port)
            # One that begins now asks the sentinels, as after any failure; the others have most of their time left.
            store._servers._topology.forget()
            began = asyncio.get_running_loop().time()
            assert await known(store, NETWORKS[0]) == [True]
            assert await asyncio.gather(*calls) == [[True]] * 10
            assert asyncio.get_running_loop().time() - began < 5

        run(servers.address, play)


def test_a_primary_and_a_sentinel_die_behind_tls_and_passwords(tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "servers", "127.0.0.1")
    stream = io.StringIO()
    with watched(tmp_path, 3, files, "within") as servers:
        for server in (servers.primary, servers.replica):
            server.say("ACL", "SETUSER", "mail", "on", ">mails", *RIGHTS.split())
        for guard in servers.sentinels:
            guard.say("ACL", "SETUSER", "asks", "on", ">questions", "-@all", SENTINEL_RIGHT)

        async def play(store: ValkeyStore) -> None:
            assert await known(store, NETWORKS[0]) == [False]
            await until(lambda: servers.replica.say("DBSIZE") == servers.primary.say("DBSIZE"))
            # The one that was asked first, and will be asked again.
            servers.sentinels.pop(0).kill()
            servers.primary.kill()
            await until(lambda: servers.named() == servers.replica.port)
            decided = asyncio.get_running_loop().time()
            found, _failures = await in_the_end(lambda: known(store, NETWORKS[0]))
            assert asyncio.get_running_loop().time() - decided < 1
            assert found == [True]

        run(
            servers.address,
            play,
            2,
            log=Log(stream),
            username="mail",
            password="mails",
            sentinel_username="asks",
            sentinel_password="questions",
            ca_file=files.authority,
        )
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(event["state"], event["primary"]) for event in events] == [("primary", str(servers.replica.endpoint))]


def test_a_sentinel_that_lets_nobody_in_says_what_to_set(tmp_path: Path) -> None:
    with watched(tmp_path, password="within") as servers:

        async def play(store: ValkeyStore) -> None:
            with pytest.raises(StoreError, match="store.sentinel_password_file"):
                await known(store, NETWORKS[0])

        run(servers.address, play, password="within")
        run(servers.address, play, password="within", sentinel_password="wrong")
        run(servers.address, play, password="within", sentinel_username="nobody", sentinel_password="within")


def test_a_primary_that_was_demoted_is_left_without_an_error(tmp_path: Path) -> None:
    with watched(tmp_path) as servers:

        async def play(store: ValkeyStore) -> None:
            await known(store, NETWORKS[0])
            await until(lambda: servers.replica.say("DBSIZE") == servers.primary.say("DBSIZE"))
            servers.sentinel.say("SENTINEL", "FAILOVER", "mail")
            await until(lambda: servers.named() == servers.replica.port)
            # The sentinel would do that too, ten seconds later.
            servers.primary.say("REPLICAOF", "127.0.0.1", servers.replica.port)
            assert await known(store, NETWORKS[1]) == [False]
            assert await known(store, NETWORKS[0], NETWORKS[1]) == [True, True]

        run(servers.address, play)


def test_sentinels_that_are_silent_or_know_nothing_are_passed_over() -> None:
    hosts = [Endpoint("192.0.2.1", number) for number in (1, 2, 3)]
    asked: list[int] = []

    async def ask(host: Endpoint, words: tuple[Any, ...]) -> Any:
        asked.append(host.port)
        if host.port == 1:
            await asyncio.sleep(60)
        return None if host.port == 2 else [b"192.0.2.9", b"6379"]

    async def play() -> None:
        sentinels = Sentinels(hosts, "mail", ask, 0.01)
        assert await sentinels.locate(b"") == Endpoint("192.0.2.9", 6379)
        assert await sentinels.locate(b"") == Endpoint("192.0.2.9", 6379)
        assert asked == [1, 2, 3]
        # It may have been wrong: the others are asked first now, and it once more when they don't answer.
        sentinels.forget()
        assert await sentinels.locate(b"") == Endpoint("192.0.2.9", 6379)
        assert asked == [1, 2, 3, 1, 2, 3]
        hosts[:] = hosts[:2]
        lost = Sentinels(hosts, "mail", ask, 0.01)
        with pytest.raises(Explained, match=r"192.0.2.1:1 does not answer; 192.0.2.1:2 knows nothing of mail"):
            await lost.locate(b"")

    asyncio.run(play())


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreeNodes]:
    """A cluster of this file's own: its slots are moved, and its nodes killed."""
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    if "nodes" in request.fixturenames:
        for node in request.getfixturevalue("nodes").nodes:
            node.say("FLUSHALL")


def slot(identity: Identity) -> int:
    return key_slot(Keys("greylist").of(b"p", identity.key))


def test_identities_lie_on_all_nodes_and_are_asked_for_together(nodes: ThreeNodes) -> None:
    async def play(store: ValkeyStore) -> None:
        assert await known(store, *NETWORKS) == [False] * len(NETWORKS)
        assert await known(store, *NETWORKS) == [True] * len(NETWORKS)
        assert all(node.say("DBSIZE") > 0 for node in nodes.nodes)
        await store.delivered(NETWORKS, SENDER, [RECIPIENT], counts=True)
        triplets = [item.triplet async for item in store.triplets(Wanted())]
        assert sorted(triplets) == sorted(Triplet(network.key, SENDER, RECIPIENT) for network in NETWORKS)
        earners = [item.earner async for item in store.allowances(Wanted())]
        assert sorted(earners) == sorted(network.earner for network in NETWORKS)
        counts = await store.counts()
        assert (counts.known, counts.pending, counts.earners) == (len(NETWORKS), 0, len(NETWORKS))
        assert await store.remove_triplets(triplets) == len(NETWORKS)

    run(nodes.address, play)


def test_who_is_exempt_leaves_no_record_wherever_his_earnings_lie(nodes: ThreeNodes) -> None:
    async def play(store: ValkeyStore) -> None:
        now = (await store.observe(NETWORKS[:1], SENDER, "other@here.test")).now
        await store.load([Allowance(network.earner, Earned(2, now, now)) for network in NETWORKS])
        keys = Keys("greylist")
        apart = [
            key_slot(keys.of(b"p", network.key)) != key_slot(keys.of(b"e", network.earner)) for network in NETWORKS
        ]
        assert all(apart)
        for _n in range(2):
            sighting = await store.observe(NETWORKS, SENDER, RECIPIENT)
            assert {found.record for found in sighting.found} == {None}
            assert {found.earned for found in sighting.found} == {Earned(2, now, now)}

    run(nodes.address, play)


def test_one_named_node_is_enough_to_find_the_others(nodes: ThreeNodes) -> None:
    async def play(store: ValkeyStore) -> None:
        assert await known(store, *NETWORKS) == [False] * len(NETWORKS)

    gone = Endpoint("127.0.0.1", free_port())
    run(ServerAddress("cluster", False, (gone, nodes.nodes[1].endpoint)), play)


def test_the_documented_rights_are_enough_in_a_cluster(nodes: ThreeNodes) -> None:
    async def play(store: ValkeyStore) -> None:
        assert await known(store, *NETWORKS) == [False] * len(NETWORKS)
        assert len([item async for item in store.triplets(Wanted())]) == len(NETWORKS)

    for node in nodes.nodes:
        node.say("ACL", "SETUSER", "mail", "on", ">pw", *RIGHTS.split(), "+cluster|slots", "+asking")
    run(nodes.address, play, username="mail", password="pw")


def move(nodes: ThreeNodes, number: int, *, half: bool = False) -> None:
    """Move an empty slot from the first node to the second; `half`: begin to."""
    source, target = nodes.nodes[:2]
    if half:
        target.say("CLUSTER", "SETSLOT", number, "IMPORTING", nodes.ident(source))
        source.say("CLUSTER", "SETSLOT", number, "MIGRATING", nodes.ident(target))
    else:
        for node in (target, source, nodes.nodes[2]):
            node.say("CLUSTER", "SETSLOT", number, "NODE", nodes.ident(target))


def test_a_slot_that_moves_is_followed(nodes: ThreeNodes) -> None:
    source, target = nodes.nodes[:2]
    keys = Keys("greylist")
    # An SPF domain earns under its own key: its triplets and what it earns are in one slot.
    names = (f"spf:{number}.test" for number in range(1000))
    moved = next(Identity(name, name) for name in names if key_slot(keys.of(b"p", name)) < 16384 // 3)

    async def play(store: ValkeyStore) -> None:
        move(nodes, slot(moved), half=True)
        # What is one key follows at once (ASK); with several, a cluster says to try again until all have moved.
        await store.delivered([moved], SENDER, [], counts=True)
        assert target.say("CLUSTER", "COUNTKEYSINSLOT", slot(moved)) == 1
        with pytest.raises(StoreError, match="its cluster is moving these keys"):
            await known(store, moved)
        move(nodes, slot(moved))
        assert await known(store, moved) == [False]  # MOVED
        assert await known(store, moved) == [True]
        assert [item.earner async for item in store.allowances(Wanted())] == [moved.earner]
        assert source.say("DBSIZE") == 0

    run(nodes.address, play)


def test_a_node_that_is_gone_fails_its_part_and_comes_back(nodes: ThreeNodes) -> None:
    last = nodes.nodes[2]
    there = next(network for network in NETWORKS if slot(network) >= 2 * 16384 // 3)
    elsewhere = next(network for network in NETWORKS if slot(network) < 2 * 16384 // 3)

    async def play(store: ValkeyStore) -> None:
        await known(store, there, elsewhere)
        last.kill()
        with pytest.raises(StoreError, match=re.escape(str(nodes.address))):
            await known(store, there)
        assert await known(store, elsewhere) == [True]
        last.start()
        found, _failures = await in_the_end(lambda: known(store, there, elsewhere))
        assert found == [False, True]

    run(nodes.address, play)


def test_slots_that_nobody_has() -> None:
    node = Endpoint("192.0.2.1", 6379)

    async def ask(host: Endpoint, words: tuple[Any, ...]) -> Any:
        # The host that was asked may not know what it is called.
        return [[0, 100, [b"", 6379, b"id"], [b"192.0.2.7", 6379, b"replica"]], [200, 16383, [b"192.0.2.2", 6379]]]

    async def play() -> None:
        nodes = Cluster([node], ask, 1)
        found = [key_slot(b"%d" % number) for number in range(10_000)]
        for number, where in enumerate(found):
            key = b"%d" % number
            if 100 < where < 200:
                with pytest.raises(ServerGone, match=f"no node of the cluster has slot {where}"):
                    await nodes.locate(key)
            else:
                assert await nodes.locate(key) == (node if where <= 100 else Endpoint("192.0.2.2", 6379))
        assert await nodes.primaries() == [node, Endpoint("192.0.2.2", 6379)]

    asyncio.run(play())
