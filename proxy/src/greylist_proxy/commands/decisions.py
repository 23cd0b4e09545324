# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`decisions`: what was decided, and why: the answer to "where is my mail?".

Each reply of a deferral or a refusal ends with an id such as 0A1B2C3D4E5F.1: the transaction and the number of the
recipient in it. The transaction's part is what a `Received` field has; either may be asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from dataclasses import asdict

from greylist_proxy.commands import DONE, NO, WrongUsage, on_store, reporting
from greylist_proxy.commands.arguments import (
    Commands,
    add_command,
    add_filters,
    add_shape,
    bare,
    decision_client,
    limit_of,
    wanted_address,
)
from greylist_proxy.commands.output import (
    TIME_WIDTH,
    Column,
    complain,
    local_time,
    remark,
    show_fields,
    show_json,
    show_table,
    span,
)
from greylist_proxy.commands.progress import Working
from greylist_proxy.config import Config
from greylist_proxy.moments import iso_time
from greylist_proxy.policy import Reason, Verdict
from greylist_proxy.store import Logged, Store, Wanted

ROWS = 100  # that people are shown

COLUMNS = (
    Column("time", 0, least=TIME_WIDTH, breaks=True),
    Column("client", 0, least=15),
    Column("sender", 1, least=22),
    Column("recipient", 1, least=22),
    Column("verdict", 2, coloured=True),
    Column("reason", 2),
    Column("id", 0),
)


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "decisions",
        "show what was decided and why, the newest first",
        _run,
        "decisions --id 0A1B2C3D4E5F.1",
        "decisions --recipient user@example.org --since 2d",
        "decisions --verdict block --json | jq -r .rule",
        "decisions --reasons",
    )
    add_filters(parser, "an IP address, a network, spf:DOMAIN or ptr:DOMAIN", "decided since then")
    parser.add_argument("--verdict", choices=[str(verdict) for verdict in Verdict], help="what happened")
    parser.add_argument("--reason", metavar="WORD", type=_reason, help="why; --reasons explains the words")
    parser.add_argument("--id", metavar="ID", help="the id from a reply or a Received field, in detail")
    parser.add_argument("--reasons", action="store_true", help="explain the words that reasons have, and end")
    add_shape(parser, ROWS)


def _reason(text: str) -> str:
    if text not in list(Reason):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is one of {', '.join(Reason)}")
    return text


def _run(config: Config, options: argparse.Namespace) -> int:
    if options.reasons:
        return reporting(show_reasons)(config, options)
    return on_store(show_one if options.id is not None else list_decisions)(config, options)


async def show_reasons(config: Config, options: argparse.Namespace) -> int:
    """Explain the words that reasons have."""
    if options.json:
        for reason in Reason:
            show_json({"reason": str(reason), "meaning": reason.meaning})
    else:
        columns = (Column("reason", 0), Column("meaning", 1, least=30))
        show_table(columns, [[str(reason), reason.meaning] for reason in Reason])
    return DONE


async def list_decisions(config: Config, store: Store, options: argparse.Namespace) -> int:
    """List what the filters let through."""
    limit = limit_of(options, ROWS)
    found = store.decisions(_wanted(config, options))
    rows: list[list[str]] = []
    number, more = 0, False
    async with Working("looking through decisions", streams=options.json) as work:
        async for logged in found:
            if number == limit:
                more = True
                break
            number += 1
            work.advance()
            if options.json:
                show_json(as_json(logged))
            else:
                rows.append(as_row(logged))
    if options.json:
        return DONE
    if rows:
        show_table(COLUMNS, rows)
    else:
        remark("no decisions")
    if more:
        remark(f"the newest {number:,}; there are more, and --limit 0 shows all")
    return DONE


async def show_one(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Show the decision of this id, or all of the transaction's, in detail."""
    wanted = _wanted(config, options)
    async with Working("looking through decisions") as work:
        found = [logged async for logged in _with_id(store, wanted, work)]
    if not found:
        complain(f"no decision {options.id!r} is kept (store.decisions_lifetime, store.max_decisions)")
        return NO
    for number, logged in enumerate(found):
        if options.json:
            show_json(as_json(logged))
            continue
        if number:
            print()
        show_fields(_details(logged))
    return DONE


async def _with_id(store: Store, wanted: Wanted, work: Working) -> AsyncIterator[Logged]:
    async for logged in store.decisions(wanted):
        work.advance()
        yield logged
        if wanted.id == logged.id:
            return  # there is one only


def _wanted(config: Config, options: argparse.Namespace) -> Wanted:
    if options.id is not None and options.limit is not None:
        raise WrongUsage("--limit goes with a list, not with --id")
    return Wanted(
        client=None if options.client is None else decision_client(options.client, config.greylist),
        sender=wanted_address(options.sender, bare),
        recipient=wanted_address(options.recipient, bare),
        verdict=options.verdict,
        reason=options.reason,
        since=options.since,
        id=None if options.id is None else options.id.strip().strip("()").upper(),
    )


def as_json(logged: Logged) -> dict[str, object]:
    """Return a decision for programs: the fields of its log line."""
    return asdict(logged) | {"time": iso_time(logged.time)}


def as_row(logged: Logged) -> list[str]:
    """Return the cells of `COLUMNS`."""
    return [
        local_time(logged.time),
        logged.client,
        logged.sender or "<>",
        logged.recipient,
        _verdict(logged),
        logged.reason,
        logged.id,
    ]


def _details(logged: Logged) -> list[tuple[str, str]]:
    meaning = next((reason.meaning for reason in Reason if reason == logged.reason), "")
    return [
        ("id", logged.id),
        ("time", local_time(logged.time)),
        ("client", f"{logged.client} in {logged.network}"),
        ("sender", logged.sender or "<>"),
        ("recipient", logged.recipient),
        ("verdict", _verdict(logged)),
        ("reason", f"{logged.reason}: {meaning}" if meaning else logged.reason),
        ("known by", logged.key),
        ("by rule", logged.rule),
    ]


def _verdict(logged: Logged) -> str:
    if logged.would:
        return f"{logged.verdict}, would {logged.would}"
    return f"{logged.verdict}, {span(logged.seconds_left)}" if logged.seconds_left else logged.verdict
