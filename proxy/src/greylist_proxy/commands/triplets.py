# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`triplets`: who is waiting, who is known, and to forget it.

A store gives triplets in no order, so a limited list looks through all that match and keeps the newest; only `--json`
without a limit, which streams them as they come, has no need to.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import math
import sys
import time
from collections.abc import AsyncIterator

from greylist_proxy.commands import DONE, NO, WrongUsage, on_store
from greylist_proxy.commands.arguments import (
    Commands,
    add_command,
    add_filters,
    add_group,
    add_shape,
    decision_client,
    limit_of,
    rcpt_key,
    sender_key,
    triplet_client,
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
from greylist_proxy.policy import Record, Rules, Triplet
from greylist_proxy.store import Remembered, Store, Wanted

ROWS = 1000  # that people are shown
BATCH = 1000  # triplets that are removed at a time
CLIENT = "an IP address (its network is looked for), a network, spf:DOMAIN or ptr:DOMAIN"

COLUMNS = (
    Column("client", 0, least=15),
    Column("sender", 1, least=22),
    Column("recipient", 1, least=22),
    Column("state", 0, coloured=True),
    Column("first seen", 2, least=TIME_WIDTH, breaks=True),
    Column("last used", 2, least=TIME_WIDTH, breaks=True),
)


def add_parser(commands: Commands) -> None:
    """Describe the commands."""
    group = add_group(
        commands, "triplets", "look at what is remembered of clients, senders and recipients, or forget it"
    )
    parser = add_command(
        group,
        "list",
        "list triplets, the newest first; with --json and no limit, in no order",
        on_store(list_triplets),
        "triplets list --client 192.0.2.7",
        "triplets list --sender example.net --state pending --since 2h",
        "triplets list --json | jq -r .client | sort | uniq -c",
    )
    _add_own_filters(parser)
    add_shape(parser, ROWS)

    parser = add_command(
        group,
        "show",
        "show one triplet and what its client has earned; exit status 1 where there is none",
        on_store(show_triplet),
        "triplets show 192.0.2.7 news@example.net user@example.org",
        "triplets show spf:example.net '<>' user@example.org",
    )
    parser.add_argument("client", metavar="CLIENT", help=CLIENT)
    parser.add_argument("sender", metavar="SENDER", help="its address, or '<>' for the null sender")
    parser.add_argument("recipient", metavar="RECIPIENT", help="its address")
    parser.add_argument("--json", action="store_true", help="one JSON object, times in UTC")

    parser = add_command(
        group,
        "delete",
        "forget triplets: the next sighting is a first one; exit status 1 where there is none",
        on_store(delete_triplets),
        "triplets delete 192.0.2.7 news@example.net user@example.org",
        "triplets delete --recipient user@example.org --dry-run",
        "triplets delete --all --yes",
    )
    parser.add_argument("triplet", metavar="CLIENT SENDER RECIPIENT", nargs="*", help="one triplet, exactly")
    _add_own_filters(parser)
    parser.add_argument("--all", action="store_true", help="all triplets that there are")
    parser.add_argument("--dry-run", action="store_true", help="only say how many")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where nobody is there to answer")


def _add_own_filters(parser: argparse.ArgumentParser) -> None:
    add_filters(parser, CLIENT, "first seen since then")
    parser.add_argument("--state", choices=("pending", "known"), help="waiting for a retry, or delivered lately")


async def list_triplets(config: Config, store: Store, options: argparse.Namespace) -> int:
    """List what the filters let through."""
    rules, limit = config.greylist.rules, limit_of(options, ROWS)
    found = _matching(store, _wanted(config, options), options.state)
    if options.json and limit is None:
        async with Working("listing triplets", streams=True) as work:
            async for remembered in found:
                work.advance()
                show_json(as_json(remembered, rules, time.time()))
        return DONE
    async with Working("looking through triplets") as work:
        newest = await _newest(found, limit, work)
    now = time.time()
    if options.json:
        for remembered in newest:
            show_json(as_json(remembered, rules, now))
    elif newest:
        show_table(COLUMNS, [_as_row(remembered, rules, now) for remembered in newest])
        if len(newest) < work.done:
            remark(f"{len(newest):,} of {work.done:,} triplets, the newest; --limit 0 shows all")
    else:
        remark("no triplets")
    return DONE


async def show_triplet(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Show one triplet."""
    rules, now = config.greylist.rules, time.time()
    triplet = _exact(config, options.client, options.sender, options.recipient)
    remembered = await anext(_matching(store, Wanted(*triplet), None), None)
    if remembered is None:
        complain(f"there is no triplet of {triplet.client}, {triplet.sender or '<>'} and {triplet.recipient}")
        return NO
    # What earns is the address, not its network (`policy.Identity`), so it is known only where one was given.
    earner = decision_client(options.client, config.greylist)
    allowance = await anext(aiter(store.allowances(Wanted(client=earner))), None)
    earned = allowance.earned if allowance else None
    if options.json:
        more = {
            "earner": earner if earned else "",
            "passes": earned.passes if earned else 0,
            "delivered": iso_time(earned.last_used) if earned else None,
        }
        show_json(as_json(remembered, rules, now) | more)
        return DONE
    record = remembered.record
    fields = [
        ("client", triplet.client),
        ("sender", triplet.sender or "<>"),
        ("recipient", triplet.recipient),
        ("state", f"{_state(record)}, {_next(record, rules, now)}"),
        ("first seen", local_time(record.first_seen)),
        ("last used", local_time(record.last_used)),
        ("expires", local_time(expires(record, rules))),
    ]
    if earned:
        needed = f" of {rules.auto_allow_after}" if rules.auto_allow_after else ""
        fields += [
            ("earned", f"{earner}: {earned.passes}{needed} passed triplets"),
            ("delivered", local_time(earned.last_used)),
        ]
    show_fields(fields)
    return DONE


async def delete_triplets(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Remove what is named or filtered, after asking."""
    wanted = _to_delete(config, options)
    async with Working("counting triplets") as work:
        async for _ignored in _matching(store, wanted, options.state):
            work.advance()
    number = work.done
    if not number:
        complain("no triplet matches, nothing is deleted")
        return NO
    if options.dry_run:
        print(f"{_triplets(number)} would be deleted")
        return DONE
    if not options.yes:
        if not sys.stdin.isatty():
            raise WrongUsage(f"{_triplets(number)} would be deleted; without a terminal to ask on, --yes is needed")
        if not await _confirmed(f"Delete {_triplets(number)}?"):
            complain("nothing is deleted")
            return NO
    async with Working("deleting triplets", number) as work:
        removed = await _remove(store, _matching(store, wanted, options.state), work)
    print(f"{_triplets(removed)} deleted")
    return DONE


def _to_delete(config: Config, options: argparse.Namespace) -> Wanted:
    filters = (options.client, options.sender, options.recipient, options.since, options.state)
    is_filtered = any(value is not None for value in filters)
    if len(options.triplet) not in (0, 3):
        raise WrongUsage("a triplet is named by CLIENT SENDER RECIPIENT, all three")
    if [bool(options.triplet), is_filtered, options.all].count(True) != 1:
        raise WrongUsage("what is to be deleted? Allowed is one triplet, or filters (--client, ...), or --all")
    if options.triplet:
        return Wanted(*_exact(config, *options.triplet))
    return _wanted(config, options)


async def _remove(store: Store, found: AsyncIterator[Remembered], work: Working) -> int:
    """Remove in batches: there may be millions, and no batch is to keep mail waiting."""
    removed = 0
    batch: list[Triplet] = []
    async for remembered in found:
        batch.append(remembered.triplet)
        if len(batch) == BATCH:
            removed += await store.remove_triplets(batch)
            work.advance(len(batch))
            batch.clear()
    if batch:
        removed += await store.remove_triplets(batch)
    return removed


async def _confirmed(question: str) -> bool:
    """Ask on the terminal. The event loop waits for the answer, so Ctrl-C works as anywhere."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, answered.set)
    try:
        await answered.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _matching(store: Store, wanted: Wanted, state: str | None) -> AsyncIterator[Remembered]:
    async for remembered in store.triplets(wanted):
        if state in (None, _state(remembered.record)):
            yield remembered


async def _newest(found: AsyncIterator[Remembered], limit: int | None, work: Working) -> list[Remembered]:
    """Return those that were seen or used last, the newest first, in memory for no more than `limit` of them."""
    heap: list[tuple[float, int, Remembered]] = []
    async for remembered in found:
        work.advance()
        record = remembered.record
        item = (max(record.first_seen, record.last_used or 0), work.done, remembered)  # no two are equal
        if limit is None or len(heap) < limit:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    return [remembered for _ignored, _ignored_too, remembered in sorted(heap, reverse=True)]


def _wanted(config: Config, options: argparse.Namespace) -> Wanted:
    return Wanted(
        client=None if options.client is None else triplet_client(options.client, config.greylist),
        sender=wanted_address(options.sender, sender_key),
        recipient=wanted_address(options.recipient, rcpt_key),
        since=options.since,
    )


def _exact(config: Config, client: str, sender: str, recipient: str) -> Triplet:
    return Triplet(triplet_client(client, config.greylist), sender_key(sender), rcpt_key(recipient))


def expires(record: Record, rules: Rules) -> float:
    """Return when a record stops to count (`policy.is_expired`)."""
    if record.last_used is not None:
        return record.last_used + rules.lifetime
    return record.first_seen + rules.retry_window


def as_json(remembered: Remembered, rules: Rules, now: float) -> dict[str, object]:
    """Return a triplet for programs; `passes_from` is when a retry of a pending one passes."""
    record = remembered.record
    return {
        **remembered.triplet._asdict(),
        "state": _state(record),
        "first_seen": iso_time(record.first_seen),
        "last_used": iso_time(record.last_used),
        "passes_from": iso_time(_passes_from(record, rules, now)) if record.last_used is None else None,
        "expires": iso_time(expires(record, rules)),
    }


def _as_row(remembered: Remembered, rules: Rules, now: float) -> list[str]:
    triplet, record = remembered.triplet, remembered.record
    return [
        triplet.client,
        triplet.sender or "<>",
        triplet.recipient,
        described(record, rules, now),
        local_time(record.first_seen),
        local_time(record.last_used),
    ]


def described(record: Record, rules: Rules, now: float) -> str:
    """Say in words what a record means for the next mail."""
    return f"{_state(record)}, {_next(record, rules, now)}"


def _state(record: Record) -> str:
    return "pending" if record.last_used is None else "known"


def _passes_from(record: Record, rules: Rules, now: float) -> float:
    return min(record.first_seen, now) + rules.delay  # rule 4 of `policy.py`: no first sight is in the future


def _next(record: Record, rules: Rules, now: float) -> str:
    if record.last_used is not None:
        return f"expires in {span(max(expires(record, rules) - now, 0))}"
    left = _passes_from(record, rules, now) - now
    return f"may pass in {span(math.ceil(left))}" if left > 0 else "may pass now"


def _triplets(number: int) -> str:
    return "1 triplet" if number == 1 else f"{number:,} triplets"
