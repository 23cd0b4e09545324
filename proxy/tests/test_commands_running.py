# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How commands start and end: stores that are not there, readers that go away, questions, Ctrl-C, a server at work."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from greylist_proxy.commands import progress
from greylist_proxy.commands.progress import Working

from .command_line import CommandLine, triplet
from .peers import Proxy, Sink, Wire, wait_until

PROGRAM = [sys.executable, "-m", "greylist_proxy"]
PATIENCE = 30  # seconds that a test waits for a process


def command(line: CommandLine, *arguments: str) -> list[str]:
    return [*PROGRAM, *arguments, "--config", str(line.config)]


def listen_to_ctrl_c() -> None:
    """Undo what a shell does to what it runs in the background: it has it ignore SIGINT, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A pseudo terminal of 80 columns; what is written to it is gathered."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self._pieces: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return b"".join(self._pieces).decode()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def close(self) -> None:
        os.close(self.theirs)
        self._reader.join(PATIENCE)
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._ours, 65536)
            except OSError:  # Linux's word for the other end being closed
                return
            if not piece:
                return
            self._pieces.append(piece)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


@contextmanager
def running(line: CommandLine, terminal: Terminal, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session whose terminal is this one."""
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        # The shell opens the terminal by name, which makes it the session's own: Ctrl-C is typed, not sent.
        ["setsid", "sh", "-c", f'exec "$@" <>{os.ttyname(terminal.theirs)} >&0 2>&0', "sh", *command(line, *arguments)],
        env=environment | {"TERM": "xterm-256color"},
        preexec_fn=listen_to_ctrl_c,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.parametrize(
    "arguments",
    [
        ["triplets", "list"],
        ["triplets", "show", "192.0.2.1", "a@example.net", "u@example.org"],
        ["triplets", "delete", "--all", "--yes"],
        ["decisions"],
        ["entries", "list"],
        ["entries", "remove", "client", "192.0.2.1"],
        ["stats"],
    ],
)
def test_looking_never_makes_a_store(sqlite_line: CommandLine, arguments: list[str]) -> None:
    result = sqlite_line(*arguments)
    path = sqlite_line.config.parent / "greylist.db"
    assert result == (1, "", f"greylist-proxy: {path}: there is no such file (`greylist-proxy serve` makes it)\n")
    assert not path.exists()


def test_a_store_that_root_makes_belongs_to_whom_the_folder_belongs(sqlite_line: CommandLine) -> None:
    folder = sqlite_line.config.parent
    if os.geteuid() == 0:  # anybody else's files are his own anyway
        os.chown(folder, 4711, 4712)
    assert sqlite_line("entries", "add", "client", "192.0.2.1").status == 0
    made, owner = (folder / "greylist.db").stat(), folder.stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (owner.st_uid, owner.st_gid, 0o600)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    line = CommandLine.on(tmp_path, "valkey://127.0.0.1:1/0")
    result = line("entries", "list")
    assert (result.status, result.out) == (1, "")
    assert "127.0.0.1:1" in result.err


def test_a_password_that_can_not_be_read_is_a_matter_of_configuration(tmp_path: Path) -> None:
    line = CommandLine.on(tmp_path, "valkey://127.0.0.1:1/0", store='password_file = "/nonexistent/password"')
    result = line("entries", "list")
    assert (result.status, result.out) == (2, "")
    assert "store.password_file" in result.err


def test_no_configuration(tmp_path: Path) -> None:
    line = CommandLine.on(tmp_path, "sqlite:////nowhere/greylist.db")
    line.config.unlink()
    result = line("stats")
    assert (result.status, result.out) == (2, "")
    assert "can't be read" in result.err


