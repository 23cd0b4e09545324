# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other greylisting daemons, run for real; and what a store holds, to be compared."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from greylist_proxy.store import Item, Store, Wanted

from .programs import needs


async def remembered(store: Store) -> list[Item]:
    """Everything that a store gives, in an order that can be compared."""
    items: list[Item] = [item async for item in store.triplets(Wanted())]
    items += [item async for item in store.allowances(Wanted())]
    items += [item async for item in store.entries()]
    return sorted(items, key=repr)


def needs_daemons(*programs: str) -> None:
    """Skip where a program is missing, or we are not root; where everything must run, fail."""
    needs(*programs, packages="postgrey, db5.3-util, sqlgrey, libdbd-sqlite3-perl")
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("must be root: these daemons change their user")
        pytest.skip("must be root: these daemons change their user")


class PolicyServer:
    """A greylisting daemon that speaks Postfix's policy protocol."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._connection = self._connect(port)
        self._file = self._connection.makefile("rw")
        self._instance = itertools.count()

    def _connect(self, port: int) -> socket.socket:
        deadline = time.monotonic() + 30
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=30)
            except ConnectionRefusedError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    output = self._process.stdout.read() if self._process.stdout else b""
                    raise AssertionError(f"it does not start: {output!r}") from None
                time.sleep(0.05)  # nothing tells when it listens

    def ask(self, client: str, sender: str, recipient: str) -> str:
        attributes = {
            "request": "smtpd_access_policy",
            "protocol_state": "RCPT",
            "protocol_name": "ESMTP",
            "helo_name": "mx.sender.example",
            "client_address": client,
            "client_name": "unknown",
            "sender": sender,
            "recipient": recipient,
            "instance": f"i{next(self._instance)}",
        }
        self._file.write("".join(f"{name}={value}\n" for name, value in attributes.items()) + "\n")
        self._file.flush()
        answer = self._file.readline()
        assert self._file.readline() == "\n"
        return answer.removeprefix("action=").split()[0].upper()

    def retry_until_passed(self, client: str, sender: str, recipient: str) -> None:
        """Come back until the daemon lets it pass: its delay is a matter of its clock."""
        deadline = time.monotonic() + 30
        while self.ask(client, sender, recipient) == "DEFER_IF_PERMIT":
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def stop(self) -> None:
        """End it as an init system would: they write what is left. One signal may come just before it waits again."""
        self._file.close()
        self._connection.close()
        try:
            for _attempt in range(30):
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)
                    return
            raise AssertionError("it does not end")
        finally:
            self._process.kill()
            self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()


@contextmanager
def running(command: Sequence[str], port: int) -> Iterator[PolicyServer]:
    server = PolicyServer(command, port)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def daemon_folder() -> Iterator[Path]:
    """A folder that a daemon's own user may reach: pytest's are for root alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
