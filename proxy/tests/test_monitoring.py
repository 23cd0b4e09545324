# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the running program tells monitoring: what happens is counted once, in whichever worker it happens."""

from __future__ import annotations

import os
import signal
import smtplib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .admin_client import address, ask, connect, control
from .monitoring import Values, check_with_promtool, scrape
from .peers import DEADLINE, Proxy, Sink, Wire, closing, free_port, wait_until
from .test_session_tls import trusting
from .test_workers import pids
from .valkey_servers import make_certificate

Start = Callable[..., Proxy]
ADMIN = {"listen": "127.0.0.1:0"}


@pytest.fixture(name="start")
def _start(start_proxy: Callable[..., Proxy], sink: Sink) -> Start:
    """Start a proxy with its admin address, by default before a mail server that takes mail."""

    def start(*ports: int, workers: int = 1, **settings: dict[str, Any]) -> Proxy:
        settings["smtp"] = {"workers": workers, **settings.get("smtp", {})}
        settings["admin"] = {**ADMIN, **settings.get("admin", {})}
        return start_proxy(*(ports or (sink.port,)), **settings)

    return start


def wait_for(proxy: Proxy, **wanted: float) -> Values:
    """Wait until metrics without labels have these values, and return all."""

    def look() -> Values | None:
        values = scrape(proxy)
        return values if all(values[name,] == value for name, value in wanted.items()) else None

    found: Values = wait_until(look, f"metrics: {wanted}")
    return found


def rcpt(proxy: Proxy, recipient: bytes = b"u@here.test") -> bytes:
    with Wire(proxy.port) as client:
        client.hello()
        assert client.ask(b"MAIL FROM:<a@far.test>").startswith(b"250 ")
        return client.ask(b"RCPT TO:<" + recipient + b">")


def deliver(proxy: Proxy) -> None:
    with smtplib.SMTP("127.0.0.1", proxy.port, local_hostname="client.test", timeout=DEADLINE) as client:
        assert client.sendmail("a@far.test", ["u@here.test"], b"Subject: x\r\n\r\nx\r\n") == {}


@pytest.mark.parametrize("workers", [1, 3])
def test_the_way_of_a_message(start: Start, workers: int) -> None:
    proxy = start(workers=workers)
    began = time.time()
    assert rcpt(proxy).startswith(b"450 ")
    wait_until(lambda: rcpt(proxy).startswith(b"250 "), "the end of the delay")
    for _n in range(5):
        deliver(proxy)
    assert rcpt(proxy, b"u@elsewhere.test").startswith(b"550 ")
    assert rcpt(proxy, b"nobody@here.test").startswith(b"450 ")
    values = wait_for(proxy, connections=0)
    logged = proxy.wait_for("decision", int(sum(values[key] for key in values if key[0] == "decisions_total")))
    for line in logged:
        verdict, reason = line["verdict"], line["reason"]
        same = [each for each in logged if (each["verdict"], each["reason"]) == (verdict, reason)]
        assert values["decisions_total", reason, verdict] == len(same)
    retried = values["decisions_total", "retried", "allow"]
    assert values["decisions_total", "new", "defer"] >= 2
    assert values["decisions_total", "relay-denied", "block"] == 1
    assert values["came_back_seconds_count",] == retried >= 1
    assert retried <= values["came_back_seconds_sum",] <= retried * (time.time() - began)
    assert values["relay_total", "accepted", "end-of-data"] == values["relay_seconds_count",] == 5
    assert values["connections_total",] == len(logged)
    assert values["workers",] == workers
    assert values["mode", "enforce"] == workers
    assert values["store_failures_total",] == values["errors_total",] == values["log_lines_lost_total",] == 0
    assert values["loop_delay_seconds_count",] > 0
    for name in ("resident_memory_bytes", "open_fds", "cpu_seconds_total", "start_time_seconds"):
        assert values[f"process_{name}",] > 0
    states = {state: values["backend_state", "1", state] for state in ("up", "down", "unknown")}
    assert states["up"] >= 1
    assert states["down"] == 0
    assert proxy.stop() == 0
    assert proxy.errors() == []


