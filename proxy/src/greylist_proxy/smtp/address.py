# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The paths of MAIL and RCPT (RFC 5321 sections 4.1.2 and 4.1.3, RFC 6531 section 3.3).

A path is taken apart for the decision and passed on byte for byte. What the grammar does not know is refused,
with two exceptions that real mail needs: dots anywhere in a local part (Japanese mobile carriers give such
addresses out), and underscores in domains. Two programs must never read one address in two ways, so nothing
is guessed: no missing bracket, no comment, no white space inside.

Addresses that are not ASCII are read too; whether they are allowed (SMTPUTF8) is for the caller to know.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from greylist_proxy.smtp.replies import Reply, own_reply

# RFC 5321 section 4.5.3.1.3 gives a path 256 octets. Tagged senders (SRS, VERP) are longer; sendmail and
# Postfix take them.
MAX_PATH = 512  # octets
MAX_DOMAIN = 255  # RFC 5321 section 4.5.3.1.2
LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
DOMAIN = re.compile(rf"{LABEL}(?:\.{LABEL})*")
# A local part is of atoms and dots, or a quoted string; a domain is looked at more closely by is_domain.
MAILBOX = re.compile(
    r"""
    ( [A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+
    | " (?: [\x20\x21\x23-\x5b\x5d-\x7e] | \\[\x20-\x7e] )* "
    )
    @
    ( [A-Za-z0-9_.-]+
    | \[ [\x21-\x5a\x5e-\x7e]+ \]                                # an address literal
    )
    """,
    re.VERBOSE,
)
# The same, with what RFC 6531 adds to each, which is all that is not ASCII. Left out are controls (C1), and white space
# and line ends of any script: no program should find one where there is none.
UTF8_MAILBOX = re.compile(
    r"""
    ( (?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~.-] | [^\x00-\x9f\s] )+
    | " (?: [\x20\x21\x23-\x5b\x5d-\x7e] | \\[\x20-\x7e] | [^\x00-\x9f\s] )* "
    )
    @
    ( (?: [A-Za-z0-9_.-] | [^\x00-\x9f\s] )+
    | \[ [\x21-\x5a\x5e-\x7e]+ \]
    )
    """,
    re.VERBOSE,
)
# What IDNA 2003, the only one at hand, maps away, while IDNA 2008 makes other names of it (RFC 5894 section 7.2).
AMBIGUOUS = frozenset("\u00df\u03c2\u200c\u200d")
# Exchange unpacks the address that IMCEASMTP hides: IMCEASMTP-u+40other+2Etest@here would be mail for u@other.test.
ROUTING = re.compile(r'[%!@]|\A"?IMCEASMTP-', re.IGNORECASE)
BAD_SENDER = own_reply(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT = own_reply(501, "5.1.3", "Bad recipient address syntax")
ROUTING_DENIED = own_reply(550, "5.1.3", "Routing inside an address is not allowed")


class AddressError(Exception):
    """A path, or an argument that holds none, is refused; `routing` where it asks for onward routing."""

    def __init__(self, reply: Reply, *, routing: bool = False) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.routing = routing


@dataclass(slots=True)  # nobody changes one; frozen it would take three times as long to make
class Path:
    """A reverse or forward path without its brackets, as it came; `domain` is in lower case and A-labels."""

    address: str
    local: str = ""
    domain: str = ""


def is_domain(text: str) -> bool:
    """Tell whether the text is a domain name of letters, digits, hyphens and underscores."""
    return len(text) <= MAX_DOMAIN and DOMAIN.fullmatch(text) is not None


def a_labels(domain: str) -> str:
    """Return a domain in lower case, with A-labels for its U-labels (RFC 5890); "" where that can't be done."""
    if domain.isascii():
        return domain.lower()
    # Longer ones are none, and take Python's codec quadratic time.
    if len(domain) > MAX_DOMAIN or AMBIGUOUS & set(domain.lower()):
        return ""
    return _encoded(domain)


@lru_cache(maxsize=256)  # the codec takes up to a millisecond, and a recipient's domain is asked for several times
def _encoded(domain: str) -> str:
    try:
        return domain.encode("idna").decode().lower()
    except UnicodeError:
        return ""


def mail_domain(domain: str) -> str:
    """Return a domain of an envelope as `a_labels` does, but what IDNA versions read differently as IDNA 2008 does.

    RFC 6531 section 3.3 knows no other U-labels, and its senders none.
    """
    if domain.isascii() or len(domain) > MAX_DOMAIN or not AMBIGUOUS & set(domain.lower()):
        return a_labels(domain)
    labels = unicodedata.normalize("NFC", domain.lower()).split(".")
    encoded = [
        f"xn--{label.encode('punycode').decode()}" if AMBIGUOUS & set(label) else a_labels(label) for label in labels
    ]
    return ".".join(encoded) if all(encoded) else ""


def is_address_literal(text: str) -> bool:
    """Tell whether the text is an address literal such as [192.0.2.1] or [IPv6:2001:db8::1]."""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    inner = text[1:-1]
    try:
        if inner[:5].upper() == "IPV6:":
            IPv6Address(inner[5:])
        else:
            IPv4Address(inner)
    except ValueError:
        return False
    return "%" not in inner


def parse_sender(address: str) -> Path:
    """Parse a reverse path; "" is the null sender. AddressError: refused."""
    if not address:
        return Path("")
    return _mailbox(address, BAD_SENDER)


@lru_cache(maxsize=1024)  # ours, most of the time
def parse_recipient(address: str) -> Path:
    """Parse a forward path: a mailbox, or the bare postmaster. AddressError: refused.

    Routing inside the local part would make a relay of a backend that obeys it, so it is refused also where
    it is quoted: `user%other@here`, `other!user@here`, `"user@other"@here`, `<@here:user@other>`; and where the
    character is one that a backend may make into these (RFC 6532 section 3.1 lets it apply NFKC), as U+FF20.
    """
    if address.lower() == "postmaster":
        return Path(address, address)
    if len(address) > MAX_PATH:
        raise AddressError(BAD_RECIPIENT)  # before NFKC, which takes quadratic time
    local = address.rpartition("@")[0]
    if ROUTING.search((local if local.isascii() else unicodedata.normalize("NFKC", local)).replace("\\", "")):
        raise AddressError(ROUTING_DENIED, routing=True)
    return _mailbox(address, BAD_RECIPIENT)


def _mailbox(address: str, refusal: Reply) -> Path:
    if address.isascii():
        match, size = MAILBOX.fullmatch(address), len(address)
    else:
        match, size = UTF8_MAILBOX.fullmatch(address), len(address.encode("utf-8", "replace"))
    if match is None or size > MAX_PATH:
        raise AddressError(refusal)
    local, domain = match.groups()
    domain = _compared(domain)
    if not domain:
        raise AddressError(refusal)
    return Path(address, local, domain)


@lru_cache(maxsize=1024)  # ours are in every RCPT, and most mail is from few
def _compared(domain: str) -> str:
    """Return a domain or literal of a mailbox as `Path` has it; "" where it is none."""
    domain = mail_domain(domain)
    return domain if is_domain(domain) or is_address_literal(domain) else ""
