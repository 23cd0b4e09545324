# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision, as tables, and against a model that is too short to be wrong."""

from __future__ import annotations

import pytest
from greylist_proxy.policy import (
    EXEMPT,
    GREYLISTED,
    PASSED,
    Decision,
    Earned,
    Found,
    Identity,
    Mode,
    Reason,
    Record,
    Rules,
    Triplet,
    Verdict,
    delivered,
    earn,
    has_earned,
    in_mode,
    in_transaction,
    is_callout,
    is_exempt,
    is_expired,
    judge,
    seen,
)
from hypothesis import given, settings
from hypothesis import strategies as st

RULES = Rules(delay=60, retry_window=600, lifetime=3600, auto_allow_after=2, max_pending=3)
T = 1_000_000.0
ALLOW, DEFER, BLOCK = Verdict.ALLOW, Verdict.DEFER, Verdict.BLOCK
NETWORK = Identity("192.0.2.0/24", "192.0.2.7")
DOMAIN = Identity("spf:far.test", "spf:far.test")


def judge_one(found: Found, now: float, rules: Rules = RULES) -> Decision:
    return judge([(NETWORK, found)], now, rules)


@pytest.mark.parametrize(
    ("record", "now", "verdict", "reason", "seconds_left", "kept"),
    [
        # first sight
        (None, T, DEFER, Reason.NEW, 60, Record(T)),
        # early: the delay runs from first sight, and seconds are rounded up
        (Record(T), T, DEFER, Reason.EARLY, 60, Record(T)),
        (Record(T), T + 1, DEFER, Reason.EARLY, 59, Record(T)),
        (Record(T), T + 59.5, DEFER, Reason.EARLY, 1, Record(T)),
        # the delay is over, to the second, until the retry window ends
        (Record(T), T + 60, ALLOW, Reason.RETRIED, 0, Record(T)),
        (Record(T), T + 600, ALLOW, Reason.RETRIED, 0, Record(T)),
        # too late: it counts as new, from now
        (Record(T), T + 600.1, DEFER, Reason.NEW, 60, Record(T + 600.1)),
        # known, for the lifetime since last use
        (Record(T, T + 60), T + 61, ALLOW, Reason.KNOWN, 0, Record(T, T + 60)),
        (Record(T, T + 60), T + 3660, ALLOW, Reason.KNOWN, 0, Record(T, T + 60)),
        (Record(T, T + 60), T + 3661, DEFER, Reason.NEW, 60, Record(T + 3661)),
        # known by a delivery that the store had no sighting of
        (Record(T, T), T, ALLOW, Reason.KNOWN, 0, Record(T, T)),
        # the clock was set back: the future is now
        (Record(T), T - 5000, DEFER, Reason.EARLY, 60, Record(T - 5000)),
        (Record(T, T + 60), T - 5000, ALLOW, Reason.KNOWN, 0, Record(T - 5000, T - 5000)),
    ],
)
def test_a_sighting(
    record: Record | None, now: float, verdict: Verdict, reason: Reason, seconds_left: int, kept: Record
) -> None:
    assert judge_one(Found(record), now) == Decision(verdict, reason, seconds_left, key=NETWORK.key)
    assert seen(record, now, RULES) == kept


def test_without_a_delay_the_first_sight_passes() -> None:
    rules = Rules(delay=0, retry_window=600, lifetime=3600)
    assert judge_one(Found(), T, rules).verdict is ALLOW
    assert judge_one(Found(), T, rules).reason is Reason.NEW
    assert judge_one(Found(Record(T)), T, rules).reason is Reason.RETRIED
    assert judge_one(Found(shared=True), T, rules).verdict is ALLOW


@pytest.mark.parametrize(
    ("record", "now", "verdict", "reason", "seconds_left"),
    [
        # the first one over the cap makes the shared record, and its delay counts for all that follow
        (None, T, DEFER, Reason.PENDING_CAP, 60),
        (Record(T), T + 10, DEFER, Reason.PENDING_CAP, 50),
        (Record(T), T + 60, ALLOW, Reason.RETRIED, 0),
        (Record(T), T + 601, DEFER, Reason.PENDING_CAP, 60),
    ],
)
def test_over_the_cap(record: Record | None, now: float, verdict: Verdict, reason: Reason, seconds_left: int) -> None:
    assert judge_one(Found(record, shared=True), now) == Decision(verdict, reason, seconds_left, key=NETWORK.key)


