# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive: all that a store remembers as JSON Lines (https://jsonlines.org), to keep, to move, to look into.

    {"type": "header", "format": "greylist-proxy", "version": 1, "created": 1795556207.5}
    {"type": "triplet", "client": "192.0.2.0/24", "sender": "a@b.example", "recipient": "c@d.example",
     "first_seen": 1795550000.0, "last_used": null}
    {"type": "earner", "earner": "192.0.2.7", "passes": 5, "counted_at": 1795550000.0, "last_used": 1795550000.0}
    {"type": "entry", "kind": "client", "value": "192.0.2.7", "action": "allow", "source": "operator",
     "created": 1795550000.0, "expires": null, "note": "the printer"}
    {"type": "decision", ...}
    {"type": "end", "lines": 5, "sha256": "..."}

each on one line, in this order of types, times in seconds since 1970. The last line tells a whole file from one that
was cut off; its digest is of all bytes before it. A reader refuses a version above its own, an unknown key and an
unknown type: an archive is read as it was meant, or not at all. Decisions are written where asked for, and are not
loaded: they are the log of another store's past.

The file is a stranger's: each line is bounded, each value checked, and an entry's value read by the same rules as one
that is typed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import IO, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from greylist_proxy.lists.entries import EntryError, canonical
from greylist_proxy.policy import Earned, Record, Triplet
from greylist_proxy.store import Action, Allowance, Entry, Item, Kind, Remembered, Source, Store, Wanted
from greylist_proxy.transfer import Loaded, TransferError
from greylist_proxy.transfer.source import Lines, Progress

FORMAT = "greylist-proxy"
VERSION = 1
MAX_LINE = 64 << 10  # bytes; the longest line that is written has three addresses and a note

Time = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4096)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Header(_Line):
    model_config = ConfigDict(extra="ignore")  # what a later version says besides, so that its number can be read

    type: Literal["header"]
    format: Literal["greylist-proxy"]
    version: Annotated[int, Field(ge=1)]


class _Triplet(_Line):
    type: Literal["triplet"]
    client: Text
    sender: Text
    recipient: Text
    first_seen: Time
    last_used: Time | None


class _Earner(_Line):
    type: Literal["earner"]
    earner: Text
    passes: Annotated[int, Field(ge=0, le=2**31)]
    counted_at: Time
    last_used: Time


class _Entry(_Line):
    type: Literal["entry"]
    kind: Kind
    value: Text
    action: Action
    source: Source
    created: Time
    expires: Time | None
    note: Text


class _Decision(_Line):
    model_config = ConfigDict(extra="allow")  # not loaded, so not looked into

    type: Literal["decision"]


class _End(_Line):
    type: Literal["end"]
    lines: int
    sha256: str


_HEADER = TypeAdapter(_Header)
_BODY: TypeAdapter[_Triplet | _Earner | _Entry | _Decision | _End] = TypeAdapter(
    Annotated[_Triplet | _Earner | _Entry | _Decision | _End, Field(discriminator="type")]
)


class Writer:
    """Writes an archive into a binary file, and counts what it wrote; `progress` is told of each line."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, progress: Progress | None = None) -> None:
        self._file = file
        self._progress = progress
        self._digest = hashlib.sha256()
        self._lines = 0
        self.counts = {"triplets": 0, "earners": 0, "entries": 0, "decisions": 0}

    async def write(self, store: Store, now: float, *, decisions: bool) -> None:
        """Write all that the store gives. StoreError, OSError: what is written then has no end mark."""
        self._line({"type": "header", "format": FORMAT, "version": VERSION, "created": now})
        async for remembered in store.triplets(Wanted()):
            self._line({"type": "triplet", **remembered.triplet._asdict(), **asdict(remembered.record)}, "triplets")
        async for allowance in store.allowances(Wanted()):
            self._line({"type": "earner", "earner": allowance.earner, **asdict(allowance.earned)}, "earners")
        async for entry in store.entries():
            self._line({"type": "entry", **asdict(entry)}, "entries")
        if decisions:
            async for decision in store.decisions(Wanted()):
                self._line({"type": "decision", **asdict(decision)}, "decisions")
        self._line({"type": "end", "lines": self._lines, "sha256": self._digest.hexdigest()})

    def _line(self, value: dict[str, Any], counted: str = "") -> None:
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        self._file.write(line)
        self._digest.update(line)
        self._lines += 1
        if counted:
            self.counts[counted] += 1
        if self._progress:
            self._progress(1)


def read(lines: Lines, name: str, into: Loaded) -> Iterator[Item]:
    """Give what an archive holds, until its end mark. TransferError: `name`, the line, and what is wrong with it."""
    digest = hashlib.sha256()
    number = 0
    for number, line in lines:
        where = f"{name}: line {number}"
        if line is None:
            raise TransferError(f"{where} is longer than {MAX_LINE} bytes")
        if number == 1:
            _check_header(line, where)
        else:
            parsed = _parse(line, where)
            if isinstance(parsed, _End):
                if parsed.lines != number - 1 or parsed.sha256 != digest.hexdigest():
                    raise TransferError(
                        f"{where}: the file was changed after it was written, its digest does not match"
                    )
                if next(lines, None) is not None:
                    raise TransferError(f"{where}: something follows the end mark")
                return
            if isinstance(parsed, _Decision):
                into.left_out["decisions are a log, and stay where they were made"] += 1
            else:
                yield _item(parsed, where)
        digest.update(line)
    raise TransferError(f"{name}: ends after line {number} without its end mark: it was cut off")


def _check_header(line: bytes, where: str) -> None:
    try:
        header = _HEADER.validate_json(line)
    except ValidationError as error:
        raise TransferError(f"{where}: this is no archive of {FORMAT}") from error
    if header.version > VERSION:
        raise TransferError(
            f"{where}: the archive is of version {header.version}, this program reads up to {VERSION}: "
            "use the release that wrote it, or a later one"
        )


def _parse(line: bytes, where: str) -> _Triplet | _Earner | _Entry | _Decision | _End:
    try:
        return _BODY.validate_json(line)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # Keys are the file's own words: as JSON in ASCII they are one line, and nothing that a terminal obeys.
        place = json.dumps(".".join(str(part) for part in detail["loc"]))[:80]
        raise TransferError(f"{where} is damaged: {place}: {ascii(detail['msg'])[1:-1][:200]}") from error


def _item(parsed: _Triplet | _Earner | _Entry, where: str) -> Item:
    if isinstance(parsed, _Triplet):
        triplet = Triplet(parsed.client, parsed.sender, parsed.recipient)
        return Remembered(triplet, Record(parsed.first_seen, parsed.last_used))
    if isinstance(parsed, _Earner):
        return Allowance(parsed.earner, Earned(parsed.passes, parsed.counted_at, parsed.last_used))
    try:
        value = canonical(parsed.kind, parsed.value)
    except EntryError as error:
        raise TransferError(f"{where}: {error}") from error
    return Entry(parsed.kind, value, parsed.action, parsed.source, parsed.created, parsed.expires, parsed.note)
