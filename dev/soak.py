# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make soak`: the proxy under half of the load that it can bear, for an hour. Memory and descriptors stay flat.

First the maximum is measured: deferred sessions a second, as many as the loader of `bench/` gets through here. Then
half of that goes on, and beside it, all the time, from ever other clients: mail that is deferred, comes back and is
relayed, in clear and over TLS, and sessions that are given up in the middle. Every message is in a ledger.

The rule: once a second, resident memory and open descriptors are noted. Caches fill in the first half, so only the
second half counts. The medians of the third and of the last quarter are compared. The last may be higher by no more
than what samples differ among themselves (three times their median distance from the median), and in any case by
NOISE. A leak of 20 bytes a session is found in five minutes, one of 2 bytes in an hour.

Exit status: 0 flat, and nothing lost; 1 not; 2 it could not run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "proxy"), str(ROOT / "bench")]

from smtp_load import Crowd, Unexpected, run  # noqa: E402
from smtp_servers import Proxy, Unmeasurable, proxy  # noqa: E402
from tests.ledger import Ledger, LedgerBackend, LedgerClient, content  # noqa: E402
from tests.valkey_servers import make_certificate  # noqa: E402

SLICE = 0.1  # seconds; the loader works this often
AT_ONCE = 20  # sessions of the loader
MEASURED = 10_000  # sessions by which the maximum is measured
MAILS = 10.0  # a second: deferred, then relayed; every second one over TLS
ABORTED = 20.0  # sessions a second that are given up
ERRORS = {"error", "store"}  # events: a fault of ours, and a store that failed
NOISE = {"memory": 2 << 20, "descriptors": 10}  # bytes, and how many
# Short, so that the store has its final size within the first half.
SETTINGS: dict[str, dict[str, Any]] = {
    "backend": {"domains": ["here.example", "here.test"]},
    "greylist": {"delay": "1s", "retry_window": "20s", "lifetime": "20s"},
    # On a disk that others keep busy a commit may take seconds; a store that gives up lets everybody in.
    "store": {"decisions_lifetime": "20s", "max_decisions": 10_000, "timeout": "30s"},
}


@dataclass
class Samples:
    """What was noted, once a second."""

    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


def growth(samples: Sequence[int], noise: float) -> str:
    """Return how the samples have grown where they have grown too much, else nothing."""
    quarter = len(samples) // 4
    third, last = samples[2 * quarter : 3 * quarter], samples[3 * quarter :]
    before, after = statistics.median(third), statistics.median(last)
    spread = statistics.median(abs(sample - before) for sample in third)
    allowed = max(noise, 3 * spread)
    return f"from {before:,.0f} to {after:,.0f}, {allowed:,.0f} more are noise" if after - before > allowed else ""


class Loader:
    """Deferred sessions at a steady rate, by a process of their own."""

    def __init__(self, port: int, rate: float) -> None:
        self.done = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--load", str(port), str(rate)], stdout=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        for line in self._process.stdout:
            self.done += int(line)

    def check(self) -> None:
        """See that it runs. Unmeasurable: it has ended."""
        if (ended := self._process.poll()) is not None:
            raise Unmeasurable(f"the loader has ended by itself, with status {ended}")

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def load(port: int, rate: float) -> None:
    """Be the loader's process: sessions in small portions, until it is killed."""
    first = MEASURED
    began = time.monotonic()
    while True:
        due = MEASURED + int((time.monotonic() - began + SLICE) * rate)
        print(run(port, iter(range(first, due)), AT_ONCE, Crowd()), flush=True)
        first = due
        time.sleep(max(0.0, began + (first - MEASURED) / rate - time.monotonic()))


