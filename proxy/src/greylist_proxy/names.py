# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names in the DNS: a client's own, confirmed; whom a name belongs to; whether it is that of a dial-up line.

A name that is only found under an address (PTR) is worth nothing: whoever has the address writes it, and may write
somebody else's. It counts when the name leads back to the address (forward-confirmed reverse DNS, RFC 8499), for then
the owner of the name agrees.

Whether a name looks dynamic is a guess, and is made so that a wrong one costs little: who is taken for dynamic is
greylisted by his network, as everybody was before.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import cache
from ipaddress import IPv6Address, ip_address

from publicsuffixlist import PublicSuffixList

from greylist_proxy.resolver import Address, Kind, Resolver
from greylist_proxy.smtp.address import a_labels, is_domain

MAX_NAMES = 5  # of one address that are looked at; some have hundreds, none needs them

# Top-level names that are never in the public DNS: RFC 6761, 6762, 7686 and 9476, and ICANN's for private use.
PRIVATE = frozenset({"alt", "internal", "invalid", "local", "localhost", "onion"})


# Words that providers put into the names of their customers' lines, and words in the names of mail servers.
LINE = re.compile(
    r"""
    (?<![a-z]) (?:
        [avx]?dsl | sdsl | isdn | modem | dial(?:up|in)? | dip | pppo?e? | pptp | fib(?:er|re) | ftt[hx] | gpon
    |   cable(?:modem)? | catv | broadband | bb | wlan | wifi | wireless | mobile | lte | umts | gprs
    |   dyn(?:amic)?(?:ip)? | dhcp | pools? | nat | cgn(?:at)? | unassigned | unknown | unused
    |   clients? | cust(?:omers?)? | subs? | subscribers? | users? | home | res(?:idential)? | cpe
    ) (?![a-z])
    """,
    re.VERBOSE,
)
MAIL = re.compile(
    r"(?<![a-z])(?:mail(?:er|out)?|smtp|mta|mx|relay|out(?:bound|mail)?|sender|bounces?|newsletter)(?![a-z])"
)


async def confirmed_name(resolver: Resolver, address: Address) -> tuple[str, ...]:
    """Return the client's names that lead back to its address, in lower case, sorted; none where the DNS fails."""
    answer = await resolver.lookup(address.reverse_pointer, "PTR")
    # Servers give the names in any order: sorted, so that the same few are looked at each time.
    names = sorted({name.lower() for name in answer.values if "." in name and is_domain(name)})[:MAX_NAMES]
    kind: Kind = "A" if address.version == 4 else "AAAA"
    answers = await asyncio.gather(*(resolver.lookup(name, kind) for name in names))
    return tuple(name for name, answer in zip(names, answers, strict=True) if address in map(ip_address, answer.values))


def registrable_domain(name: str) -> str:
    """Return the part of a name that somebody registered (`mail.example.co.uk`: `example.co.uk`), "" where none is.

    By the public suffix list that ships with its package, with the private suffixes: below `github.io` everybody is a
    registrant of his own.
    """
    return _suffixes().privatesuffix(name.lower().removesuffix(".")) or ""


def public_domain(text: str) -> str:
    """Return a domain as the public DNS has it: lower case, A-labels, no final dot; "" where it has none."""
    domain = a_labels(text.removesuffix("."))
    top = domain.rpartition(".")[2]
    is_public = "." in domain and is_domain(domain) and not top.isdigit() and top not in PRIVATE
    return domain if is_public else ""


def looks_dynamic(name: str, address: Address) -> bool:
    """Tell whether a name seems to be given by a provider to whatever line has the address.

    It does when it holds the address (in decimal or hexadecimal, either way round, with or without anything
    between), or, in a part that is not a mail server's, a word such as `dsl` or `pool`. Only what stands
    before the registrable domain is looked at: a company may be called Cable.
    """
    name = name.lower()
    host = name.removesuffix(registrable_domain(name)).removesuffix(".")
    if _holds(host, address):
        return True
    return LINE.search(host) is not None and MAIL.search(host) is None


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # takes 40 ms


def _holds(host: str, address: Address) -> bool:
    """Tell whether most of the address stands in the host's name: a part of it may be in the domain's."""
    # Decimal octets or hexadecimal groups with something between them, leading zeros or not.
    if isinstance(address, IPv6Address):
        groups = [group.lstrip("0") or "0" for group in address.exploded.split(":")]
        parts = [part.lstrip("0") or "0" for part in re.split("[^0-9a-f]+", host)]
        if _runs_through(parts, groups, 4) or _runs_through(parts, [group for group in groups if group != "0"], 4):
            return True
    else:
        octets = [str(octet) for octet in address.packed]
        parts = [number.lstrip("0") or "0" for number in re.findall("[0-9]+", host)]
        if _runs_through(parts, octets, 3):
            return True
    flat = re.sub("[-._]", "", host)
    return any(form in flat for form in _forms(address))


def _forms(address: Address) -> Sequence[str]:
    """Return how the address is written without anything between its parts."""
    digits = address.packed.hex()
    if isinstance(address, IPv6Address):
        return digits, digits[::-1], digits[16:], digits[:15:-1]  # the second half is the interface
    octets = [f"{octet:03}" for octet in address.packed]
    return digits, address.packed[::-1].hex(), "".join(octets), "".join(octets[::-1])


def _runs_through(parts: Sequence[str], wanted: Sequence[str], least: int) -> bool:
    """Tell whether `least` neighbours of `wanted` are neighbours among the parts too, either way round."""
    runs = {tuple(parts[at : at + least]) for at in range(len(parts) - least + 1)}
    windows = [tuple(wanted[at : at + least]) for at in range(len(wanted) - least + 1)]
    return any(window in runs or window[::-1] in runs for window in windows)
