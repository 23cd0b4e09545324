# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`import`: what `export`, postgrey or sqlgrey remembered, into the store of the configuration.

Whatever is there already stays, and is merged with what comes, so an import may be broken off and run again. What
can't be carried over is counted and said.
"""

from __future__ import annotations

import argparse
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from greylist_proxy.commands import DONE, NO, Action, Missing, on_store
from greylist_proxy.commands.arguments import Commands, add_command, add_group
from greylist_proxy.commands.output import complain, remark, show_fields, show_json
from greylist_proxy.commands.progress import Working
from greylist_proxy.config import Config
from greylist_proxy.config_values import parse_duration
from greylist_proxy.lists import ListError
from greylist_proxy.lists.postgrey import CLIENTS, RECIPIENTS, entries
from greylist_proxy.store import Action as EntryAction
from greylist_proxy.store import Entry, Item, Store, StoreError
from greylist_proxy.transfer import Loaded, TransferError, archive, load, postgrey, source, sqlgrey

MERGED = "merged with what is there, so that it may be run again"


def add_parser(commands: Commands) -> None:
    """Describe the commands."""
    group = add_group(commands, "import", "load what `export`, postgrey or sqlgrey remembered")
    parser = _add(group, "archive", f"load what `export` wrote, {MERGED}", import_archive, "greylist.jsonl.gz")
    parser.add_argument("file", metavar="FILE", help="the file, packed where it ends in .gz, or - for stdin")

    parser = _add(
        group,
        "postgrey",
        "load postgrey's databases: stop postgrey first; db_dump of Berkeley DB is needed (Debian: db5.3-util)",
        import_postgrey,
        "/var/lib/postgrey",
        "--delay 60s postgrey.txt",
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="postgrey's folder, one of its databases, or its dump")
    parser.add_argument(
        "--delay", type=_seconds, default=300.0, help="postgrey's --delay, which tells a known triplet (default: 300)"
    )
    parser.add_argument(
        "--ipv4cidr", type=int, choices=range(8, 33), metavar="N", default=24, help="as postgrey had it"
    )
    parser.add_argument(
        "--ipv6cidr", type=int, choices=range(8, 129), metavar="N", default=64, help="as postgrey had it"
    )

    parser = _add(group, "sqlgrey", "load sqlgrey's SQLite file", import_sqlgrey, "/var/sqlgrey/sqlgrey.db")
    parser.add_argument("path", metavar="FILE", type=Path, help="the file; it is only read")
    parser.add_argument("--optout", action="store_true", help="make entries of its opt-out tables (optmethod = optout)")

    parser = _add(
        group,
        "postgrey-lists",
        "make entries of postgrey's whitelist_clients and whitelist_recipients",
        import_lists,
        "/etc/postgrey",
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        type=Path,
        nargs="+",
        help="files (recipients, where the name says so), or a folder with files whitelist_*",
    )


def _add(group: Commands, name: str, sentence: str, action: Action, *examples: str) -> argparse.ArgumentParser:
    lines = [f"import {name} {example}" for example in examples]
    parser = add_command(group, name, sentence, on_store(action, missing=Missing.CREATE), *lines)
    parser.add_argument("--dry-run", action="store_true", help="read and count, and load nothing")
    parser.add_argument("--json", action="store_true", help="the counts as one JSON object")
    return parser


def _seconds(text: str) -> float:
    try:
        return parse_duration(int(text) if text.isdigit() else text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a duration such as 60s, 5m or seconds") from None


async def import_archive(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Load an archive."""
    into = Loaded()
    total = source.size(options.file)
    async with Working(f"importing {options.file}, bytes", total or None) as work:

        def items() -> Iterator[Item]:
            # `opened` has nothing to clean up but the file, which its own `with` closes.
            # pylint: disable-next=contextmanager-generator-missing-cleanup
            with source.opened(options.file, archive.MAX_LINE, work.advance) as lines:
                yield from archive.read(lines, options.file, into)

        return await _load(config, store, options, items(), into)


