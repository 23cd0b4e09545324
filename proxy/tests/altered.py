# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real program, but for what no test can wait for: `python altered.py serve --config ...`.

From the environment, because nothing of this may be a setting:

    ALTERED_PATIENCE   seconds for each thing that a backend is waited for, in place of minutes
    ALTERED_ADMIN      the same for what a client of the admin side is waited for
    ALTERED_STALL      seconds without a turn after which an event loop counts as standing still
    ALTERED_CLOCK      a file of 8 bytes, a double: seconds by which the wall clock is wrong, at each moment
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from pathlib import Path

CLOCK = struct.Struct("d")


def wrong_clock(file: Path) -> None:
    """Have time.time() be wrong by what the file says; the monotonic clock stays right, as it does in life."""
    with file.open("rb") as stream:
        offset = mmap.mmap(stream.fileno(), CLOCK.size, access=mmap.ACCESS_READ)
    right = time.time
    time.time = lambda: right() + CLOCK.unpack_from(offset)[0]


def less_patience(seconds: float) -> None:
    """Have every timer of the backend's side be this short."""
    from greylist_proxy.smtp.backend import Timeouts

    # A dataclass keeps its defaults there.
    defaults = Timeouts.__init__.__defaults__
    assert defaults
    Timeouts.__init__.__defaults__ = (seconds,) * len(defaults)


def less_patience_with_requests(seconds: float) -> None:
    """Have every bound in time of the admin side's connections be this short."""
    from greylist_proxy.admin import server

    server.REQUEST_WITHIN = server.LIFETIME = server.LOOK_EVERY = seconds


def stall_soon(seconds: float) -> None:
    """Have an event loop count as standing still after so many seconds."""
    from greylist_proxy import health

    health.STALLED_AFTER = seconds


def set_clock(file: Path, offset: float) -> None:
    """Have the clock of a program that runs jump."""
    with file.open("r+b") as stream:
        stream.write(CLOCK.pack(offset))


def main() -> int:
    """Alter, and run."""
    if clock := os.environ.get("ALTERED_CLOCK"):
        wrong_clock(Path(clock))
    if patience := os.environ.get("ALTERED_PATIENCE"):
        less_patience(float(patience))
    if patience := os.environ.get("ALTERED_ADMIN"):
        less_patience_with_requests(float(patience))
    if stall := os.environ.get("ALTERED_STALL"):
        stall_soon(float(stall))
    from greylist_proxy.cli import main as program

    return program()


if __name__ == "__main__":
    sys.exit(main())
