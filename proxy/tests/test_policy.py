# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision, as tables, and against a model that is too short to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from greylist_proxy.policy import (
    EXEMPT,
    Decision,
    Reason,
    Record,
    Rules,
    Verdict,
    address_key,
    delivered,
    in_transaction,
    is_exempt,
    is_expired,
    observe,
)
from hypothesis import given, settings
from hypothesis import strategies as st

RULES = Rules(delay=60, retry_window=600, lifetime=3600)
T = 1_000_000.0
ALLOW, DEFER = Verdict.ALLOW, Verdict.DEFER


@pytest.mark.parametrize(
    ("first_seen", "last_used", "now", "verdict", "reason", "seconds_left", "kept"),
    [
        # first sight
        (None, None, T, DEFER, Reason.NEW, 60, Record(T)),
        # early: the delay runs from first sight, and seconds are rounded up
        (T, None, T, DEFER, Reason.EARLY, 60, Record(T)),
        (T, None, T + 1, DEFER, Reason.EARLY, 59, Record(T)),
        (T, None, T + 59.5, DEFER, Reason.EARLY, 1, Record(T)),
        # the delay is over, to the second, until the retry window ends
        (T, None, T + 60, ALLOW, Reason.RETRIED, 0, Record(T)),
        (T, None, T + 600, ALLOW, Reason.RETRIED, 0, Record(T)),
        # too late: it counts as new, from now
        (T, None, T + 600.1, DEFER, Reason.NEW, 60, Record(T + 600.1)),
        # known, for the lifetime since last use
        (T, T + 60, T + 61, ALLOW, Reason.KNOWN, 0, Record(T, T + 60)),
        (T, T + 60, T + 3660, ALLOW, Reason.KNOWN, 0, Record(T, T + 60)),
        (T, T + 60, T + 3661, DEFER, Reason.NEW, 60, Record(T + 3661)),
        # known by a delivery that the store had no sighting of
        (T, T, T, ALLOW, Reason.KNOWN, 0, Record(T, T)),
        # the clock was set back: the future is now
        (T, None, T - 5000, DEFER, Reason.EARLY, 60, Record(T - 5000)),
        (T, T + 60, T - 5000, ALLOW, Reason.KNOWN, 0, Record(T - 5000, T - 5000)),
    ],
)
def test_a_sighting(
    first_seen: float | None,
    last_used: float | None,
    now: float,
    verdict: Verdict,
    reason: Reason,
    seconds_left: int,
    kept: Record,
) -> None:
    record = None if first_seen is None else Record(first_seen, last_used)
    assert observe(record, now, RULES) == (kept, Decision(verdict, reason, seconds_left))


def test_without_a_delay_the_first_sight_passes() -> None:
    rules = Rules(delay=0, retry_window=600, lifetime=3600)
    assert observe(None, T, rules) == (Record(T), Decision(ALLOW, Reason.NEW))
    assert observe(Record(T), T, rules) == (Record(T), Decision(ALLOW, Reason.RETRIED))


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


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("User@Example.ORG", "User@example.org", True),
        ("User@example.org", "user@example.org", False),
        ('"a@B"@X.org', '"a@B"@x.org', True),
        ("", "", True),
        ("Postmaster", "postmaster", False),
    ],
)
def test_addresses_compare_without_case_in_the_domain(one: str, other: str, same: bool) -> None:
    assert (address_key(one) == address_key(other)) is same


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


def test_every_reason_says_what_it_means() -> None:
    assert all(reason.meaning for reason in Reason)
    assert f"{Reason.EXEMPT_POSTMASTER}" == "exempt-postmaster"
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert [reason for reason in Reason if f"`{reason}`" not in readme] == []


class Model:
    """RFC 6647 in ten lines; it keeps times as they came, and asks what they mean now."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.used: float | None = None

    def sees(self, now: float) -> Verdict:
        self.bring_back(now)
        known = self.used is not None and now - self.used <= RULES.lifetime
        if not known and (self.first is None or self.used is not None or now - self.first > RULES.retry_window):
            self.first, self.used = now, None
        return ALLOW if known or now - (self.first or 0) >= RULES.delay else DEFER

    def delivers(self, now: float) -> None:
        self.first, self.used = now if self.first is None else self.first, now

    def bring_back(self, now: float) -> None:
        self.first = None if self.first is None else min(self.first, now)
        self.used = None if self.used is None else min(self.used, now)


STEPS = st.tuples(
    st.sampled_from(["see", "see", "see", "deliver", "expire"]),
    st.one_of(st.sampled_from([0, 1, 59, 60, 61, 600, 601, 3600, 3601, -1, -60, -4000]), st.integers(-500, 1500)),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_any_history_agrees_with_the_model(steps: list[tuple[str, int]]) -> None:
    now, record, model = T, None, Model()
    for step, seconds in steps:
        now += seconds
        if step == "see":
            record, decision = observe(record, now, RULES)
            assert decision.verdict is model.sees(now)
            assert decision.seconds_left <= RULES.delay
            assert (decision.seconds_left > 0) is (decision.verdict is DEFER)
        elif step == "deliver":
            record = delivered(record, now)
            model.delivers(now)
        elif record is not None and is_expired(record, now, RULES):
            # The store may forget it now. Only a clock that is set back later could tell.
            record, model = None, Model()


@settings(deadline=None)
@given(st.lists(st.floats(0, 59.9), max_size=10), st.floats(60, 600))
def test_early_retries_change_nothing(early: list[float], late: float) -> None:
    record, _ignored = observe(None, T, RULES)
    for seconds in early:
        record, decision = observe(record, T + seconds, RULES)
        assert decision.verdict is DEFER
    assert record == Record(T)
    assert observe(record, T + late, RULES)[1].reason is Reason.RETRIED


@settings(deadline=None)
@given(st.floats(0, 59), st.floats(0, 1e9))
def test_no_clock_makes_anybody_wait_for_more_than_the_delay(waited: float, set_back: float) -> None:
    record, _ignored = observe(Record(T), T + waited - set_back, RULES)
    later = T + waited - set_back + RULES.delay
    assert observe(record, later, RULES)[1].verdict is ALLOW
