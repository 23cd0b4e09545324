# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Valkey store while its server is gone, silent, full, or says no: a StoreError in time, and it works again."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.config_values import Endpoint, ServerAddress
from greylist_proxy.log import Log
from greylist_proxy.policy import Identity, Rules
from greylist_proxy.store import Action, Entry, Kind, Limits, Logged, Store, StoreError, Wanted
from greylist_proxy.store.valkey import ValkeyStore
from greylist_proxy.store.valkey.servers import Access

from .peers import free_port, the_loop_is_free
from .valkey_servers import Server, make_certificate, running, single

IDENTITIES = [Identity("192.0.2.0/24", "192.0.2.9"), Identity("spf:far.test", "spf:far.test")]
SENDER, RECIPIENT = "a@far.test", "u@here.test"
SECRET = "tell-nobody"


def address(server: Server, *, tls: bool = False) -> ServerAddress:
    return ServerAddress("single", tls, (server.endpoint,))


def run(
    where: ServerAddress, play: Callable[[ValkeyStore], Awaitable[Any]], timeout: float = 20, **access: Any
) -> None:
    """Play with a store, close it, and see that nothing is left running."""

    async def whole() -> None:
        store = ValkeyStore(where, Rules(), Limits(timeout), Log(), Access(**access))
        try:
            await play(store)
        finally:
            await store.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(whole())


async def observe(store: Store) -> bool:
    """Tell whether the triplet was there."""
    sighting = await store.observe(IDENTITIES, SENDER, RECIPIENT)
    return all(found.record is not None for found in sighting.found)


async def fails(call: Awaitable[Any]) -> str:
    """Return what a call's StoreError says."""
    with pytest.raises(StoreError) as caught:
        await call
    assert SECRET not in str(caught.value)
    return str(caught.value)


def every_call(store: Store) -> Iterator[Awaitable[Any]]:
    """All that asks the server something."""

    async def first(items: Any) -> Any:
        async for item in items:
            return item
        return None

    yield observe(store)
    yield store.delivered(IDENTITIES, SENDER, [RECIPIENT], counts=True)
    yield store.put_entry(Entry(Kind.CLIENT, "192.0.2.1", Action.ALLOW))
    yield store.remove_entry(Kind.CLIENT, "192.0.2.1")
    yield store.changes(None)
    yield first(store.triplets(Wanted()))
    yield first(store.allowances(Wanted()))
    yield first(store.entries())
    yield first(store.decisions(Wanted()))
    yield store.load([Entry(Kind.CLIENT, "192.0.2.1", Action.ALLOW)])
    yield store.counts()
    yield store.expire()


def test_killed_and_back_again(tmp_path: Path) -> None:
    with single(tmp_path) as server:

        async def play(store: ValkeyStore) -> None:
            assert await observe(store) is False
            assert await observe(store) is True
            server.kill()
            for call in every_call(store):
                said = await fails(call)
                assert f"127.0.0.1:{server.port}" in said
            # Back, without its data: connections that broke meanwhile are no more error.
            server.start()
            assert sorted(await asyncio.gather(*(observe(store) for _n in range(40)))) == [False] + [True] * 39

        run(address(server), play)


def test_killed_in_the_middle_of_calls(tmp_path: Path) -> None:
    with single(tmp_path) as server:

        async def play(store: ValkeyStore) -> None:
            await observe(store)
            server.pause()
            calls = [asyncio.create_task(observe(store)) for _n in range(50)]
            await asyncio.sleep(0.05)
            server.kill()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {StoreError}

        run(address(server), play)


def test_a_silent_server_costs_the_timeout_and_blocks_nothing(tmp_path: Path) -> None:
    timeout = 0.3
    with single(tmp_path) as server:

        async def play(store: ValkeyStore) -> None:
            await observe(store)
            server.pause()
            for call in every_call(store):
                before = time.monotonic()
                async with the_loop_is_free():
                    assert f"no answer within {timeout:g} seconds" in await fails(call)
                assert time.monotonic() - before < 10 * timeout
            # More than have connections of their own: those who wait for one wait no longer.
            before = time.monotonic()
            async with the_loop_is_free():
                outcomes = await asyncio.gather(*(observe(store) for _n in range(200)), return_exceptions=True)
            assert all(isinstance(outcome, StoreError) for outcome in outcomes)
            assert time.monotonic() - before < 10 * timeout
            server.resume()
            assert await observe(store) is True

        run(address(server), play, timeout)


def test_a_full_server_takes_nothing_new_and_still_knows(tmp_path: Path) -> None:
    with single(tmp_path, maxmemory_policy="noeviction") as server:

        async def play(store: ValkeyStore) -> None:
            await store.delivered(IDENTITIES, SENDER, [RECIPIENT], counts=True)
            server.say("CONFIG", "SET", "maxmemory", "1mb")
            assert await observe(store) is True
            said = await fails(store.observe(IDENTITIES, SENDER, "other@here.test"))
            assert "its memory is full: raise its maxmemory" in said
            server.say("CONFIG", "SET", "maxmemory", "0")
            await store.observe(IDENTITIES, SENDER, "other@here.test")

        run(address(server), play)


def deferred(now: float, ident: str) -> Logged:
    return Logged(now, "defer", "new", "192.0.2.9", "net", SENDER, RECIPIENT, 60, ident)


