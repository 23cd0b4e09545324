# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What sqlgrey remembers (1.8, database version 3), from its SQLite file, which is opened to be read only.

    connect      sender_name, sender_domain, src, rcpt, first_seen         triplets that wait for their retry
    from_awl     sender_name, sender_domain, src, first_seen, last_seen    senders that passed from `src`
    domain_awl   sender_domain, src, first_seen, last_seen                 domains of which several did
    optout_email, optout_domain                                            recipients without greylisting

`src` is an address, the first three numbers of one, or the first four groups of one: the client's network where its
name looks like a server's (`greymethod`). Times are seconds since 1970 (in SQLite; other databases have other forms).

What is taken over:

- `connect`: a pending triplet each.
- The AWLs forget who the recipients were, so no triplet can be made of them. What can is the client's own standing:
  each row is a triplet that passed at `first_seen`. Where `src` is an address, rows are counted by our own rule, at
  most one an hour, and exempt the address once there are `auto_allow_after`. Rows with a network are left out: here
  an address earns an exemption, never a network. Their senders wait once more.
- `optout_*`, where asked for (they count only with `optmethod = optout`): entries that exempt the recipients.

`optin_*` has no counterpart here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from greylist_proxy.client import identify
from greylist_proxy.lists.entries import EntryError, canonical
from greylist_proxy.normalise import address_key, recipient_key
from greylist_proxy.policy import COUNT_EVERY, Earned, Record, Triplet
from greylist_proxy.store import Action, Allowance, Entry, Item, Kind, Remembered
from greylist_proxy.transfer import Loaded, TransferError

UNDEFINED = "-undef-"  # sqlgrey's null sender
MAX_TEXT = 512

CONNECT = "SELECT sender_name, sender_domain, src, rcpt, first_seen FROM connect"
# In the order of `src`, so that one client's rows are together, however many there are.
PASSED = """
    SELECT src, first_seen, last_seen FROM from_awl UNION ALL SELECT src, first_seen, last_seen FROM domain_awl
    ORDER BY src, first_seen
"""
OPTOUT = "SELECT email FROM optout_email UNION ALL SELECT domain FROM optout_domain"
OPTIN = "SELECT (SELECT count(*) FROM optin_email) + (SELECT count(*) FROM optin_domain)"


def read(
    path: Path, ipv4_prefix: int, ipv6_prefix: int, now: float, into: Loaded, *, optout: bool = False
) -> Iterator[Item]:
    """Give what the file holds; what can't be used is counted in `into.left_out`. TransferError: can't be read."""
    try:
        # A URI's own marks in a path must not become options of the open.
        uri = path.absolute().as_uri() + "?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            database.text_factory = lambda raw: raw.decode("utf-8", "replace")
            yield from _pending(database, ipv4_prefix, ipv6_prefix, into)
            yield from _earners(database, into)
            if optout:
                yield from _recipients(database, now, into)
            into.left_out["optin_* has no counterpart"] += int(database.execute(OPTIN).fetchone()[0])
    except sqlite3.Error as error:
        raise TransferError(f"{path}: not an SQLite file of sqlgrey 1.8, or damaged: {error}") from error


def _pending(database: sqlite3.Connection, ipv4_prefix: int, ipv6_prefix: int, into: Loaded) -> Iterator[Item]:
    for row in database.execute(CONNECT):
        name, domain, src, recipient, first_seen = row
        if not (_are_texts(name, domain, src, recipient) and _is_time(first_seen)):
            into.left_out["not sqlgrey's row"] += 1
            continue
        found = _source(src)
        if found is None:
            into.left_out["not sqlgrey's src"] += 1
            continue
        address, bits = found
        client = identify(address, ipv4_prefix, ipv6_prefix)
        if bits < (ipv4_prefix if client.address.version == 4 else ipv6_prefix):
            into.left_out["sqlgrey's networks are larger than ours"] += 1
            continue
        sender = "" if UNDEFINED in (name, domain) else f"{name}@{domain}"
        triplet = Triplet(client.network, address_key(sender), recipient_key(recipient))
        yield Remembered(triplet, Record(float(first_seen)))


def _earners(database: sqlite3.Connection, into: Loaded) -> Iterator[Item]:
    current, earned = "", Earned(0, 0, 0)
    for src, first_seen, last_seen in database.execute(PASSED):
        if not (_are_texts(src) and _is_time(first_seen) and _is_time(last_seen)):
            into.left_out["not sqlgrey's row"] += 1
            continue
        found = _source(src)
        if found is None or found[1] < (128 if ":" in found[0] else 32):
            into.left_out["senders that passed from a network, not from one address"] += 1
            continue
        if src != current:
            if earned.passes:
                yield Allowance(_earner(current), earned)
            current, earned = src, Earned(0, 0, 0)
        last_used = max(earned.last_used, float(last_seen))
        if not earned.passes or first_seen - earned.counted_at >= COUNT_EVERY:
            earned = Earned(earned.passes + 1, float(first_seen), last_used)
        else:
            earned = Earned(earned.passes, earned.counted_at, last_used)
    if earned.passes:
        yield Allowance(_earner(current), earned)


def _recipients(database: sqlite3.Connection, now: float, into: Loaded) -> Iterator[Item]:
    for (value,) in database.execute(OPTOUT):
        try:
            yield Entry(
                Kind.RECIPIENT,
                canonical(Kind.RECIPIENT, value if _are_texts(value) else ""),
                Action.ALLOW,
                created=now,
                note="from sqlgrey's opt-out",
            )
        except EntryError:
            into.left_out["not a recipient"] += 1


def _source(src: str) -> tuple[str, int] | None:
    """Read `src`: an address, and how many of its bits are known. None: something else."""
    address, bits = src, 128 if ":" in src else 32
    if ":" in src and "::" not in src and src.count(":") == 3:
        address, bits = f"{src}::", 64
    elif src.count(".") == 2 and ":" not in src:
        address, bits = f"{src}.0", 24
    try:
        identify(address, 32, 128)
    except ValueError:
        return None
    return address, bits


def _earner(src: str) -> str:
    return str(identify(src, 32, 128).address)


def _are_texts(*values: object) -> bool:
    return all(isinstance(value, str) and len(value) <= MAX_TEXT for value in values)


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1e11
