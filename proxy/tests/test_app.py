# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program put together: its start, what a reload changes, what waits for a restart, and what it remembers."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.cli import main
from greylist_proxy.config import Config
from greylist_proxy.reload import AFTER_RESTART
from greylist_proxy.services import change, promises_file, read_files

from .conftest import MakeServices
from .peers import DEADLINE, Proxy, ScriptedPeer, Sink, Wire, wait_until
from .valkey_servers import make_certificate

StartProxy = Callable[..., Proxy]
Scripted = Callable[..., ScriptedPeer]


def reload(proxy: Proxy, *changes: tuple[str, str]) -> dict[str, Any]:
    """Change the configuration's text, and have it read."""
    text = proxy.config.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    proxy.config.write_text(text)
    count = len(proxy.select("reload"))
    proxy.process.send_signal(signal.SIGHUP)
    return proxy.wait_for("reload", count + 1)[-1]


def ehlo(proxy: Proxy) -> list[bytes]:
    with Wire(proxy.port) as client:
        assert client.reply().startswith(b"220 ")
        return client.ask(b"EHLO client.test").splitlines()


def ask(proxy: Proxy, recipient: bytes) -> bytes:
    with Wire(proxy.port) as client:
        client.hello()
        assert client.ask(b"MAIL FROM:<a@far.test>").startswith(b"250 ")
        return client.ask(b"RCPT TO:<" + recipient + b">")


def test_a_reload_changes_what_can_be_changed(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("known@here.test\n")
    proxy = start_proxy(sink.port, smtp={"max_message_size": "1MiB", "max_recipients": 2}, greylist={"delay": 0})
    assert b"250-SIZE 1048576" in ehlo(proxy)
    assert ask(proxy, b"unknown@here.test").startswith(b"250 ")
    done = reload(
        proxy,
        ('max_message_size = "1MiB"', 'max_message_size = "2MiB"'),
        ("[backend]", f'[backend]\nrecipients = "{users}"'),
        ('["here.test"]', '["here.test", "there.test"]'),
    )
    assert (done["state"], done["after_restart"]) == ("done", [])
    assert b"250-SIZE 2097152" in ehlo(proxy)
    assert ask(proxy, b"unknown@here.test").startswith(b"550 5.1.1 ")
    assert ask(proxy, b"known@here.test").startswith(b"250 ")
    users.write_text("broken line\n")
    assert reload(proxy)["state"] == "failed"
    assert ask(proxy, b"known@here.test").startswith(b"250 ")
    assert proxy.stop() == 0
    assert proxy.errors() == []


def test_a_reload_takes_another_backend(start_proxy: StartProxy, sink: Sink, scripted: Scripted) -> None:
    other = scripted({"RCPT": b"250 the other\r\n"})
    proxy = start_proxy(sink.port, greylist={"delay": 0})
    assert ask(proxy, b"u@here.test").startswith(b"250 2.1.5 u@here.test ok here")
    assert reload(proxy, (f"127.0.0.1:{sink.port}", f"127.0.0.1:{other.port}"))["state"] == "done"
    with Wire(proxy.port) as client:
        client.hello()
        client.ask(b"MAIL FROM:<a@far.test>")
        # Known to offer nothing yet, or asked already.
        assert client.ask(b"RCPT TO:<u@here.test>")[:3] in (b"250", b"451")
    assert proxy.stop() == 0


def test_a_reload_takes_another_certificate_or_keeps_the_old_one(
    start_proxy: StartProxy, sink: Sink, tmp_path: Path
) -> None:
    files = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}

    def install(name: str) -> bytes:
        made = make_certificate(tmp_path, name, "127.0.0.1")
        (tmp_path / "cert.pem").write_bytes(made.certificate.read_bytes())
        (tmp_path / "key.pem").write_bytes(made.key.read_bytes())
        return ssl.PEM_cert_to_DER_cert(made.certificate.read_text())

    def shown() -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with Wire(proxy.port) as client:
            client.hello()
            assert client.ask(b"STARTTLS").startswith(b"220 ")
            with context.wrap_socket(client.socket.dup()) as encrypted:
                certificate = encrypted.getpeercert(binary_form=True)
        assert certificate
        return certificate

    first = install("first")
    proxy = start_proxy(sink.port, smtp=files)
    assert shown() == first
    second = install("second")
    assert reload(proxy)["state"] == "done"
    assert shown() == second
    (tmp_path / "key.pem").write_text("no key")
    failed = reload(proxy)
    assert failed["state"] == "failed"
    assert "smtp.tls_key" in failed["errors"][0]
    assert shown() == second
    assert reload(proxy, *((f'{key} = "{file}"', f'{key} = ""') for key, file in files.items()))["state"] == "done"
    assert not any(b"STARTTLS" in line for line in ehlo(proxy))
    assert proxy.stop() == 0


