# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log: one JSON object a line, on stderr, each with `time` (UTC) and `event`.

Everything is ASCII: what is not is escaped (`\\u001b`), so no input can forge a line, hide text behind
bidirectional controls or reach a terminal as a command.

    listening   addresses            the sockets that are really bound, once at start
    warning     message              a setting outside RFC 6647's advice, a line of a list that does not count
    decision    verdict reason client network sender recipient seconds_left id, key rule would early where there are any
    relay       outcome stage id backend code bytes seconds ...   what became of a transaction behind
    trap        client recipient seconds undo                     a spam trap closed, and the command that opens it
    store       state error kind     the store failed, works again, or was damaged and set aside
    reload      state errors after_restart                        what became of SIGHUP
    error       message traceback    something that should not have happened
    stopping    sessions             how many there are
    stopped     dropped              how many could not be finished in time
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
import traceback
from typing import Any, TextIO


def json_line(value: object) -> str:
    """Return a value as one line of JSON in ASCII; what JSON does not know is written as text."""
    # DEL is the one control character that JSON's ASCII form leaves as it is.
    return json.dumps(value, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")


class Log:
    """Writes events. Losing a line (disk full, reader gone) must not lose mail, so errors are dropped."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr

    def event(self, event: str, **fields: Any) -> None:
        """Write one line. Values that JSON does not know are written as text."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json_line({"time": now, "event": event, **fields})
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    def exception(self, message: str, error: BaseException, **fields: Any) -> None:
        """Write an unexpected exception with its traceback."""
        trace = "".join(traceback.format_exception(error))
        self.event("error", message=message, traceback=trace, **fields)


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
