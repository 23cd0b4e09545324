# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`export`: all that the store remembers, as an archive (`transfer/archive.py`) for `import archive`."""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from greylist_proxy.commands import DONE, NO, on_store
from greylist_proxy.commands.arguments import Commands, add_command
from greylist_proxy.commands.output import complain, remark
from greylist_proxy.commands.progress import Working
from greylist_proxy.config import Config
from greylist_proxy.store import Store
from greylist_proxy.transfer.archive import Writer
from greylist_proxy.transfer.source import STDIN as STDOUT


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "export",
        "write all that the store remembers to a file, which `import archive` loads into any store",
        on_store(run),
        "export greylist.jsonl.gz",
        "export --decisions - | jq .",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        default=STDOUT,
        help="the file, packed where it ends in .gz (default: stdout)",
    )
    parser.add_argument(
        "--decisions", action="store_true", help="the log of decisions too, to be looked into: it is never imported"
    )


async def run(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Write the archive."""
    async with Working("exporting") as work:
        try:
            with _output(options.file) as file:
                writer = Writer(file, work.advance)
                await writer.write(store, time.time(), decisions=options.decisions)
        except OSError as error:
            if options.file == STDOUT:
                raise
            complain(f"{options.file}: can't be written: {error.strerror}")
            return NO
    remark(", ".join(f"{count:,} {kind}" for kind, count in writer.counts.items() if count or kind != "decisions"))
    return DONE


@contextmanager
def _output(name: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Open the output. A file takes its place when it is whole, and is for its owner: it says who writes to whom.

    A device or a pipe stays what it is, and a symbolic link, too: what it points to is written.
    """
    if name == STDOUT:
        yield sys.stdout.buffer
        return
    path = Path(os.path.realpath(name))
    with path.open("wb") if _is_other(path) else _replaced(path) as file:
        if name.endswith(".gz"):
            with gzip.GzipFile(filename="", fileobj=file, mode="wb") as packed:
                yield packed
        else:
            yield file


def _is_other(path: Path) -> bool:
    """Tell whether there is something that no file may take the place of."""
    return path.exists() and not path.is_file()


@contextmanager
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
