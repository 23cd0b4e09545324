# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python side of helper.c: asks one question at a time, and never waits for ever.

The protocol is described in helper.c. A helper that died, hangs or answers nonsense is ended, and every
later question gets the same `WineError`: a host without its helper is no host.
"""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, Final

from lab.backend import Win32Error
from lab.windows.programs import WineError

# The first start of a program in a prefix boots Windows: below a second, on a busy machine some.
START_SECONDS: Final = 90.0
# Windows gives a service 30 s to report back, and StartService waits for that.
ANSWER_SECONDS = 60.0
END_SECONDS = 5.0


class Helper:
    """A running helper.exe. Calls come from several threads and are served one after the other."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self._lock = threading.Lock()
        self._log = log
        self._broken: WineError | None = None
        self._received = bytearray()
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A file: Wine's own processes hold it open for as long as they live.
                stderr=stderr,
                # An interrupt from the terminal is for the lab, which ends its hosts in order.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[bytes] = self._process.stdin
        self._stdout: IO[bytes] = self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        with self._lock:
            greeting = self._exchange(b"", START_SECONDS)
            if greeting != "ready":
                raise self._give_up(f"began with {greeting[:200]!r}")

    def ask(self, verb: str, *arguments: int | str | bytes) -> list[str]:
        """Return the words behind "ok"; raise Win32Error where Windows refused."""
        request = " ".join([verb, *map(_word, arguments)])
        with self._lock:
            answer = self._exchange(request.encode("ascii") + b"\n", ANSWER_SECONDS)
            match answer.split(" "):
                case ["ok", *words]:
                    return words
                case ["error", code, call] if code.isdecimal():
                    raise Win32Error(int(code), call)
                case _:
                    raise self._give_up(f"answered {answer[:200]!r} to {verb}")

    def close(self) -> None:
        """End the program, in order where it is able to."""
        with self._lock:
            self._broken = self._broken or WineError("this Wine host was closed")
            self._stdin.close()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._stdout.close()

    def _exchange(self, request: bytes, seconds: float) -> str:
        """Write the request and read one line, both before the deadline."""
        if self._broken:
            raise self._broken
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        if request:
            poll.register(self._stdin, select.POLLOUT)
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._give_up(f"did not answer within {seconds:g} s")
            for descriptor, _ignored in poll.poll(left * 1000):
                if descriptor == self._stdout.fileno():
                    self._receive()
                elif not (request := self._send(request)):
                    poll.unregister(self._stdin)
        line, _newline, self._received = self._received.partition(b"\n")
        return line.decode("ascii", "replace")

    def _send(self, request: bytes) -> bytes:
        try:
            return request[os.write(self._stdin.fileno(), request) :]
        except BrokenPipeError as error:
            raise self._give_up("ended") from error

    def _receive(self) -> None:
        received = os.read(self._stdout.fileno(), 65536)
        if not received:
            raise self._give_up("ended")
        self._received += received

    def _give_up(self, what: str) -> WineError:
        self._process.kill()
        status = self._process.wait()
        said = self._log.read_text("utf-8", "replace")[-500:].strip()
        self._broken = WineError(f"the helper in Wine {what} (status {status}){': ' if said else ''}{said}")
        return self._broken


def _word(argument: int | str | bytes) -> str:
    if isinstance(argument, int):
        return str(argument)
    data = argument if isinstance(argument, bytes) else argument.encode("utf-16-le", "surrogatepass")
    return f"x{data.hex()}"
