# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log: one JSON object a line, on stderr, each with `time` (UTC) and `event`.

Everything is ASCII: what is not is escaped (`\\u001b`), so no input can forge a line, hide text behind
bidirectional controls or reach a terminal as a command.

    listening   addresses admin      the sockets that are really bound, once at start
    warning     message              a setting outside an RFC's advice, a line of a list that does not count
    decision    verdict reason client network sender recipient seconds_left id, key rule would early where there are any
    relay       outcome stage id backend code bytes seconds ...   what became of a transaction behind
    backend     backend state error                the host is `down`, `up` again, used `in clear` or `without xclient`
    trap        client recipient seconds undo                     a spam trap closed, and the command that opens it
    connection-refused  client limit  over `max_connections` ("total") or `max_connections_per_client` ("client")
    proxy-header  client error       a peer that must send a PROXY header sent none, or a malformed one
    early-talker  client             it did not wait for the banner
    foreign     client protocol      it speaks HTTP, SSH, TLS without STARTTLS, ...
    tls         client state bytes error    a handshake `failed`, or commands behind STARTTLS were discarded
    normalised  client count         bare CRs and LFs of a message that were made CRLF
    descriptors  state error         file descriptors are `exhausted`, or `available` again
    store       state error kind     the store failed, works again, or was damaged and set aside
    reload      state errors after_restart                        what became of SIGHUP
    worker      state number pid ... one of several processes is ready, ended, or is to be started again
    entry       state by kind value ...   an entry was `put` or `removed` through the control socket
    error       message traceback    something that should not have happened
    suppressed  of client count seconds     that many lines of that event were left out
    log         state lines          that many lines could not be written
    stopping    sessions             how many there are
    stopped     dropped              how many could not be finished in time

Where several processes serve, `worker` in each line says which one. What a client can bring about as often as it likes
is summed up (`Repeats`); decisions and what became of mail are not: they are the record.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii
from typing import Any, Protocol, TextIO

from greylist_proxy.smtp.limits import client_key

# What is told however often it happens: the record, and what no client brings about.
ALWAYS = frozenset(
    {
        "decision",
        "relay",
        "trap",
        "entry",
        "listening",
        "reload",
        "worker",
        "store",
        "log",
        "suppressed",
        "stopping",
        "stopped",
    }
)
BATCHED = frozenset({"decision", "relay"})  # they come by the thousand, and nobody waits to see one, but an alarm

# JSON's ASCII form leaves this one control character as it is.
DEL, ESCAPED_DEL = "\x7f", "\\u007f"

quoted = encode_basestring_ascii  # a text as JSON, but for DEL
_encode = json.JSONEncoder(ensure_ascii=True, default=str).encode


def json_line(value: object) -> str:
    """Return a value as one line of JSON in ASCII; what JSON does not know is written as text."""
    return _encode(value).replace(DEL, ESCAPED_DEL)


def members(fields: Mapping[str, object]) -> str:
    """Return the inside of a JSON object, as `json_line` writes it. Some four times as fast for short texts."""
    text = ", ".join([f"{encode_basestring_ascii(name)}: {_value(value)}" for name, value in fields.items()])
    return text.replace(DEL, ESCAPED_DEL)


def _value(value: object) -> str:
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)
    if value is None:
        return "null"
    if isinstance(value, float) and math.isfinite(value):
        return float.__repr__(value)
    return _encode(value)


class Lines(Protocol):
    """Where lines go."""

    def put(self, line: str, *, urgent: bool) -> None:
        """Take a line without its end. Never raises, and does not wait for a reader."""


class Stream:
    """Writes each line at once, into a stream of text. Losing one must not lose mail, so errors are dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def put(self, line: str, *, urgent: bool) -> None:
        """Write a line."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()


