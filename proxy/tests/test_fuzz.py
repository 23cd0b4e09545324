# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any input whatever, by Hypothesis: a first look at what `make fuzz` searches for as long as it is told."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .fuzzed import TARGETS

EXAMPLES = {"protocol": 1500, "config": 60, "lists": 300}


@pytest.mark.parametrize("name", TARGETS)
def test_any_input(name: str) -> None:
    target = TARGETS[name]
    words = st.sampled_from([*target.words, *(seed[4:] for seed in target.seeds)]) | st.binary(max_size=30)
    inputs = st.builds(
        lambda settings, text: settings + b"".join(text),
        st.binary(min_size=4, max_size=4),
        st.lists(words, max_size=30),
    )

    @settings(max_examples=EXAMPLES.get(name, 500), deadline=None, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def search(data: bytes) -> None:
        target.check(data)

    search()


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_search_begins_with(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].check(seed)
        for end in range(4, len(seed)):
            TARGETS[name].check(seed[:end])