def test_promtool_has_nothing_to_say_and_no_label_names_anybody(start: Start) -> None:
    proxy = start(workers=2)
    assert rcpt(proxy).startswith(b"450 ")
    text = ask(address(proxy), "/metrics").body
    check_with_promtool("metrics", text=text)
    for secret in (b"127.0.0.1", b"far.test", b"here.test", b"client.test", b"mx.test"):
        assert secret not in text
    assert ask(address(proxy), "/metrics", "POST").status == 405


def test_what_a_dead_worker_counted_stays(start: Start) -> None:
    proxy = start(workers=2, greylist={"delay": 0})
    for _n in range(10):
        deliver(proxy)
    before = wait_for(proxy, workers=2, connections=0)
    held = Wire(proxy.port).hello()
    wait_for(proxy, connections=1)
    for number in (0, 1):
        os.kill(pids(proxy)[number], signal.SIGKILL)
        proxy.wait_for("worker", 3 + number, state="ready")
        after = wait_for(proxy, workers=2, worker_ends_total=number + 1)
    held.close()
    counters = [key for key in before if key[0].endswith(("_total", "_bucket", "_count", "_sum"))]
    assert len(counters) > 100
    assert [key for key in counters if after[key] < before[key]] == []
    assert after["connections_total",] == 11
    wait_for(proxy, connections=0)
    assert proxy.stop() == 0


def test_limits_and_handshakes(start: Start, tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "mx", "127.0.0.1")
    proxy = start(
        smtp={
            "max_connections_per_client": 2,
            "max_connections": 3,
            "tls_certificate": str(files.certificate),
            "tls_key": str(files.key),
        },
        tarpit={"max_waiting": 1},
    )
    one, two = Wire(proxy.port).hello(), Wire(proxy.port).hello()
    with Wire(proxy.port) as third:
        assert third.reply().startswith(b"421 ")
    values = wait_for(proxy, connections=2)
    assert (values["connections_total",], values["connections_limit",]) == (3, 3)
    assert (values["connections_refused_total", "client"], values["connections_refused_total", "total"]) == (1, 0)
    other = Wire(proxy.port, source="127.9.9.9").hello()
    with Wire(proxy.port, source="127.9.9.9") as fourth:
        assert fourth.reply().startswith(b"421 ")
    assert scrape(proxy)["connections_refused_total", "total"] == 1
    # One that is broken off, and one that goes well.
    assert one.ask(b"STARTTLS").startswith(b"220 ")
    for client in (one, two, other):
        client.close()
    wait_for(proxy, connections=0)
    with smtplib.SMTP("127.0.0.1", proxy.port, timeout=DEADLINE) as encrypted:
        assert encrypted.starttls(context=trusting())[0] == 220
        assert encrypted.ehlo()[0] == 250
        values = scrape(proxy)
    assert [values["tls_handshakes_total", word] for word in ("succeeded", "failed")] == [1, 1]
    assert proxy.stop() == 0


def test_who_waits_in_the_tarpit(start: Start) -> None:
    proxy = start(tarpit={"seconds": 3, "max_waiting": 40})
    with Wire(proxy.port) as client:
        client.hello()
        client.ask(b"MAIL FROM:<a@far.test>")
        client.send(b"RCPT TO:<u@elsewhere.test>\r\n")
        assert wait_for(proxy, tarpitted=1)["tarpitted_limit",] == 40
    wait_for(proxy, tarpitted=0)
    assert proxy.stop() == 0


def test_who_talks_first_and_who_sends_no_proxy_header(start: Start) -> None:
    proxy = start(tarpit={"greet_delay": 0.2}, smtp={"proxy_protocol_from": ["127.8.0.0/16"]})
    with Wire(proxy.port) as client:
        client.send(b"EHLO client.test\r\n")
        assert client.reply().startswith(b"220 ")
    with Wire(proxy.port, source="127.8.0.1") as balancer:
        balancer.send(b"EHLO balancer.test\r\n")
        assert balancer.until_end() == b""
    wait_for(proxy, early_talkers_total=1, proxy_headers_refused_total=1)
    assert proxy.stop() == 0


