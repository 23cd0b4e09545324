# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log: lines that cannot be forged, that wait for no reader, and that do not flood."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.log import Log, LogHandler, Repeats, members
from greylist_proxy.log_writer import PIECE, LineWriter, Sparing, pieces
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .peers import DEADLINE, wait_until


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# -- a line --


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5).map(lambda key: f"k{key}"), st.text(max_size=30)))
@example({"k": "\r\n\x1b[31m\x7f\u202e\u2028\ud800"})
@example({'k", "event': '"}\n{"event": "decision"'})
def test_a_line_is_one_line_of_printable_ascii(fields: dict[str, str]) -> None:
    stream = io.StringIO()
    Log(stream).event("test", **fields)
    line = stream.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isascii()
    assert line[:-1].isprintable()
    found = json.loads(line)
    assert found.pop("event") == "test"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found.pop("time"))
    assert found == fields


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.one_of(st.text(max_size=9), st.integers(), st.booleans(), st.none(), st.lists(st.text(max_size=3))),
    )
)
def test_members_are_what_the_json_library_writes(fields: dict[str, object]) -> None:
    assert f"{{{members(fields)}}}" == json.dumps(fields).replace("\x7f", "\\u007f")


def test_what_json_does_not_know_is_written_as_text() -> None:
    stream = io.StringIO()
    Log(stream).event("test", path=Path("/a\x7f"), many=[Path("b")])
    (line,) = lines_of(stream)
    assert (line["path"], line["many"]) == ("/a\x7f", ["b"])


def test_the_time_goes_on_and_comes_back() -> None:
    wall = Clock()
    stream = io.StringIO()
    log = Log(stream, wall=wall, constant={"worker": 3})
    for moment in (0.0, 0.0019, 1.5, 86399.999, 1.25, 1772366405.123):
        wall.now = moment
        log.event("decision")
    found = lines_of(stream)
    assert [line["time"] for line in found] == [
        "1970-01-01T00:00:00.000+00:00",
        "1970-01-01T00:00:00.001+00:00",
        "1970-01-01T00:00:01.500+00:00",
        "1970-01-01T23:59:59.999+00:00",
        "1970-01-01T00:00:01.250+00:00",
        "2026-03-01T12:00:05.123+00:00",
    ]
    assert {line["worker"] for line in found} == {3}


def test_libraries_log_into_the_same_log() -> None:
    stream = io.StringIO()
    logger = logging.Logger("lib")
    logger.addHandler(LogHandler(Log(stream)))
    logger.info("not this")
    logger.warning("hm\n%s", "x")
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("oops")
    first, second = lines_of(stream)
    assert (first["event"], first["message"]) == ("error", "lib: hm\nx")
    assert "ValueError: boom" in second["traceback"]


def test_unexpected_errors_are_counted_however_many_lines_they_make() -> None:
    told: list[None] = []
    stream = io.StringIO()
    log = Log(stream, on_error=lambda: told.append(None))
    logger = logging.getLogger("tests.counted")
    logger.addHandler(LogHandler(log))
    for _n in range(30):
        log.exception("the same again", ValueError("x"))
    logger.error("from a library")
    log.event("warning", message="no error")
    assert len(told) == 31
    assert len(lines_of(stream)) < 31


def test_a_log_that_cannot_be_written_is_no_reason_to_stop() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    Log(Full()).event("test")
    closed = io.StringIO()
    closed.close()
    Log(closed).event("test")


# -- repeated lines --


def test_repeated_lines_are_summed_up() -> None:
    clock, stream = Clock(), io.StringIO()
    log = Log(stream, clock=clock)
    for number in range(25):
        log.event("foreign", client="192.0.2.1", number=number)
    log.event("foreign", client="192.0.2.2")
    log.event("other", client="192.0.2.1")
    assert len(lines_of(stream)) == Repeats.MOST + 2
    clock.now += Repeats.WINDOW - 0.1
    log.sum_up()
    assert len(lines_of(stream)) == Repeats.MOST + 2
    clock.now += 0.1
    log.sum_up()
    *_ignored, last = lines_of(stream)
    assert {**last, "time": ""} == {
        "time": "",
        "event": "suppressed",
        "of": "foreign",
        "client": "192.0.2.1",
        "count": 15,
        "seconds": 10.0,
    }
    log.sum_up()
    log.event("foreign", client="192.0.2.1", number="again")
    assert [line["event"] for line in lines_of(stream)[-2:]] == ["suppressed", "foreign"]


