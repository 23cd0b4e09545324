# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Triplets in Valkey or Redis (6.2 or later), which several proxies may share: a retry at one counts at all.

What is decided about a sighting is decided by one Lua script on the server, in one step and by the server's clock, so
that proxies neither race nor have to agree on the time. The scripts say what was known and keep what is new, as the
interface has it, and decide nothing else. The keys are told in `keys.py`.

A sighting is one round trip: one script for each identity of the client, sent together. On a cluster these go to
several nodes at the same time, and what an earner has earned, which may lie on another node than its triplets, is
asked before. Each script is atomic; several of one call are not one step together, which nothing here needs.

**What is lost when.** The server decides how durable its data is (`appendonly`, `save`), not this store. A server that
comes back empty makes senders wait once more. Replicas lag by moments, and a failover loses these.

**What it needs.** `maxmemory-policy noeviction` (a warning says so), enough memory (measured: 210 bytes for a known
triplet and for the first pending one of a client, 60 to 160 for each further one, 165 for an earner, 175 for a
decision), TLS and a password where it is not on this host, and no more rights than these, with the prefix `greylist`:

    user NAME on >PASSWORD ~greylist:* -@all +@read +@write -@dangerous +eval +evalsha +time +info +select

A cluster wants `+cluster|slots +asking` as well (what has several keys, as a sighting has, fails there while their
slot moves to another node); `info` is only for warnings. Sentinels have users of their own, who need

    user NAME on >PASSWORD -@all +sentinel|get-master-addr-by-name
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from greylist_proxy.config_values import ServerAddress
from greylist_proxy.log import Log
from greylist_proxy.policy import COUNT_EVERY, Found, Identity, Rules, Triplet, has_earned
from greylist_proxy.store import (
    Allowance,
    Changes,
    Counts,
    Entry,
    Item,
    Kind,
    Limits,
    Logged,
    Remembered,
    Sighting,
    Wanted,
)
from greylist_proxy.store.valkey.decisions import Decisions
from greylist_proxy.store.valkey.entries import Entries
from greylist_proxy.store.valkey.keys import (
    EARNER,
    PENDING,
    SHARED,
    Command,
    Keys,
    Script,
    member,
    milliseconds,
    read_earned,
    read_sighting,
    seconds,
    shared_member,
)
from greylist_proxy.store.valkey.listing import Listing
from greylist_proxy.store.valkey.servers import Access, Servers

CHUNK = 500  # items that are loaded or removed in one round trip

T = TypeVar("T")