async def import_postgrey(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Load postgrey's databases."""
    into = Loaded()
    greylist = config.greylist
    settings = postgrey.Settings(
        options.delay, options.ipv4cidr, options.ipv6cidr, greylist.ipv4_prefix, greylist.ipv6_prefix
    )

    def items() -> Iterator[Item]:
        for path in postgrey.files(options.path):
            yield from postgrey.read(path, settings, into)

    return await _counted(config, store, options, items(), into)


async def import_sqlgrey(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Load sqlgrey's file."""
    into = Loaded()
    prefixes = config.greylist.ipv4_prefix, config.greylist.ipv6_prefix
    items = sqlgrey.read(options.path, *prefixes, time.time(), into, optout=options.optout)
    return await _counted(config, store, options, items, into)


async def import_lists(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Load postgrey's lists as entries of the operator's."""
    into = Loaded()
    try:
        rules, warnings = entries(*_lists(options.paths))
    except ListError as error:
        for line in error.lines:
            complain(line)
        return NO
    for warning in warnings:
        complain(warning)
    now = time.time()
    items = (Entry(kind, value, EntryAction.ALLOW, created=now, note=f"from {rule}") for kind, value, rule in rules)
    return await _counted(config, store, options, items, into)


def _lists(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Tell lists of clients from those of recipients; a folder may have both. ListError: it has none."""
    clients: list[Path] = []
    recipients: list[Path] = []
    for path in paths:
        try:
            names = [file.name for file in path.iterdir()] if stat.S_ISDIR(path.stat().st_mode) else None
        except OSError as error:
            raise ListError([f"{path}: can't be read: {error.strerror}"]) from error
        if names is None:
            (recipients if "recipients" in path.name else clients).append(path)
            continue
        found = [
            (prefix, lists)
            for prefix, lists in ((CLIENTS, clients), (RECIPIENTS, recipients))
            if any(name.startswith(prefix) for name in names)
        ]
        if not found:
            raise ListError([f"{path}: no file in this folder has a name that begins with {CLIENTS} or {RECIPIENTS}"])
        for _prefix, lists in found:
            lists.append(path)
    return clients, recipients


async def _counted(
    config: Config, store: Store, options: argparse.Namespace, items: Iterable[Item], into: Loaded
) -> int:
    async with Working("importing") as work:

        def counted() -> Iterator[Item]:
            for item in items:
                work.advance(1)
                yield item

        return await _load(config, store, options, counted(), into)


async def _load(config: Config, store: Store, options: argparse.Namespace, items: Iterable[Item], into: Loaded) -> int:
    """Load, and tell how it went, also where it went wrong half-way."""
    try:
        await load(store, items, config.greylist.rules, time.time(), into, dry_run=options.dry_run)
    except TransferError as error:
        complain(str(error))
        if into.triplets or into.allowances or into.entries:
            complain("what came before that is loaded, and may be loaded again with the rest")
        _show(into, options)
        return NO
    except StoreError:
        _show(into, options)
        raise
    _show(into, options)
    return DONE


def _show(into: Loaded, options: argparse.Namespace) -> None:
    if options.json:
        show_json(
            {
                "dry_run": options.dry_run,
                "triplets": into.triplets,
                "earners": into.allowances,
                "entries": into.entries,
                "changed": into.changed,
                "expired": into.expired,
                "left_out": dict(into.left_out),
            }
        )
        return
    fields = [
        ("triplets", into.triplets),
        ("earners", into.allowances),
        ("entries", into.entries),
        ("new or changed", into.changed),
        ("expired", into.expired),
        *((f"left out: {reason}", count) for reason, count in into.left_out.items() if count),
    ]
    show_fields([(name, f"{count:,}") for name, count in fields])
    if options.dry_run:
        remark("nothing is loaded: this was a dry run")
