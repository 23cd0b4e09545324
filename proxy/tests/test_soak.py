# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule by which `make soak` judges."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

MIB = 1 << 20
NOISE = 2 * MIB


@pytest.fixture(scope="module")
def soak() -> Iterator[ModuleType]:
    specification = importlib.util.spec_from_file_location("soak", Path(__file__).parents[2] / "dev/soak.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "soak", module)
        patch.setattr(sys, "path", list(sys.path))
        specification.loader.exec_module(module)
        yield module


def samples(leak: float, spread: int, fills_until: int = 0) -> list[int]:
    """Five minutes: a growth a second, a spread, and caches that fill in the beginning."""
    dice = random.Random(1)  # noqa: S311 - a test's dice
    return [
        60 * MIB + int(leak * second) + dice.randint(-spread, spread) + min(second, fills_until) * 100_000
        for second in range(300)
    ]


@pytest.mark.parametrize(
    ("taken", "is_flat"),
    [
        (samples(0, 0), True),
        (samples(0, MIB), True),
        (samples(-50_000, 0), True),
        (samples(0, MIB, fills_until=140), True),
        (samples(20 * 1500, MIB // 4), False),  # 20 bytes a session
        (samples(100_000, MIB), False),
        ([*samples(0, 0)[:299], 90 * MIB], True),  # once is no trend
    ],
)
def test_what_counts_as_growth(soak: ModuleType, taken: list[int], is_flat: bool) -> None:
    assert (soak.growth(taken, NOISE) == "") is is_flat
