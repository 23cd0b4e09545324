# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a session in the program: clients that leave, backends that fail, a stop in the middle."""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from greylist_proxy import gate
from greylist_proxy.store import StoreError
from greylist_proxy.store.sqlite import SqliteStore

from .conftest import MakeServices
from .peers import CLOSE, DEADLINE, Proxy, ScriptedPeer, Sink, Wire, until, wait_until
from .sessions import opened, run

StartProxy = Callable[..., Proxy]
Scripted = Callable[..., ScriptedPeer]
MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n"
NO_DELAY = {"delay": 0}


def in_data(proxy: Proxy) -> Wire:
    client = Wire(proxy.port).hello()
    assert client.ask(b"MAIL FROM:<a@far.test>").startswith(b"250 ")
    assert client.ask(b"RCPT TO:<u@here.test>").startswith(b"250 ")
    assert client.ask(b"DATA").startswith(b"354 ")
    return client


def reset(client: Wire) -> None:
    """Leave as a crashed client does: with a reset."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# -- the client leaves --


def test_client_gone_in_data(start_proxy: StartProxy, scripted: Scripted) -> None:
    peer = scripted()
    proxy = start_proxy(peer.port, greylist=NO_DELAY)
    for sent in (b"", MESSAGE, MESSAGE + b".", MESSAGE + b".\r", MESSAGE + b".\n", b"x" * 300_000):
        for leave in (Wire.close, reset):
            client = in_data(proxy)
            client.send(sent)
            leave(client)
            wait_until(lambda: peer.fragments, "the connection to be dropped")
            assert b"\r\n.\r\n" not in peer.fragments.pop()
    proxy.wait_for("relay", 12, outcome="client-gone")
    assert peer.messages == []
    assert proxy.stop() == 0
    assert proxy.errors() == []


def test_half_close_after_the_final_dot(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist=NO_DELAY)
    sink.before_reply.clear()
    with in_data(proxy) as client:
        client.send(MESSAGE + b".\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.2)  # the EOF is there while the backend still works
        sink.before_reply.set()
        assert client.until_end() == b"250 2.0.0 Ok: queued as 4X7Z\r\n"
    assert len(sink.mails) == 1


@pytest.mark.parametrize("leave", [Wire.close, reset])
def test_client_gone_after_the_final_dot(start_proxy: StartProxy, sink: Sink, leave: Callable[[Wire], None]) -> None:
    proxy = start_proxy(sink.port, greylist=NO_DELAY)
    sink.before_reply.clear()
    client = in_data(proxy)
    client.send(MESSAGE + b".\r\n")
    time.sleep(0.2)
    leave(client)
    # A stop waits for it too.
    proxy.process.send_signal(signal.SIGTERM)
    proxy.wait_for("stopping")
    sink.before_reply.set()
    assert proxy.wait() == 0
    assert len(sink.mails) == 1
    assert len(proxy.select("relay", outcome="accepted", code=250)) == 1


def test_commands_before_a_half_close_are_answered(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist=NO_DELAY)
    with Wire(proxy.port) as client:
        client.send(b"EHLO client.test\r\nNOOP\r\nMAIL FROM:<a@far.test>\r\nRCPT TO:<u@here.test>\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        codes = [line[:4] for line in client.until_end().split(b"\r\n") if line]
    assert [code for code in codes if code != b"250-"] == [b"220 ", b"250 ", b"250 ", b"250 ", b"250 "]


# -- the backend fails --


def test_backend_down(start_proxy: StartProxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    proxy = start_proxy(port, greylist=NO_DELAY)
    with Wire(proxy.port).hello() as client:
        client.ask(b"MAIL FROM:<a@far.test>")
        assert client.ask(b"RCPT TO:<u@here.test>").startswith(b"451 4.4.1 ")
        assert client.ask(b"RCPT TO:<v@here.test>").startswith(b"451 4.4.1 ")
        assert client.ask(b"RCPT TO:<v@away.test>").startswith(b"550 5.7.1 ")
        assert client.ask(b"DATA").startswith(b"451 ")
        assert client.ask(b"MAIL FROM:<>").startswith(b"250 ")
    assert proxy.wait_for("relay", outcome="failed")[0]["backend"] == f"127.0.0.1:{port}"


def test_backend_gone_in_the_body(start_proxy: StartProxy, scripted: Scripted) -> None:
    peer = scripted({"body": CLOSE})
    proxy = start_proxy(peer.port, greylist=NO_DELAY)
    with in_data(proxy) as client:
        client.send(MESSAGE)
        client.send(b"more\r\n" * 100_000)
        client.send(b".\r\n")
        # The data was read to its end, so this is the answer to it, and the session goes on.
        assert client.reply().startswith(b"451 4.4.2 ")
        assert client.ask(b"NOOP").startswith(b"250 ")
    assert peer.messages == []


def test_backend_gone_after_the_dot(start_proxy: StartProxy, scripted: Scripted) -> None:
    peer = scripted({".": CLOSE})
    proxy = start_proxy(peer.port, greylist=NO_DELAY)
    with in_data(proxy) as client:
        client.send(MESSAGE + b".\r\n")
        assert client.reply().startswith(b"451 4.4.2 ")
    proxy.wait_for("relay", outcome="unknown")


def test_only_temporary_refusals_make_data_temporary(start_proxy: StartProxy, scripted: Scripted) -> None:
    peer = scripted({"RCPT": b"450 4.2.0 busy\r\n"})
    proxy = start_proxy(peer.port, greylist=NO_DELAY)
    with Wire(proxy.port).hello() as client:
        client.ask(b"MAIL FROM:<a@far.test>")
        assert client.ask(b"DATA").startswith(b"503 ")
        assert client.ask(b"RCPT TO:<u@away.test>").startswith(b"550 ")
        assert client.ask(b"RCPT TO:<u@here.test>") == b"450 4.2.0 busy\r\n"
        assert client.ask(b"DATA").startswith(b"451 4.3.0 ")


def test_data_after_deferred_recipients_only(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port)
    with Wire(proxy.port).hello() as client:
        client.ask(b"MAIL FROM:<a@far.test>")
        deferral = client.ask(b"RCPT TO:<u@here.test>")
        assert client.ask(b"RCPT TO:<u@away.test>").startswith(b"550 ")
        assert client.ask(b"DATA") == deferral
        assert client.ask(b"DATA").startswith(b"503 ")
    assert sink.senders == []


# -- a stop --


def test_stop_between_and_in_transactions(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist=NO_DELAY)
    idle, greeted = Wire(proxy.port).hello(), Wire(proxy.port)
    assert greeted.reply().startswith(b"220 ")
    with in_data(proxy) as busy, Wire(proxy.port).hello() as begun:
        begun.ask(b"MAIL FROM:<b@far.test>")
        proxy.process.send_signal(signal.SIGTERM)
        assert idle.until_end().startswith(b"421 4.3.2 ")
        assert greeted.until_end().startswith(b"421 4.3.2 ")
        with pytest.raises(ConnectionRefusedError):
            Wire(proxy.port)
        busy.send(MESSAGE + b".\r\n")
        assert busy.reply() == b"250 2.0.0 Ok: queued as 4X7Z\r\n"
        assert busy.until_end().startswith(b"421 4.3.2 ")
        assert begun.ask(b"RCPT TO:<u@here.test>").startswith(b"250 ")
        assert begun.ask(b"DATA").startswith(b"354 ")
        begun.send(MESSAGE + b".\r\n")
        assert begun.reply().startswith(b"250 ")
        assert begun.until_end().startswith(b"421 4.3.2 ")
        assert proxy.wait() == 0
    assert len(sink.mails) == 2
    assert [each["event"] for each in proxy.events if each["event"].startswith("stop")] == ["stopping", "stopped"]


def test_stop_under_traffic_loses_and_doubles_nothing(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist=NO_DELAY)
    confirmed: list[bytes] = []
    unclear: list[bytes] = []

    def client(number: int) -> None:
        for count in range(10_000):
            subject = b"%d-%d" % (number, count)
            try:
                with Wire(proxy.port) as wire:
                    wire.send(b"EHLO c.test\r\nMAIL FROM:<a@far.test>\r\nRCPT TO:<u@here.test>\r\nDATA\r\n")
                    if [wire.reply()[:3] for _n in range(5)] != [b"220", b"250", b"250", b"250", b"354"]:
                        return
                    wire.send(b"Subject: %b\r\n\r\nx\r\n.\r\n" % subject)
                    (confirmed if wire.reply().startswith(b"250 ") else unclear).append(subject)
            except OSError:
                return

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(confirmed) >= 20, "traffic")
    assert proxy.stop() == 0
    for thread in threads:
        thread.join()
    arrived = [mail.content.split(b"Subject: ")[1].split(b"\r\n")[0] for mail in sink.mails]
    assert unclear == []
    assert sorted(arrived) == sorted(confirmed)
    assert proxy.errors() == []


def test_systemd_is_told(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        proxy = start_proxy(sink.port, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert systemd.recv(100) == b"READY=1"
        proxy.stop()
        assert systemd.recv(100) == b"STOPPING=1"


# -- the program as a whole --


def test_greeting_and_farewell(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist=NO_DELAY)
    with Wire(proxy.port) as client:
        assert client.reply() == b"220 mx.test ESMTP greylist-proxy\r\n"
        for line, reply in (
            (b"HELO client.test", b"250 mx.test\r\n"),
            (b"ehlo client.test", b"250-mx.test\r\n250-PIPELINING\r\n250-SIZE 36700160\r\n250 8BITMIME\r\n"),
            (b"VRFY root", b"252 2.5.0 Cannot verify, try RCPT\r\n"),
            (b"AUTH PLAIN AGEAYQ==", b"502 5.5.1 Command not implemented\r\n"),
            (b"STARTTLS", b"502 5.5.1 Command not implemented\r\n"),
            (b"DATA", b"503 5.5.1 MAIL first\r\n"),
            (b"QUIT", b"221 2.0.0 Goodbye\r\n"),
        ):
            assert client.ask(line) == reply
        assert client.until_end() == b""
    assert sink.senders == []


def test_a_flood_of_commands_ends_the_session_and_starves_nobody(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist=NO_DELAY)
    with Wire(proxy.port).hello() as flood, Wire(proxy.port).hello() as other:
        flood.send(b"NOOP\r\n" * 5000)
        assert other.ask(b"NOOP").startswith(b"250 ")
        assert flood.until_end().count(b"250 2.0.0 OK\r\n") <= 100


def test_what_passed_by_a_store_failure_earns_nothing(
    make_services: MakeServices, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(gate, "RETRY_EVERY", 0)

    async def dialogue() -> None:
        services = make_services(sink.port)
        probing = asyncio.create_task(services.backends.keep_probing())
        await until(lambda: services.backends.offered)
        talk = await opened(services)
        await talk.begin(b"EHLO client.test")
        for failing in (True, False, False):
            with monkeypatch.context() as patch:
                if failing:
                    patch.setattr(SqliteStore, "observe", fails)
                await talk.ask(b"MAIL FROM:<a@far.test>")
                assert (await talk.ask(b"RCPT TO:<u@here.test>")).startswith(b"250 ")
            await talk.ask(b"DATA")
            assert (await talk.ask(MESSAGE + b".")).startswith(b"250 ")
        probing.cancel()
        assert [line["reason"] for line in make_services.log_lines("decision")] == ["store-failed", "new", "known"]

    run(dialogue())


def test_listening_on_what_is_taken(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    proxy = start_proxy(sink.port)
    port = proxy.port
    second = tmp_path / "second"
    second.mkdir()
    other = Proxy(second, [sink.port], smtp={"listen": ["127.0.0.1:0", f"127.0.0.1:{port}"]})
    ended = subprocess.run(
        [sys.executable, "-m", "greylist_proxy", "serve", "--config", str(other.config)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.returncode == 1
    assert (
        ended.stderr.splitlines(keepends=True)[-1]
        == f"greylist-proxy: can't listen on 127.0.0.1:{port}: Address already in use\n"
    )


def sqlite_rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
        return int(count)


def test_two_processes_share_a_store(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    first = start_proxy(sink.port, greylist={"delay": "1s"})
    second_folder = tmp_path / "second"
    second_folder.mkdir()
    second = Proxy(second_folder, [sink.port], store={"url": f"sqlite:///{tmp_path}/greylist.db"}).start()
    try:
        for proxy in (first, second):
            with Wire(proxy.port).hello() as client:
                client.ask(b"MAIL FROM:<a@far.test>")
                assert client.ask(b"RCPT TO:<u@here.test>").startswith(b"450 ")
            # What is written behind is there within a moment.
            wait_until(lambda: sqlite_rows(tmp_path / "greylist.db", "pending"), "the triplet in the file")
        first.wait_for("decision", reason="new")
        second.wait_for("decision", reason="early")
        mode = (tmp_path / "greylist.db").stat().st_mode
        assert mode & 0o077 == 0
    finally:
        second.kill()