def test_the_next_line_of_its_kind_says_what_was_left_out() -> None:
    clock, stream = Clock(), io.StringIO()
    log = Log(stream, clock=clock)
    for _n in range(12):
        log.event("error", message="the same")
    clock.now += 11
    log.event("error", message="another")
    assert [(line["event"], line.get("count")) for line in lines_of(stream)[10:]] == [
        ("suppressed", 2),
        ("error", None),
    ]


def test_all_that_was_left_out_is_said_at_the_end() -> None:
    stream = io.StringIO()
    log = Log(stream)
    for _n in range(12):
        log.event("foreign", client="192.0.2.1")
    log.sum_up(everything=True)
    assert lines_of(stream)[-1]["count"] == 2


@pytest.mark.parametrize("event", ["decision", "relay", "trap"])
def test_the_record_is_complete(event: str) -> None:
    stream = io.StringIO()
    log = Log(stream)
    for _n in range(100):
        log.event(event, client="192.0.2.1")
    log.sum_up(everything=True)
    assert len(lines_of(stream)) == 100


def test_a_network_of_ipv6_is_one_client() -> None:
    stream = io.StringIO()
    log = Log(stream)
    for number in range(50):
        log.event("foreign", client=f"2001:db8::{number:x}:1")
    assert len(lines_of(stream)) == Repeats.MOST


def test_many_clients_take_no_more_memory_and_no_more_lines_than_allowed() -> None:
    clock, stream = Clock(), io.StringIO()
    log = Log(stream, clock=clock)
    for number in range(20_000):
        log.event("foreign", client=f"10.0.{number >> 8}.{number & 255}")
    assert len(lines_of(stream)) == Repeats.MAX_KEYS + Repeats.MOST
    clock.now += 11
    log.sum_up()
    (line,) = [each for each in lines_of(stream) if each["event"] == "suppressed"]
    assert (line["of"], line["count"], "client" in line) == ("foreign", 20_000 - 1010, False)


@pytest.mark.parametrize("client", ["not an address", "\x1b[31m", 5, ["x"], "1.2.3.4.5"])
def test_what_is_no_address_is_counted_too(client: object) -> None:
    stream = io.StringIO()
    log = Log(stream)
    for _n in range(20):
        log.event("foreign", client=client)
    assert len(lines_of(stream)) == Repeats.MOST


# -- the writer --


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Two ends, the reading one not blocking."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield reading, writing
    for end in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(end)


def read(descriptor: int) -> bytes:
    data = b""
    while True:
        try:
            piece = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


def make_writer(descriptor: int, **options: Any) -> LineWriter:
    return LineWriter(descriptor, lambda count: f"lost {count}", **options)


