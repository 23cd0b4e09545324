# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows that workers count in, and what /metrics makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from greylist_proxy import __version__
from greylist_proxy.metrics import processes
from greylist_proxy.metrics.counts import Counts, blank
from greylist_proxy.metrics.exposition import Exposition
from greylist_proxy.metrics.table import (
    BACKENDS,
    BEAT,
    CAME_BACK,
    CONNECTIONS,
    COUNTERS,
    COUNTING_CELLS,
    CPU_SECONDS,
    DECISIONS,
    GAUGES,
    HISTOGRAMS,
    MODE,
    PID,
    RELAYED,
    STORE_FAILING,
    TARPITTED,
    BackendState,
    relayed_cell,
)
from greylist_proxy.policy import Reason, Verdict
from greylist_proxy.smtp.limits import Connections

from .monitoring import by_labels, check_with_promtool


def said(counts: Counts, connections: Connections | None = None) -> dict[tuple[str, ...], float]:
    """Return what /metrics would say."""
    return by_labels(Exposition(counts, connections or Connections(10, 10)).render())


def in_a_child(counts: Counts, number: int) -> None:
    """Count as a worker does, in a process of its own that dies without a word."""
    child = os.fork()
    if not child:
        cells, state = counts.counting[number], counts.states[number]
        cells[CONNECTIONS.cell] += 2
        CAME_BACK.observe(cells, 61)
        state[BEAT], state[PID], state[TARPITTED.cell] = 1.0, os.getpid(), 7
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the child does nothing but write
def test_workers_add_up_and_a_dead_ones_counters_stay() -> None:
    counts = Counts(3)
    counts.counting[0][CONNECTIONS.cell] += 1
    for number in (1, 2):
        in_a_child(counts, number)
    values = said(counts)
    assert values["greylist_proxy_connections_total",] == 5
    assert values["greylist_proxy_came_back_seconds_count",] == 2
    assert values["greylist_proxy_came_back_seconds_sum",] == 122
    assert (values["greylist_proxy_workers",], values["greylist_proxy_tarpitted",]) == (2, 14)
    counts.clear(1)
    values = said(counts)
    assert values["greylist_proxy_connections_total",] == 5
    assert (values["greylist_proxy_workers",], values["greylist_proxy_tarpitted",]) == (1, 7)
    # Who takes its place goes on.
    in_a_child(counts, 1)
    assert said(counts)["greylist_proxy_connections_total",] == 7


def test_no_two_share_a_cell() -> None:
    cells = [cell for counter in COUNTERS for cell in counter.cells.values()]
    cells += [cell for each in HISTOGRAMS for cell in range(each.cell, each.sum_cell + 1)]
    assert sorted([*cells, CPU_SECONDS]) == list(range(COUNTING_CELLS))


def test_every_decision_and_every_word_of_the_relay_has_a_cell() -> None:
    assert set(DECISIONS.cells) == {(verdict, reason) for verdict in Verdict for reason in Reason}
    assert relayed_cell("end-of-data", "accepted") == RELAYED.cells["end-of-data", "accepted"]
    # A word that somebody forgot to put into the table must not cost a message.
    assert relayed_cell("new stage", "accepted") == RELAYED.cells["other", "other"]


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(0, 0), (59.9, 0), (60, 0), (60.1, 1), (299, 2), (172_800, 11), (172_801, 12), (1e9, 12)],
)
def test_the_bucket_of_a_value(value: float, bucket: int) -> None:
    cells = blank()
    CAME_BACK.observe(cells, value)
    assert [cells[CAME_BACK.cell + n] for n in range(13)] == [float(n == bucket) for n in range(13)]
    assert cells[CAME_BACK.sum_cell] == value


def test_buckets_are_told_cumulatively() -> None:
    counts = Counts()
    for value in (30, 100, 100, 1e6):
        CAME_BACK.observe(counts.counting[0], value)
    values = said(counts)
    told = [values["greylist_proxy_came_back_seconds_bucket", bound] for bound in ("60.0", "120.0", "172800.0", "+Inf")]
    assert told == [1, 3, 3, 4]


def test_states_are_numbers_of_workers() -> None:
    counts = Counts(3)
    for number, (backends, mode, fails) in enumerate(
        [
            ((BackendState.UP, BackendState.DOWN), 1, 0),
            ((BackendState.DOWN, BackendState.DOWN), 1, 1),
            ((BackendState.UNKNOWN,), 2, 1),
        ]
    ):
        state = counts.states[number]
        state[BEAT], state[PID], state[MODE], state[STORE_FAILING.cell] = 1.0, os.getpid(), mode, fails
        for place, each in enumerate(backends):
            state[BACKENDS + place] = each
    connections = Connections(70, 10, 3)
    for number in range(2):
        connections.use(number)
        connections.enter()
    values = said(counts, connections)
    assert values["greylist_proxy_store_failing",] == 2
    assert [values["greylist_proxy_mode", mode] for mode in ("enforce", "observe", "off")] == [2, 1, 0]
    for backend, numbers in (("1", [1, 1, 1]), ("2", [0, 2, 0])):
        found = [values["greylist_proxy_backend_state", backend, state] for state in ("up", "down", "unknown")]
        assert found == numbers
    assert ("greylist_proxy_backend_state", "3", "up") not in values
    assert (values["greylist_proxy_connections",], values["greylist_proxy_connections_limit",]) == (2, 70)


def test_the_build_is_told() -> None:
    (labels,) = [key[1:] for key in said(Counts()) if key[0] == "greylist_proxy_build_info"]
    assert set(labels) == {__version__, ".".join(map(str, sys.version_info[:3]))}


@pytest.fixture
def other_process() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def test_processes_are_added_up(other_process: int) -> None:
    counts = Counts(3)
    for number, pid in enumerate((os.getpid(), other_process, 2**22 + 1)):  # the last: there is none
        counts.states[number][BEAT], counts.states[number][PID] = 1.0, pid
        counts.counting[number][CPU_SECONDS] += 1.5
    one = {family.name: family.samples[0].value for family in processes.of_processes([os.getpid()], 0)}
    both = said(counts)
    assert both["process_cpu_seconds_total",] == 4.5
    assert both["process_resident_memory_bytes",] > one["process_resident_memory_bytes"] > 1e6
    assert both["process_open_fds",] >= one["process_open_fds"] + 3
    assert both["process_start_time_seconds",] == pytest.approx(one["process_start_time_seconds"], abs=1)


def test_a_process_is_as_old_as_the_whole_of_proc_says() -> None:
    """The library would look into /proc/stat, which systemd hides from the program."""
    from prometheus_client import ProcessCollector

    theirs = {family.name: family.samples[0].value for family in ProcessCollector(registry=None).collect()}
    ours = {family.name: family.samples[0].value for family in processes.of_processes([os.getpid()], 0)}
    assert ours["process_start_time_seconds"] == pytest.approx(theirs["process_start_time_seconds"], abs=2)


def test_promtool_finds_nothing_to_say() -> None:
    counts = Counts(2)
    for state in counts.states:
        state[BEAT], state[PID], state[BACKENDS] = 1.0, os.getpid(), BackendState.UP
    CAME_BACK.observe(counts.counting[0], 70)
    check_with_promtool("metrics", text=Exposition(counts, Connections(10, 10)).render())


def test_gauges_and_counters_have_different_names() -> None:
    names = [each.name for each in (*COUNTERS, *HISTOGRAMS, *GAUGES)]
    assert len(set(names)) == len(names)
