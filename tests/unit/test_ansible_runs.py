# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a run of ansible-playbook is taken for one that ansible-core itself has brought to a stand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tools.ansible_runs import is_deadlocked
from tools.processes import children

PATIENCE = 20.0  # seconds
FORK = """
import os, subprocess, sys, threading, time
if os.fork():
    os.wait()
else:
    {does}
"""


@pytest.mark.parametrize(
    ("does", "deadlocked"),
    [
        pytest.param("lock = threading.Lock(); lock.acquire(); lock.acquire()", True, id="a lock"),
        pytest.param("time.sleep(60)", False, id="time"),
        pytest.param("subprocess.run(['sleep', '60'])", False, id="a process"),
        pytest.param("sys.stdin.read()", False, id="input"),
    ],
)
def test_what_a_worker_waits_for(does: str, deadlocked: bool) -> None:
    command = [sys.executable, "-c", FORK.format(does=does)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            end = time.monotonic() + PATIENCE
            while not (workers := children(process.pid)) or not _sleeps(workers[0]):
                assert time.monotonic() < end
                time.sleep(0.05)
            (worker,) = workers
            assert is_deadlocked(worker) is deadlocked
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _sleeps(pid: int) -> bool:
    """Tell whether it has come to its end: nothing but a wait, for half a second."""

    def used() -> tuple[str, str]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], " ".join(fields[11:13])

    before = used()
    time.sleep(0.5)
    return used() == before and before[0] == "S"
