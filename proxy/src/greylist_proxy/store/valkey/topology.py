# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which server has a key: one server, the primary that sentinels know, or the nodes of a cluster.

The library (valkey-py) has clients for sentinels and clusters too. They are not used, because they do not live through
what this store must: its cluster client forgets every node that it was once told of when all of them are gone for a
while, loses a connection with each call that is cancelled (every timeout is), and closes the connections of all calls
under way when one fails; its sentinel client loses sentinels when several calls ask at once. What is left to do is
little: a question, its answer, and to ask again after an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from valkey.crc import VALKEY_CLUSTER_HASH_SLOTS, key_slot
from valkey.exceptions import ConnectionError, ValkeyError

from greylist_proxy.config_values import Endpoint, ServerAddress
from greylist_proxy.store.valkey.errors import Explained, explain
from greylist_proxy.store.valkey.keys import Word

SENTINEL = "SENTINEL"  # the command that only sentinels know

Ask = Callable[[Endpoint, tuple[Word, ...]], Awaitable[Any]]


class Topology(Protocol):
    """Who has what. A wrong answer costs a redirection or an error; then it is asked for again."""

    async def locate(self, key: bytes) -> Endpoint:
        """Return who has a key. Explained, ConnectionError: nobody says."""

    async def primaries(self) -> Sequence[Endpoint]:
        """Return all that together have all keys, asked for anew."""

    def moved(self, slot: int, endpoint: Endpoint) -> None:
        """Learn from a redirection."""

    def forget(self) -> None:
        """Ask again before the next call: a server failed, or is no primary any more."""


def make_topology(address: ServerAddress, ask: Ask, timeout: float, changed: Callable[[Endpoint], None]) -> Topology:
    """Choose by the address; `ask` puts one command to one server, a call may take `timeout` seconds.

    `changed` is told of the primary that sentinels name in the place of another.
    """
    # One silent server must leave time for the next one, and for the call itself.
    patience = timeout / (min(len(address.hosts), 3) + 1)
    if address.kind == "single":
        return Single(address.hosts[0])
    if address.kind == "sentinel":
        return Sentinels(address.hosts, address.master, ask, patience, changed)
    return Cluster(address.hosts, ask, patience)


class Single:
    """One server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def locate(self, key: bytes) -> Endpoint:
        """Return the server."""
        return self._endpoint

    async def primaries(self) -> Sequence[Endpoint]:
        """Return the server."""
        return [self._endpoint]

    def moved(self, slot: int, endpoint: Endpoint) -> None:
        """Can't be: only nodes of a cluster redirect."""

    def forget(self) -> None:
        """Nothing to forget."""


class Sentinels:
    """The primary that the sentinels name. One that was demoted refuses changes, and they are asked again."""

    def __init__(
        self,
        hosts: Sequence[Endpoint],
        master: str,
        ask: Ask,
        patience: float,
        changed: Callable[[Endpoint], None] = lambda endpoint: None,
    ) -> None:
        self._hosts = list(hosts)
        self._master = master
        self._ask = ask
        self._patience = patience
        self._changed = changed
        self._primary: Endpoint | None = None
        self._latest: Endpoint | None = None

    async def locate(self, key: bytes) -> Endpoint:
        """Return the primary."""
        if self._primary is None:
            words = (SENTINEL, "GET-MASTER-ADDR-BY-NAME", self._master)
            asked, answer = await _first_answer(self._hosts, words, self._ask, self._patience)
            # The next question goes first to the one that answered.
            self._hosts.remove(asked)
            self._hosts.insert(0, asked)
            self._primary = Endpoint(answer[0].decode(), int(answer[1]))
            if self._latest not in (None, self._primary):
                self._changed(self._primary)
            self._latest = self._primary
        return self._primary

    async def primaries(self) -> Sequence[Endpoint]:
        """Return the primary."""
        self._primary = None
        return [await self.locate(b"")]

    def moved(self, slot: int, endpoint: Endpoint) -> None:
        """Can't be: only nodes of a cluster redirect."""

    def forget(self) -> None:
        """Forget the primary, and ask another sentinel first: this one may be cut off."""
        if self._primary is not None:
            self._primary = None
            self._hosts.append(self._hosts.pop(0))


class Cluster:
    """The nodes, by slots (the cluster specification's 16384)."""

    def __init__(self, hosts: Sequence[Endpoint], ask: Ask, patience: float) -> None:
        self._hosts = list(hosts)
        self._ask = ask
        self._patience = patience
        self._nodes: list[Endpoint] = []
        self._slots: list[Endpoint | None] = []

    async def locate(self, key: bytes) -> Endpoint:
        """Return the node that has the key's slot."""
        if not self._slots:
            await self._learn()
        slot = key_slot(key)
        endpoint = self._slots[slot]
        if endpoint is None:
            self.forget()
            raise ConnectionError(f"no node of the cluster has slot {slot}: see CLUSTER INFO there")
        return endpoint

    async def primaries(self) -> Sequence[Endpoint]:
        """Return the nodes that have slots."""
        await self._learn()
        return list(dict.fromkeys(node for node in self._slots if node is not None))

    def moved(self, slot: int, endpoint: Endpoint) -> None:
        """Note a slot's new place."""
        if self._slots:
            self._slots[slot] = endpoint

    def forget(self) -> None:
        """Forget the slots; the nodes are kept as those to ask."""
        self._slots = []

    async def _learn(self) -> None:
        # What the configuration names may have left the cluster since, and what was found may be gone.
        hosts = list(dict.fromkeys([*self._nodes, *self._hosts]))
        asked, ranges = await _first_answer(hosts, ("CLUSTER", "SLOTS"), self._ask, self._patience)
        slots: list[Endpoint | None] = [None] * VALKEY_CLUSTER_HASH_SLOTS
        for first, last, primary, *_replicas in ranges:
            # An empty host means the one that was asked.
            node = Endpoint((primary[0] or b"").decode() or asked.host, int(primary[1]))
            slots[first : last + 1] = [node] * (last + 1 - first)
        self._slots = slots
        self._nodes = list(dict.fromkeys(node for node in slots if node is not None))


async def _first_answer(
    hosts: Sequence[Endpoint], words: tuple[Word, ...], ask: Ask, patience: float
) -> tuple[Endpoint, Any]:
    """Ask one after the other, `patience` seconds each, until one answers. Explained: none does."""
    failures = []
    for host in list(hosts):
        try:
            async with asyncio.timeout(patience):
                answer = await ask(host, words)
            if answer is not None:
                return host, answer
            failures.append(f"{host} knows nothing of {words[-1]!s}")
        except TimeoutError:
            failures.append(f"{host} does not answer")
        except ValkeyError as error:
            failures.append(f"{host}: {explain(error, sentinel=words[0] == SENTINEL)}")
    raise Explained("; ".join(failures))
