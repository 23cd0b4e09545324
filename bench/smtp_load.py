# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that has many sessions at once and is cheaper than any server it is to measure.

Run as a program it holds sessions that end in a deferral (connect, EHLO, MAIL, RCPT, QUIT, each sent when the reply to
the one before is there), as many as told, and prints what it took as JSON. One thread, one epoll, no objects but a list
a session: some 60 microseconds each, most of them the system's.

A session has a number, and all of it is made from that: the client's address (127.0.0.0/8 is all loopback), the
sender. So no two sessions are the same triplet as long as no two numbers are.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

RECIPIENT = "user@here.example"
LINUX_BIND_ADDRESS_NO_PORT = 24  # IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect, by the whole 4-tuple
LETTERS = str.maketrans("0123456789", "ghijklmnop")
PATIENCE = 20.0  # seconds without any reply


class Unexpected(Exception):
    """A server did not do what it was to do: its figures would mean nothing."""


class Crowd(NamedTuple):
    """Who the clients are: so many networks (/24), so many addresses in each, and a sender domain for each or one."""

    networks: int = 40_000
    addresses: int = 250
    own_domains: bool = False

    def address(self, number: int) -> str:
        """Return the address of a session's client."""
        network, host = number % self.networks, number // self.networks % self.addresses
        return f"127.{1 + network // 250}.{network % 250}.{1 + host}"

    def sender(self, number: int) -> str:
        """Return its sender; no two are alike."""
        domain = f"d{number % self.networks}.sender.example" if self.own_domains else "sender.example"
        # Letters alone: what looks like a message's number would not tell senders apart.
        return f"user.{f'{number:x}'.translate(LETTERS)}@{domain}"


def connect(port: int, address: str) -> socket.socket:
    """Begin to connect from an address, without waiting for it."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, LINUX_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((address, 0))
    sock.connect_ex(("127.0.0.1", port))
    return sock


def is_whole(reply: bytes) -> bool:
    """Tell whether a reply has its last line (RFC 5321 section 4.2.1: the one with a blank after the code)."""
    last = reply.rfind(b"\n", 0, -1) + 1
    return reply.endswith(b"\n") and reply[last + 3 : last + 4] == b" "


Step = tuple[bytes, Callable[[int], bytes]]  # how the reply must begin, and what is sent then


def deferral(crowd: Crowd) -> list[Step]:
    """Return the steps of a session whose recipient is put off."""
    return [
        (b"220", lambda _number: b"EHLO mx.sender.example\r\n"),
        (b"250", lambda number: b"MAIL FROM:<%s>\r\n" % crowd.sender(number).encode()),
        (b"250", lambda _number: b"RCPT TO:<%s>\r\n" % RECIPIENT.encode()),
        (b"450", lambda _number: b"QUIT\r\n"),
        (b"221", lambda _number: b""),
    ]


def run(port: int, numbers: Iterator[int], at_once: int, crowd: Crowd) -> int:
    """Hold the sessions, so many at once; return how many there were. Unexpected: a reply was."""
    steps = deferral(crowd)
    poll = select.epoll()
    sessions: dict[int, tuple[socket.socket, int, list[bytes]]] = {}
    at: dict[int, int] = {}
    done = 0

    def begin() -> None:
        for number in numbers:
            sock = connect(port, crowd.address(number))
            poll.register(sock, select.EPOLLIN)
            sessions[sock.fileno()] = (sock, number, [])
            at[sock.fileno()] = 0
            return

    for _session in range(at_once):
        begin()
    while sessions:
        events = poll.poll(PATIENCE)
        if not events:
            raise Unexpected(f"{len(sessions)} sessions have had no reply for {PATIENCE:g} seconds")
        for descriptor, _event in events:
            sock, number, pieces = sessions[descriptor]
            try:
                data = sock.recv(8192)
            except OSError as error:
                raise Unexpected(f"session {number}, step {at[descriptor]}: {error}") from error
            if pieces:
                data = b"".join([*pieces, data])
                pieces.clear()
            step = at[descriptor]
            expected, command = steps[step]
            if not data.startswith(expected):
                raise Unexpected(f"session {number}, step {step}: not {expected.decode()} but {data[:200]!r}")
            if not is_whole(data):
                pieces.append(data)
            elif step + 1 < len(steps):
                at[descriptor] = step + 1
                sock.send(command(number))
            else:
                del sessions[descriptor]
                sock.close()
                done += 1
                begin()
    return done


def main() -> int:
    """Run as told, print the seconds."""
    parser = argparse.ArgumentParser(prog="smtp_load.py", description="Hold SMTP sessions that end in a deferral.")
    add = parser.add_argument
    for name in ("port", "first", "sessions", "at-once", "networks", "addresses"):
        add(f"--{name}", type=int, required=True)
    add("--own-domains", action="store_true")
    options = parser.parse_args()
    crowd = Crowd(options.networks, options.addresses, options.own_domains)
    numbers = iter(range(options.first, options.first + options.sessions))
    began = time.perf_counter()
    try:
        done = run(options.port, numbers, options.at_once, crowd)
    except Unexpected as error:
        print(error, file=sys.stderr)
        return 1
    with suppress(BrokenPipeError):
        print(json.dumps({"sessions": done, "seconds": time.perf_counter() - began}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
