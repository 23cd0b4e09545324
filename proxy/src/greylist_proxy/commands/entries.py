# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`entries`: who is allowed, blocked, or a spam trap, by rules made at run time.

An entry is durable when the command ends. Where a server runs with this configuration, it is asked through its control
socket, and the entry counts at once; others that share the store count it within a second. What the operator says wins
over what was learned or what a spam trap did: adding replaces, and nobody but an operator replaces that.
"""

from __future__ import annotations

import argparse
import time

from greylist_proxy.commands import DONE, NO, Missing, WrongUsage, on_entries
from greylist_proxy.commands.arguments import Commands, add_command, add_group, expiry
from greylist_proxy.commands.output import (
    TIME_WIDTH,
    Column,
    complain,
    local_time,
    remark,
    show_json,
    show_table,
)
from greylist_proxy.commands.progress import Working
from greylist_proxy.config import Config
from greylist_proxy.lists.entries import EntryError, canonical
from greylist_proxy.lists.operator import MAX_NOTE, UNKEPT, Keeper, as_json, find_entry
from greylist_proxy.moments import WHEN
from greylist_proxy.store import Action, Entry, Kind, Source

KIND = "client, sender, recipient or trap"
VALUE = (
    "client: an IP address, a network, or a name with all below it; "
    "others: an address, or a domain with all below it; recipient and trap: user@ for any domain, too"
)
SOURCES = {
    Source.OPERATOR: "an operator's",
    Source.LEARNED: "one that was learned",
    Source.TRAP: "a spam trap's block",
}

COLUMNS = (
    Column("kind", 0),
    Column("value", 1, least=16),
    Column("action", 0, coloured=True),
    Column("source", 2),
    Column("created", 3, least=TIME_WIDTH, breaks=True),
    Column("expires", 3, least=TIME_WIDTH, breaks=True),
    Column("note", 1, least=12),
)


def add_parser(commands: Commands) -> None:
    """Describe the commands."""
    group = add_group(commands, "entries", "allow and block clients, senders and recipients, and set spam traps")
    parser = add_command(
        group,
        "list",
        "list entries by kind and value",
        on_entries(list_entries),
        "entries list --action block",
        "entries list --source learned --json",
    )
    parser.add_argument("--kind", choices=[str(kind) for kind in Kind], help="what it is about")
    parser.add_argument("--action", choices=[str(action) for action in Action], help="what it does; a trap has none")
    parser.add_argument("--source", choices=[str(source) for source in Source], help="who made it")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, times in UTC")

    parser = add_command(
        group,
        "add",
        "add an entry, or replace the one of that kind and value",
        on_entries(add_entry, missing=Missing.CREATE),
        'entries add client 192.0.2.7 --expires 1h --note "waiting for their invoice"',
        "entries add sender partner.example",
        "entries add client 198.51.100.0/24 --action block",
        "entries add trap old-address@example.org",
    )
    _add_value(parser)
    parser.add_argument("--action", choices=[str(action) for action in Action], help="default: allow; a trap has none")
    parser.add_argument("--expires", metavar="WHEN", type=expiry, help=f"{WHEN} (default: never)")
    parser.add_argument("--note", metavar="TEXT", type=_note, default="", help="what for, for those who come after you")

    parser = add_command(
        group,
        "remove",
        "remove an entry; exit status 1 where there is none",
        on_entries(remove_entry),
        "entries remove client 192.0.2.7",
    )
    _add_value(parser)


def _add_value(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", choices=[str(kind) for kind in Kind], help=KIND)
    parser.add_argument("value", metavar="VALUE", help=VALUE)


def _note(text: str) -> str:
    if len(text) > MAX_NOTE:
        raise argparse.ArgumentTypeError(f"{len(text)} characters, allowed are {MAX_NOTE}")
    if UNKEPT.search(text):
        raise argparse.ArgumentTypeError(f"{text!r}: not UTF-8 text")
    return text


async def list_entries(config: Config, keeper: Keeper, options: argparse.Namespace) -> int:
    """List what the filters let through."""
    async with Working("listing entries") as work:
        found = []
        async for entry in keeper.entries():
            work.advance()
            if (
                options.kind in (None, entry.kind)
                and options.source in (None, entry.source)
                and (options.action is None or (entry.kind is not Kind.TRAP and options.action == entry.action))
            ):
                found.append(entry)
    order = list(Kind)
    found.sort(key=lambda entry: (order.index(entry.kind), entry.value))
    if options.json:
        for entry in found:
            show_json(as_json(entry))
    elif found:
        show_table(COLUMNS, [_as_row(entry) for entry in found])
    else:
        remark("no entries")
    return DONE


async def add_entry(config: Config, keeper: Keeper, options: argparse.Namespace) -> int:
    """Add an entry, and say what it replaces."""
    kind = Kind(options.kind)
    value = _canonical(kind, options.value)
    if kind is Kind.TRAP and options.action is not None:
        raise WrongUsage("a trap has no action: it blocks the client that mails it for a while")
    action = Action.BLOCK if kind is Kind.TRAP else Action(options.action or Action.ALLOW)
    before = await find_entry(keeper, kind, value)
    entry = Entry(kind, value, action, Source.OPERATOR, time.time(), options.expires, options.note)
    if not await keeper.put_entry(entry):
        complain(f"{kind} {value}: the store keeps another entry of an operator")
        return NO
    until = f", until {local_time(entry.expires)}" if entry.expires is not None else ""
    replaced = f" (replaced {SOURCES[before.source]}: {_does(before)})" if before else ""
    print(f"{_does(entry)}{until}{replaced}")
    return DONE


async def remove_entry(config: Config, keeper: Keeper, options: argparse.Namespace) -> int:
    """Remove an entry."""
    kind = Kind(options.kind)
    value = _canonical(kind, options.value)
    if not await keeper.remove_entry(kind, value):
        complain(f"there is no entry {kind} {value}")
        return NO
    print(f"{kind} {value} removed")
    return DONE


def _canonical(kind: Kind, value: str) -> str:
    try:
        return canonical(kind, value)
    except EntryError as error:
        raise WrongUsage(str(error)) from error


def _does(entry: Entry) -> str:
    what = entry.action if entry.kind is not Kind.TRAP else "set"
    return f"{what} {entry.kind} {entry.value}"


def _as_row(entry: Entry) -> list[str]:
    return [
        str(entry.kind),
        entry.value,
        "" if entry.kind is Kind.TRAP else str(entry.action),
        str(entry.source),
        local_time(entry.created),
        local_time(entry.expires),
        entry.note,
    ]
