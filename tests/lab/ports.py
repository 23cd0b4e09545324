# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which TCP port may a service of the lab keep for itself, also while it is stopped?

A stopped SMTPSVC holds no socket, yet must come back on the port that the tests know. Two things could
take the port meanwhile. Outgoing connections get theirs from the ephemeral range (from 32768 on Linux,
from 49152 elsewhere), so the lab stays below it. Another lab on the same machine asks this file too, so
each port handed out is marked by a UDP socket on the same number, which lives until `release_port` or
until the process ends, however it ends.
"""

from __future__ import annotations

import random
import socket
import threading
from typing import Final

LOWEST: Final = 20000
HIGHEST: Final = 32000
ATTEMPTS: Final = 500

_marks: dict[int, socket.socket] = {}
_lock = threading.Lock()
_random = random.SystemRandom()


def free_port() -> int:
    """A loopback TCP port that nobody uses now and no lab will use while this process keeps it."""
    for _n in range(ATTEMPTS):
        port = _random.randint(LOWEST, HIGHEST)
        mark = _claim(port)
        if mark is not None:
            with _lock:
                _marks[port] = mark
            return port
    raise OSError(f"no free port between {LOWEST} and {HIGHEST} after {ATTEMPTS} attempts")


def release_port(port: int) -> None:
    """Let others have the port; nothing happens where it was not ours."""
    with _lock:
        mark = _marks.pop(port, None)
    if mark is not None:
        mark.close()


def _claim(port: int) -> socket.socket | None:
    mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        mark.bind(("127.0.0.1", port))
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        mark.close()
        return None
    return mark
