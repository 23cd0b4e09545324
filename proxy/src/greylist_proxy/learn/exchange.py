# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exchange's message tracking log (2013 and later): `MSGTRK*.LOG` in TransportRoles\\Logs\\MessageTracking.

CSV in UTF-8, with a mark at its beginning and lines that start with `#`; `#Fields:` names the columns. What they mean
is said in Microsoft's "Message tracking". Each event of a message is a row, and this one says that a message of a user
of ours went out:

    event-id        SEND (SMTP to another server), or SENDEXTERNAL
    source          SMTP
    directionality  Originating: Exchange itself or an authenticated session handed it in. What came in by an
                    anonymous one is Incoming, also where it leaves again (a forward, a mailbox rule)
    return-path     the envelope's sender: `<>` for automatic replies and reports
    sender-address  the header's. Both must be ours: a rule that redirects keeps a stranger's
    recipient-address, recipient-status     lists with semicolons; a status of 4xx or 5xx was no delivery

Automatic mail that has a return path (a room that accepts a meeting) is known by the event before it, in the log of
the submission service (`MSGTRKMS*.LOG`), by `MessageClass` and `ClientType` in its source-context:

    event-id        SUBMIT
    source          STOREDRIVER

so those files are to be read first (`first` sorts them), or what rooms answer to is learned too.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import PurePath

from greylist_proxy.learn import MAX_LINE, Lines, Sent

FIELDS = (
    "event-id",
    "source",
    "directionality",
    "message-id",
    "recipient-address",
    "recipient-status",
    "sender-address",
    "return-path",
    "source-context",
)
SENT = frozenset({"SEND", "SENDEXTERNAL"})
MAX_AUTOMATIC = 200_000  # message-ids of automatic mail that are remembered, the latest

# What a person sends: notes (also signed and encrypted ones), invitations and their cancellation. Reports, answers to
# invitations, and what mailbox rules write (IPM.Note.Rules.*) are not.
BY_HAND = re.compile(
    r"MessageClass: ?IPM\.(?:Note(?!\.Rules)(?:\.[A-Za-z.]*)?|Schedule\.Meeting\.(?:Request|Canceled))(?:,|$)",
    re.IGNORECASE,
)
PROGRAM = re.compile(
    r"ClientType: ?(?:System|Monitoring|Transport|[A-Za-z]*Assistants?|AvailabilityService|HubTransport)\b",
    re.IGNORECASE,
)


def looks_like(line: bytes) -> bool:
    """Tell whether a file that begins with this line is one."""
    return line.removeprefix(b"\xef\xbb\xbf").startswith((b"#Software: Microsoft Exchange", b"#Fields: date-time"))


def first(names: list[str]) -> list[str]:
    """Return the names in the order in which they are to be read."""
    return sorted(names, key=lambda name: not PurePath(name).name.upper().startswith("MSGTRKMS"))


class Reader:
    """Reads files one after the other; `messages` counts what was sent, `unreadable` rows that are none."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        self._automatic: dict[str, None] = {}  # in order, so that the oldest is forgotten
        self.messages = 0
        self.automatic = 0
        self.unreadable = 0

    def read(self, lines: Lines) -> None:
        """Read one file."""
        csv.field_size_limit(MAX_LINE)  # and so ends a quote that nobody closed
        rows = csv.reader(self._text(lines))
        columns: list[int] = []
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                self.unreadable += 1
                continue
            if not row:
                continue
            if row[0].startswith("#"):
                columns = _columns(row) or columns
            elif not columns or len(row) <= max(columns):
                self.unreadable += 1
            else:
                self._event(*(row[column] for column in columns))

    def _text(self, lines: Lines) -> Iterator[str]:
        for line in lines:
            if line is None:
                self.unreadable += 1
            else:
                yield line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")

    def _event(
        self,
        event: str,
        source: str,
        direction: str,
        message: str,
        recipients: str,
        statuses: str,
        sender: str,
        return_path: str,
        context: str,
    ) -> None:
        if event == "SUBMIT" and source == "STOREDRIVER":
            if PROGRAM.search(context) or not BY_HAND.search(context):
                self._automatic[message] = None
                if len(self._automatic) > MAX_AUTOMATIC:
                    del self._automatic[next(iter(self._automatic))]
            return
        if event not in SENT or source != "SMTP" or direction != "Originating":
            return
        self.messages += 1
        if message in self._automatic:
            self.automatic += 1
            return
        addresses = recipients.split(";")
        told = statuses.split(";")
        if len(told) != len(addresses):
            told = [""] * len(addresses)  # an error's text may have semicolons too
        # The envelope's sender is who gets the replies. Where the header names somebody else, let `sent` judge him.
        envelope = "" if return_path == "<>" else return_path
        who = envelope if _same_domain(envelope, sender) else (envelope and sender)
        for address, status in zip(addresses, told, strict=True):
            if not status.startswith(("4", "5")):
                self._sent(who, address, "", message)


def _columns(row: list[str]) -> list[int]:
    """Return where the fields are, in the order of FIELDS; none where this is not the line that names them."""
    names = [row[0].removeprefix("#Fields:").strip(), *row[1:]]
    if not row[0].startswith("#Fields:") or not set(FIELDS) <= set(names):
        return []
    return [names.index(field) for field in FIELDS]


def _same_domain(one: str, other: str) -> bool:
    return one.rpartition("@")[2].lower() == other.rpartition("@")[2].lower()
