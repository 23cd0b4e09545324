# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a playbook and kills it (SIGKILL to all of its processes) at a request that is known exactly."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from lab.faults import RequestSeen
from lab.hosts import Lab, LabHost
from tools.ansible_runs import Controller


def run_until_killed(
    controller: Controller, playbook: str, inventory: Path, lab: Lab, host: LabHost, position: int
) -> None:
    """Kill the run when the host has carried out the request at that position, and sent nothing of the reply."""
    started, killed = threading.Event(), threading.Event()

    def kill(seen: RequestSeen) -> None:
        if seen.number == position and seen.moment == "answered":
            started.wait(30)
            killed.set()
            os.killpg(process.pid, signal.SIGKILL)

    host.on_request(kill)
    with controller.start(playbook, inventory, lab.password) as process:
        started.set()
        printed, _nothing = process.communicate(timeout=60)
    assert killed.is_set(), f"the run made fewer than {position} requests:\n{printed}"
