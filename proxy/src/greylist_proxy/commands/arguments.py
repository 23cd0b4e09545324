# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What commands take: parsers that look alike, and the types of arguments that several have.

Text that the configuration has a say in (a client is looked for by its network) is read when the command runs:
`triplet_client`, `decision_client`, `wanted_address`.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from greylist_proxy.client import identify
from greylist_proxy.commands import Run, WrongUsage
from greylist_proxy.config_sections import GreylistSection
from greylist_proxy.lists.entries import EntryError, Network, canonical, client, network
from greylist_proxy.moments import WHEN, moment, to_come
from greylist_proxy.normalise import address_key, recipient_key
from greylist_proxy.smtp.address import is_domain
from greylist_proxy.store import Kind

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # generic for type checkers only

MAX_LIMIT = 10_000_000  # rows; they are held in memory to be sorted


def add_command(commands: Commands, name: str, sentence: str, run: Run, *examples: str) -> argparse.ArgumentParser:
    """Add a command with its help: a sentence in lower case without a full stop, and examples without --config."""
    lines = []
    for example in examples:
        own, pipe, others = example.partition(" | ")
        lines.append(f"greylist-proxy {own} --config FILE{pipe}{others}")
    parser = _add(commands, name, sentence, lines)
    parser.add_argument("--config", metavar="FILE", type=Path, required=True, help="the TOML file")
    parser.set_defaults(run=run)
    return parser


def add_group(commands: Commands, name: str, sentence: str) -> Commands:
    """Add a command that has commands of its own, and return where these go."""
    return _add(commands, name, sentence, []).add_subparsers(title="commands", metavar="COMMAND", required=True)


def _add(commands: Commands, name: str, sentence: str, examples: list[str]) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=sentence,
        description=textwrap.fill(f"{sentence[0].upper()}{sentence[1:]}.", 79),  # examples keep their lines
        epilog="\n  ".join(["examples:", *examples]) if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_filters(parser: argparse.ArgumentParser, client_help: str, since_help: str) -> None:
    """Add what triplets and decisions alike are narrowed by."""
    parser.add_argument("--client", metavar="CLIENT", help=client_help)
    parser.add_argument(
        "--sender", metavar="SENDER", help="an address, a domain (example.net), or '<>' for the null sender"
    )
    parser.add_argument("--recipient", metavar="RECIPIENT", help="an address or a domain")
    parser.add_argument("--since", metavar="WHEN", type=since, help=f"{since_help}: {WHEN}")


def add_shape(parser: argparse.ArgumentParser, rows: int) -> None:
    """Add --limit and --json. `limit_of` reads them."""
    parser.add_argument(
        "--limit",
        metavar="N",
        type=count,
        help=f"show the newest N, 0: all (default: {rows}, with --json all)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, times in UTC")


def limit_of(options: argparse.Namespace, rows: int) -> int | None:
    """Return how many rows are to be shown; None: all."""
    limit: int | None = options.limit
    if limit is None:
        return None if options.json else rows
    return limit or None


def count(text: str) -> int:
    """Read a whole number of rows."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LIMIT)) and int(text) <= MAX_LIMIT):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a whole number from 0 to {MAX_LIMIT}")
    return int(text)


def since(text: str) -> float:
    """Read a time in the past: so long ago, or a time."""
    return _read(text, lambda text: moment(text, -1))


def expiry(text: str) -> float:
    """Read a time to come: in so long a time, or a time."""
    return _read(text, to_come)


def _read(text: str, read: Callable[[str], float]) -> float:
    try:
        return read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def triplet_client(text: str, settings: GreylistSection) -> str:
    """Return the key that a client's triplets are kept under: of an address its network. WrongUsage: no client."""
    found = _client(text)
    if not isinstance(found, str):
        if found.prefixlen < found.max_prefixlen:
            return str(found)
        return identify(str(found.network_address), settings.ipv4_prefix, settings.ipv6_prefix).network
    return found if ":" in found else _domain_key(found, settings)


def decision_client(text: str, settings: GreylistSection) -> str:
    """Return what decisions of a client have: its address, or its network, or its key. WrongUsage: no client."""
    found = _client(text)
    if not isinstance(found, str):
        return str(found.network_address) if found.prefixlen == found.max_prefixlen else str(found)
    return found if ":" in found else _domain_key(found, settings)


def _domain_key(domain: str, settings: GreylistSection) -> str:
    return f"{'ptr' if settings.client_key == 'ptr' else 'spf'}:{domain}"


def _client(text: str) -> Network | str:
    """Read an address or network, `spf:DOMAIN`, `ptr:DOMAIN`, or a bare domain."""
    kind, colon, domain = text.partition(":")
    is_key = bool(colon) and kind.lower() in ("spf", "ptr")
    try:
        if is_key and isinstance(client(domain), str):
            return f"{kind.lower()}:{canonical(Kind.CLIENT, domain)}"
        return client(text)
    except EntryError as refusal:
        try:
            return network(text, host_bits=True)
        except EntryError:
            raise WrongUsage(str(refusal)) from refusal


def wanted_address(text: str | None, key: Callable[[str], str] = str) -> str | None:
    """Return what a store narrows senders or recipients by: `@domain`, or an address made a key by `key`."""
    if text is None:
        return None
    address = bare(text)
    domain = address.removeprefix("@")
    if address.startswith("@") or ("." in address and "@" not in address):
        if not is_domain(domain):
            raise WrongUsage(f"{text!r} is neither an address nor a domain (international ones: their xn-- form)")
        return f"@{domain.lower()}"
    return key(address)


def sender_key(text: str) -> str:
    """Return what triplets have for a sender; `<>` is the null sender."""
    return address_key(bare(text))


def rcpt_key(text: str) -> str:
    """Return what triplets have for a recipient."""
    return recipient_key(bare(text))


def bare(text: str) -> str:
    """Take the brackets off that addresses have in logs and replies."""
    return text[1:-1] if text.startswith("<") and text.endswith(">") else text