def test_decisions_that_were_not_answered_are_not_sent_again(tmp_path: Path) -> None:
    with single(tmp_path) as server:

        async def play(store: ValkeyStore) -> None:
            now = (await store.observe(IDENTITIES, SENDER, RECIPIENT)).now
            server.pause()
            store.note(deferred(now, "first"))
            assert "no answer" in await fails(store.flush())
            server.resume()
            assert await observe(store) is True
            store.note(deferred(now, "second"))
            await store.flush()
            found = [decision.id async for decision in store.decisions(Wanted())]
            assert sorted(found) == sorted({"second", *found})  # the first may have come through, but once

        run(address(server), play, timeout=2)


def test_decisions_outlive_an_outage_in_memory(tmp_path: Path) -> None:
    with single(tmp_path) as server:

        async def play(store: ValkeyStore) -> None:
            now = (await store.observe(IDENTITIES, SENDER, RECIPIENT)).now
            server.kill()
            store.note(deferred(now, "first"))
            await fails(store.flush())
            server.start()
            store.note(deferred(now, "second"))
            await store.flush()
            assert [decision.id async for decision in store.decisions(Wanted())] == ["second", "first"]
            server.kill()
            store.note(deferred(now, "lost"))
            # close() gives no error

        run(address(server), play)


@contextmanager
def listening(answer: bytes) -> Iterator[Endpoint]:
    """Something that is no Valkey server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                while True:
                    connection, _peer = listener.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(answer)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        yield Endpoint("127.0.0.1", listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"*-5\r\n",
        b"$x\r\n",
        b":\r\n",
        b"\xff\0\r\n",
        b"*1\r\n*1\r\n:1\r\n" * 9,
    ],
)
def test_what_is_no_server_is_an_error_too(answer: bytes) -> None:
    async def play(store: ValkeyStore) -> None:
        assert str(where) in await fails(observe(store))

    with listening(answer) as where:
        run(ServerAddress("single", False, (where,)), play, 2)


def test_nobody_there() -> None:
    port = free_port()

    async def play(store: ValkeyStore) -> None:
        said = await fails(observe(store))
        assert said.startswith(f"valkey://127.0.0.1:{port}/0: ")
        assert "111" in said or "refused" in said

    run(ServerAddress("single", False, (Endpoint("127.0.0.1", port),)), play)


def test_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greylist_proxy.store.valkey.servers.OLDEST", (99, 0))

    async def play(store: ValkeyStore) -> None:
        assert "and this needs" in await fails(observe(store))

    with single(tmp_path) as server:
        run(address(server), play)


def test_passwords(tmp_path: Path) -> None:
    async def works(store: ValkeyStore) -> None:
        await observe(store)

    def refused(mend: str) -> Callable[[ValkeyStore], Awaitable[None]]:
        async def play(store: ValkeyStore) -> None:
            assert mend in await fails(observe(store))
            assert SECRET not in store.name

        return play

    server = Server(tmp_path, requirepass="right", user="mail on >right ~* +@all")
    with running(server):
        run(address(server), works, password="right")
        run(address(server), works, username="mail", password="right")
        run(address(server), refused("set store.password_file"))
        run(address(server), refused("check store.username and store.password_file"), password=SECRET)
        run(address(server), refused("check store.username and store.password_file"), username="m", password=SECRET)
    with single(tmp_path) as open_to_all:
        run(address(open_to_all), refused("without any password configured"), password=SECRET)


# The rights that store/valkey.py documents.
RIGHTS = "~greylist:* -@all +@read +@write -@dangerous +eval +evalsha +time +info +select"


def test_the_documented_rights_are_enough_and_less_is_told(tmp_path: Path) -> None:
    async def works(store: ValkeyStore) -> None:
        for call in every_call(store):
            await call
        now = (await store.observe(IDENTITIES, SENDER, RECIPIENT)).now
        store.note(deferred(now, "id"))
        await store.flush()
        assert len([triplet async for triplet in store.triplets(Wanted())]) == 2
        await store.remove_triplets([triplet.triplet async for triplet in store.triplets(Wanted())])

    async def refused(store: ValkeyStore) -> None:
        assert "its ACL does not let this user" in await fails(observe(store))

    with single(tmp_path) as server:
        server.say("ACL", "SETUSER", "mail", "on", ">pw", *RIGHTS.split())
        server.say("SCRIPT", "FLUSH")
        where = ServerAddress("single", False, (server.endpoint,), database=3)
        run(where, works, username="mail", password="pw")
        server.say("ACL", "SETUSER", "mail", "-info")
        run(where, works, username="mail", password="pw")
        for less in ("-zadd", "-evalsha", "resetkeys"):
            server.say("ACL", "SETUSER", "mail", less)
            server.say("FLUSHALL")
            run(where, refused, username="mail", password="pw")
            server.say("ACL", "SETUSER", "mail", *RIGHTS.split())


def test_tls(tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "server", "127.0.0.1")
    stranger = make_certificate(tmp_path, "stranger", "127.0.0.1")
    elsewhere = make_certificate(tmp_path, "elsewhere", "192.0.2.1")

    async def works(store: ValkeyStore) -> None:
        assert store.name.startswith("valkeys://")
        await observe(store)

    async def refused(store: ValkeyStore) -> None:
        assert "certificate verify failed" in await fails(observe(store))

    server, misnamed = Server(tmp_path).with_tls(files), Server(tmp_path).with_tls(elsewhere)
    with running(server, misnamed):
        run(address(server, tls=True), works, ca_file=files.authority)
        run(address(server, tls=True), refused, ca_file=stranger.authority)
        run(address(server, tls=True), refused)
        run(address(misnamed, tls=True), refused, ca_file=elsewhere.authority)
