# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench` measures what it says, on a small fleet, and its judgement follows its figures."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from figures import Comparison, Cost, Targets, table
from tools.ansible_runs import ROOT

# The bench needs the collection ansible.windows, which comes with this environment and not with the tests' own.
PYTHON = ROOT / ".cache/venvs/dev/bin/python"


@pytest.fixture(scope="module")
def python() -> Path:
    if not PYTHON.exists():
        reason = "the environment dev is not set up: dev/setup.sh python dev"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; in CI nothing is left out")
        pytest.skip(reason)
    return PYTHON


def bench(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, ROOT / "bench/fleet.py", "--hosts=2", "--forks=2", *arguments],
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_two_hosts_end_to_end(python: Path, tmp_path: Path) -> None:
    # More than can be had of requests, so that both kinds of judgement are seen.
    done = bench(python, tmp_path, "--json", "--least-bytes=10", "--least-requests=50")
    assert done.returncode == 1, done.stdout + done.stderr
    measured = json.loads(done.stdout)
    assert "PowerShell is not run" in measured["note"]
    first, second = measured["runs"]
    # The module: 3 requests of the login among them. The peer: two tasks of 10 requests each.
    assert first["ours"]["requests"] <= 2 * 22  # a slow machine asks more often whether the service has stopped
    assert second["ours"]["requests"] <= 2 * 7
    assert [run["peer"]["requests"] for run in (first, second)] == [2 * 20, 2 * 20]
    assert [run["ratios"]["bytes"] >= 10 for run in (first, second)] == [True, True]
    assert all(run[way][cpu] > 0 for run in (first, second) for way in ("ours", "peer") for cpu in ("client_cpu",))
    assert [sentence.partition(":")[0] for sentence in measured["missed"]] == ["run 2"]
    assert all("fewer requests" in sentence for sentence in measured["missed"])
    assert list(tmp_path.iterdir()) == []


RUN = Comparison(
    "run 1",
    ours=Cost(requests=10, bytes=2_000, seconds=1, client_cpu=2, lab_cpu=0.1),
    peer=Cost(requests=30, bytes=20_000, seconds=2, client_cpu=3, lab_cpu=0.2),
)


@pytest.mark.parametrize(
    ("targets", "missed"),
    [
        (Targets(requests=3, bytes=10), []),
        (Targets(requests=3.1, bytes=10), ["run 1: 3.00 times fewer requests, and the target is 3.1"]),
        (Targets(requests=3, bytes=11), ["run 1: 10.00 times fewer bytes, and the target is 11"]),
    ],
)
def test_targets(targets: Targets, missed: list[str]) -> None:
    assert RUN.shortfalls(targets) == missed


def test_the_table_is_in_all_and_per_host() -> None:
    title, _heads, ours, peer, ratios = table(RUN, 2, ("ours", "peer")).splitlines()
    assert title == "run 1"
    assert ours.split() == ["ours", "10", "5.0", "2", "1.0", "1.0", "0.500", "2.0", "1.000", "(0.1)"]
    assert peer.split() == ["peer", "30", "15.0", "20", "10.0", "2.0", "1.000", "3.0", "1.500", "(0.2)"]
    assert ratios.split() == ["the", "peer", "costs", "3.0", "x", "10.0", "x", "2.0", "x", "1.5", "x"]