PENDING, READY, FAMILIAR = Found(Record(T)), Found(Record(T - 60)), Found(Record(T - 90, T - 20))


@pytest.mark.parametrize(
    ("network", "domain", "reason", "seconds_left", "key"),
    [
        # the pool retries from another network: the domain remembers
        (Found(), READY, Reason.RETRIED, 0, DOMAIN.key),
        (Found(), FAMILIAR, Reason.KNOWN, 0, DOMAIN.key),
        # the DNS did not answer the first time, or not now: the network remembers
        (READY, Found(), Reason.RETRIED, 0, NETWORK.key),
        (FAMILIAR, READY, Reason.KNOWN, 0, NETWORK.key),
        # neither passes: the shorter wait counts
        (Found(), Found(), Reason.NEW, 60, NETWORK.key),
        (Found(), PENDING, Reason.EARLY, 50, DOMAIN.key),
        (Found(Record(T - 10)), PENDING, Reason.EARLY, 40, NETWORK.key),
        (Found(shared=True), Found(), Reason.PENDING_CAP, 60, NETWORK.key),
        # one has earned its exemption
        (Found(), Found(earned=Earned(2, T, T)), Reason.AUTO_ALLOWED, 0, DOMAIN.key),
        (Found(earned=Earned(2, T, T)), FAMILIAR, Reason.AUTO_ALLOWED, 0, NETWORK.key),
        (Found(earned=Earned(1, T, T)), Found(), Reason.NEW, 60, NETWORK.key),
    ],
)
def test_whichever_identity_passes_first_wins(
    network: Found, domain: Found, reason: Reason, seconds_left: int, key: str
) -> None:
    decision = judge([(NETWORK, network), (DOMAIN, domain)], T + 10, RULES)
    assert (decision.reason, decision.seconds_left, decision.key) == (reason, seconds_left, key)
    assert decision.verdict is (DEFER if seconds_left else ALLOW)


def test_a_client_has_an_identity() -> None:
    with pytest.raises(ValueError, match="empty"):
        judge([], T, RULES)


@pytest.mark.parametrize(
    ("earned", "counts", "now", "kept"),
    [
        (None, True, T, Earned(1, T, T)),
        (None, False, T, None),  # known triplets that go on being used earn nothing by themselves
        (Earned(1, T, T), True, T + 3599, Earned(1, T, T + 3599)),  # at most one an hour
        (Earned(1, T, T), True, T + 3600, Earned(2, T + 3600, T + 3600)),
        (Earned(1, T, T), False, T + 3600, Earned(1, T, T + 3600)),
        (Earned(7, T, T), True, T + 3601, Earned(1, T + 3601, T + 3601)),  # nothing for a lifetime: from the start
        (Earned(7, T, T), False, T + 3601, None),
        (Earned(1, T, T), True, T - 9000, Earned(1, T - 9000, T - 9000)),  # the clock was set back
    ],
)
def test_what_a_delivery_earns(earned: Earned | None, counts: bool, now: float, kept: Earned | None) -> None:
    assert earn(earned, now, RULES, counts=counts) == kept


@pytest.mark.parametrize(
    ("after", "earned", "now", "exempt"),
    [
        (2, None, T, False),
        (2, Earned(1, T, T), T, False),
        (2, Earned(2, T, T), T + 3600, True),
        (2, Earned(2, T, T), T + 3601, False),
        (0, Earned(99, T, T), T, False),  # switched off
        (1, Earned(1, T, T), T, True),  # RFC 6647 section 5.1
    ],
)
def test_who_has_earned_his_exemption(after: int, earned: Earned | None, now: float, exempt: bool) -> None:
    assert has_earned(earned, now, Rules(lifetime=3600, auto_allow_after=after)) is exempt


