# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What dialogues are held with: this program before a mail server by script, or any other server by its address."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .dialogue_client import Stream
from .dialogues import Dialogue, shown, wire
from .peers import CLOSE, DEADLINE, SILENCE, Proxy, ScriptedPeer, wait_until

# A polite backend that offers all that the program can pass on.
BACKEND = {
    "EHLO": "250-peer.test\\r\\n250-PIPELINING\\r\\n250-SIZE 99999999\\r\\n250-8BITMIME\\r\\n250-SMTPUTF8\\r\\n"
    "250-DSN\\r\\n250 ENHANCEDSTATUSCODES",
    "MAIL": "250 2.1.0 sender ok",
    "RCPT": "250 2.1.5 recipient ok",
    "DATA": "354 go on",
    ".": "250 2.0.0 taken",
    "RSET": "250 2.0.0 reset",
    "QUIT": "221 2.0.0 bye",
}
# Greylisting has dialogues of its own; all others are about SMTP, as another server speaks it.
SETTINGS: dict[str, dict[str, Any]] = {"greylist": {"mode": "off"}}
LASTING = frozenset({"connect", "EHLO"})  # what the program remembers of a backend
PATIENCE = 5.0  # seconds for the backend and the log to have what they must


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate of mx.test, and its key."""
    made, key = folder / "certificate.pem", folder / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=mx.test"]
    command = ["openssl", "req", "-x509", "-days", "2", *curve, "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
    return made, key


def program_key(dialogue: Dialogue) -> str:
    """Return what a process must have in common with others to serve this dialogue too."""
    lasting = {point: replies for point, replies in dialogue.backend.items() if point in LASTING}
    # A stop ends the process, and a backend that hangs up may be left alone for a while.
    hangs_up = any("close" in replies or "silence" in replies for replies in dialogue.backend.values())
    name = dialogue.name if dialogue.has("stop") or hangs_up else ""
    return json.dumps([dialogue.settings, dialogue.files, lasting, name])


class Programs:
    """Has the program running with a dialogue's settings, one process at a time: sort dialogues by `program_key`."""

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self._make_folder = make_folder
        self._key = ""
        self._program: Program | None = None

    def ready_for(self, dialogue: Dialogue) -> Program:
        """Return it, with nothing left of earlier dialogues."""
        key = program_key(dialogue)
        if self._program is None or key != self._key:
            self.close()
            self._program, self._key = Program(self._make_folder(), dialogue), key
        self._program.begin(dialogue)
        return self._program

    def close(self) -> None:
        if self._program is not None:
            self._program.close()
            self._program = None


class Program:
    """`greylist-proxy` with the settings of one dialogue, for all that want the same."""

    is_own = True
    timeout = DEADLINE

    def __init__(self, folder: Path, first: Dialogue) -> None:
        self._folder = folder
        self._networks = 0
        self._first = first
        self._peer = ScriptedPeer(_script(first.backend))
        self._proxy: Proxy | None = None
        self._stopped = False
        self._marks = (0, 0, 0, 0)  # where in its memories the peer was, and the log, when the dialogue began

    def begin(self, dialogue: Dialogue) -> None:
        """Get ready for a dialogue: its backend, and a client network of its own."""
        self._peer.replies = _script(dialogue.backend)
        proxy = self._running()
        self._networks += 1
        peer = self._peer
        self._marks = (len(peer.lines), len(peer.messages), len(peer.fragments), len(proxy.events))

    def _running(self) -> Proxy:
        if self._proxy is not None and self._stopped:
            self._proxy.wait()
            self._proxy = None
        if self._proxy is None:
            self._stopped = False
            self._proxy = Proxy(self._folder, [self._peer.port], **self._settings()).start()
            self._await_backend()
        return self._proxy

    def _settings(self) -> dict[str, dict[str, Any]]:
        paths = {}
        for name, lines in self._first.files.items():
            path = self._folder / name
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            paths[name] = str(path)
        if "{certificate}" in json.dumps(self._first.settings):
            paths["certificate"], paths["key"] = map(str, certificate(self._folder))
        settings = {section: dict(keys) for section, keys in SETTINGS.items()}
        for section, keys in self._first.settings.items():
            for key, value in keys.items():
                settings.setdefault(section, {})[key] = _filled(value, paths)
        return settings

    def _await_backend(self) -> None:
        """Wait until it knows what the backend offers, and so offers that itself."""
        if self._first.backend.keys() & LASTING or "proxy_protocol_from" in self._first.settings.get("smtp", {}):
            return
        self._networks += 1

        def offers() -> bool:
            stream = Stream(self.connect(""), self.timeout)
            stream.send(b"EHLO client.test\r\nQUIT\r\n")
            return b"8BITMIME" in stream.rest()

        wait_until(offers, "the backend to be known")

    def connect(self, place: str) -> socket.socket:
        """Connect from a network (/24) that only this dialogue has."""
        assert self._proxy is not None
        network = 2 * self._networks + (place == "from elsewhere")
        source = f"127.{10 + network // 256}.{network % 256}.{2 if place == 'from the neighbour' else 1}"
        return socket.create_connection(("127.0.0.1", self._proxy.port), self.timeout, (source, 0))

    def prepare(self, stream: Stream) -> list[bytes]:
        """Nothing is said before the dialogue."""
        return []

    def mapped(self, text: str) -> str:
        return text

    def stop(self) -> None:
        """Tell it to stop, and wait until it has begun to."""
        assert self._proxy is not None
        self._proxy.process.terminate()
        self._proxy.wait_for("stopping")
        self._stopped = True

    def check_backend(self, patterns: list[re.Pattern[bytes]]) -> str:
        """Return what the backend got, where it is not what is expected."""

        def matches(got: list[bytes]) -> bool:
            return len(got) == len(patterns) and all(
                pattern.fullmatch(line) for pattern, line in zip(patterns, got, strict=True)
            )

        end = time.monotonic() + PATIENCE
        while not matches(got := self._received()):
            if time.monotonic() > end:
                return "the backend received " + ("; ".join(f"B: {shown(line)}" for line in got) or "nothing")
            time.sleep(0.01)
        return ""

    def _received(self) -> list[bytes]:
        """Return the commands of transactions, and after DATA its message, line by line."""
        lines, messages, fragments, _ignored = self._marks
        complete = iter(self._peer.messages[messages:])
        broken = iter(self._peer.fragments[fragments:])
        received: list[bytes] = []
        for line in self._peer.lines[lines:]:
            verb = line.split()[0].upper()
            if verb in (b"MAIL", b"RCPT", b"DATA"):
                received.append(line.removesuffix(b"\r\n"))
            if verb == b"DATA":
                message = next(complete, None)
                if message is not None:
                    received += _unfolded(message).split(b"\r\n")[:-1]
                elif next(broken, None) is not None:
                    received.append(b"(no end)")
        return received

    def check_log(self, text: str) -> str:
        """Wait for a line of the log: `event key=value ...`; return what there is instead."""
        event, *fields = text.split()
        wanted = dict(each.split("=", 1) for each in fields)
        proxy, mark = self._proxy, self._marks[3]
        assert proxy is not None
        end = time.monotonic() + PATIENCE
        while True:
            logged = [each for each in proxy.events[mark:] if each["event"] == event]
            if any(all(str(each.get(key)) == value for key, value in wanted.items()) for each in logged):
                return ""
            if time.monotonic() > end:
                return f"the log has {logged or [each['event'] for each in proxy.events[mark:]]}"
            time.sleep(0.01)

    def errors(self) -> list[dict[str, Any]]:
        """Return what the program logged as its own mistakes since the dialogue began."""
        assert self._proxy is not None
        return [each for each in self._proxy.events[self._marks[3] :] if each["event"] == "error"]

    def close(self) -> None:
        if self._proxy is not None:
            self._proxy.kill()
        self._peer.close()


