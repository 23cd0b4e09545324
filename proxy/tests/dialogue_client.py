# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client that holds a dialogue with a server, and says where the server says something else.

What every reply must obey is checked too: lines end in CRLF, have one code (RFC 5321 section 4.2.1), and an enhanced
status code of the same class, where they have one (RFC 2034 section 4).
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from typing import Protocol

from .dialogues import Dialogue, Step, reply_pattern, shown, text_pattern, wire

ENHANCED = re.compile(rb"([245])\.\d{1,3}\.\d{1,3}(?: |$)")
CLOCKS = 0.01  # seconds that two clocks may differ by
MOST_PIECES = 400  # that one packet is cut into


class Difference(AssertionError):
    """The server did something else than the file says."""

    def __init__(self, dialogue: Dialogue, step: Step, got: str, transcript: list[str]) -> None:
        expected = f"{step.kind}{':' if step.text else ''} {step.text}".strip()
        self.line = f"{dialogue.name}.txt:{step.number}: expected {expected!r}, got {got}"
        super().__init__("\n".join([self.line, f"  ({dialogue.summary})", *(f"    {each}" for each in transcript)]))


class Server(Protocol):
    """What a dialogue is held with."""

    is_own: bool  # this program, so that everything is checked
    timeout: float  # seconds for anything

    def connect(self, place: str) -> socket.socket: ...
    def prepare(self, stream: Stream) -> list[bytes]: ...
    def mapped(self, text: str) -> str: ...
    def stop(self) -> None: ...
    def check_backend(self, patterns: list[re.Pattern[bytes]]) -> str: ...
    def check_log(self, text: str) -> str: ...


