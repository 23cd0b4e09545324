# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What postgrey remembers (1.2x to 1.37): two Berkeley DB B-trees in /var/lib/postgrey.

    postgrey.db            "192.0.2.0/sender/recipient" -> "first,last", all lower-cased, seconds since 1970
    postgrey_clients.db    "192.0.2.7" -> "count,last", the clients' automatic allow-list

The files are read through `db_dump` of Berkeley DB (Debian: db5.3-util), or from texts that it wrote elsewhere, plain
or `-p`. Python has no reader, and one of our own for thirty years of page types would be a risk for nothing.

What is taken over:

- A triplet is *known* where last - first >= postgrey's delay: that is by what postgrey lets it pass, and remembers
  nothing else. Any other one is pending since `first`.
- A client's count means the same as here: passed triplets, at most one an hour.

What is not: the case of senders' local parts, and the numbers in them that postgrey put `#` for. Senders that are not
written in lower case, or have a number that `address_key` keeps, are greylisted once more. Keys of `--privacy` are
digests; nothing can be made of them.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from greylist_proxy.client import identify
from greylist_proxy.normalise import address_key, recipient_key
from greylist_proxy.policy import Earned, Record, Triplet
from greylist_proxy.store import Allowance, Item, Remembered
from greylist_proxy.transfer import Loaded, TransferError
from greylist_proxy.transfer.source import opened

FILES = ("postgrey.db", "postgrey_clients.db")
LOCK = "postgrey.lock"
DUMPERS = ("db5.3_dump", "db_dump")  # as Debian calls it, and everybody else
MAX_LINE = 16 << 10  # bytes; postgrey cuts attributes to 512, and the dump doubles each byte
BTREE_MAGIC = 0x053162  # at byte 12 of the file, in its writer's byte order