def test_what_waits_for_a_restart_is_named(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port)
    done = reload(
        proxy,
        ("127.0.0.1:0", "127.0.0.2:0"),
        ("mx.test", "mx2.test"),
        ("[smtp]", '[smtp]\nworkers = 2\nreceive_buffer = "32KiB"'),
        ("[store]", '[dns]\ntimeout = "1s"\n[store]\nprefix = "other"'),
        ('listen = ""\nsocket = "off"', 'listen = "127.0.0.1:1"\nsocket = "/nowhere/control.sock"'),
    )
    assert done["after_restart"] == list(AFTER_RESTART)
    assert ehlo(proxy)[0] == b"250-mx.test"
    assert proxy.stop() == 0


def test_every_setting_that_sessions_use_is_taken_over(make_services: MakeServices, sink: Sink, tmp_path: Path) -> None:
    async def see() -> None:
        services = make_services(sink.port)
        config = Config.model_validate(
            {
                "smtp": {
                    "hostname": "mx.test",
                    "proxy_protocol_from": ["192.0.2.0/28"],
                    "max_message_size": "3MiB",
                    "max_connections": 30,
                    "max_connections_per_client": 3,
                    "max_recipients": 7,
                    "command_timeout": 11,
                    "data_timeout": 12,
                    "session_timeout": 13,
                    "min_data_rate": 14,
                    "bare_line_ends": "refuse",
                    "max_header_size": "5KiB",
                    "max_hops": 15,
                },
                "backend": {
                    "hosts": ["127.0.0.1:9"],
                    "domains": ["new.test"],
                    "unknown_domain": "defer",
                    "verify_recipient_first": True,
                    "send_client_address": "xclient",
                    "starttls": "required",
                    "capabilities": ["SIZE 99", "DSN"],
                    "max_connections": 41,
                    "max_connections_per_client": 7,
                    "idle_connections": 1,
                    "idle_timeout": 43,
                },
                "greylist": {"reply": "no ({id})", "ipv4_prefix": 20, "ipv6_prefix": 48},
                "allow": {},
                "trap": {"tarpit": 3},
                "dns": {},
                "store": {},
                "tarpit": {"seconds": 4, "max_waiting": 21, "greet_delay": 6},
                "admin": {},
            }
        )
        change(services, config, read_files(config), workers=2)
        assert services.acceptance.domains == {"new.test"}
        assert services.acceptance.unknown_domain == "defer"
        assert (services.ipv4_prefix, services.ipv6_prefix, services.greylisted_reply) == (20, 48, "no ({id})")
        assert (services.connections.max_total, services.connections.max_per_client) == (30, 3)
        assert (services.max_recipients, services.verify_recipient_first) == (7, True)
        settings = services.settings
        assert (settings.command_timeout, settings.data_timeout, settings.session_timeout) == (11, 12, 13)
        assert (settings.min_data_rate, settings.greet_delay) == (14, 6)
        assert settings.proxy_networks == (ip_network("192.0.2.0/28"),)
        limits = services.limits
        assert (limits.bare_line_ends, limits.max_header_size, limits.max_hops) == ("refuse", 5120, 15)
        assert (services.tarpit.seconds, services.tarpit.trickle, services.tarpit.max_waiting) == (4, 3, 10)
        assert services.offers.max_size == 3 << 20
        offered = services.offers.capabilities
        assert offered is not None
        assert (offered.size, offered.dsn, offered.eightbitmime) == (99, True, False)
        backend = services.backends.settings
        assert [str(host) for host in backend.hosts] == ["127.0.0.1:9"]
        assert (backend.send_client_address, backend.starttls) == ("xclient", "required")
        # Shared among two, but never nothing.
        assert (backend.max_connections, backend.idle_connections, backend.idle_timeout) == (20, 1, 43)
        assert services.shares.most == 3
        await services.backends.close()
        await services.gate.close()

    asyncio.run(see())


@pytest.mark.parametrize(
    ("connections", "per_client", "workers", "share"),
    [
        (100, 0, 1, 25),
        (100, 0, 4, 6),
        *((few, 0, 1, 1) for few in (1, 2, 3, 4, 7)),
        (8, 0, 1, 2),
        (3, 0, 8, 1),
        (100, 80, 1, 80),
        (100, 80, 4, 20),
        (100, 2, 4, 1),
    ],
)
def test_a_clients_share_of_the_connections(
    make_services: MakeServices, connections: int, per_client: int, workers: int, share: int
) -> None:
    async def see() -> int:
        services = make_services(9, workers, max_connections=connections, max_connections_per_client=per_client)
        await services.gate.close()
        return services.shares.most

    assert asyncio.run(see()) == share


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("smtp", "tls_certificate", "smtp.tls_certificate: "),
        ("backend", "recipients", "/none: not a file"),
        ("backend", "ca_file", "backend.ca_file: "),
    ],
)
def test_files_that_cannot_be_used_stop_the_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], section: str, key: str, words: str
) -> None:
    config = tmp_path / "config.toml"
    lines: dict[str, dict[str, str]] = {"smtp": {}, "backend": {"starttls": "verify"}}
    lines[section][key] = str(tmp_path / "none")
    if key == "tls_certificate":
        lines[section]["tls_key"] = str(tmp_path / "none")
    config.write_text(
        "[smtp]\nlisten = ['127.0.0.1:0']\n"
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines["smtp"].items())
        + "[backend]\nhosts = ['mail.test:25']\ndomains = ['here.test']\n"
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines["backend"].items())
        + f"[store]\nurl = 'sqlite:///{tmp_path}/x.db'\n"
    )
    for command in ("check-config", "serve"):
        assert main([command, "--config", str(config)]) == 2
        assert words in capfd.readouterr().err