@pytest.mark.parametrize(
    ("record", "now", "kept"),
    [
        (Record(T), T + 70, Record(T, T + 70)),
        (Record(T, T + 70), T + 90, Record(T, T + 90)),
        (None, T, Record(T, T)),  # the record has expired, or the store was down
        (Record(T, T), T - 50, Record(T - 50, T - 50)),  # the clock was set back
    ],
)
def test_a_delivery(record: Record | None, now: float, kept: Record) -> None:
    assert delivered(record, now) == kept


NEW = Decision(DEFER, Reason.NEW, 60)
EARLY = Decision(DEFER, Reason.EARLY, 20)
KNOWN = Decision(ALLOW, Reason.KNOWN)
RETRIED = Decision(ALLOW, Reason.RETRIED)


@pytest.mark.parametrize(
    ("own", "first", "result"),
    [
        # the first one stands for itself
        (NEW, None, NEW),
        (KNOWN, None, KNOWN),
        (EXEMPT, None, EXEMPT),
        # after a deferred one
        (NEW, EARLY, Decision(DEFER, Reason.NEW, 60)),
        (EARLY, NEW, Decision(DEFER, Reason.EARLY, 60)),  # it will wait as long as the first one
        (RETRIED, EARLY, Decision(DEFER, Reason.TRANSACTION, 20)),
        (KNOWN, EARLY, KNOWN),  # never deferred
        (EXEMPT, EARLY, EXEMPT),
        # after an allowed one
        (NEW, KNOWN, Decision(ALLOW, Reason.TRANSACTION)),
        (EARLY, RETRIED, Decision(ALLOW, Reason.TRANSACTION)),
        (RETRIED, KNOWN, RETRIED),
        (KNOWN, RETRIED, KNOWN),
        (EXEMPT, KNOWN, EXEMPT),
    ],
)
def test_the_first_recipient_sets_the_verdict(own: Decision, first: Decision | None, result: Decision) -> None:
    assert in_transaction(own, first) == result


@pytest.mark.parametrize("reason", sorted(set(Reason) - GREYLISTED))
def test_what_is_exempt_or_refused_neither_sets_nor_takes_the_verdict(reason: Reason) -> None:
    own = Decision(ALLOW, reason)
    assert in_transaction(own, EARLY) is own


def test_what_a_failed_store_let_pass_earns_nothing_for_the_others_either() -> None:
    accepted = Decision(ALLOW, Reason.STORE_FAILED)
    assert in_transaction(NEW, accepted).reason is Reason.STORE_FAILED
    assert Reason.STORE_FAILED not in PASSED


@pytest.mark.parametrize(
    ("decision", "mode", "result"),
    [
        (NEW, Mode.ENFORCE, NEW),
        (NEW, Mode.OBSERVE, Decision(ALLOW, Reason.NEW, 60, would=DEFER)),
        (
            Decision(BLOCK, Reason.BLOCKED_CLIENT),
            Mode.OBSERVE,
            Decision(ALLOW, Reason.BLOCKED_CLIENT, would=BLOCK),
        ),
        (KNOWN, Mode.OBSERVE, KNOWN),
    ],
)
def test_the_mode(decision: Decision, mode: Mode, result: Decision) -> None:
    assert in_mode(decision, mode) == result
    assert not in_mode(Decision(DEFER, Reason.TRAP), Mode.OBSERVE).is_trapped


@pytest.mark.parametrize(
    ("recipient", "exempt"),
    [
        ("postmaster@here.test", True),
        ("PostMaster@here.test", True),
        ("postmaster", True),
        ("abuse@here.test", True),
        ("Abuse@here.test", True),
        ("abuse", False),
        ("postmaster1@here.test", False),
        ("user@postmaster", False),
    ],
)
def test_who_is_exempt(recipient: str, exempt: bool) -> None:
    assert is_exempt(recipient) is exempt


