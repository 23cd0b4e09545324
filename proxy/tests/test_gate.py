# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate: what is asked in which order, when a trap closes, what a failing store costs, and what is written down."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy import gate as gate_module
from greylist_proxy.client import Identifier, Origin, identify
from greylist_proxy.config_sections import AllowSection, TrapSection
from greylist_proxy.exemptions import Exemptions
from greylist_proxy.gate import Gate
from greylist_proxy.log import Log
from greylist_proxy.policy import Decision, Identity, Mode, Reason, Rules, Verdict
from greylist_proxy.resolver import Resolver
from greylist_proxy.spf import SpfChecker
from greylist_proxy.store import Action, Entry, Kind, Limits, Source, StoreError, Wanted
from greylist_proxy.store.sqlite import SqliteStore
from greylist_proxy.store.sqlite import behind as behind_module
from greylist_proxy.store.sqlite.commit import commit
from greylist_proxy.tasks import Tasks

from .dns_server import DnsServer
from .peers import until
from .stores import Clock

MakeDns = Callable[..., DnsServer]
RULES = Rules(delay=60, retry_window=600, lifetime=3600, auto_allow_after=2)
ZONE = "pool.test TXT v=spf1 ip4:192.0.2.0/24 -all"


@dataclass
class Bench:
    """A gate with real parts around it, under a clock of its own."""

    gate: Gate
    store: SqliteStore
    exemptions: Exemptions
    identifier: Identifier
    clock: Clock
    tasks: Tasks
    log: io.StringIO

    def origin(self, address: str = "192.0.2.7", sender: str = "a@far.test", helo: str = "") -> Origin:
        return self.identifier.origin(identify(address, 24, 64), helo, sender)

    async def decide(
        self, address: str = "192.0.2.7", sender: str = "a@far.test", recipient: str = "u@here.test"
    ) -> Decision:
        return await self.gate.decide(self.origin(address, sender), recipient)

    async def deliver(
        self, address: str = "192.0.2.7", sender: str = "a@far.test", recipient: str = "u@here.test"
    ) -> None:
        origin = self.origin(address, sender)
        await self.gate.delivered(origin, [(recipient, await self.gate.decide(origin, recipient))])

    def events(self, event: str) -> list[dict[str, Any]]:
        return [each for each in map(json.loads, self.log.getvalue().splitlines()) if each["event"] == event]


@contextmanager
def bench(
    folder: Path, rules: Rules = RULES, dns: DnsServer | None = None, **sections: dict[str, Any]
) -> Iterator[Bench]:
    log_text, clock = io.StringIO(), Clock()
    log = Log(log_text)
    tasks = Tasks(log)
    store = SqliteStore(folder / "greylist.db", rules, Limits(), log, clock)
    resolver = Resolver([dns.endpoint], 5, 100, 1000) if dns else None
    exemptions = Exemptions(
        AllowSection(**{"well_known": False} | sections.get("allow", {})),
        TrapSection(**sections.get("trap", {})),
        resolver,
        clock,
    )
    checker = SpfChecker(resolver, 5) if resolver else None
    identifier = Identifier(resolver, checker, "spf" if dns else "network", 5, log)
    gate = Gate(store, exemptions, rules, "accept", log, tasks, clock=clock)
    yield Bench(gate, store, exemptions, identifier, clock, tasks, log_text)


