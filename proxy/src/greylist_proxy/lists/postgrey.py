# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List files: postgrey's whitelist_clients and whitelist_recipients as they are, and files of spam traps.

One rule a line, `#` begins a comment, case does not matter.

    clients        example.net             the name and all below it (only when forward-confirmed)
                   /^mx[0-9]+\\.example$/    a regular expression on the name
                   192.0.2.1  192.0.2.0/24  192.0.2  10  2001:db8::/32
    recipients     example.org             the domain and all below it
                   user@example.org  user@  also with +extension
                   /^info-.*@/             a regular expression on the address
    traps          as recipients, without regular expressions

A line that can't be read costs itself, not the file: it becomes a warning that names file and line, says what is wrong,
and what to do. A file that can't be read at all is an error, because an allow-list that silently
went missing is mail that is late. Where postgrey differs: its two-part networks (192.168) are taken as /16 as
its documentation has them, one-part ones as /8, and regular expressions are Python's.

A folder stands for every file in it whose name begins with whitelist_clients or whitelist_recipients, backups
left out, so that `/etc/postgrey` can be named as it is.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from greylist_proxy.lists import ListError
from greylist_proxy.lists.entries import EntryError, Network, canonical, client, mailbox, network, quoted
from greylist_proxy.lists.tables import Mailboxes, PatternError, Patterns, Tables
from greylist_proxy.store import Kind

CLIENTS, RECIPIENTS = "whitelist_clients", "whitelist_recipients"  # how the names of a folder's files begin
MAX_FILE_SIZE = 64 << 20  # bytes: two million long lines
MAX_LINE = 1024  # characters; no rule is longer
MAX_WARNINGS = 100  # a file of something else would make one of each line
LEFT_OUT = re.compile(r"~$|\.bak$|\.orig$|\.sw.$|\.dpkg-|\.ucf-|\.rpm(?:new|save|orig)$")
PARTIAL = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){0,2}\.?")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files hold. Each rule is called by its file's name and line, such as `whitelist_clients:12`."""

    tables: Tables = field(default_factory=Tables)
    traps: Mailboxes = field(default_factory=Mailboxes)
    warnings: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many rules there are, by kind."""
        tables = self.tables
        return {
            "clients": len(tables.networks) + len(tables.names) + len(tables.name_patterns),
            "recipients": len(tables.recipients) + len(tables.recipient_patterns),
            "traps": len(self.traps),
        }


def load(clients: Iterable[Path], recipients: Iterable[Path], traps: Iterable[Path]) -> Loaded:
    """Read all files. ListError: some can't be read. Takes seconds where there are a million lines."""
    reader = _Reader()
    tables, trap_table = reader.loaded.tables, reader.loaded.traps
    reader.read(clients, CLIENTS, lambda line, rule: _client(tables, line, rule))
    reader.read(recipients, RECIPIENTS, lambda line, rule: _recipient(tables, line, rule))
    reader.read(traps, "", lambda line, rule: trap_table.add(mailbox(Kind.TRAP, line), rule))
    return reader.finish()


def entries(clients: Iterable[Path], recipients: Iterable[Path]) -> tuple[list[tuple[Kind, str, str]], list[str]]:
    """Return the rules as entries are written (kind, value, the rule's name), and warnings. ListError as `load`.

    A regular expression can't be an entry, and costs a warning.
    """
    reader = _Reader()
    found: list[tuple[Kind, str, str]] = []

    def take(kind: Kind, line: str, rule: str) -> None:
        if line.startswith("/"):
            raise PatternError(
                f"{quoted(line)}: no entry can be a regular expression; name the file in [allow] instead"
            )
        value = str(_network_or_name(line)) if kind is Kind.CLIENT else line
        found.append((kind, canonical(kind, value), rule))

    reader.read(clients, CLIENTS, lambda line, rule: take(Kind.CLIENT, line, rule))
    reader.read(recipients, RECIPIENTS, lambda line, rule: take(Kind.RECIPIENT, line, rule))
    return found, reader.finish().warnings


