# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random histories: every store says what a dictionary would say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from greylist_proxy import policy
from greylist_proxy.policy import Earned, Found, Identity, Record, Rules, Triplet, judge
from greylist_proxy.store import Allowance, Store, Wanted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .stores import START, Clock, Stores

RULES = Rules(delay=60, retry_window=600, lifetime=4 * 3600, auto_allow_after=3, max_pending=3)
IDENTITIES = [
    Identity("192.0.2.0/24", "192.0.2.1"),
    Identity("192.0.2.0/24", "192.0.2.2"),
    Identity("spf:far.test", "spf:far.test"),
    Identity("ptr:far.test", ""),
]
SENDERS = [f"{letter}@far.test" for letter in "abcdef"]
RECIPIENTS = ["u@here.test", "v@here.test", "u@there.test"]


class Model:
    """What `Store` says of sightings and deliveries, in dictionaries."""

    def __init__(self) -> None:
        self.records: dict[Triplet, Record] = {}
        self.shared: dict[tuple[str, str], Record] = {}
        self.earned: dict[str, Earned] = {}
        self.no_earlier = 0.0  # than this may the clock be set back to: what had expired by then may be gone

    def observe(self, identity: Identity, sender: str, recipient: str, now: float, record: bool) -> Found:
        earned = self.earned.get(identity.earner)
        triplet, place = Triplet(identity.key, sender, recipient), (identity.key, recipient.partition("@")[2])
        before = self.records.get(triplet)
        if self.is_exempt(identity, now):
            return Found(before, earned=earned)
        pending = sum(old.last_used is None for key, old in self.records.items() if key.client == identity.key)
        if before is None and (place in self.shared or pending >= RULES.max_pending):
            before = self.shared.get(place)
            if record:
                self.shared[place] = policy.seen(before, now, RULES)
            return Found(before, shared=True, earned=earned)
        if record:
            self.records[triplet] = policy.seen(before, now, RULES)
        return Found(before, earned=earned)

    def is_exempt(self, identity: Identity, now: float) -> bool:
        return policy.has_earned(self.earned.get(identity.earner), now, RULES)

    def delivered(self, identity: Identity, sender: str, recipients: Sequence[str], now: float, counts: bool) -> None:
        for recipient in recipients:
            triplet = Triplet(identity.key, sender, recipient)
            self.records[triplet] = policy.delivered(self.records.get(triplet), now)
        if identity.earner:
            earned = policy.earn(self.earned.get(identity.earner), now, RULES, counts=counts)
            if earned is not None:
                self.earned[identity.earner] = earned

    def step(self, clock: Clock, seconds: float) -> None:
        """Step the clock, but not back to where something would live again, and forget what has expired."""
        clock.now = max(round(clock.now + seconds, 3), self.no_earlier)
        before = len(self.records) + len(self.shared) + len(self.earned)
        self.records = {key: old for key, old in self.records.items() if not policy.is_expired(old, clock.now, RULES)}
        self.shared = {key: old for key, old in self.shared.items() if not policy.is_expired(old, clock.now, RULES)}
        self.earned = {key: old for key, old in self.earned.items() if clock.now - old.last_used <= RULES.lifetime}
        if len(self.records) + len(self.shared) + len(self.earned) < before:
            self.no_earlier = clock.now


def what_counts(record: Record) -> tuple[float | None, float | None]:
    """Leave out a known one's first sight: it decides nothing, and may be that of an expired record."""
    return (record.first_seen if record.last_used is None else None), record.last_used


STEPS = st.sampled_from([0.0, 0.001, 1.0, 59.999, 60.0, 600.0, 600.001, 3600.0, 4 * 3600.0, 4 * 3600.001, -30.0, -9e4])
HISTORIES = st.lists(
    st.one_of(
        st.tuples(
            st.just("observe"),
            st.lists(st.sampled_from(IDENTITIES), min_size=1, max_size=3, unique_by=lambda identity: identity.key),
            st.sampled_from(SENDERS),
            st.sampled_from(RECIPIENTS),
            st.sampled_from([True, True, True, False]),
        ),
        st.tuples(
            st.just("delivered"),
            st.lists(st.sampled_from(IDENTITIES), min_size=1, max_size=3, unique_by=lambda identity: identity.key),
            st.sampled_from(SENDERS),
            st.lists(st.sampled_from(RECIPIENTS), max_size=2, unique=True),
            st.booleans(),
        ),
        st.tuples(st.just("step"), STEPS),
        st.tuples(st.just("flush")),
        st.tuples(st.just("expire")),
    ),
    max_size=40,
)
NAMES = itertools.count()


async def one_step(store: Store, model: Model, clock: Clock, step: Sequence[Any]) -> None:
    match step:
        case "observe", identities, sender, recipient, record:
            sighting = await store.observe(identities, sender, recipient, record=record)
            assert sighting.now == clock.now
            records = record and not any(model.is_exempt(identity, clock.now) for identity in identities)
            found = [model.observe(identity, sender, recipient, clock.now, records) for identity in identities]
            assert [facts.shared for facts in sighting.found] == [facts.shared for facts in found]
            theirs = judge(list(zip(identities, sighting.found, strict=True)), sighting.now, RULES)
            assert theirs == judge(list(zip(identities, found, strict=True)), clock.now, RULES)
        case "delivered", identities, sender, recipients, counts:
            await store.delivered(identities, sender, recipients, counts=counts)
            for identity in identities:
                model.delivered(identity, sender, recipients, clock.now, counts)
        case "step", seconds:
            model.step(clock, seconds)
        case ("flush",):
            await store.flush()
        case ("expire",):
            while await store.expire():
                pass


@given(HISTORIES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_a_store_says_what_a_dictionary_would_say(stores: Stores, history: list[Sequence[Any]]) -> None:
    async def play() -> None:
        stores.clock.now = START
        store, model = stores.make(RULES, data=f"history{next(NAMES)}"), Model()
        for step in history:
            await one_step(store, model, stores.clock, step)
        await store.flush()
        records = {item.triplet: item.record async for item in store.triplets(Wanted())}
        assert {key: what_counts(record) for key, record in records.items()} == {
            key: what_counts(record) for key, record in model.records.items()
        }
        allowances = {item async for item in store.allowances(Wanted())}
        assert allowances == {Allowance(earner, earned) for earner, earned in model.earned.items()}

    stores.run(play())