def run(things: Bench, dialogue: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            await dialogue()
        finally:
            await things.gate.close()

    asyncio.run(whole())


def test_the_way_of_a_triplet(tmp_path: Path) -> None:
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            assert (await it.decide()).reason is Reason.NEW
            it.clock.step(10)
            assert await it.decide() == Decision(Verdict.DEFER, Reason.EARLY, 50, key="192.0.2.0/24")
            it.clock.step(50)
            await it.deliver()
            assert (await it.decide()).reason is Reason.KNOWN
            assert (await it.decide(address="192.0.2.200")).reason is Reason.KNOWN
            assert (await it.decide(address="192.0.3.7")).reason is Reason.NEW

        run(it, dialogue)


def test_what_is_compared_is_not_what_is_shown(tmp_path: Path) -> None:
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            await it.decide(sender="list-bounces+1234=u@Far.TEST", recipient="u@HERE.test")
            it.clock.step(60)
            decision = await it.decide(sender="list-bounces+9999=u@far.test", recipient="u@here.test")
            assert decision.reason is Reason.RETRIED
            it.gate.record(it.origin(sender="A@Far.TEST"), "u@HERE.test", decision, "ID.1")
            (logged,) = it.events("decision")
            assert (logged["sender"], logged["recipient"]) == ("A@Far.TEST", "u@HERE.test")

        run(it, dialogue)


def test_a_client_that_passed_often_enough_is_exempt_and_stays_so_by_delivering(tmp_path: Path) -> None:
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            for number in range(2):
                await it.decide(sender=f"{number}@far.test")
                it.clock.step(60)
                await it.deliver(sender=f"{number}@far.test")
                it.clock.step(3600 - 60)
            assert (await it.decide(sender="other@far.test")).reason is Reason.AUTO_ALLOWED
            assert (await it.decide(address="192.0.2.8", sender="other@far.test")).reason is Reason.NEW
            for _n in range(3):  # each delivery begins a lifetime
                await it.deliver(sender="other@far.test")
                it.clock.step(3500)
            assert (await it.decide(sender="other@far.test")).reason is Reason.AUTO_ALLOWED
            it.clock.step(101)
            assert (await it.decide(sender="other@far.test")).reason is Reason.NEW

        run(it, dialogue)


@pytest.mark.parametrize(
    ("prepare", "sender", "reason"),
    [
        ("", "a@far.test", Reason.TRAP),
        ("", "", Reason.NEW),  # bounces of mail that others sent in our name
        ("", "double-bounce@far.test", Reason.NEW),  # and servers that ask whether the sender of such mail exists
        ("", "Postmaster@far.test", Reason.NEW),
        ("", "a@pool.test", Reason.NEW),  # SPF vouches for it
        ("exempt", "a@far.test", Reason.ALLOWED_CLIENT),
        ("delivered", "a@far.test", Reason.NEW),  # no stranger
        ("known", "a@far.test", Reason.KNOWN),
        ("off", "a@far.test", Reason.NEW),
    ],
)
def test_when_a_trap_closes(tmp_path: Path, make_dns: MakeDns, prepare: str, sender: str, reason: Reason) -> None:
    with bench(tmp_path, dns=make_dns(ZONE)) as it:

        async def dialogue() -> None:
            trap = Entry(Kind.TRAP, "trap@here.test", Action.BLOCK)
            it.exemptions.put(trap)
            if prepare == "exempt":
                it.exemptions.put(Entry(Kind.CLIENT, "192.0.2.7", Action.ALLOW))
            elif prepare == "off":
                it.gate.trap_block = 0
            elif prepare in ("delivered", "known"):
                await it.decide()
                it.clock.step(60)
                await it.deliver()
            if prepare == "known":
                identities = (Identity("192.0.2.0/24", ""),)
                await it.store.delivered(identities, "a@far.test", ["trap@here.test"], counts=False)
            decision = await it.decide(sender=sender, recipient="trap@here.test")
            assert decision.reason is reason
            blocked = [entry async for entry in it.store.entries()]
            following = await it.decide(sender="b@far.test")
            if reason is Reason.TRAP:
                assert [(entry.value, entry.source) for entry in blocked] == [("192.0.2.7", Source.TRAP)]
                assert blocked[0].expires == it.clock() + 3600
                assert following.reason is Reason.TRAPPED
                assert following.is_trapped
                assert (await it.decide(address="192.0.2.8")).reason is not Reason.TRAPPED
                it.clock.step(3601)
                assert (await it.decide(sender="b@far.test")).reason is Reason.NEW
            else:
                assert blocked == []
                assert following.reason is not Reason.TRAPPED

        run(it, dialogue)


def test_an_operators_allow_beats_a_sprung_trap(tmp_path: Path) -> None:
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            it.exemptions.put(Entry(Kind.TRAP, "trap@here.test", Action.BLOCK))
            assert (await it.decide(recipient="trap@here.test")).reason is Reason.TRAP
            assert await it.store.put_entry(Entry(Kind.CLIENT, "192.0.2.7", Action.ALLOW))
            await it.gate.load_entries()
            assert (await it.decide()).reason is Reason.ALLOWED_CLIENT

        run(it, dialogue)


def test_observing_earns_nothing_and_blocks_nobody(tmp_path: Path) -> None:
    with bench(tmp_path, Rules(delay=60, lifetime=3600, auto_allow_after=1, mode=Mode.OBSERVE)) as it:

        async def dialogue() -> None:
            it.exemptions.put(Entry(Kind.TRAP, "trap@here.test", Action.BLOCK))
            it.exemptions.put(Entry(Kind.CLIENT, "192.0.9.9", Action.BLOCK))
            assert await it.decide() == Decision(Verdict.ALLOW, Reason.NEW, 60, key="192.0.2.0/24", would=Verdict.DEFER)
            await it.deliver()
            assert (await it.decide()).reason is Reason.EARLY, "a delivery alone makes nothing known"
            it.clock.step(60)
            assert (await it.decide()).reason is Reason.RETRIED
            await until(lambda: not len(it.tasks))
            assert (await it.decide()).reason is Reason.KNOWN
            assert [each async for each in it.store.allowances(Wanted())] == []
            trapped = await it.decide(recipient="trap@here.test")
            assert (trapped.verdict, trapped.would, trapped.is_trapped) == (Verdict.ALLOW, Verdict.DEFER, False)
            assert [each async for each in it.store.entries()] == []
            blocked = await it.decide(address="192.0.9.9")
            assert (blocked.verdict, blocked.would) == (Verdict.ALLOW, Verdict.BLOCK)

        run(it, dialogue)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            it.exemptions.put(Entry(Kind.TRAP, "trap@here.test", Action.BLOCK))
            for recipient in ("u@here.test", "trap@here.test"):
                for _n in range(2):
                    decision = await it.gate.decide(it.origin(), recipient, record=False)
                    assert decision.reason is (Reason.NEW if recipient == "u@here.test" else Reason.TRAP)
            assert (await it.store.counts()).pending == 0
            assert (await it.store.counts()).entries == 0
            assert it.events("trap") == []

        run(it, dialogue)


class Failing:
    """A store that fails when it is told to; `asked` counts the questions about sightings that reach it."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.error: Exception | None = None
        self.asked = 0

    async def observe(self, *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return await self._store.observe(*arguments, **options)

    async def flush(self) -> None:
        if self.error is not None:
            raise self.error
        await self._store.flush()

    def observe_now(self, *_arguments: Any) -> None:
        """It has to be asked."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize("error", [StoreError("the disk is full"), RuntimeError("a bug"), OSError("no such device")])
@pytest.mark.parametrize(("on_failure", "verdict"), [("accept", Verdict.ALLOW), ("defer", Verdict.DEFER)])
def test_a_store_that_fails_stops_no_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, on_failure: str, verdict: Verdict
) -> None:
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            store = Failing(it.store)
            log = Log(it.log)
            it.gate = Gate(store, it.exemptions, RULES, on_failure, log, it.tasks)  # type: ignore[arg-type]
            store.error = error
            for _n in range(50):
                assert await it.decide() == Decision(verdict, Reason.STORE_FAILED)
            assert store.asked == 1, "the others do not wait for it"
            store.error = None
            monkeypatch.setattr(gate_module, "RETRY_EVERY", 0)
            it.gate._next_try = 0
            assert (await it.decide()).reason is Reason.NEW
            await until(lambda: it.gate.store_works)
            assert [line["state"] for line in it.events("store")] == ["failed", "working"]
            assert it.events("store")[0]["error"] == str(error)

        run(it, dialogue)