class Stream:
    """One connection, read reply by reply."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        connection.settimeout(timeout)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._buffer = b""

    def send(self, data: bytes, pieces: bool = False) -> None:
        """Send, in pieces if need be. A server that is gone shows when its reply is read."""
        size = len(data) // MOST_PIECES + 1 if pieces else len(data)
        with contextlib.suppress(OSError):
            for start in range(0, len(data), size or 1):
                self._socket.sendall(data[start : start + size])

    def reply(self) -> tuple[list[bytes], str]:
        """Read one reply: its lines, and what is wrong with it ("": nothing)."""
        lines: list[bytes] = []
        while not lines or lines[-1][3:4] == b"-":
            line = self._line()
            if not line:
                return lines, "the end of the connection"
            if not line.endswith(b"\r\n"):
                return [*lines, line], f"a line that does not end in CRLF: {shown(line)}"
            lines.append(line[:-2])
            if not re.fullmatch(rb"[2-5]\d\d[ -][^\r\n\0]*|[2-5]\d\d", lines[-1]):
                return lines, f"no reply: {shown(line)}"
            if lines[-1][:3] != lines[0][:3]:
                return lines, f"a reply with two codes: {shown(lines[0])} and {shown(lines[-1])}"
            enhanced = ENHANCED.match(lines[-1][4:])
            if enhanced and enhanced[1] != line[:1]:
                return lines, f"an enhanced status code of another class: {shown(line)}"
        return lines, ""

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            data = self._receive()
            if not data:
                break
            self._buffer += data
        end = self._buffer.find(b"\n") + 1 or len(self._buffer)
        line, self._buffer = self._buffer[:end], self._buffer[end:]
        return line

    def _receive(self) -> bytes:
        # A connection that is reset has ended, too.
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return self._socket.recv(1 << 16)
        return b""

    def rest(self) -> bytes:
        """Read to the end of the connection. TimeoutError: it does not end."""
        data, self._buffer = self._buffer, b""
        while piece := self._receive():
            data += piece
        return data

    def start_tls(self) -> str:
        """Do the handshake; return what is wrong."""
        if self._buffer:
            return f"bytes before the handshake: {shown(self._buffer)}"
        context = ssl.create_default_context()
        context.check_hostname = False  # what is tested is SMTP, not the certificate
        context.verify_mode = ssl.CERT_NONE
        try:
            self._socket = context.wrap_socket(self._socket)
        except OSError as error:
            return f"no handshake: {error}"
        return ""

    def half_close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


class Conversation:
    """Holds one dialogue with a server. `pieces`: the client's bytes come in small pieces."""

    def __init__(self, dialogue: Dialogue, server: Server, *, pieces: bool = False) -> None:
        self._dialogue = dialogue
        self._server = server
        self._pieces = pieces
        self._streams: list[Stream] = []
        self._greeting: list[bytes] = []  # read before the dialogue began
        self._unsent = b""
        self._sent_at = 0.0
        self._patience = 0.0  # what the next reply may not come before
        self._reply: list[bytes] = []
        self._backend: list[re.Pattern[bytes]] = []
        self._transcript: list[str] = []

    def run(self) -> None:
        """Raise Difference where the server differs."""
        try:
            self._connect("")
            for step, following in zip(self._dialogue.steps, [*self._dialogue.steps[1:], None], strict=True):
                if step.kind not in ("C", "C+"):
                    self._flush()
                self._do(step, following)
            self._flush()
        finally:
            for stream in self._streams:
                stream.close()

    def _do(self, step: Step, following: Step | None) -> None:
        text = self._server.mapped(step.text)
        try:
            wrong = getattr(self, f"_do_{step.kind.replace('+', '_more').replace('-', '_').lower()}")(text)
            if step.kind == "B" and (following is None or following.kind != "B"):
                wrong = self._server.check_backend(self._backend)
                self._backend = []
        except TimeoutError:
            wrong = f"nothing for {self._server.timeout:g} seconds"
        if wrong:
            raise Difference(self._dialogue, step, wrong, self._transcript)

    def _connect(self, place: str) -> None:
        self._sent_at = time.monotonic()
        stream = Stream(self._server.connect(place), self._server.timeout)
        self._streams.append(stream)
        self._greeting = self._server.prepare(stream)

    def _flush(self) -> None:
        data, self._unsent = self._unsent, b""
        if data:
            self._transcript += [f"C: {shown(line)}" for line in re.findall(rb"[^\n]*\n|[^\n]+", data)[:50]]
            self._sent_at = time.monotonic()
            self._streams[-1].send(data, self._pieces)

    # -- the client --

    def _do_c(self, text: str) -> None:
        self._unsent += wire(text) + b"\r\n"

    def _do_c_more(self, text: str) -> None:
        self._unsent += wire(text)

    def _do_tls(self, _ignored: str) -> str:
        return self._streams[-1].start_tls()

    def _do_leave(self, _ignored: str) -> None:
        self._streams[-1].close()

    def _do_half_close(self, _ignored: str) -> None:
        self._streams[-1].half_close()

    def _do_connect(self, place: str) -> None:
        self._connect(place)

    def _do_reconnect(self, place: str) -> None:
        self._streams[-1].close()
        self._connect(place)

    def _do_again(self, place: str) -> None:
        """Wait until the greylist's delay, which began before the last reply, is over."""
        self._streams[-1].close()
        time.sleep(float(self._dialogue.settings["greylist"]["delay"]) + 0.05)
        self._connect(place)

    def _do_after(self, text: str) -> None:
        self._patience = float(text.removesuffix("s"))

    def _do_stop(self, _ignored: str) -> None:
        self._server.stop()

    # -- what is expected --

    def _do_s(self, text: str) -> str:
        patience, self._patience = self._patience, 0.0
        if self._greeting:
            self._reply, self._greeting = self._greeting, []
            return self._differs(text)
        self._reply, wrong = self._streams[-1].reply()
        waited = time.monotonic() - self._sent_at
        self._transcript += [f"S: {shown(line)}" for line in self._reply]
        if waited < patience - CLOCKS:
            wrong = wrong or f"a reply after {waited:.2f} seconds: {self._heard()}"
        return wrong or self._differs(text)

    def _do_ours(self, text: str) -> str:
        return self._differs(text) if self._server.is_own else ""

    def _differs(self, text: str) -> str:
        joined = self._reply[0][:3] + b" " + b" / ".join(line[4:] for line in self._reply)
        return "" if reply_pattern(text).fullmatch(joined.rstrip()) else self._heard()

    def _heard(self) -> str:
        return repr(" / ".join(shown(line) for line in self._reply))

    def _has(self, text: str) -> bool:
        pattern = re.compile(text_pattern(text).pattern, re.DOTALL | re.IGNORECASE)
        return any(pattern.fullmatch(line[4:]) for line in self._reply)

    def _do_has(self, text: str) -> str:
        return "" if self._has(text) else self._heard()

    def _do_lacks(self, text: str) -> str:
        return self._heard() if self._has(text) else ""

    def _do_close(self, _ignored: str) -> str:
        data = self._streams[-1].rest()
        self._transcript.append("(the server closed)")
        return shown(data)

    def _do_b(self, text: str) -> None:
        if text != "nothing":
            self._backend.append(text_pattern(text))

    def _do_l(self, text: str) -> str:
        return self._server.check_log(text)