def test_what_backends_offer_is_kept_across_a_restart(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    proxy = start_proxy(sink.port)
    assert b"250 8BITMIME" in ehlo(proxy)
    assert proxy.stop() == 0
    assert list(json.loads((tmp_path / "backends.json").read_text())) == [f"127.0.0.1:{sink.port}"]
    port = sink.port
    sink.close()
    again = start_proxy(port)
    assert b"250 8BITMIME" in ehlo(again)
    assert again.stop() == 0


def test_where_the_offers_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def config(url: str) -> Config:
        sections: dict[str, Any] = {name: {} for name in Config.model_fields}
        sections["backend"] = {"hosts": ["mail.test:25"], "domains": ["here.test"]}
        return Config.model_validate({**sections, "store": {"url": url}})

    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert promises_file(config("sqlite:////x/y.db")) == Path("/x/backends.json")
    assert promises_file(config("valkey://localhost:6379/0")) is None
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}:/other")
    assert promises_file(config("valkey://localhost:6379/0")) == tmp_path / "backends.json"


def test_the_limit_of_descriptors_is_raised_as_far_as_allowed(
    start_proxy: StartProxy, sink: Sink, tmp_path: Path
) -> None:
    proxy = Proxy(tmp_path, [sink.port], smtp={"max_connections": 3000})
    proxy.prefix = ["prlimit", "--nofile=512:3500"]
    try:
        proxy.start()
        soft, _hard = resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)
        assert soft == 3500
        (warning,) = [line for line in proxy.select("warning") if "file descriptors" in line["message"]]
        assert warning["message"].startswith("3500 file descriptors are allowed, and 3800 may be needed")
        assert proxy.stop() == 0
    finally:
        proxy.kill()


def test_the_limit_of_descriptors_follows_a_reload(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, [sink.port], smtp={"max_connections": 2000}, tarpit={"max_waiting": 100})
    proxy.prefix = ["prlimit", "--nofile=512:3500"]
    try:
        proxy.start()
        text = proxy.config.read_text()
        for connections, limit, warnings in ((2500, 3300, 0), (3000, 3500, 1)):
            done = len(proxy.select("reload"))
            proxy.config.write_text(text.replace("max_connections = 2000", f"max_connections = {connections}"))
            proxy.process.send_signal(signal.SIGHUP)
            proxy.wait_for("reload", done + 1)
            assert resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)[0] == limit
            assert len([line for line in proxy.select("warning") if "descriptors" in line["message"]]) == warnings
        assert proxy.stop() == 0
    finally:
        proxy.kill()


def test_the_log_is_whole_at_the_end(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port)
    for _n in range(50):
        ask(proxy, b"u@here.test")
    assert proxy.stop() == 0
    assert len(proxy.select("decision")) == 50
    assert proxy.events[-1]["event"] == "stopped"


def test_a_log_that_nobody_reads_stops_no_mail(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, [sink.port], greylist={"delay": 0})
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, *proxy.program, "serve", "--config", str(proxy.config)], stderr=writing)
    os.close(writing)
    try:
        log = os.fdopen(reading, "rb", buffering=0)
        first = b""
        while b'"listening"' not in first:
            first += log.read(4096)
        listening = next(line for line in map(json.loads, first.splitlines()) if line["event"] == "listening")
        proxy.port = int(listening["addresses"][0].rpartition(":")[2])
        # Far more than a pipe takes, of which nothing is read.
        with Wire(proxy.port) as client:
            client.hello()
            for _n in range(15):
                client.ask(b"MAIL FROM:<" + b"a" * 60 + b"@far.test>")
                for _m in range(40):
                    assert client.ask(b"RCPT TO:<u@elsewhere.test>").startswith(b"550 ")
                client.ask(b"RSET")
        assert ask(proxy, b"u@here.test").startswith(b"250 ")
        process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: process.poll() is not None, "the end")
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait(DEADLINE)
        log.close()
