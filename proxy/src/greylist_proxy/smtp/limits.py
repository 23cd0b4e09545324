# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections there may be, in all and of one client, counted over all worker processes.

A client is an IPv4 address or an IPv6 /64, which is what one customer gets. The counts lie in memory that the workers
share, a row for each: a worker writes its own row only, and reads them all, so no lock is needed. When a worker has
died, its connections are gone, and its parent clears the row.

Clients are counted in a count-min table: each adds to two cells that a keyed hash chooses, and its count is the
smaller one. That never counts too few. It counts too many only when both cells are shared with others, which needs
as many connections as there are cells, or the key, which is drawn anew at each start.
"""

from __future__ import annotations

import mmap
import secrets
import socket
from collections import deque
from typing import Literal

Full = Literal["total", "client"]

CELLS = 8  # a connection that is allowed
IN_ALL = 0  # the cell of a row that counts its connections
MAPPED = bytes(10) + b"\xff\xff"  # what an IPv4 address in IPv6 clothes begins with


def client_key(host: str) -> bytes:
    """Return what a client is counted by: 4 octets of IPv4, or the first 8 of IPv6. OSError: no address."""
    if ":" not in host:
        return socket.inet_aton(host)
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return packed[12:] if packed.startswith(MAPPED) else packed[:8]


class Connections:
    """The counts. To be made before the workers are forked; each then says which row is its own."""

    def __init__(self, max_total: int, max_per_client: int, workers: int = 1) -> None:
        self.max_total = max_total
        self.max_per_client = max_per_client
        width = 1 << (max_total * CELLS - 1).bit_length()
        self._mask = width - 1
        self._salt = secrets.token_bytes(16)
        self._memory = mmap.mmap(-1, workers * (1 + width) * 4)
        cells = memoryview(self._memory).cast("I")
        size = 1 + width
        self._rows = [cells[number * size : (number + 1) * size] for number in range(workers)]
        self._own = self._rows[0]

    def use(self, number: int) -> None:
        """Write into this row from now on; a worker calls it once."""
        self._own = self._rows[number]

    def row(self, number: int) -> int:
        """Return how many connections the worker of that row has."""
        return self._rows[number][IN_ALL]

    def clear(self, number: int) -> None:
        """Forget the connections of a worker that is dead."""
        row = self._rows[number]
        row[:] = memoryview(bytes(len(row) * 4)).cast("I")

    @property
    def total(self) -> int:
        """How many connections all workers have."""
        return sum(row[IN_ALL] for row in self._rows)

    def of_client(self, key: bytes) -> int:
        """Return how many connections a client has."""
        return min(sum(row[cell] for row in self._rows) for cell in self._cells(key))

    def enter(self) -> Full | None:
        """Count a connection; None if it may stay. It has to `leave` in either case."""
        self._own[IN_ALL] += 1
        total = self._own[IN_ALL] if len(self._rows) == 1 else self.total
        return "total" if total > self.max_total else None

    def leave(self) -> None:
        """Uncount a connection."""
        self._own[IN_ALL] -= 1

    def join(self, key: bytes) -> Full | None:
        """Count a connection to its client; None if it may stay. It has to `part` in either case."""
        own, cells = self._own, self._cells(key)
        for cell in cells:
            own[cell] += 1
        if own[cells[0]] <= self.max_per_client and len(self._rows) == 1:
            return None  # one cell is enough to know it
        count = min(sum(row[cell] for row in self._rows) for cell in cells)
        return "client" if count > self.max_per_client else None

    def part(self, key: bytes) -> None:
        """Uncount a connection of a client."""
        for cell in self._cells(key):
            self._own[cell] -= 1

    def _cells(self, key: bytes) -> tuple[int, ...]:
        # Python's own hash of octets is a keyed one (SipHash), the same in all workers: they are forked.
        hashed = hash(self._salt + key)
        first, second = 1 + (hashed & self._mask), 1 + (hashed >> 32 & self._mask)
        # The two may meet, and one cell is not to be counted twice.
        return (first, second) if first != second else (first,)


class Prevalence:
    """Tells when nearly all connections have one address: a proxy before us, most likely, that hides its clients.

    All of them would be one client to the greylist, and one limit would be for all. The last `window` count.
    """

    def __init__(self, window: int = 200, least: int = 100, share: float = 0.9, every: float = 3600.0) -> None:
        self._recent: deque[bytes] = deque(maxlen=window)
        self._counts: dict[bytes, int] = {}
        self._least = least
        self._share = share
        self._every = every
        self._quiet_until = float("-inf")

    def seen(self, key: bytes, now: float) -> bool:
        """Take note of a connection; True if its address is to be warned of, at most once in `every` seconds."""
        recent, counts = self._recent, self._counts
        if len(recent) == recent.maxlen:
            oldest = recent[0]
            if counts[oldest] == 1:
                del counts[oldest]
            else:
                counts[oldest] -= 1
        recent.append(key)
        counts[key] = its = counts.get(key, 0) + 1
        count = len(recent)
        if its < self._share * count or count < self._least or now < self._quiet_until:
            return False
        self._quiet_until = now + self._every
        return True