class _Reader:
    """Reads file after file, and gathers what is wrong with them."""

    def __init__(self) -> None:
        self.loaded = Loaded()
        self._errors: list[str] = []
        self._untold = 0

    def read(self, paths: Iterable[Path], prefix: str, take: Callable[[str, str], None]) -> None:
        """Give each line, with what it is to be called, to `take`; a folder's files begin with `prefix`, if any."""
        for path in paths:
            try:
                for file in _files(path, prefix):
                    for number, line in _lines(file):
                        try:
                            take(_checked(line), f"{file.name}:{number}")
                        except (EntryError, PatternError) as problem:
                            self._warn(f"{file}:{number}: {problem}; the line does not count")
            except OSError as error:
                self._errors.append(f"{path}: can't be read: {error.strerror}")
            except ListError as error:
                self._errors += error.lines

    def finish(self) -> Loaded:
        """Return what was read. ListError: not everything could be."""
        if self._errors:
            raise ListError(self._errors)
        if self._untold:
            self.loaded.warnings.append(f"list files: {self._untold} more lines do not count")
        return self.loaded

    def _warn(self, sentence: str) -> None:
        if len(self.loaded.warnings) < MAX_WARNINGS:
            self.loaded.warnings.append(sentence)
        else:
            self._untold += 1


def _client(tables: Tables, line: str, rule: str) -> None:
    if _pattern(tables.name_patterns, line, rule):
        return
    found = _network_or_name(line)
    if isinstance(found, str):
        tables.names.add(found, rule)
    else:
        tables.networks.add(found, rule)


def _network_or_name(line: str) -> Network | str:
    if PARTIAL.fullmatch(line):
        octets = line.removesuffix(".").split(".")
        line = f"{'.'.join(octets + ['0'] * (4 - len(octets)))}/{8 * len(octets)}"
    return network(line, host_bits=True) if "/" in line or ":" in line else client(line)


def _recipient(tables: Tables, line: str, rule: str) -> None:
    if not _pattern(tables.recipient_patterns, line, rule):
        tables.recipients.add(mailbox(Kind.RECIPIENT, line), rule)


def _pattern(patterns: Patterns, line: str, rule: str) -> bool:
    if not line.startswith("/"):
        return False
    if len(line) < 3 or not line.endswith("/"):
        raise PatternError(f"{quoted(line)}: a regular expression stands between two slashes, such as /^mx[0-9]+[.]/")
    try:
        patterns.add(line[1:-1], rule)
    except PatternError as error:
        raise PatternError(f"{quoted(line)}: {error}") from error
    return True


def _checked(line: str) -> str:
    if len(line) > MAX_LINE:
        raise EntryError(f"{quoted(line)}: longer than {MAX_LINE} characters, which no rule is")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in line.replace("\t", " ")):
        raise EntryError(f"{quoted(line)}: has control characters; remove them")
    if len(line.split()) > 1:
        raise EntryError(f"{quoted(line)}: more than one word; write one rule a line, and comments after a #")
    return line


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines that say something, with their numbers. Bytes that are not UTF-8 spoil only their own line."""
    # Looked at before it is opened: that would wait for ever on a pipe. /dev/zero never ends.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ListError([f"{path}: not a file; allowed is a regular file"])
    with path.open("rb") as file:
        data = file.read(MAX_FILE_SIZE + 1)
    if len(data) > MAX_FILE_SIZE:
        raise ListError([f"{path}: larger than {MAX_FILE_SIZE} bytes; split it, or drop what is not needed"])
    for number, raw in enumerate(io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")), start=1):
        line = raw.partition(b"#")[0].strip()
        if line:
            yield number, line.decode("utf-8", "surrogateescape")


def _files(path: Path, prefix: str) -> list[Path]:
    if not (prefix and path.is_dir()):
        return [path]
    found = sorted(
        file
        for file in path.iterdir()
        if file.name.startswith(prefix) and not LEFT_OUT.search(file.name) and not file.is_dir()
    )
    if not found:
        raise ListError([f"{path}: no file in this folder has a name that begins with {prefix}"])
    return found
