# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What follows MAIL FROM: and RCPT TO: - paths and parameters (RFC 5321 sections 4.1.2 and 4.1.3).

A path is taken apart for the decision and passed on byte for byte. What the grammar does not know is refused,
with two exceptions that real mail needs: dots anywhere in a local part (Japanese mobile carriers give such
addresses out), and underscores in domains. Two programs must never read one address in two ways, so nothing
is guessed: no missing bracket, no comment, no white space inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from greylist_proxy.smtp.replies import NO_PARAMETER, TOO_BIG, Reply, own_reply

# RFC 5321 section 4.5.3.1.3 gives a path 256 octets. Tagged senders (SRS, VERP) are longer; sendmail and
# Postfix take them.
MAX_PATH = 512
MAX_DOMAIN = 255  # RFC 5321 section 4.5.3.1.2
LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
DOMAIN = re.compile(rf"{LABEL}(?:\.{LABEL})*")
MAILBOX = re.compile(
    r"""
    ( [A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+                        # atoms and dots,
    | " (?: [\x20\x21\x23-\x5b\x5d-\x7e] | \\[\x20-\x7e] )* "  # or a quoted string
    )
    @
    ( [A-Za-z0-9_.-]+                                         # a domain; is_domain looks closer
    | \[ [\x21-\x5a\x5e-\x7e]+ \]                             # or an address literal
    )
    """,
    re.VERBOSE,
)
# The path, and what is left for parameters. A quoted local part may hold ">" and white space.
COMMAND = re.compile(rb'\s*<((?:"(?:[^"\\]|\\.)*"|[^"<>\s])*)>(?:\s+(\S.*))?\s*', re.DOTALL)
PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([\x21-\x3c\x3e-\x7e]+))?")  # esmtp-param, section 4.1.2
# What IDNA 2003, the only one at hand, maps away, while IDNA 2008 makes other names of it (RFC 5894 section 7.2).
AMBIGUOUS = frozenset("\u00df\u03c2\u200c\u200d")
ROUTING = frozenset("%!@")
ROUTING_DENIED = own_reply(550, "5.1.3", "Routing inside an address is not allowed")


class AddressError(Exception):
    """A path or parameter that is refused; `routing` where it asks for onward routing."""

    def __init__(self, reply: Reply, *, routing: bool = False) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.routing = routing


@dataclass(frozen=True, slots=True)
class Path:
    """A reverse or forward path without its brackets, as it came; `domain` is in lower case."""

    address: str
    local: str = ""
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One ESMTP parameter: how it came, its keyword in upper case, and its value ("" where it has none)."""

    raw: str
    keyword: str
    value: str


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
    try:
        return domain.encode("idna").decode().lower()
    except UnicodeError:
        return ""


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


def split(argument: bytes, keyword: bytes) -> tuple[str, list[Parameter]]:
    """Take `FROM:<path> parameters` apart. AddressError: not of this form, or not ASCII.

    A blank after the colon is allowed, as everywhere in the field.
    """
    if argument[: len(keyword)].upper() != keyword:
        raise AddressError(own_reply(501, "5.5.4", f"Expected {keyword.decode()}<address>"))
    match = COMMAND.fullmatch(argument[len(keyword) :])
    if match is None:
        raise AddressError(own_reply(501, "5.5.4", f"Expected {keyword.decode()}<address>"))
    if not argument.isascii():
        # RFC 6531 section 3.5: without SMTPUTF8, which is not offered here.
        raise AddressError(own_reply(553, "5.6.7", "Non-ASCII addresses are not supported"))
    parameters = []
    for raw in (match[2] or b"").decode().split():
        parameter = PARAMETER.fullmatch(raw)
        if parameter is None:
            raise AddressError(own_reply(501, "5.5.4", "Malformed parameter"))
        parameters.append(Parameter(raw, parameter[1].upper(), parameter[2] or ""))
    return match[1].decode(), parameters


def check_mail_parameters(parameters: list[Parameter], max_size: int) -> Reply | None:
    """Return the reply that MAIL's parameters have earned, None where they are fine: SIZE and BODY, once each."""
    keywords = [parameter.keyword for parameter in parameters]
    if len(set(keywords)) != len(keywords):
        return own_reply(501, "5.5.4", "Parameter given twice")
    for parameter in parameters:
        if parameter.keyword == "SIZE":  # RFC 1870 section 4: up to 20 digits
            if not (parameter.value.isdigit() and len(parameter.value) <= 20):
                return own_reply(501, "5.5.4", "Malformed SIZE")
            if int(parameter.value) > max_size:
                return TOO_BIG
        elif parameter.keyword == "BODY":  # RFC 6152
            if parameter.value.upper() not in ("7BIT", "8BITMIME"):
                return own_reply(501, "5.5.4", "BODY is 7BIT or 8BITMIME")
        else:
            return NO_PARAMETER
    return None


def parse_sender(address: str) -> Path:
    """Parse a reverse path; "" is the null sender. AddressError: refused."""
    if not address:
        return Path("")
    return _mailbox(address, own_reply(501, "5.1.7", "Bad sender address syntax"))


def parse_recipient(address: str) -> Path:
    """Parse a forward path: a mailbox, or the bare postmaster. AddressError: refused.

    Routing inside the local part would make a relay of a backend that obeys it, so it is refused also where
    it is quoted: `user%other@here`, `other!user@here`, `"user@other"@here`, `<@here:user@other>`.
    """
    if address.lower() == "postmaster":
        return Path(address, address)
    if ROUTING & set(address.rpartition("@")[0]):
        raise AddressError(ROUTING_DENIED, routing=True)
    return _mailbox(address, own_reply(501, "5.1.3", "Bad recipient address syntax"))


def _mailbox(address: str, refusal: Reply) -> Path:
    match = MAILBOX.fullmatch(address)
    if match is None or len(address) > MAX_PATH or not (is_domain(match[2]) or is_address_literal(match[2])):
        raise AddressError(refusal)
    return Path(address, match[1], match[2].lower())
