# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-smtp`: what a session and a message cost the proxy, and what they cost others.

    smtp.py           the run: every server in turn, in several rounds
    smtp_load.py      the client that holds sessions
    smtp_peers.py     what the proxy is compared with
    smtp_servers.py   starting and ending programs, their CPU and memory
    smtp_memory.py    what waiting sessions and messages take
    smtp_figures.py   ratios, targets, tables

Deferred sessions are what a greylisting server has most: connect, EHLO, MAIL, RCPT, 450, QUIT, fifty at once, each from
a client and a sender that were never seen before. Messages are sent by Postfix's smtp-source over twenty connections
to its smtp-sink, directly and through the proxy: each in a session of its own, as most mail comes to an MX, and many
in one. Every reply is compared with what it must be, every message and every decision is counted, or there are no
figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "proxy"))

import smtp_memory  # noqa: E402
from smtp_figures import TARGETS, Row, Turn, judge, rates, table, verdicts  # noqa: E402
from smtp_load import RECIPIENT, Crowd, Unexpected  # noqa: E402
from smtp_servers import Proxy, Server, Settings, Sink, Unmeasurable, peer, program, proxy, sink  # noqa: E402
from tests.dns_server import DnsServer  # noqa: E402
from tests.peers import free_port  # noqa: E402

DESCRIPTION = """\
Measure greylist-proxy's SMTP side against stock aiosmtpd, a bare line protocol, and Postfix's smtp-sink directly.

Exit status: 0 the targets are reached; 1 they are not; 2 something is missing or did not run as it should."""

PARTS = ("defer", "relay", "large", "memory")
LISTED = 100_000  # networks in the row with lists
MANY = Crowd()
SPF_CROWD = Crowd(networks=200, addresses=10, own_domains=True)  # so few that all answers are in the cache
SMALL, LARGE = 10_240, 25_000_000  # bytes a message
CONNECTIONS = 20
LARGE_CONNECTIONS = 4
STEP = 1_000_000  # numbers of sessions that a server has for itself
LOADER_PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Contestant:
    """A server that is to defer, who its clients are, and how many sessions it has a turn, as a share of all."""

    server: Server
    crowd: Crowd = MANY
    share: float = 1.0


# -- deferred sessions --


def hold_sessions(contestant: Contestant, first: int, count: int, at_once: int) -> Turn:
    """Let a server defer so many new triplets."""
    crowd = contestant.crowd
    command = [sys.executable, str(Path(__file__).with_name("smtp_load.py")), f"--port={contestant.server.port}"]
    command += [f"--first={first}", f"--sessions={count}", f"--at-once={at_once}"]
    command += [f"--networks={crowd.networks}", f"--addresses={crowd.addresses}"]
    command += ["--own-domains"] if crowd.own_domains else []
    before = contestant.server.cpu()
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOADER_PATIENCE, check=False)
    if done.returncode:
        raise Unexpected(f"{contestant.server.name}: {done.stderr.strip()}")
    cpu = contestant.server.cpu() - before
    took = json.loads(done.stdout)
    if took["sessions"] != count:
        raise Unexpected(f"{contestant.server.name}: {took['sessions']} of {count} sessions were held")
    return Turn(count, took["seconds"], cpu)


@contextlib.contextmanager
def contestants(folder: Path, options: argparse.Namespace) -> Iterator[list[Contestant]]:
    """Start all that defer; the backend is one that nobody asks."""
    zone = "\n".join(
        f"d{network}.sender.example TXT v=spf1 ip4:{SPF_CROWD.address(network).rpartition('.')[0]}.0/24 -all"
        for network in range(SPF_CROWD.networks)
    )
    networks = folder / "whitelist_clients"
    networks.write_text("".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}\n" for n in range(LISTED)))
    lists: Settings = {"allow": {"client_files": [str(networks)]}}
    with contextlib.ExitStack() as stack:
        dns = stack.enter_context(contextlib.closing(DnsServer(zone)))
        spf: Settings = {"greylist": {"client_key": "spf"}, "dns": {"servers": [f"127.0.0.1:{dns.endpoint.port}"]}}
        start = stack.enter_context
        found = [
            Contestant(start(peer("stock")), share=0.4),
            Contestant(start(peer("bare"))),
            Contestant(start(proxy("greylist-proxy", folder, 9))),
            Contestant(start(proxy("with 100,000 networks listed", folder, 9, **lists))),
            Contestant(start(proxy("with SPF, answers cached", folder, 9, **spf)), SPF_CROWD),
        ]
        if (os.cpu_count() or 1) > 2:
            two: Settings = {"smtp": {"workers": 2}}
            found.append(Contestant(start(proxy("two workers", folder, 9, **two))))
        yield found
        for contestant in found:
            contestant.server.stop()