def test_lines_come_in_order_whatever_their_hurry(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = make_writer(writing)
    for number in range(300):
        writer.put(f"line {number}", urgent=number % 7 == 0)
    writer.close()
    assert read(reading).decode().splitlines() == [f"line {number}" for number in range(300)]


def test_a_line_that_may_wait_comes_soon(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = make_writer(writing)
    writer.put("line", urgent=False)
    assert select.select([reading], [], [], DEADLINE)[0]
    assert read(reading) == b"line\n"
    writer.close()


def test_lines_of_several_threads_are_whole(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = make_writer(writing)
    threads = [
        threading.Thread(target=lambda name=name: [writer.put(name * 50, urgent=True) for _n in range(20)])
        for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert sorted(read(reading).decode().splitlines()) == sorted(name * 50 for name in "abcd" for _n in range(20))


def test_a_reader_that_is_stuck_keeps_nobody_waiting(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    writer = make_writer(writing, max_waiting=20_000)
    began = time.monotonic()
    for number in range(5000):
        writer.put(f"{number:099}", urgent=True)
    assert time.monotonic() - began < 5
    seen = b""

    def told() -> tuple[list[int], int]:
        """Which lines came, and how many are said to be lost."""
        nonlocal seen
        seen += read(reading)
        lines = seen.decode().splitlines()
        lost = sum(int(line.removeprefix("lost ")) for line in lines if re.fullmatch("lost [0-9]+", line))
        return [int(line) for line in lines if re.fullmatch("[0-9]{99}", line)], lost

    def all_told() -> tuple[list[int], int] | None:
        numbers, lost = told()
        return (numbers, lost) if len(numbers) + lost == 5000 else None

    numbers, lost = wait_until(all_told, "all lines, or to be told how many are lost")
    assert numbers == sorted(numbers)
    assert lost > 0
    writer.put("after", urgent=True)
    writer.close()
    assert read(reading) == b"after\n"


def test_ending_does_not_wait_for_a_reader_that_is_stuck(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylist_proxy.log_writer.CLOSE_PATIENCE", 0.2)
    _reading, writing = pipe
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    writer = make_writer(writing)
    for _n in range(100):
        writer.put("x" * 99, urgent=True)
    began = time.monotonic()
    writer.close()
    assert 0.1 < time.monotonic() - began < 5


def test_nobody_reads_any_more(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = make_writer(writing)
    os.close(reading)
    for _n in range(10):
        writer.put("line", urgent=True)
    writer.close()


def test_after_a_full_disk_lines_are_whole_again(tmp_path: Path) -> None:
    script = f"""
import os, resource, signal, sys, time
from greylist_proxy.log_writer import LineWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (250, resource.RLIM_INFINITY))
descriptor = os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
writer = LineWriter(descriptor, lambda count: f"lost {{count}}")
for letter in "abcd":
    writer.put(letter * 99, urgent=True)
    while writer._size:
        time.sleep(0.001)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.put("e", urgent=True)
writer.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=DEADLINE)
    written = (tmp_path / "log").read_text().splitlines()
    assert written == ["a" * 99, "b" * 99, "c" * 50, "lost 2", "e"]


def test_a_descriptor_that_does_not_block_is_waited_for(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    writer = make_writer(writing)
    for number in range(500):
        writer.put(f"{number:099}", urgent=True)
    seen = b""

    def everything() -> bool:
        nonlocal seen
        seen += read(reading)
        return seen.count(b"\n") == 500

    wait_until(everything, "500 lines")
    assert [int(line) for line in seen.splitlines()] == list(range(500))
    writer.close()


@given(st.lists(st.text("ab", max_size=2 * PIECE), max_size=20) | st.lists(st.text("ab", max_size=99), max_size=200))
def test_pieces_are_of_whole_lines_and_no_longer_than_one_write(lines: list[str]) -> None:
    made = list(pieces(lines))
    assert b"".join(piece for _ignored, piece in made) == "".join(f"{line}\n" for line in lines).encode()
    assert sum(number for number, _ignored in made) == len(lines)
    assert all(piece.endswith(b"\n") and (len(piece) <= PIECE or number == 1) for number, piece in made)


def test_every_line_that_is_lost_is_counted_once(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    lost: list[int] = []
    writer = make_writer(writing, max_waiting=1000, on_lost=lost.append)
    os.close(reading)
    # Those that find no room, and those that nobody reads.
    for _n in range(50):
        writer.put("x" * 99, urgent=True)
    writer.close()
    assert sum(lost) == 50
    assert len(lost) > 1


def test_a_sparing_writer_drops_what_would_wait(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    writer = Sparing(writing)
    for _n in range(100):
        writer.put("x" * 99, urgent=True)
    assert set(read(reading).splitlines()) == {b"x" * 99}
    writer.put("again", urgent=True)
    assert read(reading) == b"again\n"
    os.close(reading)
    writer.put("nobody reads", urgent=True)