@pytest.mark.parametrize(
    "arguments",
    [["triplets"], ["triplets", "list"], ["triplets", "delete"], ["decisions"], ["entries", "add"], ["stats"]],
)
def test_help_has_a_sentence_and_fits_a_terminal(
    sqlite_line: CommandLine, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = sqlite_line(*arguments, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"usage: greylist-proxy {' '.join(arguments)} " in result.out
    before_examples = result.out.partition("\nexamples:\n")[0]
    assert re.search(r"\n\n[A-Z][^.]*\.\n\n", before_examples)
    assert max(map(len, before_examples.splitlines())) <= 80


def test_a_reader_that_has_had_enough(sqlite_line: CommandLine) -> None:
    sqlite_line.fill([triplet(recipient=f"u{number}@example.org") for number in range(2000)])
    with subprocess.Popen(
        command(sqlite_line, "triplets", "list", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"{")
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(PATIENCE), said) == (0, b"")


@pytest.mark.parametrize("arguments", [("triplets", "list"), ("decisions", "--reasons"), ("check-config",)])
def test_an_output_that_can_not_be_written(sqlite_line: CommandLine, arguments: tuple[str, ...]) -> None:
    sqlite_line.fill([triplet()])
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            command(sqlite_line, *arguments), stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE, check=False
        )
    assert process.returncode == 1
    assert process.stderr == b"greylist-proxy: the output can't be written: No space left on device\n"


def test_reasons_for_nobody(sqlite_line: CommandLine) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = subprocess.run(
            command(sqlite_line, "decisions", "--reasons"),
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "stream", "status", "said"),
    [
        (["entries", "list"], 1, 0, b""),
        (["export"], 1, 0, b"1 triplets, 0 earners, 0 entries\n"),
        (["check-config"], 1, 0, b""),
        (["entries", "list"], 2, 0, b""),
        (["entries", "remove", "client", "192.0.2.1"], 2, 1, b""),
        (["import", "archive", "-"], 0, 1, b"greylist-proxy: -: ends after line 0 "),
    ],
)
def test_streams_that_are_closed(
    sqlite_line: CommandLine, arguments: list[str], stream: int, status: int, said: bytes
) -> None:
    sqlite_line.fill([triplet()])
    process = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {stream}>&-', "sh", *command(sqlite_line, *arguments)],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (process.returncode, process.stderr[: len(said)]) == (status, said)
    assert b"Traceback" not in process.stderr


def test_a_terminal_that_knows_no_utf_8_gets_escapes(sqlite_line: CommandLine) -> None:
    sqlite_line("entries", "add", "client", "192.0.2.1", "--note", "für später")
    process = subprocess.run(
        command(sqlite_line, "entries", "list"),
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert process.stdout.rstrip().endswith(b"f\\xfcr sp\\xe4ter")


@pytest.mark.parametrize(
    ("answer", "status", "left"),
    [("y\n", 0, 0), ("yes\n", 0, 0), ("n\n", 1, 2), ("\n", 1, 2), ("\x04", 1, 2), ("\x03", 130, 2)],
)
def test_deleting_asks_on_a_terminal(
    sqlite_line: CommandLine, terminal: Terminal, answer: str, status: int, left: int
) -> None:
    sqlite_line.fill([triplet(), triplet("198.51.100.0/24")])
    with running(sqlite_line, terminal, "triplets", "delete", "--all") as process:
        wait_until(lambda: "Delete 2 triplets? [y/N] " in terminal.text, "the question")
        terminal.type(answer)
        assert process.wait(PATIENCE) == status
    assert len(sqlite_line("triplets", "list", "--json").objects) == left


def test_a_terminal_gets_colours_and_no_line_that_is_too_long(sqlite_line: CommandLine, terminal: Terminal) -> None:
    sqlite_line.fill([triplet(sender=f"{'x' * 100}\x1b[2J@example.net", age=500)])
    with running(sqlite_line, terminal, "triplets", "list") as process:
        assert process.wait(PATIENCE) == 0
    wait_until(lambda: "may pass now" in terminal.text, "the table")
    assert "\x1b[33mpending\x1b[0m" in terminal.text
    assert "\x1b[2J" not in terminal.text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.text)
    assert max(map(len, plain.splitlines())) <= 80
    assert "\\u001b[2J@example.net" in "".join(plain.split())