def measure_deferrals(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Let all defer, in turn, and see that each decision was written down."""
    with contestants(folder, options) as found:
        turns: list[list[Turn]] = [[] for _one in found]
        warm_up = options.sessions // 2
        for number, contestant in enumerate(found):
            hold_sessions(contestant, number * STEP, warm_up, options.at_once)
        for turn in range(options.rounds):
            _say(f"deferred sessions, round {turn + 1} of {options.rounds}")
            for number, contestant in enumerate(found):
                count = round(options.sessions * contestant.share)
                first = number * STEP + warm_up + turn * options.sessions
                turns[number].append(hold_sessions(contestant, first, count, options.at_once))
    for contestant in found:
        if isinstance(contestant.server, Proxy):
            _check_decisions(contestant.server, warm_up + options.rounds * options.sessions)
    return [Row(contestant.server.name, row) for contestant, row in zip(found, turns, strict=True)]


def _check_decisions(server: Proxy, expected: int) -> None:
    with contextlib.closing(sqlite3.connect(server.folder / "greylist.db")) as store:
        (stored,) = store.execute("SELECT count(*) FROM decisions WHERE verdict = 'defer'").fetchone()
        (pending,) = store.execute("SELECT count(DISTINCT sender) FROM pending").fetchone()
    logged = (server.folder / "log.jsonl").read_bytes().count(b'"event": "decision"')
    if (stored, pending) != (expected, expected):
        raise Unexpected(f"{server.name}: {expected} sessions, {stored} decisions kept, {pending} triplets pending")
    if logged != expected:
        raise Unexpected(f"{server.name}: {expected} sessions, {logged} decisions in its log")


# -- messages --


@dataclass(frozen=True)
class Kind:
    """What is sent a turn: so many messages of so many bytes over so many connections; `kept`: many in a session."""

    size: int
    count: int
    connections: int
    kept: bool = False

    def __str__(self) -> str:
        sessions = "many in a session" if self.kept else "each in a session of its own"
        return f"messages of {self.size:,} bytes, {self.connections} connections, {sessions}"


def send(server: Server, target: Sink, kind: Kind, count: int) -> Turn:
    """Send messages to a server, and see that all come out; the amount is in messages."""
    before, had = server.cpu(), target.messages()
    command = [program("smtp-source"), "-s", str(kind.connections), "-m", str(count), "-l", str(kind.size)]
    command += ["-d"] if kind.kept else []
    command += ["-f", "user@sender.example", "-t", RECIPIENT, f"127.0.0.1:{server.port}"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOADER_PATIENCE, check=False)
    seconds = time.perf_counter() - began
    cpu = server.cpu() - before
    if done.returncode:
        raise Unexpected(f"{server.name}: {done.stderr.strip()}")
    end = time.monotonic() + 5
    while target.messages() != had + count:
        if time.monotonic() > end:
            raise Unexpected(f"{server.name}: {count} messages were sent, {target.messages() - had} came")
        time.sleep(0.01)
    return Turn(count, seconds, cpu)


def measure_messages(folder: Path, options: argparse.Namespace, kind: Kind) -> list[Row]:
    """Send messages directly and through the proxy, in turn. All pass: the delay is 0, and then they are known."""
    passing: Settings = {"greylist": {"delay": "0s", "auto_allow_after": 0}}
    xclient: Settings = {**passing, "backend": {"send_client_address": "xclient"}}
    folder = folder / f"messages-{kind.size}{'-kept' * kind.kept}"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        target = start(sink(folder, free_port()))
        ways: list[tuple[Server, Sink]] = [
            (target, target),
            (start(proxy("greylist-proxy", folder, target.port, **passing)), target),
        ]
        if kind.size == SMALL:
            taker = start(peer("taker"))
            ways.append((start(proxy("to a server in Python", folder, taker.port, **passing)), taker))
            ways.append((start(proxy("the same with XCLIENT", folder, taker.port, **xclient)), taker))
            if (os.cpu_count() or 1) > 1:
                ways.append((start(proxy("two workers", folder, target.port, **passing, smtp={"workers": 2})), target))
        turns: list[list[Turn]] = [[] for _way in ways]
        for way in ways:
            send(*way, kind, max(kind.count // 10, kind.connections))
        for turn in range(options.rounds):
            _say(f"{kind}, round {turn + 1} of {options.rounds}")
            for number, way in enumerate(ways):
                turns[number].append(send(*way, kind, kind.count))
        for server, _target in ways[1:]:
            server.stop()
    return [Row(server.name, row) for (server, _target), row in zip(ways, turns, strict=True)]


# -- memory --


def measure_memory(folder: Path, options: argparse.Namespace) -> list[smtp_memory.Memory]:
    """Hold idle sessions, in clear and under TLS, and messages that are stuck; one server for each."""
    cert, key = smtp_memory.certificate(folder)
    many: dict[str, Any] = {"max_connections": 10_000, "max_connections_per_client": 10_000}
    tls: Settings = {"smtp": {"tls_certificate": str(cert), "tls_key": str(key), **many}}
    passing: Settings = {"smtp": many, "greylist": {"delay": "0s"}, "backend": {"max_connections": 10_000}}
    found = []
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        backend = start(peer("stuck"))
        stock = start(peer("stock"))
        _say("idle sessions, and messages that are stuck")
        found.append(smtp_memory.idle(start(proxy("idle", folder, 9, smtp=many)), options.idle, 0))
        found.append(smtp_memory.idle_tls(start(proxy("idle-tls", folder, 9, **tls)), options.idle // 4, 0))
        stuck = start(proxy("stuck", folder, backend.port, **passing))
        found.append(smtp_memory.stuck(stuck, backend.port, options.stuck, 0))
        of_stock = smtp_memory.idle(stock, options.idle, 0)
    found.append(smtp_memory.Memory("the same, stock aiosmtpd", of_stock.sessions, of_stock.kib))
    return found


# -- the program --


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="smtp.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", type=_parts, default=PARTS, metavar="NAME,NAME", help="default: " + ",".join(PARTS))
    add("--rounds", type=int, default=5, metavar="N", help="turns of each server (default: 5)")
    add("--sessions", type=int, default=6000, metavar="N", help="deferred ones, a turn (default: 6000)")
    add("--at-once", type=int, default=50, metavar="N", help="sessions at once (default: 50)")
    add("--messages", type=int, default=3000, metavar="N", help="of 10 kB, a turn (default: 3000)")
    add("--large", type=int, default=8, metavar="N", help="messages of 25 MB, a turn (default: 8)")
    add("--idle", type=int, default=2000, metavar="N", help="idle sessions (default: 2000)")
    add("--stuck", type=int, default=200, metavar="N", help="messages that are stuck (default: 200)")
    add("--quick", action="store_true", help="see that it works: few of everything, one round")
    add("--relax", type=float, default=1, metavar="X", help="make each target so many times easier (default: 1)")
    add("--folder", type=Path, default=Path(".cache"), help="where files go (default: .cache)")
    add("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    if options.quick:
        few = {"rounds": 1, "sessions": 400, "messages": 200, "large": 4, "idle": 100, "stuck": 20}
        parser.set_defaults(**few)
        options = parser.parse_args(arguments)
    return options


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no part: {', '.join(sorted(unknown))}")
    return names


def _measure(folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], list[str], dict[str, Any]]:
    """Return the values that are judged, the tables, and everything for a program."""
    values: dict[str, float] = {}
    tables: list[str] = []
    everything: dict[str, Any] = {}
    if "defer" in options.parts:
        rows = measure_deferrals(folder, options)
        stock, bare, ours = rows[:3]
        values |= {"rate_of_stock": ours.rate_of(stock), "rate_of_bare": ours.rate_of(bare)}
        values["cpu_of_stock"] = ours.cpu_of(stock)
        tables.append("Deferred sessions\n" + rates(rows, "session", 1, (stock, bare)))
        everything["deferred"] = [asdict(row) for row in rows]
    for part, key, kind, unit, scale in (
        ("relay", "relay", Kind(SMALL, options.messages, CONNECTIONS), "message", 1.0),
        ("relay", "relay_kept", Kind(SMALL, options.messages, CONNECTIONS, kept=True), "message", 1.0),
        ("large", "large", Kind(LARGE, options.large, LARGE_CONNECTIONS, kept=True), "MB", 1e6 / LARGE),
    ):
        if part in options.parts:
            rows = measure_messages(folder, options, kind)
            values[key] = rows[1].rate_of(rows[0])
            tables.append(f"{str(kind).capitalize()}\n" + rates(rows, unit, scale, rows[:1]))
            everything[key] = [asdict(row) for row in rows]
    if "memory" in options.parts:
        found = measure_memory(folder, options)
        values |= dict(zip(("idle", "idle_tls", "stuck"), (memory.kib for memory in found), strict=False))
        heads = ["", "how many", "KiB each", "and in the system's buffers: in", "out"]
        lines = [
            [one.name, str(one.sessions), *(f"{kib:.1f}" for kib in (one.kib, one.waiting_in, one.waiting_out))]
            for one in found
        ]
        tables.append("Memory\n" + table([heads, *lines]))
        everything["memory"] = [asdict(one) for one in found]
    return values, tables, everything


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, judge."""
    options = _parse(arguments)
    # A run that is told to end takes its servers and its files with it.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-smtp-", dir=options.folder.resolve()) as folder:
            values, tables, everything = _measure(Path(folder), options)
    except (Unmeasurable, Unexpected, OSError, subprocess.TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    targets = [target.relaxed(options.relax) for target in TARGETS]
    missed = judge(values, targets)
    setting = {
        "rounds": options.rounds,
        "at_once": options.at_once,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    if options.json:
        print(json.dumps(setting | everything | {"values": values, "missed": missed}, indent=2))
    else:
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}, medians of {options.rounds} rounds\n")
        print("\n\n".join([*tables, verdicts(values, targets)]))
    for sentence in missed:
        print(f"bench: target missed: {sentence}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
