# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is earned, while it is not yet written: no delivery of many is kept that makes no difference."""

from __future__ import annotations

from greylist_proxy import policy
from greylist_proxy.policy import Earned, Rules
from greylist_proxy.store.sqlite.overlay import Delivery, Overlay
from hypothesis import given
from hypothesis import strategies as st

RULES = Rules(lifetime=3 * policy.COUNT_EVERY)
# Whole hundreds of seconds: sums are exact, and the same times and distances come often.
TIMES = st.integers(0, 200).map(lambda number: number * 100.0)
DELIVERIES = st.lists(st.builds(Delivery, TIMES, st.booleans()), max_size=12)


@given(
    kept=st.none() | st.builds(Earned, st.integers(1, 5), TIMES, TIMES), deliveries=DELIVERIES, in_order=st.booleans()
)
def test_what_is_left_out_makes_no_difference(
    kept: Earned | None, deliveries: list[Delivery], *, in_order: bool
) -> None:
    overlay, expected = Overlay(), kept
    for delivery in sorted(deliveries) if in_order else deliveries:
        overlay.earn("192.0.2.7", delivery, RULES)
        expected = policy.earn(expected, delivery.time, RULES, counts=delivery.counts)
        assert overlay.earned("192.0.2.7", kept, 0, RULES) == expected


def test_many_known_deliveries_are_two() -> None:
    overlay = Overlay()
    for number in range(1000):
        overlay.earn("192.0.2.7", Delivery(float(number), counts=False), RULES)
    assert overlay.filling.earned["192.0.2.7"] == [Delivery(0.0, counts=False), Delivery(999.0, counts=False)]