def test_a_store_that_can_only_be_read_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries are read each second, whatever becomes of what is to be written."""
    monkeypatch.setattr(gate_module, "RETRY_EVERY", 0)
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            store = Failing(it.store)
            it.gate = Gate(store, it.exemptions, RULES, "accept", Log(it.log), it.tasks)  # type: ignore[arg-type]
            store.error = StoreError("the disk is full")
            assert (await it.decide()).reason is Reason.STORE_FAILED
            for _n in range(3):
                assert await it.gate.load_entries()
                await until(lambda: not len(it.tasks))
                assert not it.gate.store_works
            store.error = None
            assert await it.gate.load_entries()
            await until(lambda: it.gate.store_works)
            assert [line["state"] for line in it.events("store")] == ["failed", "working"]

        run(it, dialogue)


def test_a_store_that_cannot_be_written_answers_for_those_whom_it_knows(tmp_path: Path) -> None:
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            await it.decide()
            it.clock.step(60)
            await it.deliver()
            it.store._behind._error = "the disk is full"  # as where a commit has failed
            for number in range(20):
                assert (await it.decide(sender=f"{number}@far.test")).reason is Reason.STORE_FAILED
                assert (await it.decide()).reason is Reason.KNOWN
            assert not it.gate.store_works
            it.store._behind._error = None
            assert (await it.decide()).reason is Reason.KNOWN
            assert not it.gate.store_works, "that says nothing of writing"
            assert (await it.decide(address="198.51.100.9")).reason is Reason.NEW
            assert it.gate.store_works
            assert [line["state"] for line in it.events("store")] == ["failed", "working"]

        run(it, dialogue)


def test_a_decision_is_logged_and_kept(tmp_path: Path) -> None:
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            decision = await it.decide()
            it.gate.record(it.origin(), "u@here.test", decision, "0A.1")
            (line,) = it.events("decision")
            expected = {
                "verdict": "defer",
                "reason": "new",
                "client": "192.0.2.7",
                "network": "192.0.2.0/24",
                "sender": "a@far.test",
                "recipient": "u@here.test",
                "seconds_left": 60,
                "id": "0A.1",
                "key": "192.0.2.0/24",
            }
            assert {key: value for key, value in line.items() if key not in ("time", "event")} == expected
            await it.store.flush()
            (kept,) = [each async for each in it.store.decisions(Wanted())]
            assert (kept.id, kept.reason, kept.time, kept.would) == ("0A.1", "new", it.clock(), None)

        run(it, dialogue)


def test_a_pool_counts_what_its_domain_has_passed(tmp_path: Path, make_dns: MakeDns) -> None:
    """Rule 8 for a domain: two triplets from two networks, an hour apart, and the third network is exempt."""
    zone = "pool.test TXT v=spf1 ip4:198.51.100.0/24 ip4:203.0.113.0/24 ip4:192.0.2.0/24 -all"
    with bench(tmp_path, Rules(lifetime=7200, auto_allow_after=2), make_dns(zone)) as it:

        async def dialogue() -> None:
            for first, second in (("198.51.100.1", "203.0.113.1"), ("203.0.113.2", "198.51.100.2")):
                await it.decide(first, f"{first}@pool.test")
                it.clock.step(60)
                await it.deliver(second, f"{first}@pool.test")
                it.clock.step(3600)
            decision = await it.decide("192.0.2.1", "new@pool.test")
            assert (decision.reason, decision.key) == (Reason.AUTO_ALLOWED, "spf:pool.test")
            assert (await it.decide("192.0.2.1", "new@far.test")).reason is Reason.NEW

        run(it, dialogue)


def test_who_alternates_between_ipv4_and_ipv6_is_one_client(tmp_path: Path, make_dns: MakeDns) -> None:
    with bench(tmp_path, dns=make_dns("both.test TXT v=spf1 ip4:192.0.2.7 ip6:2001:db8::/64 -all")) as it:

        async def dialogue() -> None:
            assert (await it.decide("192.0.2.7", "a@both.test")).reason is Reason.NEW
            it.clock.step(30)
            assert (await it.decide("2001:db8::1", "a@both.test")).seconds_left == 30
            it.clock.step(30)
            assert (await it.decide("2001:db8::2", "a@both.test")).reason is Reason.RETRIED
            assert (await it.decide("2001:db8:1::1", "a@both.test")).reason is Reason.NEW

        run(it, dialogue)


def kept(folder: Path) -> list[tuple[str, float]]:
    with closing(sqlite3.connect(folder / "greylist.db")) as connection:
        return connection.execute("SELECT sender, last_used / 1000.0 FROM known").fetchall()


def test_a_delivery_that_makes_known_is_written_before_the_client_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Were it not asked for, nothing would be written here at all.
    monkeypatch.setattr(behind_module, "COMMIT_EVERY", 3600)
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            await it.decide()
            it.clock.step(60)
            await it.deliver()
            assert kept(tmp_path) == [("a@far.test", it.clock())]
            # Many at a time share commits.
            for number in range(30):
                await it.decide(sender=f"{number}@far.test")
            it.clock.step(60)
            with monkeypatch.context() as patched:
                commits: list[int] = []
                patched.setattr(behind_module, "commit", lambda *arguments: (commits.append(1), commit(*arguments))[1])
                await asyncio.gather(*(it.deliver(sender=f"{number}@far.test") for number in range(30)))
            assert len(kept(tmp_path)) == 31
            assert 1 <= len(commits) <= 5

        run(it, dialogue)


def test_a_delivery_of_what_is_known_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind_module, "COMMIT_EVERY", 3600)
    with bench(tmp_path) as it:

        async def dialogue() -> None:
            await it.decide()
            it.clock.step(60)
            await it.deliver()
            was = it.clock()
            it.clock.step(100)
            await it.deliver()
            assert kept(tmp_path) == [("a@far.test", was)]
            await it.store.flush()
            assert kept(tmp_path) == [("a@far.test", was + 100)]

        run(it, dialogue)