class ValkeyStore:
    """A `Store` on a Valkey or Redis server, behind sentinels, or in a cluster. It connects when it is first asked."""

    def __init__(
        self,
        address: ServerAddress,
        rules: Rules,
        limits: Limits,
        log: Log,
        access: Access = Access(),  # noqa: B008 - it can't be changed
        prefix: str = "greylist",
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.rules = rules
        self._clock = clock
        self._keys = Keys(prefix)
        self._servers = Servers(address, access, limits.timeout, log)
        self._entries = Entries(self._servers, self._keys, self._given_time)
        self._decisions = Decisions(self._servers, self._keys, limits)
        self._listing = Listing(self._servers, self._keys)
        self._observe = Script("observe")
        self._delivered = Script("delivered")
        self._earn = Script("earn")
        self._earned = Script("earned")
        self._merge_triplets = Script("merge_triplets")
        self._merge_earned = Script("merge_earned")
        self._remove_triplets = Script("remove_triplets")

    @property
    def name(self) -> str:
        """The server's address, without user or password."""
        return self._servers.name

    # -- the decision --

    def observe_now(self, identities: Sequence[Identity], sender: str, recipient: str) -> None:
        """See `Store`: the server always has to be waited for."""

    async def observe(
        self, identities: Sequence[Identity], sender: str, recipient: str, *, record: bool = True
    ) -> Sighting:
        """Look a sighting up, and keep what is new of it: one script for each identity, in one round trip."""
        deadline = self._servers.deadline()
        earners = {identity: self._keys.of(EARNER, identity.earner) for identity in identities if identity.earner}
        elsewhere = await self._earned_elsewhere(identities, earners, deadline)
        if any(exempt for _value, exempt in elsewhere.values()):
            record = False
        name, shared_name = member(sender, recipient), shared_member(recipient)
        commands = []
        for identity in identities:
            keys = [
                *self._keys.known(identity.key, [name]),
                self._keys.of(PENDING, identity.key),
                self._keys.of(SHARED, identity.key),
            ]
            if not elsewhere:
                keys += dict.fromkeys([earners[each] for each in (identity, *identities) if each in earners])
            commands.append(
                self._observe(
                    keys,
                    self._given_time(),
                    name,
                    shared_name,
                    int(record),
                    milliseconds(self.rules.retry_window),
                    milliseconds(self.rules.lifetime),
                    self.rules.max_pending,
                    self.rules.auto_allow_after,
                    int(identity in elsewhere and elsewhere[identity][1]),
                    int(identity in earners),
                )
            )
        answers = await self._servers.run(commands, deadline)
        times, found = [], []
        with self._servers.reading():
            for identity, (sighting, earned) in zip(identities, answers, strict=True):
                now, shared, kept = read_sighting(sighting)
                if identity in elsewhere:
                    earned = elsewhere[identity][0]
                times.append(now)
                found.append(Found(kept, shared, None if earned is None else read_earned(earned)))
        return Sighting(max(times), tuple(found))

    async def _earned_elsewhere(
        self, identities: Sequence[Identity], earners: Mapping[Identity, bytes], deadline: float
    ) -> dict[Identity, tuple[bytes | None, bool]]:
        """Return what each has earned, and if it exempts; nothing where a script can look that up beside triplets."""
        pending = [self._keys.of(PENDING, identity.key) for identity in identities]
        if all(self._servers.together(key, *earners.values()) for key in pending):
            return {}
        answers = await self._servers.run(
            [self._earned([key], self._given_time()) for key in earners.values()], deadline
        )
        with self._servers.reading():
            return {
                identity: (value, value is not None and has_earned(read_earned(value), seconds(now), self.rules))
                for identity, (now, value) in zip(earners, answers, strict=True)
            }

    def delivered_now(
        self, identities: Sequence[Identity], sender: str, recipients: Sequence[str], *, counts: bool
    ) -> bool:
        """See `Store`: the server always has to be waited for."""
        return False

    async def delivered(
        self, identities: Sequence[Identity], sender: str, recipients: Sequence[str], *, counts: bool
    ) -> None:
        """Make the triplets known and count what is earned, in one round trip."""
        names = [member(sender, recipient) for recipient in recipients]
        now = self._given_time()
        commands = []
        for identity in identities:
            if names:
                keys = [self._keys.of(PENDING, identity.key), *self._keys.known(identity.key, names)]
                commands.append(self._delivered(keys, now, milliseconds(self.rules.lifetime), *names))
            if identity.earner:
                earned = [self._keys.of(EARNER, identity.earner)]
                commands.append(
                    self._earn(earned, now, milliseconds(self.rules.lifetime), int(counts), milliseconds(COUNT_EVERY))
                )
        if commands:
            await self._servers.run(commands)

    # -- entries --

    async def put_entry(self, entry: Entry) -> bool:
        """Make or replace an entry; False: an operator's own stands in the way."""
        return await self._entries.put(entry)

    async def remove_entry(self, kind: Kind, value: str) -> bool:
        """Remove an entry; False where there is none."""
        return await self._entries.remove(kind, value)

    async def changes(self, position: str | None) -> Changes:
        """Return what happened to the entries since `position`."""
        return await self._entries.changes(position)

    # -- decisions --

    def note(self, decision: Logged) -> None:
        """Keep a decision for questions; it is written a moment later."""
        self._decisions.note(decision)

    # -- looking and moving --

    async def triplets(self, wanted: Wanted) -> AsyncIterator[Remembered]:
        """Give the triplets that have not expired; seconds with millions."""
        async for remembered in self._listing.triplets(wanted, await self._now(), self.rules):
            yield remembered

    async def allowances(self, wanted: Wanted) -> AsyncIterator[Allowance]:
        """Give the earners and what they have earned; seconds with millions of triplets."""
        async for allowance in self._listing.allowances(wanted, await self._now(), self.rules):
            yield allowance

    async def entries(self) -> AsyncIterator[Entry]:
        """Give the entries that have not expired."""
        async for entry in self._entries.all(await self._now()):
            yield entry

    async def decisions(self, wanted: Wanted) -> AsyncIterator[Logged]:
        """Give decisions, newest first; those of the last moments may not be there yet."""
        async for decision in self._decisions.matching(wanted, await self._now()):
            yield decision

    async def remove_triplets(self, triplets: Sequence[Triplet]) -> int:
        """Remove these, and return how many there were."""
        removed = 0
        for chunk in _chunks(triplets):
            commands = []
            for client, some in _by_client(chunk, lambda triplet: triplet.client):
                names = [member(triplet.sender, triplet.recipient) for triplet in some]
                shared = dict.fromkeys(shared_member(triplet.recipient) for triplet in some)
                keys = [
                    self._keys.of(PENDING, client),
                    self._keys.of(SHARED, client),
                    *self._keys.known(client, names),
                ]
                commands.append(self._remove_triplets(keys, *names, *shared))
            removed += sum(await self._servers.run(commands))
        return removed

    async def load(self, items: Sequence[Item]) -> int:
        """Merge what another store gave with what is here; return how many items changed something."""
        changed = 0
        for chunk in _chunks(items):
            commands = self._merge_records([item for item in chunk if isinstance(item, Remembered)])
            for item in chunk:
                if isinstance(item, Allowance):
                    commands.append(self._merge_allowance(item))
                elif isinstance(item, Entry):
                    commands.append(self._entries.put_command(item, merge=True))
            changed += sum(await self._servers.run(commands))
        return changed

    async def counts(self) -> Counts:
        """Count, by looking at every key: seconds with millions of triplets."""
        return await self._listing.count(self._entries.count_command(), self._decisions.count_command())

    # -- the life of a store --

    async def expire(self) -> bool:
        """Remove some entries that have expired; the server removes the rest by itself."""
        return await self._entries.expire()

    async def flush(self) -> None:
        """Write the decisions that wait. StoreError: they could not be written."""
        await self._decisions.flush()

    async def close(self) -> None:
        """Write the decisions that wait, if that works, and close the connections."""
        await self._decisions.close()
        await self._servers.close()

    # -- below --

    def _given_time(self) -> int | None:
        """Return a test's time in milliseconds; None: the server has its own."""
        return None if self._clock is None else milliseconds(self._clock())

    async def _now(self) -> float:
        if self._clock is not None:
            return self._clock()
        key = self._keys.decisions
        [answer] = await self._servers.run([Command(key, ("TIME",))])
        with self._servers.reading():
            whole, micro = answer
            return int(whole) + int(micro) / 1_000_000

    def _merge_records(self, items: Sequence[Remembered]) -> list[Command]:
        commands = []
        for client, some in _by_client(items, lambda item: item.triplet.client):
            names = [member(item.triplet.sender, item.triplet.recipient) for item in some]
            keys = [self._keys.of(PENDING, client), *self._keys.known(client, names)]
            arguments: list[Any] = []
            for name, item in zip(names, some, strict=True):
                first, last = item.record.first_seen, item.record.last_used
                arguments += name, milliseconds(first), None if last is None else milliseconds(last)
            commands.append(
                self._merge_triplets(
                    keys,
                    self._given_time(),
                    milliseconds(self.rules.lifetime),
                    milliseconds(self.rules.retry_window),
                    *arguments,
                )
            )
        return commands

    def _merge_allowance(self, allowance: Allowance) -> Command:
        earned = allowance.earned
        return self._merge_earned(
            [self._keys.of(EARNER, allowance.earner)],
            self._given_time(),
            milliseconds(self.rules.lifetime),
            earned.passes,
            milliseconds(earned.counted_at),
            milliseconds(earned.last_used),
        )


def _chunks(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


def _by_client(items: Sequence[T], client: Callable[[T], str]) -> list[tuple[str, list[T]]]:
    """Group by the identity's key: what is in one group is in one slot, and goes into one script."""
    groups: defaultdict[str, list[T]] = defaultdict(list)
    for item in items:
        groups[client(item)].append(item)
    return list(groups.items())
