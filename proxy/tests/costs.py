# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a call costs, to be compared with another within the same run: never with a clock's seconds.

A limit lies far from what the size alone explains, for a busy machine or a small cache may cost a few times more, and
near to nothing that would be worth a finding: what grows with the size of a table, or with a power of a length, costs
a hundred times more.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def cost(call: Callable[[], object], runs: int = 5) -> float:
    """Return the seconds of the processor that the cheapest of some runs took: what is more is the machine's doing."""
    times = []
    for _ignored in range(runs):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)
