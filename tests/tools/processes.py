# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes do that do not end: for whoever has to find out why."""

from __future__ import annotations

import contextlib
from pathlib import Path


def children(pid: int) -> list[int]:
    """The processes that a process has started, and that have not ended."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def family(pid: int) -> list[str]:
    """What a process has started, and what that has started: each one's command, cut short, and where it waits."""
    told = []
    with contextlib.suppress(OSError):  # it ends just now
        for child in children(pid):
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            told += [f"{child} {command[-200:]} {waits(child)}", *family(child)]
    return told


def waits(pid: int) -> list[str]:
    """Where in the system each thread of a process waits, "0" for nowhere."""
    return [(task / "wchan").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
