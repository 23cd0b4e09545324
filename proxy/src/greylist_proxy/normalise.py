# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What addresses are compared by: the domain without case, and a sender without what changes from mail to mail.

Many senders are made up for one message or one recipient: by BATV and SRS (with the day in them), by VERP (with the
recipient), by mailing services (with the message's number). Compared as they are, each would be a new triplet, and
such mail would be late for ever. So a sender's key is what stays:

    prvs=3120a1b2c3=joe@example.org                  joe@example.org        BATV (draft-levine-smtp-batv), also msprvs1
    btv1==3120a1b2c3==joe@example.org                joe@example.org        and btv1, and BATV the wrong way round
    SRS0=HHH=TT=example.net=joe@example.org          srs=#@example.org      a forwarder is one sender
    joe+shop@example.org                             joe@example.org        a subaddress (RFC 5233) is the same mailbox
    list-return-12-joe=example.net@example.org       list-return-#-#@...    VERP
    news-20241124-ab12cd34@example.org               news-#-#@...           ids

Which numbers are ids is a choice. Two people taken for one costs little (the second passes without a delay, and only
from the first one's network to the same recipient); one sender taken for many means that all his mail is late. But
people do have numbers, so these stay: `smith42`, `smith.1985`, `jane19851231`, and a local part that is a number as a
whole (QQ and mobile carriers give them out). An id is, among what stands between other characters than letters and
digits,

    digits alone, 4 or more beside a hyphen or an equals sign, 6 or more elsewhere;
    8 or more hexadecimal digits, of which at least one is below ten; a UUID;
    letters and digits mixed, changing 4 times within 8 or more, or twice within 20 or more; any 9 digits in a row;
    anything with a digit in it where the address calls itself a bounce address, or has a VERP recipient.

The case of the local part is kept: RFC 5321 section 2.4 leaves it to the receiving host, and no sender changes his own
between a mail and its retry. Recipients are ours, and their tags mean something to us: only the domain loses its case.

Internationalised addresses (RFC 6531) are compared with their domain as A-labels and their local part composed (Unicode
NFC, RFC 6532 section 3.1): a client that writes them in another way at its retry is still the same sender.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from greylist_proxy.smtp.address import mail_domain

PLACE = "#"

BATV = re.compile(
    r"""
    (?: prvs | msprvs1 ) =
    (?: [0-9A-Za-z]{6,24} = (.+)          # tag, then address
    |   ([^=]+) = [0-9][0-9A-Za-z]{9}     # the other way round, seen in the field
    )
    | btv1==[^=]+==(.+)
    """,
    re.VERBOSE | re.IGNORECASE,
)
SRS = re.compile(r"(?:srs[01][=+-]|[^=]*\+srs=).+", re.IGNORECASE)
VERP_DOMAIN = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
BOUNCE = re.compile(r"(?<![A-Za-z0-9])(?:bounces?|returns?|verp)(?![A-Za-z0-9])", re.IGNORECASE)
UUID = re.compile(r"(?<![A-Za-z0-9])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![A-Za-z0-9])", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z0-9]+")
HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{8,}")
LONG_NUMBER = re.compile(r"[0-9]{9,}")
DIGIT = re.compile(r"[0-9]")
CHANGE = re.compile(r"[0-9](?=[A-Za-z])|[A-Za-z](?=[0-9])")


def address_key(address: str) -> str:
    """Return what a sender is compared by; the null sender is "" here as everywhere. Any text is taken."""
    local, at, domain = composed(address).rpartition("@")
    if not at:
        return domain
    # What has neither digits nor signs has nothing to take off.
    return f"{local if local.isalpha() else _stable(local)}@{domain_key(domain)}"


@lru_cache(maxsize=1024)  # of our recipients
def recipient_key(address: str) -> str:
    """Return what a recipient is compared by: the address with its domain in lower case."""
    local, at, domain = composed(address).rpartition("@")
    return f"{local}@{domain_key(domain)}" if at else domain


def domain_key(domain: str) -> str:
    """Return what a domain is compared by: lower case and A-labels, where it has any."""
    if domain.isascii():
        return domain.lower()
    return mail_domain(domain) or composed(domain.lower())


def composed(text: str) -> str:
    """Return a text in Unicode's composed form, NFC."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _stable(local: str) -> str:
    if local.startswith('"'):
        return local
    # A tag may hide another one. Each round leaves fewer letters and digits, so there is an end.
    while (shorter := _untagged(local)) != local:
        local = shorter
    return local


def _untagged(local: str) -> str:
    """Take the outermost tag off, or else put a mark in the place of every id."""
    if "=" in local:
        if match := BATV.fullmatch(local):
            return match[1] or match[2] or match[3]
        if SRS.fullmatch(local):
            return f"srs={PLACE}"
    base, plus, _ignored = local.partition("+")
    if plus and base:
        return base
    whole, is_tagged = local, False
    name, equals, domain = local.rpartition("=")
    if equals and "-" in name and VERP_DOMAIN.fullmatch(domain):
        # A hyphen may be part of the recipient's name, but he is in the triplet anyway.
        local = f"{name.rpartition('-')[0]}-{PLACE}"
        is_tagged = True
    if not DIGIT.search(local) or local.isdigit():
        return local
    is_tagged = is_tagged or BOUNCE.search(whole) is not None
    local = UUID.sub(PLACE, local)
    return WORD.sub(lambda match: _without_id(match, is_tagged=is_tagged), local)


def _without_id(match: re.Match[str], *, is_tagged: bool) -> str:
    word, text = match[0], match.string
    if not DIGIT.search(word):
        return word
    if is_tagged:
        return PLACE
    if word.isdigit():
        neighbours = text[max(match.start() - 1, 0) : match.start()] + text[match.end() : match.end() + 1]
        return PLACE if len(word) >= (4 if "-" in neighbours or "=" in neighbours else 6) else word
    if HEXADECIMAL.fullmatch(word):
        return PLACE
    changes = len(CHANGE.findall(word))
    if (len(word) >= 8 and changes >= 4) or (len(word) >= 20 and changes >= 2):
        return PLACE
    return LONG_NUMBER.sub(PLACE, word)
