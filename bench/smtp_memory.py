# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What sessions and messages cost the proxy in memory: many that do nothing, and many that can't go on.

Memory is what the process has resident more than before, for each. What waits in the system's buffers of its
connections is counted beside it, in bytes of mail.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from smtp_load import RECIPIENT, Crowd, Unexpected, is_whole
from smtp_servers import Server, Unmeasurable

CROWD = Crowd(networks=20_000, addresses=1)
PATIENCE = 20.0  # seconds for a reply
QUIET = 1.0  # seconds without any progress, after which a message is stuck
MESSAGE = 24 << 20  # bytes that a client tries to send
PIECE = (b"x" * 76 + b"\r\n") * 512


@dataclass(frozen=True)
class Memory:
    """So many sessions, and KiB for each: of the process, and of mail in the system's buffers on either side."""

    name: str
    sessions: int
    kib: float
    waiting_in: float = 0.0
    waiting_out: float = 0.0


def idle(server: Server, count: int, first: int) -> Memory:
    """Hold sessions that have said EHLO."""
    return _held(server, "an idle session", count, lambda number: _greeted(server.port, first + number))


def idle_tls(server: Server, count: int, first: int) -> Memory:
    """Hold sessions that have said STARTTLS and EHLO."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def begin(number: int) -> socket.socket:
        sock = _greeted(server.port, first + number)
        _ask(sock, b"STARTTLS", b"220")
        secured = context.wrap_socket(sock)
        _ask(secured, b"EHLO mx.sender.example", b"250")
        return secured

    return _held(server, "an idle session, TLS", count, begin)


def stuck(server: Server, backend_port: int, count: int, first: int) -> Memory:
    """Hold messages whose backend reads no more: the clients send until nobody takes anything."""
    with contextlib.closing(_greeted(server.port, first + count)) as warm:
        _begin_message(warm, first + count)
    time.sleep(0.2)
    before, waiting = server.memory(), _waiting(server.port, backend_port)
    with contextlib.ExitStack() as stack:
        sockets = []
        for number in range(first, first + count):
            sock = stack.enter_context(contextlib.closing(_greeted(server.port, number)))
            _begin_message(sock, number)
            sock.setblocking(False)
            sockets.append(sock)
        _push(sockets)
        kib = (server.memory() - before) / count / 1024
        taken_in, taken_out = (
            (now - then) / count / 1024 for now, then in zip(_waiting(server.port, backend_port), waiting, strict=True)
        )
    return Memory("a message, backend stuck", count, kib, taken_in, taken_out)


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    try:
        subprocess.run(
            [*command, "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=mx.here.example"],
            check=True,
            capture_output=True,
            timeout=30,
        )
    except FileNotFoundError:
        raise Unmeasurable("openssl is missing: install Debian's package openssl") from None
    return cert, key


def _held(server: Server, name: str, count: int, begin: Callable[[int], socket.socket]) -> Memory:
    with contextlib.closing(begin(count)):
        pass  # what is made once
    time.sleep(0.2)
    before = server.memory()
    with contextlib.ExitStack() as stack:
        for number in range(count):
            stack.enter_context(contextlib.closing(begin(number)))
        kib = (server.memory() - before) / count / 1024
    return Memory(name, count, kib)


def _greeted(port: int, number: int) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    sock.bind((CROWD.address(number), 0))
    sock.connect(("127.0.0.1", port))
    _expect(sock, b"220")
    _ask(sock, b"EHLO mx.sender.example", b"250")
    return sock


def _begin_message(sock: socket.socket, number: int) -> None:
    _ask(sock, b"MAIL FROM:<%s>" % CROWD.sender(number).encode(), b"250")
    _ask(sock, b"RCPT TO:<%s>" % RECIPIENT.encode(), b"250")
    _ask(sock, b"DATA", b"354")
    sock.sendall(b"Subject: x\r\n\r\n")


def _ask(sock: socket.socket, command: bytes, expected: bytes) -> None:
    sock.sendall(command + b"\r\n")
    _expect(sock, expected)


def _expect(sock: socket.socket, expected: bytes) -> None:
    reply = b""
    while not is_whole(reply):
        piece = sock.recv(4096)
        reply += piece
        if not piece or not reply.startswith(expected[: len(reply)]):
            raise Unexpected(f"not {expected.decode()} but {reply[:200]!r}")


def _push(sockets: list[socket.socket]) -> None:
    """Send until nothing goes any more. Unexpected: a whole message went, or an answer came."""
    sent = dict.fromkeys(sockets, 0)
    poll = select.poll()
    by_number = {sock.fileno(): sock for sock in sockets}
    for descriptor in by_number:
        poll.register(descriptor, select.POLLOUT | select.POLLIN)
    while events := poll.poll(QUIET * 1000):
        for descriptor, event in events:
            sock = by_number[descriptor]
            if event != select.POLLOUT:
                raise Unexpected(f"a message that can't be passed on was answered: {sock.recv(200)!r}")
            sent[sock] += sock.send(PIECE)
            if sent[sock] > MESSAGE:
                raise Unexpected("a message that can't be passed on was taken as a whole")


def _waiting(port: int, backend_port: int) -> tuple[int, int]:
    """Sum up the mail that the system holds: received on a port and not read, sent to another and not taken."""
    taken_in = taken_out = 0
    for local, peer, state, sending, receiving in _connections():
        if state == "01" and local == port:
            taken_in += receiving
        if state == "01" and peer == backend_port:
            taken_out += sending
    return taken_in, taken_out


def _connections() -> Iterator[tuple[int, int, str, int, int]]:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _number, local, peer, state, queues = line.split()[:5]
        sending, _colon, receiving = queues.partition(":")
        yield int(local[-4:], 16), int(peer[-4:], 16), state, int(sending, 16), int(receiving, 16)