def _filled(value: Any, paths: dict[str, str]) -> Any:
    """Put the paths of files for their names in braces."""
    if isinstance(value, list):
        return [_filled(each, paths) for each in value]
    return paths.get(value[1:-1], value) if isinstance(value, str) else value


def _unfolded(message: bytes) -> bytes:
    """Put the first header field, which is the program's Received, into one line."""
    field = re.match(rb"Received:[^\r\n]*(?:\r\n[ \t][^\r\n]*)*", message)
    if field is None:
        return message
    return re.sub(rb"\r\n[ \t]+", b" ", field[0]) + message[field.end() :]


def _script(replies: dict[str, list[str]]) -> dict[str, Any]:
    return {point: _reply(point, each) for point, each in ({k: [v] for k, v in BACKEND.items()} | replies).items()}


def _reply(point: str, texts: list[str]) -> Any:
    """Return what a peer says at a point: several replies are said in turn, the last one from then on."""
    words = {"close": CLOSE, "silence": SILENCE}
    if len(texts) == 1:
        return words.get(texts[0], wire(texts[0]) + b"\r\n")
    assert point != "DATA", "the peer can say one thing only at DATA"
    assert not words.keys() & set(texts), "the peer can hang up only for good"
    left = list(texts)
    return lambda: wire(left.pop(0) if len(left) > 1 else left[0]) + b"\r\n"


class Elsewhere:
    """A server by its address: what can be seen of it is what it says."""

    is_own = False

    def __init__(
        self,
        host: str,
        port: int,
        *,
        mapping: dict[str, str] | None = None,
        starttls: bool = False,
        timeout: float = 20.0,
    ) -> None:
        self.timeout = timeout
        self._address = (host, port)
        self._mapping = mapping or {}
        self._starttls = starttls

    def connect(self, place: str) -> socket.socket:
        return socket.create_connection(self._address, self.timeout)

    def prepare(self, stream: Stream) -> list[bytes]:
        """Start TLS, where that is wanted, and return the greeting: the dialogue begins with it."""
        if not self._starttls:
            return []
        greeting, wrong = stream.reply()
        for command in (b"EHLO client.test\r\n", b"STARTTLS\r\n"):
            stream.send(command)
            reply, more = stream.reply()
            wrong = wrong or more
        if not wrong and not reply[0].startswith(b"220"):
            wrong = shown(reply[0])
        wrong = wrong or stream.start_tls()
        if wrong:
            raise OSError(f"STARTTLS: {wrong}")
        return greeting

    def offers(self) -> frozenset[str]:
        """Return the keywords of its reply to EHLO."""
        stream = Stream(self.connect(""), self.timeout)
        try:
            if not self.prepare(stream):
                stream.reply()
            stream.send(b"EHLO client.test\r\n")
            lines, _ignored = stream.reply()
            return frozenset(line[4:].decode("ascii", "replace").split(" ")[0].upper() for line in lines[1:])
        finally:
            stream.close()

    def mapped(self, text: str) -> str:
        """Put the server's own addresses and domains for those of the dialogues."""
        if not self._mapping:
            return text
        names = sorted(self._mapping, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, names)), lambda match: self._mapping[match[0]], text)

    def stop(self) -> None:
        raise AssertionError("another server can't be stopped")

    def check_backend(self, patterns: Iterable[re.Pattern[bytes]]) -> str:
        """Nothing can be seen of what it does with the mail."""
        return ""

    def check_log(self, text: str) -> str:
        raise AssertionError("another server's log can't be read")
