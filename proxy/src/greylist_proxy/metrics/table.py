# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is counted: each metric's name, meaning and labels, and its cells in a row. `docs/monitoring.md` has the list.

A worker has two rows of doubles, which are exact for whole numbers up to 2^53. In the first are counters and
histograms, which only grow. The other says how things are now: it is written once a second (`pulse.py`), and emptied
when the worker is gone. Both are summed over the workers: so a gauge for a state is the number of workers in it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from itertools import product
from typing import TypeAlias

from greylist_proxy.policy import Mode, Reason, Verdict

PREFIX = "greylist_proxy_"
MOST_BACKENDS = 16  # hosts of `backend.hosts` that are told apart

Cells: TypeAlias = "memoryview[float]"  # one row
Words = tuple[str, ...]  # a value for each label


class Phase(IntEnum):
    """How far a worker is; a row's cell has the number."""

    ABSENT = 0
    STARTING = 1
    SERVING = 2
    STOPPING = 3


class BackendState(IntEnum):
    """How a worker finds a backend; a row's cell has the number."""

    ABSENT = 0
    UNKNOWN = 1
    UP = 2
    DOWN = 3


class _Row:
    """Gives out the cells of a row, one after the other, while the table below is made."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, count: int) -> int:
        """Return the first of so many cells."""
        first = self.size
        self.size += count
        return first


_counters, _gauges = _Row(), _Row()


class Counter:
    """A number that grows, or one for each combination of label words: `cells` says where. `cell` is the first."""

    def __init__(self, name: str, meaning: str, labels: Words = (), words: Iterable[Words] = ((),)) -> None:
        self.name = f"{PREFIX}{name}_total"
        self.meaning = meaning
        self.labels = labels
        combinations = list(words)
        self.cell = _counters.take(len(combinations))
        self.cells: Mapping[Words, int] = {each: self.cell + n for n, each in enumerate(combinations)}


class Histogram:
    """How many values lay below each bound, and their sum."""

    def __init__(self, name: str, meaning: str, bounds: Sequence[float]) -> None:
        self.name = f"{PREFIX}{name}"
        self.meaning = meaning
        self.bounds = tuple(bounds)
        self.cell = _counters.take(len(bounds) + 2)  # the buckets, the one above all bounds, the sum
        self.sum_cell = self.cell + len(bounds) + 1

    def observe(self, cells: Cells, value: float) -> None:
        """Count a value; one that lies on a bound is below it."""
        cells[self.cell + bisect_left(self.bounds, value)] += 1
        cells[self.sum_cell] += value


class Gauge:
    """A number as it is now, in which all workers have a share."""

    def __init__(self, name: str, meaning: str) -> None:
        self.name = f"{PREFIX}{name}"
        self.meaning = meaning
        self.cell = _gauges.take(1)


def _each(words: Iterable[str]) -> Iterable[Words]:
    return ((word,) for word in words)


# -- clients --

CONNECTIONS = Counter("connections", "Connections that clients made, with those that a limit then refused.")
CONNECTIONS_REFUSED = Counter(
    "connections_refused",
    "Connections that smtp.max_connections (total) or smtp.max_connections_per_client (client) refused.",
    ("limit",),
    _each(("total", "client")),
)
PROXY_HEADERS_REFUSED = Counter(
    "proxy_headers_refused", "Connections of load balancers whose PROXY header was malformed or did not come."
)
EARLY_TALKERS = Counter("early_talkers", "Connections of clients that talked before they were greeted.")
TLS_HANDSHAKES = Counter(
    "tls_handshakes", "Handshakes after a client's STARTTLS.", ("outcome",), _each(("succeeded", "failed"))
)

# -- decisions --

DECISIONS = Counter(
    "decisions",
    "Decisions on recipients, as the log has them.",
    ("verdict", "reason"),
    product(Verdict, Reason),
)
OBSERVED = Counter(
    "observed",
    'Verdicts that greylist.mode = "observe" did not carry out.',
    ("verdict",),
    _each((Verdict.DEFER, Verdict.BLOCK)),
)
CAME_BACK = Histogram(
    "came_back_seconds",
    "Time from the first sight of what had been deferred to the attempt that passed (reason retried).",
    (60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800),
)

# -- mail servers behind --

_TROUBLES = ("refused", "failed", "trouble")
_STAGES = ("connect", "mail", "rcpt", "data", "body", "end-of-data", "probe")
_ENDS = ("client-gone", "refused-here", "reset", "stopped", "timed-out")
RELAYED = Counter(
    "relay",
    "What became of transactions at the mail servers behind, as the log has it.",
    ("stage", "outcome"),
    [
        ("end-of-data", "accepted"),
        ("end-of-data", "unknown"),
        *product(_STAGES, _TROUBLES),
        *product(("body",), _ENDS),
        ("other", "other"),
    ],
)


def relayed_cell(stage: str, outcome: str) -> int:
    """Return the cell of RELAYED; of words that are not in the table, "other": counting never fails."""
    return RELAYED.cells.get((stage, outcome), RELAYED.cells["other", "other"])


RELAY_SECONDS = Histogram(
    "relay_seconds",
    "Time from DATA to the mail server's word on the message.",
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)

# -- the program itself --

STORE_FAILURES = Counter("store_failures", "Questions that the store did not answer.")
LOG_LINES_LOST = Counter("log_lines_lost", "Lines of the log that could not be written.")
ERRORS = Counter("errors", "Unexpected errors, as the log has them (event error).")
WORKER_ENDS = Counter("worker_ends", "Worker processes that ended while the program went on; each is replaced.")
LOOP_DELAY = Histogram(
    "loop_delay_seconds",
    "How late the event loop got to a timer, once a second.",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
CPU_SECONDS = _counters.take(1)  # as process_cpu_seconds_total

TARPITTED = Gauge("tarpitted", "Clients that wait for a reply in the tarpit.")
TARPITTED_LIMIT = Gauge("tarpitted_limit", "How many may wait there (tarpit.max_waiting).")
STORE_FAILING = Gauge("store_failing", "Workers for which the store does not work.")

# What is not shown as it is: each of these has a number for the state, or a time.
BEAT = _gauges.take(1)  # when the event loop last ran, by time.monotonic()
PID = _gauges.take(1)
PHASE = _gauges.take(1)  # a Phase
MODE = _gauges.take(1)  # the place in MODES, from 1 on
BACKENDS = _gauges.take(MOST_BACKENDS)  # a BackendState for each
MODES = tuple(Mode)

COUNTERS = (
    CONNECTIONS,
    CONNECTIONS_REFUSED,
    PROXY_HEADERS_REFUSED,
    EARLY_TALKERS,
    TLS_HANDSHAKES,
    DECISIONS,
    OBSERVED,
    RELAYED,
    STORE_FAILURES,
    LOG_LINES_LOST,
    ERRORS,
    WORKER_ENDS,
)
HISTOGRAMS = (CAME_BACK, RELAY_SECONDS, LOOP_DELAY)
GAUGES = (TARPITTED, TARPITTED_LIMIT, STORE_FAILING)
COUNTING_CELLS = _counters.size
STATE_CELLS = _gauges.size
