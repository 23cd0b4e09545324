# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lab import ports
from lab.ports import HIGHEST, LOWEST, free_port, release_port

TESTS = Path(ports.__file__).parents[1]


def test_a_port_is_ours_until_it_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    assert LOWEST <= port <= HIGHEST
    monkeypatch.setattr(ports._random, "randint", lambda *_: port)
    with pytest.raises(OSError, match="no free port"):
        free_port()
    release_port(port)
    assert free_port() == port
    release_port(port)
    release_port(port)


def test_a_port_that_is_in_use_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(ports._random, "randint", lambda *_: server.getsockname()[1])
        with pytest.raises(OSError, match="no free port"):
            free_port()


def test_another_process_does_not_get_it() -> None:
    port = free_port()
    program = f"from lab import ports; ports._random.randint = lambda *_: {port}; ports.free_port()"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=TESTS, capture_output=True, text=True, timeout=60, check=False
    )
    release_port(port)
    assert "no free port" in result.stderr
