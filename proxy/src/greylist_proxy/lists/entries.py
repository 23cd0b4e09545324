# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may stand in a list, and how it is written so that two ways of saying the same are one entry.

    client      192.0.2.1   192.0.2.0/24   2001:db8::/32   example.net (and what is below it)
    sender      user@example.net   example.net (and what is below it; `@example.net` is the same)
    recipient   the same, and `user@`: that local part at any domain
    trap        as recipient

Everything is compared without case. RFC 5321 section 2.4 leaves the case of a local part to its host; no host is
known that tells two mailboxes apart by it, and a list that a `Postmaster@` slips past is worth nothing. Quotes that a
local part does not need are no difference either (section 4.1.2). `user@example.net` stands for
`user+anything@example.net` too, unless it has a plus of its own: to most servers that is the same mailbox.

Domains are kept as A-labels, the form that mail has. U-labels are converted by Python's codec, which follows IDNA 2003;
the four characters that IDNA 2008 reads in another way (RFC 5894 section 7.2: sharp s, final sigma, joiners)
are refused rather than guessed at.
"""

from __future__ import annotations

import ipaddress
import re

from greylist_proxy.log import json_line
from greylist_proxy.normalise import composed, domain_key
from greylist_proxy.smtp.address import AMBIGUOUS, MAX_PATH, a_labels, is_domain
from greylist_proxy.store import Kind

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# A local part without quotes, dots anywhere; also an internationalised one (RFC 6531 section 3.3).
ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\u0080-\U0010ffff-]+")
NUMERIC = re.compile(r"[0-9.]+")
MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")

CLIENT = (
    "an IP address, a network such as 192.0.2.0/24 or 2001:db8::/32, or a domain name such as example.net, which "
    "stands for all names below it too"
)
SENDER = "an address such as user@example.net, or a domain such as example.net, which stands for all below it too"
RECIPIENT = f"{SENDER}, or a local part at any domain, such as user@"
ALLOWED = {Kind.CLIENT: CLIENT, Kind.SENDER: SENDER, Kind.RECIPIENT: RECIPIENT, Kind.TRAP: RECIPIENT}


class EntryError(ValueError):
    """A value that can't stand in a list; the text is one sentence that shows it and says what is allowed."""


def canonical(kind: Kind, value: str) -> str:
    """Return the one way in which an entry's value is written. EntryError: not a value of that kind.

    A network must be named by its first address here: `192.0.2.1/24` is as likely a slip for /32.
    """
    if kind is not Kind.CLIENT:
        return mailbox(kind, value).removeprefix("@")
    found = client(value)
    if isinstance(found, str):
        return found
    if found.prefixlen == 0:
        raise EntryError(f'{quoted(value)} is everybody; to switch greylisting off, set greylist.mode = "off"')
    return str(found.network_address) if found.prefixlen == found.max_prefixlen else str(found)


def key(kind: Kind, value: str) -> Network | str:
    """Return what a value is kept under in `tables.py`. EntryError: not a value of that kind."""
    return client(value) if kind is Kind.CLIENT else mailbox(kind, value)


def client(value: str) -> Network | str:
    """Read a client: a network, an address being the smallest, or a domain name. EntryError: neither."""
    if len(value) <= MAX_PATH and (":" in value or "/" in value or NUMERIC.fullmatch(value)):
        return network(value)
    return _domain(value, CLIENT)


def network(value: str, *, host_bits: bool = False) -> Network:
    """Read a network. EntryError: none, or (unless `host_bits`) one that is not named by its first address."""
    try:
        # A scope (fe80::1%eth0) says something about our interfaces.
        found = ipaddress.ip_network(value, strict=False) if "%" not in value else None
    except ValueError:
        found = None
    if found is None:
        raise EntryError(f"{quoted(value)}: allowed is {CLIENT}")
    if not host_bits and found.network_address != ipaddress.ip_address(value.partition("/")[0]):
        raise EntryError(f"{quoted(value)} has bits set beyond its /{found.prefixlen}; the network is {found}")
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(MAPPED):
        # IPv4 in IPv6 clothes: clients are compared without them (client.py).
        return ipaddress.IPv4Network((int(found.network_address) & 0xFFFFFFFF, found.prefixlen - MAPPED.prefixlen))
    return found


def mailbox(kind: Kind, value: str) -> str:
    """Read a sender, recipient or trap: `user@domain`, `@domain` (and what is below), `user@`. EntryError: none."""
    allowed = ALLOWED[kind]
    if len(value) > MAX_PATH:
        raise EntryError(f"{quoted(value)} is longer than {MAX_PATH} characters; allowed is {allowed}")
    if "@" not in value or value.startswith("@"):
        return "@" + _domain(value.removeprefix("@"), allowed)
    local, _at, domain = value.rpartition("@")
    local = _folded_local(local)
    if not (ATOMS.fullmatch(local) and local.isprintable()) or (not domain and kind is Kind.SENDER):
        raise EntryError(f"{quoted(value)}: allowed is {allowed}")
    return f"{local}@{_domain(domain, allowed) if domain else ''}"


def fold(address: str) -> tuple[str, str]:
    """Take an envelope's address apart for a comparison: local part and domain, both "" for the null sender."""
    local, _at, domain = address.rpartition("@")
    return (_folded_local(local), domain_key(domain).removesuffix(".")) if local else ("", "")


def fold_name(name: str) -> str:
    """Return a domain name as it is compared."""
    return name.lower().removesuffix(".")


def quoted(text: str) -> str:
    """Show a value in a message: one line of ASCII that no terminal obeys, cut where it is long."""
    return json_line(text if len(text) <= 100 else f"{text[:97]}...")


def _domain(value: str, allowed: str) -> str:
    text = a_labels(value.removeprefix(".").removesuffix("."))
    # No top-level domain is a number: 192.0.2 is half an address (RFC 3696 section 2).
    if not is_domain(text) or text.rpartition(".")[2].isdigit():
        if AMBIGUOUS & set(value):
            raise EntryError(f"{quoted(value)} has a character that IDNA versions read differently; give the xn-- form")
        if value.startswith("*."):
            raise EntryError(f"{quoted(value)}: a domain stands for all below it, write it without *.")
        raise EntryError(f"{quoted(value)}: allowed is {allowed}")
    return text


def _folded_local(local: str) -> str:
    return composed(_unquoted(local).lower())


def _unquoted(local: str) -> str:
    if len(local) >= 2 and local[0] == local[-1] == '"':
        return re.sub(r"\\(.)", r"\1", local[1:-1])
    return local
