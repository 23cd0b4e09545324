# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin side of the running program: where it listens, whom it lets in, and what hostile clients can't do."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from . import admin_client
from .admin_client import address, ask, control
from .peers import Proxy, Sink, Wire, wait_until
from .test_workers import WORKERS, pids

StartProxy = Callable[..., Proxy]
HERE = "127.0.0.1:0"


@pytest.fixture(name="start")
def _start(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> Callable[..., Proxy]:
    """Start a proxy with its admin side, which defers nobody."""

    def start(workers: int = 1, **admin: str) -> Proxy:
        settings = {"listen": HERE, "socket": str(tmp_path / "control.sock")} | admin
        return start_proxy(sink.port, greylist={"delay": 0}, smtp={"workers": workers}, admin=settings)

    return start


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_it_answers_on_its_address_and_its_socket_and_leaves_nothing(start: StartProxy, workers: int) -> None:
    proxy = start(workers)
    path = Path(control(proxy))
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    where = address(proxy)
    for place in (where, str(path)):
        answer = ask(place, "/nowhere")
        assert (answer.status, answer.json) == (404, {"error": "Not Found: GET /nowhere"})
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
    assert proxy.stop() == 0
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError):
        admin_client.connect(where)
    assert proxy.errors() == []


def test_the_worker_that_takes_the_first_ones_place_takes_the_sockets_over(start: StartProxy) -> None:
    proxy = start(WORKERS)
    assert ask(control(proxy), "/").status == 404
    os.kill(pids(proxy)[0], signal.SIGKILL)
    # Nobody is refused; the question waits for the new one.
    assert ask(control(proxy), "/").status == 404
    assert ask(address(proxy), "/").status == 404
    proxy.wait_for("worker", WORKERS + 1, state="ready")
    os.kill(pids(proxy)[0], signal.SIGTERM)
    proxy.wait_for("worker", WORKERS + 2, state="ready")
    assert ask(control(proxy), "/").status == 404
    assert proxy.stop() == 0


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_a_proxy_that_finishes_its_transactions_does_not_listen(start: StartProxy, sink: Sink, workers: int) -> None:
    proxy = start(workers)
    where, path = address(proxy), control(proxy)
    with Wire(proxy.port) as client:
        client.hello()
        for line in (b"MAIL FROM:<a@far.test>", b"RCPT TO:<u@here.test>", b"DATA"):
            assert client.ask(line)[:1] in (b"2", b"3")
        proxy.process.send_signal(signal.SIGTERM)
        proxy.wait_for("stopping", workers)
        wait_until(lambda: not Path(path).exists(), "the control socket's end")
        with pytest.raises(ConnectionRefusedError):
            admin_client.connect(where)
        # A new one may come already: the old one must leave its socket alone.
        Path(path).touch()
        assert client.ask(b"Subject: x\r\n\r\nx\r\n.").startswith(b"250 ")
    assert proxy.wait() == 0
    assert Path(path).exists()