# The network, or an address with its length (`--lookup-by-host`); the sender, up to the first slash after its domain;
# the recipient. Local parts may have slashes, domains don't.
KEY = re.compile(
    r"([0-9a-f.:]{2,45})(?:/(32|128))?/((?:[^@]{1,256}@[^@/]{1,255})?)/([^@]{1,256}@[^@/]{1,255}|postmaster)"
)
CLIENT = re.compile(r"[0-9A-Fa-f.:]{2,45}")
DIGEST = re.compile(r"[0-9a-f]{40}")
VALUE = re.compile(r"([0-9]{1,11}),([0-9]{1,11})(?:,.*)?", re.DOTALL)
ESCAPE = re.compile(rb"\\(\\|[0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Settings:
    """How postgrey was run (`delay` in seconds, `--ipv4cidr`, `--ipv6cidr`), and the prefixes of our own networks."""

    delay: float = 300
    ipv4_cidr: int = 24
    ipv6_cidr: int = 64
    ipv4_prefix: int = 24
    ipv6_prefix: int = 64


def files(path: Path) -> list[Path]:
    """Return the files to read: the ones given, or the databases of a folder. TransferError: none, or postgrey runs."""
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return [path]
        names = {file.name for file in path.iterdir()}
    except OSError as error:
        raise TransferError(f"{path}: can't be read: {error.strerror}") from error
    _check_stopped(path / LOCK)
    found = [path / name for name in FILES if name in names]
    if not found:
        raise TransferError(f"{path}: neither {FILES[0]} nor {FILES[1]} is in this folder")
    return found


def read(path: Path, settings: Settings, into: Loaded) -> Iterator[Item]:
    """Give what one file holds; what can't be used is counted in `into.left_out`. TransferError: can't be read."""
    with _dump(path) as lines:
        for key, value in _pairs(lines, str(path)):
            item = _item(key, value, settings)
            if isinstance(item, str):
                into.left_out[item] += 1
            else:
                yield item


def _item(key: bytes, value: bytes, settings: Settings) -> Item | str:
    """Make an item of a pair, or say why that can't be."""
    name = key.decode("latin-1")
    times = VALUE.fullmatch(value.decode("latin-1"))
    if DIGEST.fullmatch(name):
        raise TransferError(
            "postgrey ran with --privacy: its keys are digests, from which no triplet can be read. Nothing is lost by "
            "starting anew but one delay for each triplet"
        )
    if times is None:
        return "not postgrey's value"
    first, last = float(times[1]), float(times[2])
    try:
        if match := KEY.fullmatch(name):
            return _triplet(match, first, last, settings)
        if CLIENT.fullmatch(name):
            client = identify(name, 32, 128)
            return Allowance(str(client.address), Earned(int(first), last, last))
    except ValueError:
        pass
    return "not postgrey's key"


def _triplet(match: re.Match[str], first: float, last: float, settings: Settings) -> Item | str:
    address, host, sender, recipient = match.groups()
    client = identify(address, settings.ipv4_prefix, settings.ipv6_prefix)
    is_v4 = client.address.version == 4
    kept = int(host or (settings.ipv4_cidr if is_v4 else settings.ipv6_cidr))
    if kept < (settings.ipv4_prefix if is_v4 else settings.ipv6_prefix):
        return "postgrey's networks are larger than ours"
    is_known = last - first >= settings.delay
    triplet = Triplet(client.network, address_key(sender), recipient_key(recipient))
    return Remembered(triplet, Record(first, last if is_known else None))


def _pairs(lines: Iterable[bytes | None], name: str) -> Iterator[tuple[bytes, bytes]]:
    """Read the text of db_dump: a header, then keys and values by turns, each after a blank. TransferError: none."""
    is_printable = in_data = False
    key: bytes | None = None
    for number, line in enumerate(lines, start=1):
        where = f"{name}: line {number} of the dump"
        if line is None:
            raise TransferError(f"{where} is longer than {MAX_LINE} bytes")
        text = line.rstrip(b"\r\n")
        if number == 1 and text != b"VERSION=3":
            raise TransferError(f"{name}: neither a Berkeley DB file nor the text of db_dump")
        if not in_data:
            if text in (b"type=hash", b"type=recno", b"type=queue"):
                raise TransferError(f"{where}: postgrey's databases are B-trees, this is {text.decode()}")
            is_printable |= text == b"format=print"
            in_data = text == b"HEADER=END"
        elif text == b"DATA=END":
            if key is not None:
                raise TransferError(f"{where}: a key without a value")
            return
        elif not text.startswith(b" "):
            raise TransferError(f"{where} begins without a blank")
        else:
            part = _unescaped(text[1:], is_printable=is_printable, where=where)
            if key is None:
                key = part
            else:
                yield key, part
                key = None
    raise TransferError(f"{name}: the dump ends without DATA=END: it was cut off")


def _unescaped(text: bytes, *, is_printable: bool, where: str) -> bytes:
    if is_printable:
        return ESCAPE.sub(lambda match: b"\\" if match[1] == b"\\" else bytes.fromhex(match[1].decode()), text)
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError as error:
        raise TransferError(f"{where} is not hexadecimal") from error


@contextmanager
def _dump(path: Path) -> Iterator[Iterator[bytes | None]]:
    if not _is_database(path):
        # `opened` has nothing to clean up but the file, which its own `with` closes.
        # pylint: disable-next=contextmanager-generator-missing-cleanup
        with opened(str(path), MAX_LINE) as lines:
            yield (line for _number, line in lines)
        return
    _check_stopped(path.parent / LOCK)
    program = next(filter(None, map(shutil.which, DUMPERS)), None)
    if program is None:
        raise TransferError(
            f"{path}: db_dump of Berkeley DB is needed to read it (Debian: apt install db5.3-util), or run "
            f"`db_dump -p {path.name} > {path.stem}.txt` where postgrey ran, and import the text"
        )
    with tempfile.TemporaryFile() as errors:
        # Not in the file's folder: there it would join postgrey's environment, and might write to it.
        process = subprocess.Popen(  # noqa: S603 - a list, and the path is absolute: no shell, no option
            [program, "-p", str(path.absolute())],
            cwd="/",
            env={"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        with process:
            try:
                yield _dumped(process, errors, path)
            finally:
                process.kill()  # where the reader has had enough; one that has ended is left alone


def _dumped(process: subprocess.Popen[bytes], errors: IO[bytes], path: Path) -> Iterator[bytes | None]:
    while process.stdout and (line := process.stdout.readline(MAX_LINE + 1)):
        yield line if len(line) <= MAX_LINE else None
    if process.wait() != 0:
        errors.seek(0)
        said = errors.read(1000).decode("utf-8", "replace").strip()
        raise TransferError(f"{path}: db_dump can't read it: {ascii(said)[1:-1]}")


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise TransferError(f"{path}: can't be read: {error.strerror}") from error
    return len(head) == 16 and BTREE_MAGIC in (*struct.unpack("<I", head[12:]), *struct.unpack(">I", head[12:]))


def _check_stopped(lock: Path) -> None:
    """TransferError: postgrey holds its lock. What it has not written yet would be missing."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TransferError(
            f"{lock.parent}: postgrey is running there, and has not written everything: stop it first"
        ) from error
    except OSError:
        return  # no lock, no postgrey; or a file system without locks
