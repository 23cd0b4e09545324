# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin side of the running program: where it listens, whom it lets in, and what hostile clients can't do."""

from __future__ import annotations

import http.client
import os
import select
import signal
import socket
import stat
import zlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from greylist_proxy.admin.server import MOST_CONNECTIONS

from . import admin_client, altered
from .admin_client import address, ask, control
from .peers import DEADLINE, Proxy, Sink, Wire, closing, wait_until
from .test_workers import WORKERS, deliver, pids

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


# -- sockets of systemd --


class Sockets:
    """What systemd listens on for the program."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.path = str(folder / "systemd.sock")
        self.smtp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.admin = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.control = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.control.bind(self.path)
        self.control.listen()
        self.where = f"127.0.0.1:{self.admin.getsockname()[1]}"

    def given_to(self, proxy: Proxy) -> Proxy:
        """Have that proxy be started with them."""
        return proxy.activated(self.admin, self.smtp, self.control, names="admin:greylist-proxy.socket:control")


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_a_new_proxy_takes_sockets_over_while_the_old_one_finishes(sink: Sink, tmp_path: Path, workers: int) -> None:
    with ExitStack() as stack:
        sockets = Sockets(stack, tmp_path)

        def make(name: str, mode: str) -> Proxy:
            (tmp_path / name).mkdir()
            settings = {"greylist": {"delay": 0, "mode": mode}, "smtp": {"workers": workers}}
            proxy: Proxy = stack.enter_context(closing(Proxy(tmp_path / name, [sink.port], **settings)))
            return sockets.given_to(proxy).start()

        old = make("old", "enforce")
        assert old.select("listening")[0]["admin"] == [sockets.where, sockets.path]
        assert ask(sockets.path, "/v1/info").json["mode"] == "enforce"
        with Wire(old.port) as client:
            client.hello()
            for line in (b"MAIL FROM:<a@far.test>", b"RCPT TO:<u@here.test>", b"DATA"):
                assert client.ask(line)[:1] in (b"2", b"3")
            new = make("new", "observe")
            assert {ask(sockets.path, "/v1/info").json["mode"] for _n in range(5)} <= {"enforce", "observe"}
            old.process.send_signal(signal.SIGTERM)
            old.wait_for("stopping", workers)
            assert {ask(sockets.path, "/v1/info").json["mode"] for _n in range(20)} == {"observe"}
            assert {ask(sockets.where, "/").status for _n in range(20)} == {404}
            assert client.ask(b"Subject: x\r\n\r\nx\r\n.").startswith(b"250 ")
        assert old.wait() == 0
        assert Path(sockets.path).exists()  # it is systemd's
        deliver(new)
        assert new.stop() == 0
        assert old.errors() + new.errors() == []


def test_an_address_of_systemds_that_others_reach_needs_a_token(sink: Sink, tmp_path: Path) -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as admin,
        socket.create_server(("127.0.0.1", 0)) as smtp,
        closing(Proxy(tmp_path, [sink.port]).activated(admin, smtp, names="admin:smtp")) as proxy,
    ):
        proxy.start()
        assert ask(f"127.0.0.1:{admin.getsockname()[1]}", "/").status == 401


# -- what can't be listened on is no reason to take no mail --


def warnings(proxy: Proxy) -> list[str]:
    """Return what it warns of that is about the admin side."""
    return [line["message"] for line in proxy.select("warning") if line["message"].startswith("admin.")]


def test_an_address_that_is_taken_is_a_warning(start: StartProxy, sink: Sink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        proxy = start(listen=taken)
        (warning,) = warnings(proxy)
        assert f"admin.listen: can't listen on {taken}: Address already in use" in warning
        assert ask(control(proxy), "/v1/info").status == 200
        deliver(proxy)
        assert len(sink.mails) == 1


@pytest.mark.parametrize("kind", ["a file", "another server", "no folder"])
def test_a_socket_that_can_not_be_had_is_a_warning(start: StartProxy, sink: Sink, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.sock"
    other = socket.socket(socket.AF_UNIX)
    with other:
        match kind:
            case "a file":
                path.write_text("precious")
            case "another server":
                other.bind(str(path))
                other.listen()
            case "no folder":
                path = tmp_path / "nowhere" / "mine.sock"
        proxy = start(socket=str(path))
        (warning,) = warnings(proxy)
        assert f"admin.socket: can't listen on {path}: " in warning
        deliver(proxy)
        assert len(sink.mails) == 1
        assert ask(address(proxy), "/").status == 404
        assert proxy.stop() == 0
    assert path.exists() is (kind != "no folder")


def test_what_a_killed_server_left_is_no_hindrance(start: StartProxy, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    proxy = start()
    assert warnings(proxy) == []
    assert ask(control(proxy), "/v1/info").status == 200


def test_it_may_be_off(start: StartProxy) -> None:
    proxy = start(listen="", socket="off")
    assert proxy.select("listening")[0]["admin"] == []


# -- whom it lets in --


def test_a_page_in_a_browser_is_not_let_in_by_a_name_of_its_own(start: StartProxy) -> None:
    proxy = start()
    assert ask(address(proxy), "/", Host="rebound.evil.test").status == 421
    assert ask(address(proxy), "/", Host="localhost:8025").status == 404


def test_the_control_socket_alone_controls(start: StartProxy) -> None:
    proxy = start()
    entry = {"kind": "client", "value": "192.0.2.7"}
    assert ask(address(proxy), "/v1/entry", "PUT", entry).status == 404
    assert ask(address(proxy), "/v1/info").status == 404
    assert ask(control(proxy), "/v1/entry?kind=client&value=192.0.2.7").json["entry"] is None


def test_a_token_is_wanted_on_the_address_and_a_reload_changes_it(start: StartProxy, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("the-first-token-0123\n")
    proxy = start(token_file=str(file))
    where = address(proxy)
    refused = ask(where, "/")
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert ask(where, "/", Authorization="Bearer the-first-token-0123").status == 404
    assert ask(control(proxy), "/v1/info").status == 200
    file.write_text("the-second-token-0123\n")
    proxy.process.send_signal(signal.SIGHUP)
    proxy.wait_for("reload", 1)
    assert ask(where, "/", Authorization="Bearer the-first-token-0123").status == 401
    assert ask(where, "/", Authorization="Bearer the-second-token-0123").status == 404
    assert not any("token-0123" in line for line in proxy.raw)


# -- hostile clients --


GARBAGE = {
    "no HTTP": b"EHLO client.test\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "a long line": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    "a large field": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    "many fields": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 2_000 + b"\r\n",
    "two lengths": b"PUT /v1/entry HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a length and chunks": b"PUT /v1/entry HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


def test_garbage_is_refused_and_leaves_no_trace(start: StartProxy) -> None:
    proxy = start()
    for where in (address(proxy), control(proxy)):
        for name, garbage in GARBAGE.items():
            with admin_client.connect(where) as client:
                client.sendall(garbage)
                status = client.recv(100).partition(b"\r\n")[0]
                assert (name, status.partition(b" ")[2]) == (name, b"400 Bad Request")
    assert ask(control(proxy), "/v1/info").status == 200
    assert proxy.errors() == []


def test_a_body_has_a_bound(start: StartProxy) -> None:
    proxy = start()
    entry = {"kind": "client", "value": "192.0.2.7", "note": "x" * 20_000}
    assert ask(control(proxy), "/v1/entry", "PUT", entry).status == 413
    with admin_client.connect(control(proxy)) as client:
        head = b"PUT /v1/entry HTTP/1.1\r\nHost: x\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n"
        bomb = zlib.compress(bytes(50_000_000))
        client.sendall(head % len(bomb) + bomb[:40_000])
        assert client.recv(100).startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


def test_connections_have_a_bound_that_mail_does_not_feel(start: StartProxy, sink: Sink) -> None:
    proxy = start()
    with ExitStack() as stack:
        held = [stack.enter_context(admin_client.connect(address(proxy))) for _n in range(MOST_CONNECTIONS + 8)]
        # Nobody knows which of them came last: one of those that are too many has ended.
        ended, _ignored, _ignored_too = select.select(held, [], [], DEADLINE)
        assert ended
        assert ended[0].recv(1) == b""
        # The address is full; the socket and mail are not.
        assert ask(control(proxy), "/v1/info").status == 200
        deliver(proxy)
        assert len(sink.mails) == 1
    wait_until(lambda: _answers(address(proxy)), "room for others")
    assert proxy.errors() == []


def _answers(where: str) -> bool:
    try:
        return ask(where, "/").status == 404
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: local",
        b"PUT /v1/entry HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_who_does_not_finish_is_not_waited_for(sink: Sink, tmp_path: Path, begun: bytes) -> None:
    path = str(tmp_path / "control.sock")
    with closing(Proxy(tmp_path, [sink.port], admin={"listen": HERE, "socket": path})) as proxy:
        proxy.environment["ALTERED_ADMIN"] = "0.5"
        proxy.program = [str(Path(altered.__file__))]
        proxy.start()
        with admin_client.connect(path) as client:
            client.sendall(begun)
            with suppress(ConnectionResetError):
                assert client.recv(100) == b""