class Mixture:
    """What goes on beside: mail, TLS, sessions that end in the middle."""

    def __init__(self, port: int, ledger: Ledger, tls: ssl.SSLContext) -> None:
        self._port = port
        self._ledger = ledger
        self._tls = tls
        self._dice = random.Random(1)  # noqa: S311 - choices of a test
        self._sources = self._all_sources()

    @staticmethod
    def _all_sources() -> Iterator[str]:
        # Networks that the loader does not use, each new to the proxy for as long as it remembers one.
        while True:
            for number in range(5000):
                yield f"127.{201 + number // 250}.{number % 250}.1"

    async def mail(self, number: int) -> None:
        """Send a message until it is delivered; it is deferred first."""
        tls = self._tls if number % 2 else None
        client = LedgerClient(self._port, self._ledger, next(self._sources), tls)
        await client.deliver(self._ledger.new(), pause=1.2)
        await client.leave()

    async def give_up(self, _ignored: int) -> None:
        """Begin a session, and leave after some of it, politely or not."""
        dialogue = b"EHLO client.test\r\nMAIL FROM:<>\r\nRCPT TO:<postmaster@here.example>\r\nDATA\r\n" + content(2)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(next(self._sources), 0))
        await reader.readline()
        writer.write(dialogue[: self._dice.randrange(len(dialogue) // 2)])
        await asyncio.sleep(self._dice.random())
        writer.close() if self._dice.random() < 0.5 else writer.transport.abort()

    async def keep(self, what: Any, rate: float, end: float) -> None:
        """Begin so many of these a second, and wait for the last."""
        async with asyncio.TaskGroup() as group:
            number = 0
            while time.monotonic() < end:
                group.create_task(what(number))
                number += 1
                await asyncio.sleep(1 / rate)


class Log:
    """The program's log, of which only what is needed is kept: a day's would fill the disk."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0
        self.kept: list[dict[str, Any]] = []

    def read(self) -> None:
        """Look at what is new, and free its place on the disk."""
        with self._file.open("r+b") as stream:
            stream.seek(self._at)
            while (line := stream.readline()).endswith(b"\n"):
                self._at = stream.tell()
                if b'"error"' in line or b'"unknown"' in line or b'"store"' in line:
                    event = json.loads(line)
                    if event["event"] in ERRORS or event.get("outcome") == "unknown":
                        self.kept.append(event)
            # The program goes on writing where it was: what comes before becomes a hole.
            stream.truncate(0)


async def soak(server: Proxy, ledger: Ledger, tls: ssl.SSLContext, rate: float, seconds: float) -> tuple[Samples, Log]:
    """Keep it busy, note what it takes, print a line a minute."""
    samples, log = Samples(), Log(server.folder / "log.jsonl")
    mixture = Mixture(server.port, ledger, tls)
    loader = Loader(server.port, rate)
    began = time.monotonic()
    end = began + seconds
    work = asyncio.gather(mixture.keep(mixture.mail, MAILS, end), mixture.keep(mixture.give_up, ABORTED, end))
    mark = (began, 0, 0, server.cpu())
    try:
        while time.monotonic() < end and not work.done():
            await asyncio.sleep(1)
            loader.check()
            samples.memory.append(server.memory())
            samples.descriptors.append(len(os.listdir(f"/proc/{server.pids[0]}/fd")))  # noqa: PTH208 - the cheapest
            if time.monotonic() - mark[0] >= 60 or time.monotonic() >= end:
                now = (time.monotonic(), loader.done, len(ledger.delivered), server.cpu())
                passed, sessions, mails, cpu = (new - old for new, old in zip(now, mark, strict=True))
                mark = now
                await asyncio.to_thread(log.read)
                print(
                    f"{now[0] - began:5.0f} s: {sessions / passed:,.0f} deferred sessions and "
                    f"{mails / passed:.1f} mails a second, {100 * cpu / passed:.0f} % CPU, "
                    f"{samples.memory[-1] / 2**20:.1f} MiB, {samples.descriptors[-1]} descriptors, "
                    f"{len(log.kept)} errors",
                    flush=True,
                )
        await work
    finally:
        loader.stop()
        work.cancel()
    return samples, log


def measure(port: int) -> float:
    """Return how many deferred sessions a second the program bears."""
    began = time.monotonic()
    return run(port, iter(range(MEASURED)), 50, Crowd()) / (time.monotonic() - began)


def main() -> int:
    """Soak, and judge."""
    parser = argparse.ArgumentParser(description="Run the proxy at half its maximum load, and see that it stays flat.")
    parser.add_argument("--seconds", type=int, default=3600, help="how long (default: 3600, at least 60)")
    seconds = max(60, parser.parse_args().seconds)
    ledger = Ledger()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        backend = LedgerBackend(ledger)
        files = make_certificate(folder, "mx", "127.0.0.1")
        smtp = {"tls_certificate": str(files.certificate), "tls_key": str(files.key)}
        try:
            with proxy("soak", folder, backend.port, smtp=smtp, **SETTINGS) as server:
                maximum = measure(server.port)
                print(
                    f"maximum: {maximum:,.0f} deferred sessions a second; {seconds} seconds at half of it", flush=True
                )
                tls = ssl.create_default_context(cafile=str(files.authority))
                samples, log = asyncio.run(soak(server, ledger, tls, maximum / 2, seconds))
                server.stop()
                log.read()
        except (Unmeasurable, Unexpected) as error:
            print(error, file=sys.stderr)
            return 2
        finally:
            backend.close()
    wrong = [f"an error in the log: {event}" for event in log.kept if event["event"] in ERRORS]
    wrong += ledger.mistakes(log.kept)
    for what, noise in NOISE.items():
        if grown := growth(getattr(samples, what), noise):
            wrong.append(f"{what} have grown: {grown}")
    print(*wrong[:20], sep="\n", end="\n" if wrong else "")
    print(f"{len(ledger.delivered)} mails delivered, {'and something is wrong' if wrong else 'none lost; all flat'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load(int(sys.argv[2]), float(sys.argv[3]))
    sys.exit(main())
