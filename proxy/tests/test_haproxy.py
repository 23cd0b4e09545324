# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy in front: it says by the PROXY protocol who the client is, and asks by SMTP or HTTP whether we are well."""

from __future__ import annotations

import csv
import io
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tools.documented import block, variables

from .admin_client import address
from .peers import DEADLINE, Proxy, Sink, Wire, free_port, wait_until

pytestmark = pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is not installed")

CONFIGURATION = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend mail
    bind 127.0.0.1:{port}
    default_backend proxies
backend proxies
    option smtpchk EHLO check.test
    server one 127.0.0.1:{proxy_port} {header} check check-send-proxy inter 100ms
"""


class HaProxy:
    """A real HAProxy on a port, whose servers are those of the section `backend proxies`."""

    def __init__(self, folder: Path, port: int, configuration: str) -> None:
        self.port = port
        self._stats = folder / "stats"
        file = folder / "haproxy.cfg"
        file.write_text(f"global\n    stats socket {self._stats} mode 600\n{configuration}")
        self.process = subprocess.Popen(["haproxy", "-db", "-f", str(file)], stderr=subprocess.DEVNULL)

    def health(self, name: str = "one") -> str:
        """What its last check of a server found: L7OK, or what went wrong; "" before there was one."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(self._stats))
                sock.sendall(b"show stat proxies -1 -1\n")
                text = sock.makefile().read()
        except OSError:
            return ""
        rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
        return next((row["check_status"] for row in rows if row["svname"] == name), "")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)


@pytest.fixture(params=["send-proxy", "send-proxy-v2"])
def haproxy(
    request: pytest.FixtureRequest, tmp_path: Path, start_proxy: Callable[..., Proxy], sink: Sink
) -> Iterator[tuple[HaProxy, Proxy]]:
    """HAProxy and the proxy behind it, for both versions of the header."""
    proxy = start_proxy(sink.port, greylist={"delay": 0}, smtp={"proxy_protocol_from": ["127.0.0.1/32"]})
    port = free_port()
    server = HaProxy(tmp_path, port, CONFIGURATION.format(port=port, proxy_port=proxy.port, header=request.param))
    try:
        wait_until(lambda: server.health() == "L7OK", "HAProxy to find the proxy well")
        yield server, proxy
    finally:
        server.close()


def test_the_client_is_who_haproxy_says(haproxy: tuple[HaProxy, Proxy], sink: Sink) -> None:
    server, proxy = haproxy
    with Wire(server.port, source="127.9.8.7") as client:
        client.hello()
        assert client.ask(b"MAIL FROM:<a@far.test>").startswith(b"250 ")
        assert client.ask(b"RCPT TO:<u@here.test>").startswith(b"250 ")
        assert client.ask(b"DATA").startswith(b"354 ")
        assert client.ask(b"Subject: x\r\n\r\nx\r\n.").startswith(b"250 ")
    (decision,) = proxy.wait_for("decision")
    assert decision["client"] == "127.9.8.7"
    assert sink.mails[0].content.startswith(b"Received: from client.test ([127.9.8.7])")
    assert proxy.stop() == 0
    assert proxy.errors() == []


def test_its_checks_leave_no_trace_and_bring_no_mail(haproxy: tuple[HaProxy, Proxy]) -> None:
    server, proxy = haproxy
    assert server.health() == "L7OK"
    assert proxy.stop() == 0
    assert {event["event"] for event in proxy.events} <= {"warning", "listening", "stopping", "stopped"}


def test_it_works_as_the_documentation_says(start_proxy: Callable[..., Proxy], sink: Sink, tmp_path: Path) -> None:
    """One of the two proxies is there, says that it is ready, is told who the client is, and ends."""
    sections = variables("in-front-of.md", "variables: behind HAProxy", {"192.0.2.1/32": "127.0.0.1/32"})[
        "greylist_proxy_settings"
    ]
    token = tmp_path / "token"
    token.write_text("t" * 32)
    token.chmod(0o600)
    admin = {"listen": "127.0.0.1:0", "token_file": str(token)}
    proxy = start_proxy(sink.port, greylist={"delay": 0}, **sections | {"admin": admin})
    admin_port = address(proxy).rpartition(":")[2]
    port = free_port()
    here = {
        "192.0.2.1:25": f"127.0.0.1:{port}",
        "192.0.2.25:25": f"127.0.0.1:{proxy.port}",
        "192.0.2.26:25 send-proxy-v2 check port 8025": f"127.0.0.1:{free_port()} send-proxy-v2 check inter 100ms",
        "check port 8025": f"check port {admin_port} inter 100ms",
    }
    server = HaProxy(tmp_path, port, block("in-front-of.md", "haproxy.cfg", here))
    try:
        wait_until(lambda: server.health() == "L7OK", "HAProxy to find the one proxy well")
        wait_until(lambda: server.health("two") == "L4CON", "HAProxy to find the other one gone")
        with Wire(server.port, source="127.9.8.7") as client:
            client.hello()
            client.ask(b"MAIL FROM:<a@far.test>")
            assert client.ask(b"RCPT TO:<u@here.test>").startswith(b"250 ")
        (decision,) = proxy.wait_for("decision")
        assert decision["client"] == "127.9.8.7"
        proxy.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.health() == "L4CON", "HAProxy to find the proxy gone")
    finally:
        server.close()
    assert proxy.wait() == 0
    assert proxy.errors() == []