def test_ctrl_c_ends_a_command_without_a_traceback(sqlite_line: CommandLine) -> None:
    sqlite_line.fill([triplet(recipient=f"u{number}@example.org") for number in range(2000)])
    with subprocess.Popen(
        command(sqlite_line, "triplets", "list", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=listen_to_ctrl_c,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()  # it is in the middle: the pipe holds less than there is to say
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert (process.wait(PATIENCE), process.stderr.read()) == (130, b"")


def test_who_waits_on_a_terminal_sees_how_far_it_is(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0)
    monkeypatch.setenv("TERM", "xterm-256color")

    async def work() -> None:
        async with Working("counting [x]", 10) as work:
            work.advance(7)
            await asyncio.to_thread(wait_until, lambda: "7" in terminal.text, "the number")

    with os.fdopen(os.dup(terminal.theirs), "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        asyncio.run(work())
    assert "counting [x]" in terminal.text


@pytest.mark.parametrize("is_pipe", [False, True])
def test_a_pager_has_the_terminal_for_itself(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_pipe: bool
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0)  # what is shown at all is shown at once
    monkeypatch.setenv("TERM", "xterm-256color")

    async def work() -> None:
        async with Working("counting"):
            for _ignored in range(3):
                await asyncio.sleep(0)

    with ExitStack() as stack:
        stream = stack.enter_context(os.fdopen(os.dup(terminal.theirs), "w"))
        if is_pipe:
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
        else:
            writing = os.open(tmp_path / "output", os.O_CREAT | os.O_WRONLY)
        monkeypatch.setattr(sys, "stdout", stack.enter_context(os.fdopen(writing, "w")))
        monkeypatch.setattr(sys, "stderr", stream)
        asyncio.run(work())
        print("end", file=stream, flush=True)
    wait_until(lambda: "end" in terminal.text, "the end")
    assert ("counting" in terminal.text) is not is_pipe


def rcpt(proxy: Proxy) -> bytes:
    with Wire(proxy.port) as wire:
        wire.hello()
        wire.ask(b"MAIL FROM:<a@far.test>")
        return wire.ask(b"RCPT TO:<u@here.test>")


def test_with_a_server_at_work(start_proxy: Callable[..., Proxy], sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": "1h"})
    line = CommandLine(proxy.config)
    reply = rcpt(proxy)
    assert reply.startswith(b"450 ")
    ident = reply.rpartition(b"(")[2].rstrip(b")\r\n").decode()
    # The server writes behind, within 100 ms.
    wait_until(lambda: line("decisions", "--id", ident).status == 0, "the decision")
    (decision,) = line("decisions", "--id", ident, "--json").objects
    assert (decision["reason"], decision["recipient"]) == ("new", "u@here.test")
    (found,) = line("triplets", "list", "--json").objects
    assert (found["client"], found["state"]) == ("127.0.0.0/24", "pending")

    assert line("entries", "add", "client", "127.0.0.1").status == 0
    wait_until(lambda: rcpt(proxy).startswith(b"250 "), "the entry to count")
    assert line("entries", "add", "client", "127.0.0.1", "--action", "block").status == 0
    wait_until(lambda: rcpt(proxy).startswith(b"550 "), "the block to count")
    assert line("entries", "remove", "client", "127.0.0.1").status == 0
    wait_until(lambda: rcpt(proxy).startswith(b"450 "), "the entry to be gone")

    assert line("triplets", "delete", "--client", "127.0.0.1", "--yes").status == 0
    rcpt(proxy)
    assert proxy.wait_for("decision", 2, reason="new")[-1]["verdict"] == "defer"
    assert proxy.errors() == []
