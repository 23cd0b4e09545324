# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a mail server behind can do (RFC 5321 section 4.1.1.1), and what a client may therefore be promised.

A client is answered before any backend is asked, so the promise is made from the last known answers: only what
every backend offered. They are kept in a file, so that a restart while a backend is down promises nothing else than
before. The file is a memory, not a configuration: if it is missing, damaged or tampered with, nothing is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

MAX_FILE = 1 << 20  # bytes; a few hundred for each host is what we write
MAX_WORD = 64  # octets of an XCLIENT attribute that are worth keeping
XCLIENT_WORD = re.compile(r"[A-Z0-9][A-Z0-9_-]*")
# What `backend.capabilities` may name: the extensions that are passed on (GREYLISTING, rule 10).
PASSED_ON = frozenset({"SIZE", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES", "PIPELINING"})


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an EHLO reply offers. `size` is in octets, 0 where SIZE is offered without a limit, None where it is not.

    `xclient` are the attributes that the XCLIENT line names, in upper case and in its order.
    """

    size: int | None = None
    eightbitmime: bool = False
    smtputf8: bool = False
    dsn: bool = False
    enhancedstatuscodes: bool = False
    pipelining: bool = False
    starttls: bool = False
    xclient: tuple[str, ...] = ()

    @classmethod
    def of(cls, lines: Sequence[bytes]) -> Capabilities:
        """Read the lines of an EHLO reply after the first. What is not known here is left out."""
        offered = {}
        for line in lines:
            keyword, _ignored, value = line.decode("ascii", "replace").strip().partition(" ")
            offered[keyword.upper()] = value.strip()
        return cls(
            size=_size(offered.get("SIZE")),
            eightbitmime="8BITMIME" in offered,
            smtputf8="SMTPUTF8" in offered,
            dsn="DSN" in offered,
            enhancedstatuscodes="ENHANCEDSTATUSCODES" in offered,
            pipelining="PIPELINING" in offered,
            starttls="STARTTLS" in offered,
            xclient=_attributes(offered.get("XCLIENT", "").upper().split()),
        )

    @classmethod
    def configured(cls, words: Sequence[str]) -> Capabilities:
        """Make what `backend.capabilities` says, such as `["SIZE 36700160", "8BITMIME"]`.

        ValueError: a word that is not passed on, or a SIZE that is no number.
        """
        for word in words:
            keyword, _ignored, value = word.partition(" ")
            if keyword.upper() not in PASSED_ON or (value and (keyword.upper() != "SIZE" or not value.isdecimal())):
                raise ValueError(word)
        return cls.of([word.encode("ascii") for word in words])


def intersection(answers: Iterable[Capabilities]) -> Capabilities | None:
    """Return what all of them offer; None where there is none to ask."""
    known = list(answers)
    if not known:
        return None
    sizes = [each.size for each in known if each.size is not None]
    limits = [size for size in sizes if size]
    return Capabilities(
        size=None if len(sizes) < len(known) else min(limits, default=0),
        eightbitmime=all(each.eightbitmime for each in known),
        smtputf8=all(each.smtputf8 for each in known),
        dsn=all(each.dsn for each in known),
        enhancedstatuscodes=all(each.enhancedstatuscodes for each in known),
        pipelining=all(each.pipelining for each in known),
        starttls=all(each.starttls for each in known),
        xclient=tuple(word for word in known[0].xclient if all(word in each.xclient for each in known)),
    )


class Promises:
    """The last known answer of each host (named as `host:port`), and the file that outlives us; None: memory only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._answers: dict[str, Capabilities] = _load(path) if path is not None else {}

    def learn(self, host: str, answer: Capabilities) -> bool:
        """Note what a host has said; True where that is news, which `save` should keep."""
        if self._answers.get(host) == answer:
            return False
        self._answers[host] = answer
        return True

    def common(self, hosts: Iterable[str]) -> Capabilities | None:
        """Return what all of these hosts offer that have ever answered; None: none has."""
        return intersection(self._answers[host] for host in hosts if host in self._answers)

    def save(self, hosts: Iterable[str]) -> None:
        """Write what is known of these hosts; the others are forgotten. OSError: can't be written.

        The file is replaced as a whole: a reader, be it another worker, sees the old one or the new one.
        """
        if self._path is None:
            return
        known = {host: self._answers[host] for host in hosts if host in self._answers}
        text = json.dumps(
            {host: {f.name: getattr(answer, f.name) for f in fields(answer)} for host, answer in known.items()}
        )
        number, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(number, "w", encoding="ascii") as file:
                file.write(text + "\n")
            Path(name).replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise


def _size(value: str | None) -> int | None:
    if value is None:
        return None
    # RFC 1870 section 3: digits, at most 20; what is none gives no limit that we could keep to.
    return int(value) if value.isdecimal() and value.isascii() and len(value) <= 20 else 0


def _attributes(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if len(word) <= MAX_WORD and XCLIENT_WORD.fullmatch(word)))


def _load(path: Path) -> dict[str, Capabilities]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE + 1)
        hosts = json.loads(text) if len(text) <= MAX_FILE else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(hosts, dict):
        return {}
    read = {host: _read(answer) for host, answer in hosts.items()}
    return {host: answer for host, answer in read.items() if answer is not None}


def _read(answer: Any) -> Capabilities | None:
    """Check what a file says about one host: the right keys, with the right types, or nothing."""
    if not isinstance(answer, dict) or set(answer) != {field.name for field in fields(Capabilities)}:
        return None
    size, xclient = answer["size"], answer["xclient"]
    flags = {key: value for key, value in answer.items() if key not in ("size", "xclient")}
    if not (size is None or (isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 10**20)):
        return None
    if not all(isinstance(flag, bool) for flag in flags.values()):
        return None
    if not (isinstance(xclient, list) and all(isinstance(word, str) for word in xclient)):
        return None
    return Capabilities(size=size, xclient=_attributes(xclient), **flags)