class Model:
    """RFC 6647 for one identity, in a few lines: names of recipients, and two times for each."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.used: dict[str, float] = {}

    def sees(self, name: str, now: float) -> Verdict:
        live = sum(self.lives(each, now) for each in self.first if each not in self.used and each != "shared")
        if not self.lives(name, now) and (self.lives("shared", now) or live >= RULES.max_pending):
            name = "shared"
        if not self.lives(name, now):
            self.first[name] = now
            self.used.pop(name, None)
        for times in (self.first, self.used):
            times.update({name: min(times[name], now)} if name in times else {})
        return ALLOW if name in self.used or now - self.first[name] >= RULES.delay else DEFER

    def delivers(self, name: str, now: float) -> None:
        self.first[name] = min(self.first[name], now) if self.lives(name, now) else now
        self.used[name] = now

    def lives(self, name: str, now: float) -> bool:
        if name in self.used:
            return now - self.used[name] <= RULES.lifetime
        return name in self.first and now - self.first[name] <= RULES.retry_window


class Memory:
    """What a store does (see `store/__init__.py`), on a dictionary."""

    def __init__(self) -> None:
        self.records: dict[Triplet, Record] = {}

    def sees(self, recipient: str, now: float) -> Decision:
        triplet, shared = Triplet(NETWORK.key, "a@far.test", recipient), Triplet(NETWORK.key, "", "@here.test")
        live = [
            key
            for key, record in self.records.items()
            if record.last_used is None and not is_expired(record, now, RULES) and key != shared
        ]
        is_shared = not self.has(triplet, now) and (self.has(shared, now) or len(live) >= RULES.max_pending)
        place = shared if is_shared else triplet
        found = Found(self.records.get(place), is_shared)
        self.records[place] = seen(found.record, now, RULES)
        return judge_one(found, now)

    def has(self, triplet: Triplet, now: float) -> bool:
        record = self.records.get(triplet)
        return record is not None and not is_expired(record, now, RULES)

    def delivers(self, recipient: str, now: float) -> None:
        triplet = Triplet(NETWORK.key, "a@far.test", recipient)
        self.records[triplet] = delivered(self.records.get(triplet) if self.has(triplet, now) else None, now)


STEPS = st.tuples(
    st.sampled_from(["see", "see", "see", "deliver"]),
    st.sampled_from([f"{number}@here.test" for number in range(6)]),
    st.one_of(st.sampled_from([0, 1, 59, 60, 61, 600, 601, 3600, 3601]), st.integers(0, 1500)),
    st.booleans(),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_any_history_agrees_with_the_model(steps: list[tuple[str, str, int, bool]]) -> None:
    now, memory, model = T, Memory(), Model()
    for step, recipient, seconds, back in steps:
        now += -seconds if back else seconds
        if step == "see":
            decision = memory.sees(recipient, now)
            assert decision.verdict is model.sees(recipient, now)
            assert decision.seconds_left <= RULES.delay
            assert (decision.seconds_left > 0) is (decision.verdict is DEFER)
        else:
            memory.delivers(recipient, now)
            model.delivers(recipient, now)


@settings(max_examples=500, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_who_comes_back_when_told_to_passes(steps: list[tuple[str, str, int, bool]]) -> None:
    """Whatever went before, also with a clock that jumps back, and over the cap."""
    now, memory = T, Memory()
    for step, recipient, seconds, back in steps:
        now += -seconds if back else seconds
        memory.sees(recipient, now) if step == "see" else memory.delivers(recipient, now)
    decision = memory.sees("0@here.test", now)
    assert decision.seconds_left <= RULES.delay
    assert memory.sees("0@here.test", now + decision.seconds_left).verdict is ALLOW


@settings(deadline=None)
@given(st.lists(st.floats(0, 59.9), max_size=10), st.floats(60, 600))
def test_early_retries_change_nothing(early: list[float], late: float) -> None:
    record = seen(None, T, RULES)
    for seconds in early:
        assert judge_one(Found(record), T + seconds).verdict is DEFER
        record = seen(record, T + seconds, RULES)
    assert record == Record(T)
    assert judge_one(Found(record), T + late).reason is Reason.RETRIED


@pytest.mark.parametrize(
    ("sender", "is_one"),
    [
        ("", True),
        ("double-bounce@mail.far.test", True),
        ("Postmaster@far.test", True),
        ("postmaster", True),
        ("a@far.test", False),
        ("a", False),
        ("postmaster@far@far.test", False),
    ],
)
def test_whom_servers_verify_addresses_with(sender: str, is_one: bool) -> None:
    assert is_callout(sender) is is_one
