# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The load that scenarios keep on while they do something to servers: what it says must be so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab.ports import free_port, release_port

TOOL = Path(__file__).resolve().parents[1] / "tools" / "mail_load.py"
ENDS = "ends here"


def tool(*arguments: object) -> tuple[int, Any]:
    """Run a command of it; its exit status, and what it printed."""
    run = subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)], stdout=subprocess.PIPE, text=True, timeout=120, check=False
    )
    return run.returncode, json.loads(run.stdout)


@contextmanager
def sink(port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Postfix's smtp-sink on a port: takes everything, if no option says otherwise."""
    process = subprocess.Popen(["smtp-sink", "-u", "nobody", *options, f"127.0.0.1:{port}", "100"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    first, second = free_port(), free_port()
    yield first, second
    release_port(first)
    release_port(second)


@contextmanager
def load(report: Path, ports: tuple[int, int], *options: str) -> Iterator[subprocess.Popen[bytes]]:
    servers = [f"--server=127.0.0.1:{port}" for port in ports]
    command = [sys.executable, str(TOOL), "run", *servers, "--recipient=a@b.test", f"--report={report}", *options]
    process = subprocess.Popen(command)
    try:
        while not report.exists():
            assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


def test_it_goes_on_at_the_other_server_and_its_books_are_compared(tmp_path: Path, ports: tuple[int, int]) -> None:
    report, taken = tmp_path / "report.json", tmp_path / "taken"
    with sink(ports[0]) as first, sink(ports[1]), load(report, ports) as process:
        assert tool("wait", "--report", report, "--more", 10)[0] == 0
        first.kill()
        assert tool("wait", "--report", report, "--more", 10)[0] == 0
        status, said = tool("stop", "--report", report)
        assert (status, process.wait(), said["refused"], said["under_way"]) == (0, 0, {}, [])
    assert said["servers"][f"127.0.0.1:{ports[0]}"]["connections_refused"] > 0
    books = json.loads(report.read_text())
    assert said["acknowledged"] == len(books["acknowledged"]) >= 20

    idents = [*books["acknowledged"]]
    log = tmp_path / "log"
    log.write_text(
        json.dumps({"event": "decision", "id": "0A.1", "sender": f"{idents[-1]}@client.test"})
        + "\nsystemd[1]: Started\n"
        + json.dumps({"event": "relay", "id": "0A", "outcome": "unknown"})
    )
    explained = [ident for ident, times in books["unanswered"].items() for _n in range(times)]
    for lines, expected in (
        (idents, (0, [], [])),
        (idents + explained, (0, [], [])),
        (idents[1:], (1, idents[:1], [])),
        (idents + explained + idents[-1:], (1, [], idents[-1:])),
    ):
        taken.write_text("".join(f"{ident} {ENDS}\n" for ident in lines))
        status, result = tool("compare", "--report", report, taken)
        assert (status, result["missing"], result["unexplained"]) == expected
    assert tool("compare", "--report", report, "--log", log, taken)[0] == 0


@pytest.mark.parametrize(
    ("options", "outcome", "field"),
    [(["-r", "RCPT"], "deferred", "under_way"), (["-f", "RCPT"], "refused", "refused"), (["-q", "."], "broken", "")],
)
def test_what_is_not_acknowledged_is_told(
    tmp_path: Path, ports: tuple[int, int], options: list[str], outcome: str, field: str
) -> None:
    report = tmp_path / "report.json"
    with (
        sink(ports[0], *options),
        sink(ports[1], *options),
        load(report, ports, "--retry=0.1", "--patience=1") as process,
    ):
        while not json.loads(report.read_text())["servers"][f"127.0.0.1:{ports[1]}"].get(outcome):
            assert process.poll() is None
        status, said = tool("stop", "--report", report)
        assert process.wait() == status == 1
    assert said["acknowledged"] == 0
    assert said[field or "unanswered"]
