# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that are measured: how each is started and ended, what CPU and memory it has taken.

CPU is the system's count for the whole process, all its threads and workers, in nanoseconds (its CPU clock), not in
ticks of a hundredth of a second. Memory is what it has resident.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Settings = dict[str, dict[str, Any]]  # of the proxy: section, key, value

PATIENCE = 30.0  # seconds for a program to start or to end
# Postfix's are not on every user's path.
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/libexec/postfix"])


class Unmeasurable(Exception):
    """Something is missing, or did not run as it should; the text says what to do."""


def program(name: str) -> str:
    """Return the path of one of Postfix's test programs. Unmeasurable: install it."""
    found = shutil.which(name, path=SEARCH)
    if found is None:
        raise Unmeasurable(f"{name} is missing: install Debian's package postfix (make integration does it)")
    return found


class Server:
    """A program that listens on a port."""

    def __init__(self, name: str, process: subprocess.Popen[Any], port: int) -> None:
        self.name = name
        self.port = port
        self._process = process

    @property
    def pids(self) -> list[int]:
        """The process, and those that it has started."""
        found = [self._process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        return found

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        # The clock of a process, from its number: clock_getcpuclockid(3).
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self.pids)

    def memory(self) -> int:
        """Bytes that are resident now."""
        return sum(
            int(match[1]) * 1024
            for pid in self.pids
            if (match := re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
        )

    def stop(self) -> None:
        """End it, and wait for it. Unmeasurable: it does not end, or had ended before."""
        if self._process.poll() is not None:
            raise Unmeasurable(f"{self.name} has ended by itself, with status {self._process.returncode}")
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Unmeasurable(f"{self.name} does not end") from None

    def kill(self) -> None:
        """Leave nothing behind."""
        self._process.kill()
        self._process.wait(PATIENCE)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


class Sink(Server):
    """A server that throws messages away and counts them."""

    def messages(self) -> int:
        """How many it has taken."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as sock, sock.makefile("rwb") as lines:
            lines.readline()
            lines.write(b"NOOP\r\n")
            lines.flush()
            return int(lines.readline().split()[-1])


@contextlib.contextmanager
def peer(kind: str) -> Iterator[Sink]:
    """Run one of `smtp_peers.py`; only a taker counts."""
    process = subprocess.Popen([sys.executable, HERE / "smtp_peers.py", kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None  # noqa: S101 - for the type checker
    line = process.stdout.readline()
    server = Sink(kind, process, int(line or 0))
    try:
        if not line:
            raise Unmeasurable(f"{kind} does not start")
        yield server
    finally:
        server.kill()


class PostfixSink(Sink):
    """Postfix's smtp-sink."""

    def __init__(self, process: subprocess.Popen[Any], port: int, counted: Path) -> None:
        super().__init__("smtp-sink", process, port)
        self._counted = counted

    def messages(self) -> int:
        """How many it has taken."""
        counts = re.findall(rb"mesg=(\d+)", self._counted.read_bytes()[-4096:])
        return int(counts[-1]) if counts else 0


@contextlib.contextmanager
def sink(folder: Path, port: int) -> Iterator[PostfixSink]:
    """Run smtp-sink."""
    counted = folder / "sink.txt"
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with counted.open("wb") as output:
        command = [program("smtp-sink"), *user, "-c", "-m", "1000", f"127.0.0.1:{port}", "1000"]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    server = PostfixSink(process, port, counted)
    try:
        _wait_for_port(port, process)
        yield server
    finally:
        server.kill()


class Proxy(Server):
    """The program itself, with its folder: `log.jsonl` is what it says, `greylist.db` its store."""

    def __init__(self, name: str, process: subprocess.Popen[Any], port: int, folder: Path) -> None:
        super().__init__(name, process, port)
        self.folder = folder


@contextlib.contextmanager
def proxy(name: str, folder: Path, backend_port: int, **settings: dict[str, Any]) -> Iterator[Proxy]:
    """Run greylist-proxy with a SQLite store and its log in a file. Unmeasurable: it says why it does not start."""
    folder = folder / re.sub(r"\W+", "-", name)
    folder.mkdir()
    config: Settings = {
        "smtp": {"listen": ["127.0.0.1:0"], "hostname": "mx.here.example"},
        "backend": {"hosts": [f"127.0.0.1:{backend_port}"], "domains": ["here.example"]},
        "greylist": {"client_key": "network"},
        "allow": {"well_known": False},
        "store": {"url": f"sqlite:///{folder}/greylist.db"},
        "admin": {"listen": ""},
    }
    for section, keys in settings.items():
        config.setdefault(section, {}).update(keys)
    (folder / "config.toml").write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
            for section, keys in config.items()
        )
    )
    said = folder / "log.jsonl"
    with said.open("wb") as log:
        command = [sys.executable, "-m", "greylist_proxy", "serve", f"--config={folder}/config.toml"]
        process = subprocess.Popen(command, stderr=log)
    server = Proxy(name, process, 0, folder)
    try:
        server.port = _listening(said, process)
        yield server
    finally:
        server.kill()


def _listening(said: Path, process: subprocess.Popen[Any]) -> int:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        for line in said.read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event["event"] == "listening":
                    return int(event["addresses"][0].rpartition(":")[2])
        time.sleep(0.02)
    raise Unmeasurable(f"greylist-proxy does not start: {said.read_text()[-1000:]}")


def _wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + PATIENCE
    listens = f":{port:04X} 00000000:0000 0A"
    while time.monotonic() < end and process.poll() is None:
        if listens in Path("/proc/net/tcp").read_text():
            return
        time.sleep(0.02)
    raise Unmeasurable(f"port {port}: nobody listens")
