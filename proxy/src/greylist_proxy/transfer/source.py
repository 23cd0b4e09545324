# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are read line by line: by name, `-` for stdin, unpacked where the name ends in `.gz`.

Lines are bounded, so that no file can fill the memory, whatever it unpacks to.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from greylist_proxy.transfer import TransferError

STDIN = "-"
Lines = Iterator[tuple[int, bytes | None]]  # numbers from 1; None is a line that is too long
Progress = Callable[[int], None]  # is told how much was done since the last time; here bytes of the file
TELL_EVERY = 1000  # lines between two reports of progress


def size(name: str) -> int:
    """Return how many bytes a file has; 0 where that can't be known."""
    try:
        return 0 if name == STDIN else Path(name).stat().st_size
    except OSError:
        return 0  # opening it will say why


@contextmanager
def opened(name: str, limit: int, progress: Progress | None = None) -> Iterator[Lines]:
    """Open a file, and give its lines as they are, line end and all; None for one of more than `limit` bytes.

    TransferError, now or while lines are taken: it can't be opened, read or unpacked.
    """
    if name == STDIN:
        yield _lines(name, sys.stdin.buffer, limit, progress)
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - not in a `with` here: what its body raises is not our error
    except OSError as error:
        raise TransferError(f"{name}: can't be read: {error.strerror}") from error
    with file:
        yield _lines(name, file, limit, progress)


def _lines(name: str, file: IO[bytes], limit: int, progress: Progress | None) -> Lines:
    stream = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
    number = told = 0
    try:
        while line := stream.readline(limit + 1):
            number += 1
            is_whole = len(line) <= limit
            while len(line) > limit and not line.endswith(b"\n"):
                line = stream.readline(limit + 1)
            yield number, line if is_whole else None
            if progress and number % TELL_EVERY == 0 and file.seekable():
                position = file.tell()
                progress(position - told)
                told = position
    except EOFError as error:
        raise TransferError(f"{name}: ends too early to be unpacked") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TransferError(f"{name}: can't be unpacked: {error}") from error
    except OSError as error:
        raise TransferError(f"{name}: can't be read: {error.strerror}") from error
