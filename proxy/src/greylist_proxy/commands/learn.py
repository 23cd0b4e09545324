# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`learn`: whom our users write to, from the mail server's log, as entries that let the answers in.

An entry made here counts only for mail whose sender passes SPF (`exemptions.py`), never replaces an operator's, and
expires; each run puts the expiry off for what is still written to. What counts is when the log is read: read each
day's log once, by a timer.
"""

from __future__ import annotations

import argparse
import ipaddress
import time
from collections.abc import Iterator
from dataclasses import replace

from greylist_proxy.commands import DONE, NO, Missing, WrongUsage, on_store
from greylist_proxy.commands.arguments import Commands, add_command, expiry
from greylist_proxy.commands.output import complain, remark, show_fields, show_json
from greylist_proxy.commands.progress import Working
from greylist_proxy.config import Config
from greylist_proxy.learn import MAX_LINE, exchange, postfix
from greylist_proxy.learn.choose import Chooser
from greylist_proxy.smtp.address import is_domain
from greylist_proxy.store import Action, Entry, Kind, Source, Store
from greylist_proxy.transfer import CHUNK, TransferError
from greylist_proxy.transfer.source import Lines, opened, size

LIFETIME = "90d"
MAX_MINIMUM = 1000


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "learn",
        "exempt whom our own users write to, by the mail server's log; it counts only with an SPF pass",
        on_store(run, missing=Missing.CREATE),
        "learn --format exchange MSGTRK*.LOG",
        "learn --networks 10.0.0.0/8 --minimum 2 /var/log/mail.log.1.gz",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="logs, packed where they end in .gz, or - for stdin")
    parser.add_argument(
        "--format",
        choices=("auto", "exchange", "postfix"),
        default="auto",
        help="Exchange's message tracking log or Postfix's log (default: by each file's first line)",
    )
    parser.add_argument(
        "--expires", metavar="WHEN", type=expiry, default=LIFETIME, help=f"when entries end (default: {LIFETIME})"
    )
    parser.add_argument("--minimum", metavar="N", type=_minimum, default=1, help="messages that it takes (default: 1)")
    parser.add_argument(
        "--networks",
        metavar="NETWORK",
        type=_network,
        action="append",
        default=[],
        help="for Postfix: clients there are ours without a login, as in mynetworks; may be repeated",
    )
    parser.add_argument(
        "--freemail",
        metavar="DOMAIN",
        type=_domain,
        action="append",
        default=[],
        help="a domain that strangers share, of which only addresses are learned; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be learned, and change nothing")
    parser.add_argument("--json", action="store_true", help="the counts as one JSON object")


def _minimum(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_MINIMUM):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a whole number from 1 to {MAX_MINIMUM}")
    return int(text)


def _network(text: str) -> postfix.Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is an address or a network such as 10.0.0.0/8") from None


def _domain(text: str) -> str:
    if not is_domain(text):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a domain, international ones in their xn-- form")
    return text


class _Readers:
    """The readers of one run: each is made when a file needs it."""

    def __init__(self, chooser: Chooser, options: argparse.Namespace) -> None:
        self._options = options
        self.exchange = exchange.Reader(chooser.sent)
        self.postfix = postfix.Reader(chooser.sent, options.networks)
        self.lines = 0

    def read(self, lines: Lines) -> None:
        first = next(lines, None)
        if first is None:
            return
        chosen = self._options.format
        if chosen == "auto":
            chosen = "exchange" if first[1] and exchange.looks_like(first[1]) else "postfix"
        reader = self.exchange if chosen == "exchange" else self.postfix
        reader.read(self._counted(first[1], lines))

    def _counted(self, first: bytes | None, lines: Lines) -> Iterator[bytes | None]:
        self.lines += 1
        yield first
        for _number, line in lines:
            self.lines += 1
            yield line


async def run(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Read the logs, then write the entries."""
    if options.files.count("-") > 1:
        raise WrongUsage("stdin (-) can be read once")
    chooser = Chooser(config.backend.domains, options.minimum, options.freemail)
    readers = _Readers(chooser, options)
    status = DONE
    async with Working("reading logs, bytes", sum(map(size, options.files)) or None) as work:
        for name in exchange.first(options.files):
            try:
                with opened(name, MAX_LINE, work.advance) as lines:
                    readers.read(lines)
            except TransferError as error:
                # What the other files say is as good as before.
                complain(str(error))
                status = NO
    counts = await _store(store, chooser, options)
    _show(chooser, readers, counts, options)
    return status


async def _store(store: Store, chooser: Chooser, options: argparse.Namespace) -> dict[str, int]:
    """Write what was learned, and count: new, refreshed, as it was, left to an operator's own entry."""
    known: dict[str, Entry] = {entry.value: entry async for entry in store.entries() if entry.kind is Kind.SENDER}
    counts = {"new": 0, "refreshed": 0, "unchanged": 0, "operators": 0}
    chunk: list[Entry] = []
    for entry in chooser.entries(time.time(), options.expires):
        old = known.get(entry.value)
        if old is None:
            counts["new"] += 1
            chunk.append(entry)
        elif old.source is Source.OPERATOR or old.action is Action.BLOCK:
            counts["operators"] += 1
        elif old.expires is None or old.expires >= options.expires:
            counts["unchanged"] += 1
        else:
            counts["refreshed"] += 1
            chunk.append(replace(entry, created=old.created))
        if len(chunk) == CHUNK and not options.dry_run:
            await store.load(chunk)
            chunk = []
    if chunk and not options.dry_run:
        await store.load(chunk)
    return counts


def _show(chooser: Chooser, readers: _Readers, counts: dict[str, int], options: argparse.Namespace) -> None:
    exchanged, posted = readers.exchange, readers.postfix
    ignored = dict(chooser.ignored)
    if exchanged.automatic:
        ignored["automatic, by its class or client"] = exchanged.automatic
    if options.json:
        show_json(
            {
                "dry_run": options.dry_run,
                "lines": readers.lines,
                "unreadable": exchanged.unreadable + posted.unreadable,
                "messages": exchanged.messages + posted.messages,
                "recipients": chooser.recipients,
                **counts,
                "too_few": chooser.too_few,
                "ignored": ignored,
            }
        )
        return
    fields = [
        ("lines", readers.lines),
        ("lines that can't be read", exchanged.unreadable + posted.unreadable),
        ("messages of our users", exchanged.messages + posted.messages),
        ("recipients", chooser.recipients),
        *((f"  ignored: {reason}", count) for reason, count in sorted(ignored.items())),
        ("new entries", counts["new"]),
        ("refreshed", counts["refreshed"]),
        ("as they were", counts["unchanged"]),
        ("left to an operator's entry", counts["operators"]),
        (f"written to less than {options.minimum} times", chooser.too_few),
    ]
    show_fields([(name, f"{count:,}") for name, count in fields if count or not name.startswith("written")])
    if chooser.is_full:
        complain("there was more to learn than one run holds: raise --minimum, or read fewer logs at a time")
    if options.dry_run:
        remark("nothing is changed: this was a dry run")
