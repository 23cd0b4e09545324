# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The greylist_ modules' client of the control socket: what it makes of answers, and says where there is none."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.mailops.tarpit.plugins.module_utils._control import Control, ControlError, NotRunning

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


def whole_request(connection: socket.socket) -> bytes:
    """Read all of it: head and body come one after the other, and who has not read both can't close yet."""
    request = b""
    missing = 1
    while missing > 0 and (piece := connection.recv(65536)):
        request += piece
        head, end, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
        missing = (int(length[1]) if length else 0) - len(body) if end else 1
    return request


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """Listen on a socket, answer one request with these octets, and keep it in the file `request`."""
    with ExitStack() as stack:

        def listen(answer: bytes) -> Path:
            path = tmp_path / "control.sock"
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen()

            def serve() -> None:
                connection, _ignored = listener.accept()
                with connection:
                    (tmp_path / "request").write_bytes(whole_request(connection))
                    connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join, 20)
            return path

        yield listen


def ok(body: bytes) -> bytes:
    return OK % (len(body), body)


def test_a_question_and_its_answer(answering: Callable[[bytes], Path], tmp_path: Path) -> None:
    control = Control(str(answering(ok(b'{"changed": true}'))), 20)
    assert control.ask("PUT", "/v1/entry", {"dry_run": "true"}, {"value": "a&b"}) == {"changed": True}
    request = (tmp_path / "request").read_bytes()
    assert request.startswith(b"PUT /v1/entry?dry_run=true HTTP/1.1\r\n")
    assert request.endswith(b'\r\n\r\n{"value": "a&b"}')


def test_values_can_not_become_another_question(answering: Callable[[bytes], Path], tmp_path: Path) -> None:
    control = Control(str(answering(ok(b"{}"))), 20)
    control.ask("DELETE", "/v1/entry", {"kind": "client", "value": "a&kind=trap HTTP/1.1\r\nX: y"})
    line = (tmp_path / "request").read_bytes().partition(b"\r\n")[0]
    assert line == b"DELETE /v1/entry?kind=client&value=a%26kind%3Dtrap+HTTP%2F1.1%0D%0AX%3A+y HTTP/1.1"


def test_lines(answering: Callable[[bytes], Path]) -> None:
    assert Control(str(answering(ok(b'{"a": 1}\n{"a": 2}\n'))), 20).lines("/v1/entries") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            b'HTTP/1.1 400 Bad Request\r\nContent-Length: 16\r\n\r\n{"error": "why"}',
            "greylist-proxy refuses: why",
        ),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n[]", "greylist-proxy refuses: status 500"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", "older than this collection"),
        (ok(b"<html>"), "gave something else than JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "broke off its answer"),
        (b"220 mx.test ESMTP\r\n", "broke off its answer"),
        (b"", "broke off its answer"),
    ],
)
def test_answers_that_are_none(answering: Callable[[bytes], Path], answer: bytes, said: str) -> None:
    with pytest.raises(ControlError) as raised:
        Control(str(answering(answer)), 20).ask("GET", "/v1/info")
    assert said in str(raised.value)
    assert not isinstance(raised.value, NotRunning)


def test_nobody_answers(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with pytest.raises(NotRunning, match=r"there is no control socket .*systemctl status greylist-proxy"):
        Control(str(path), 20).ask("GET", "/v1/info")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunning, match="nobody listens on .* systemctl start greylist-proxy"):
        Control(str(path), 20).ask("GET", "/v1/info")
    path.unlink()
    path.touch()
    with pytest.raises(ControlError, match="is no socket") as raised:
        Control(str(path), 20).ask("GET", "/v1/info")
    assert not isinstance(raised.value, NotRunning)


def test_one_that_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(ControlError, match="gave no answer within 0.1 seconds. Raise 'timeout'"):
            Control(str(path), 0.1).ask("GET", "/v1/info")


def test_a_socket_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    class Refused(socket.socket):
        connect = refuse  # root, whom the tests may run as, is refused nothing

    monkeypatch.setattr(socket, "socket", Refused)
    with pytest.raises(ControlError, match="this user may not use .* Set 'become'"):
        Control(str(tmp_path / "control.sock"), 20).ask("GET", "/v1/info")