class Repeats:
    """Counts lines of one event about one client, and says which to leave out: those over `MOST` in `WINDOW`.

    A client is an IPv4 address or an IPv6 /64. Over `MAX_KEYS` of them at once, the others count as one.
    """

    WINDOW = 10.0  # seconds, from the first line on
    MOST = 10  # lines
    MAX_KEYS = 1000

    def __init__(self) -> None:
        # In order of their ends, as all windows are equally long: event and client, the end, how many lines.
        self._windows: dict[tuple[str, object], tuple[float, int, str]] = {}

    def count(self, event: str, fields: Mapping[str, Any], now: float) -> bool:
        """Count a line; False: leave it out."""
        key = (event, _subject(fields))
        if key not in self._windows and len(self._windows) >= self.MAX_KEYS:
            key = (event, "")
        client = str(fields.get("client", "")) if key[1] else ""
        end, lines, client = self._windows.get(key, (now + self.WINDOW, 0, client))
        self._windows[key] = (end, lines + 1, client)
        return lines < self.MOST

    def ended(self, now: float) -> list[dict[str, object]]:
        """Forget the windows that have ended, and return the fields of a line for each that had too much in it."""
        found = []
        for key, (end, lines, client) in list(self._windows.items()):
            if end > now:
                break
            del self._windows[key]
            if lines > self.MOST:
                about = {"client": client} if client else {}
                found.append({"of": key[0], **about, "count": lines - self.MOST, "seconds": self.WINDOW})
        return found

    @property
    def has_any(self) -> bool:
        """Tell whether there is a window at all."""
        return bool(self._windows)


def _subject(fields: Mapping[str, Any]) -> object:
    client = fields.get("client")
    if client is None:
        return fields.get("message") or fields.get("backend") or ""
    try:
        return client_key(client)
    except (OSError, TypeError):
        return ""


class Log:
    """Writes events, each with `constant` fields, into a stream at once (stderr, by default) or into `lines`.

    `wall` tells the time in seconds since 1970, `clock` seconds of which only differences count. `on_error` is called
    for each unexpected error.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        lines: Lines | None = None,
        constant: Mapping[str, object] | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._put = (lines or Stream(stream if stream is not None else sys.stderr)).put
        self._end = f", {members(constant)}}}" if constant else "}"
        self._wall = wall
        self._clock = clock
        self._on_error = on_error
        self._repeats = Repeats()
        self._stamp = (-1, "")  # a second since 1970, and how its lines begin

    def event(self, event: str, **fields: Any) -> None:
        """Write one line, or count it where there were too many of its kind. What JSON does not know becomes text."""
        if event not in ALWAYS:
            if event == "error":
                self._on_error()
            self.sum_up()
            if not self._repeats.count(event, fields, self._clock()):
                return
        self._write(event, fields)

    def sum_up(self, *, everything: bool = False) -> None:
        """Say what was left out, of the windows that have ended; to be called now and then, as lines may stop."""
        if self._repeats.has_any:
            for fields in self._repeats.ended(float("inf") if everything else self._clock()):
                self._write("suppressed", fields)

    def exception(self, message: str, error: BaseException, **fields: Any) -> None:
        """Write an unexpected exception with its traceback."""
        trace = "".join(traceback.format_exception(error))
        self.event("error", message=message, traceback=trace, **fields)

    def line(self, event: str, fields: Mapping[str, Any]) -> str:
        """Return a line as it is written, without its end."""
        inside = f", {members(fields)}" if fields else ""
        return f'{self._begin()}"event": {encode_basestring_ascii(event)}{inside}{self._end}'

    def _begin(self) -> str:
        second, part = divmod(int(self._wall() * 1000), 1000)
        stamp = self._stamp
        if second != stamp[0]:
            moment = datetime.datetime.fromtimestamp(second, datetime.UTC)
            self._stamp = stamp = (second, f'{{"time": "{moment:%Y-%m-%dT%H:%M:%S}.')
        return f'{stamp[1]}{part:03}+00:00", '

    def record(self, event: str, inside: str) -> None:
        """Write an event of BATCHED whose fields are put into JSON already, as `members` does it."""
        self._put(f'{self._begin()}"event": "{event}", {inside}{self._end}', urgent=False)

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        self._put(self.line(event, fields), urgent=event not in BATCHED or "level" in fields)


class LogHandler(logging.Handler):
    """Takes what libraries say through `logging` (asyncio, aiosmtpd) into the same log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as an `error` event."""
        error = record.exc_info[1] if record.exc_info else None
        message = f"{record.name}: {record.getMessage()}"
        if error is not None:
            self._log.exception(message, error)
        else:
            self._log.event("error", message=message)