def test_mode_observe_tells_what_would_have_been(start: Start) -> None:
    proxy = start(greylist={"mode": "observe"})
    assert rcpt(proxy).startswith(b"250 ")
    values = scrape(proxy)
    assert values["decisions_total", "new", "allow"] == 1
    assert (values["observed_total", "defer"], values["observed_total", "block"]) == (1, 0)
    assert [values["mode", mode] for mode in ("enforce", "observe", "off")] == [0, 1, 0]
    assert proxy.stop() == 0


def test_failures_of_others_degrade_and_no_more(start: Start) -> None:
    """Or a load balancer would take every proxy out when the store that they share dies."""
    proxy = start(
        free_port(), store={"url": f"valkey://127.0.0.1:{free_port()}/0"}, greylist={"delay": 0}, smtp={"workers": 2}
    )
    assert rcpt(proxy).startswith(b"451 ")
    values = wait_for(proxy, store_failing=2)
    assert values["store_failures_total",] >= 2
    wait_until(lambda: scrape(proxy)["backend_state", "1", "down"] == 2, "the probes")
    values = scrape(proxy)
    assert values["decisions_total", "store-failed", "allow"] == 1
    assert values["relay_total", "failed", "probe"] >= 1
    ready = ask(address(proxy), "/readyz")
    assert (ready.status, ready.json) == (200, {"status": "degraded", "degraded": ["store", "backend 1"]})
    lives = ask(address(proxy), "/healthz")
    assert (lives.status, lives.json) == (200, {"status": "ok", "workers": 2})
    assert proxy.stop() == 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_told_to_whoever_asks(start: Start, tmp_path: Path, path: str) -> None:
    (tmp_path / "token").write_text("t" * 32)
    (tmp_path / "token").chmod(0o600)
    proxy = start(admin={"socket": str(tmp_path / "control.sock"), "token_file": str(tmp_path / "token")})
    wait_until(lambda: ask(address(proxy), "/readyz").json["status"] == "ready", "the first probe")
    status = {"/healthz": "ok", "/readyz": "ready"}[path]
    for place in (address(proxy), control(proxy)):
        answer = ask(place, path)
        assert (answer.status, answer.json["status"]) == (200, status)
        head = ask(place, path, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert ask(place, path, "POST").status == 405
    # As a load balancer asks that was told no more than the path.
    with connect(address(proxy)) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.0 200 OK\r\n")
    assert ask(address(proxy), path, Host="rebound.test").status == 200
    # What names more is for those who have the token.
    assert ask(address(proxy), "/metrics").status == 401
    assert ask(address(proxy), "/metrics", Authorization="Bearer " + "t" * 32).status == 200
    assert proxy.stop() == 0


def test_a_worker_that_hangs_is_no_life(tmp_path: Path, sink: Sink) -> None:
    proxy = Proxy(tmp_path, [sink.port], smtp={"workers": 2}, admin=ADMIN)
    proxy.program = [str(Path(__file__).with_name("altered.py"))]
    proxy.environment["ALTERED_STALL"] = "3"
    with closing(proxy):
        proxy.start()
        is_told_that_one_hangs(proxy)


def is_told_that_one_hangs(proxy: Proxy) -> None:
    assert ask(address(proxy), "/healthz").json == {"status": "ok", "workers": 2}
    os.kill(pids(proxy)[1], signal.SIGSTOP)
    try:
        stalled = wait_until(lambda: (found := ask(address(proxy), "/healthz")).status == 503 and found, "the stall")
        assert stalled.json == {"status": "stalled", "workers": 2, "stalled": 1}
        ready = ask(address(proxy), "/readyz")
        assert (ready.status, ready.json["degraded"]) == (200, ["worker"])
    finally:
        os.kill(pids(proxy)[1], signal.SIGCONT)
    wait_until(lambda: ask(address(proxy), "/healthz").status == 200, "the other worker to go on")
    assert proxy.stop() == 0
