# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-stores` measures what it says, on few triplets, and its judgement follows its figures."""

from __future__ import annotations

import collections
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.policy import Rules, is_expired
from stores_data import Population, Sizes
from stores_databases import KINDS, Unmeasurable
from stores_figures import Expiry, Figures, Growth, Timing, growths, timing

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_700_000_000.0
# Of the numbers of triplets, so that every residue of the layout (two triplets for each even sighting) is met.
COUNTS = (1_000, 1_001, 1_002, 2_003, 10_000)


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "bench/stores.py", f"--folder={folder}", "--decisions=600", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def positive(figures: Any, *names: str) -> bool:
    return all(math.isfinite(figures[name]) and figures[name] > 0 for name in names)


@pytest.mark.parametrize("store", KINDS)
def test_two_sizes_end_to_end(store: str, tmp_path: Path) -> None:
    # A growth that nothing can have, so that the judgement is seen.
    done = bench(tmp_path, f"--stores={store}", "--triplets=1000,2000", "--most=0", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    measured = json.loads(done.stdout)
    assert [(one["store"], one["triplets"]) for one in measured["stores"]] == [(store, 1_000), (store, 2_000)]
    for one in measured["stores"]:
        assert positive(one, "fill_seconds", "filled_bytes", "bytes")
        assert 50 < one["bytes"] / one["triplets"] < 5_000
        for how in ("single", "concurrent"):
            assert one[how]["decisions"] == 600
            assert positive(one[how], "each", "median", "p99")
            assert one[how]["median"] <= one[how]["p99"]
            assert set(one[how]["medians"]) == {"new", "early", "known"}
        assert (one["cold"] is not None) is (store == "sqlite")
        assert positive(one["expiry"], "seconds", "longest_wait")
        assert one["triplets"] < one["expiry"]["triplets"]  # the new sightings are there as well
        assert 0.2 < one["expiry"]["expired"] / one["expiry"]["triplets"] < 0.8
    (growth,) = measured["growth"]
    assert (growth["store"], growth["small"], growth["great"]) == (store, 1_000, 2_000)
    assert positive(growth, "single", "concurrent")
    assert len(measured["missed"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_one_size_is_not_judged_and_is_printed(tmp_path: Path) -> None:
    done = bench(tmp_path, "--stores=sqlite", "--triplets=1000")
    assert (done.returncode, "1,000" in done.stdout, "bytes a triplet" in done.stdout) == (0, True, True), done.stderr


@pytest.mark.parametrize("store", KINDS)
def test_what_there_is_no_room_for_is_not_begun(store: str, tmp_path: Path) -> None:
    with pytest.raises(Unmeasurable, match=r"^1,000,000,000,000,000 triplets need [0-9.]+ GB of .* GB are free$"):
        KINDS[store].check(10**15, tmp_path)


@pytest.mark.parametrize("count", COUNTS)
def test_the_data_is_what_it_is_said_to_be(count: int) -> None:
    population = Population(count, Rules(), NOW)
    items = list(population.items())
    assert len({item.triplet for item in items}) == len(items) == count
    assert items == list(Population(count, Rules(), NOW).items())
    known = [item for item in items if item.record.last_used is not None]
    assert len(known) / count == pytest.approx(0.2, abs=0.01)
    assert not any(is_expired(item.record, NOW, Rules()) for item in items)
    later = NOW + population.seconds_until_half_expired()
    assert sum(is_expired(item.record, later, Rules()) for item in items) / count == pytest.approx(0.5, abs=0.06)
    # What is new is not there, though its clients are.
    new = [population.sighting(population.sightings + number) for number in range(500)]
    triplets = {(item.triplet.client, item.triplet.sender, item.triplet.recipient) for item in items}
    assert not triplets & {(one.key, made.sender, made.recipient) for made in new for one in made.identities}
    clients = {item.triplet.client for item in items}
    assert all(made.identities[0].key in clients for made in new)


@pytest.mark.parametrize(
    ("count", "largest", "first"), [(100_000, 1_000, 1_000), (100_000, math.inf, 10_000), (50, 1_000, 15)]
)
def test_sizes_follow_a_power_law(count: int, largest: float, first: int) -> None:
    sizes = Sizes(count, largest)
    found = collections.Counter(sizes.group(member) for member in range(count))
    assert found[0] == pytest.approx(first, rel=0.1)
    # Sizes fall as 1/n: ten times the number, a tenth of the size, where groups are large enough to be counted.
    assert sorted(found) == list(range(len(found)))
    assert sum(found.values()) == count
    if count > 50:
        assert found[1_000] == pytest.approx(10 * found[10_000], abs=10)


def figures(store: str, triplets: int, median: float, each: float) -> Figures:
    how = Timing(decisions=10, each=each, median=median, p99=9, medians={"new": median})
    expiry = Expiry(triplets=2, expired=1, seconds=1, steps=None, longest_step=None, longest_wait=1, bytes_freed=1)
    return Figures(
        store,
        triplets,
        fill_seconds=1,
        filled_bytes=1,
        bytes=1,
        single=how,
        concurrent=how,
        cold=None,
        expiry=expiry,
    )


def test_a_timing_counts_all_kinds() -> None:
    found = timing(0.5, {"new": [0.001 * number for number in range(1, 100)], "early": [0.002], "known": []})
    assert found == Timing(
        decisions=100,
        each=pytest.approx(5_000),
        median=pytest.approx(49_500),
        p99=pytest.approx(98_000),
        medians={"new": pytest.approx(50_000), "early": pytest.approx(2_000)},
    )


def test_the_greatest_size_is_compared_with_the_smallest() -> None:
    sizes = [figures("a", 10, 100, 50), figures("b", 5, 7, 7), figures("a", 30, 150, 110), figures("a", 20, 900, 900)]
    (growth,) = growths(sizes)
    assert growth == Growth("a", small=10, great=30, single=1.5, concurrent=2.2)
    assert growth.shortfalls(2.2) == []
    assert growth.shortfalls(2) == [
        "a: a decision, many at once, takes 2.20 times as long with 30 triplets as with 10, and the target is 2 at most"
    ]
