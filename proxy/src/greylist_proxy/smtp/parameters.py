# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments of MAIL and RCPT: a path, and parameters: SIZE (RFC 1870), BODY (RFC 6152), SMTPUTF8 (RFC 6531), and
those of DSN (RFC 3461).

Parameters are checked here and passed on as they came: the case of an ENVID or an ORCPT belongs to the sender. Only
what was offered is taken, and each once. AUTH=<> is not: AUTH isn't offered, and a client sends it only where it is
(RFC 4954 section 5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greylist_proxy.smtp.address import AddressError
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.replies import NO_PARAMETER, TOO_BIG, Reply, own_reply

MAX_PARAMETERS = 10  # in a command; there are five that we know
MAX_ENVID = 100  # RFC 3461 section 4.4
MAX_ORCPT = 500  # section 4.2
# The path, and what is left for parameters. A quoted local part may hold ">" and white space.
ARGUMENT = re.compile(rb'[ \t]*<((?:[^"<>\s]++|"(?:[^"\\]++|\\.)*+")*+)>(?:[ \t]+([^ \t].*)|[ \t]*)', re.DOTALL)
BLANKS = re.compile(rb"[ \t]+")
# esmtp-param, RFC 5321 section 4.1.2; RFC 6531 section 3.3 adds what is not ASCII to the value.
PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([\x21-\x3c\x3e-\x7e\x80-\U0010ffff]+))?")
# RFC 3461 section 4: printable, and what xtext hides must be printable too, or a notification would be forged with it.
XCHAR = r"[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+(?:[2-6][0-9A-Fa-f]|7[0-9A-Ea-e])"
ENVID = re.compile(rf"(?:{XCHAR})+")
ORCPT = re.compile(rf"[A-Za-z0-9!#$%&'*/?^_`{{|}}~.-]+;(?:{XCHAR})+")
# RFC 6533 section 3: where SMTPUTF8 is, an address of type utf-8 may stand as it is. One character at a time: a
# repetition inside the repetition could be divided in exponentially many ways before it fails.
ORCPT_UTF8 = re.compile(rf"[Uu][Tt][Ff]-8;(?:{XCHAR}|[^\x00-\x9f\s])+")
NON_ASCII = own_reply(553, "5.6.7", "Non-ASCII addresses need SMTPUTF8")
NOT_UTF8 = own_reply(501, "5.5.2", "Not UTF-8")
MALFORMED = own_reply(501, "5.5.4", "Malformed parameter")
TOO_MANY = own_reply(501, "5.5.4", "Too many parameters")
TWICE = own_reply(501, "5.5.4", "Parameter given twice")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One ESMTP parameter: how it came, its keyword in upper case, and its value ("" where it has none)."""

    raw: str
    keyword: str
    value: str


def split(argument: bytes, keyword: bytes) -> tuple[str, tuple[Parameter, ...]]:
    """Take `FROM:<path> parameters` apart. AddressError: not of this form, or not UTF-8.

    A blank after the colon is allowed, as everywhere in the field.
    """
    match = ARGUMENT.fullmatch(argument, len(keyword)) if argument[: len(keyword)].upper() == keyword else None
    if match is None:
        raise AddressError(own_reply(501, "5.5.4", f"Expected {keyword.decode()}<address>"))
    path, rest = match.groups()
    try:
        if not rest:
            return path.decode(), ()
        # Not str.split: to Unicode many more characters are blanks.
        parameters = BLANKS.split(rest.rstrip(b" \t"), MAX_PARAMETERS)
        if len(parameters) > MAX_PARAMETERS:
            raise AddressError(TOO_MANY)
        return path.decode(), tuple(_parameter(raw.decode()) for raw in parameters)
    except UnicodeDecodeError:
        raise AddressError(NOT_UTF8) from None


def _parameter(raw: str) -> Parameter:
    match = PARAMETER.fullmatch(raw)
    if match is None:
        raise AddressError(MALFORMED)
    return Parameter(raw, match[1].upper(), match[2] or "")


def has_smtputf8(parameters: Sequence[Parameter]) -> bool:
    """Tell whether MAIL's parameters allow addresses that are not ASCII."""
    return any(parameter.keyword == "SMTPUTF8" for parameter in parameters)


def check_mail_parameters(parameters: Sequence[Parameter], offered: Capabilities | None, max_size: int) -> Reply | None:
    """Return the reply that MAIL's parameters have earned, None where they are fine.

    `offered` is what the backends can do, None where none is known. `max_size` is in octets, 0 for no limit.
    """
    if refusal := _refusal(parameters, MAIL, offered):
        return refusal
    sizes = [int(parameter.value) for parameter in parameters if parameter.keyword == "SIZE"]
    return TOO_BIG if max_size and sizes and sizes[0] > max_size else None


def check_rcpt_parameters(
    parameters: Sequence[Parameter], offered: Capabilities | None, *, smtputf8: bool
) -> Reply | None:
    """Return the reply that RCPT's parameters have earned, None where they are fine. `smtputf8`: MAIL had that."""
    if refusal := _refusal(parameters, RCPT, offered):
        return refusal
    return None if smtputf8 or all(parameter.raw.isascii() for parameter in parameters) else MALFORMED


def _size(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) <= 20  # RFC 1870 section 4


def _is_one_of(*words: str) -> Callable[[str], bool]:
    # Not every character whose upper case is in ASCII is itself.
    return lambda value: value.isascii() and value.upper() in words


def _notify(value: str) -> bool:
    if not value.isascii():
        return False
    words = value.upper().split(",")
    return words == ["NEVER"] or (set(words) <= {"SUCCESS", "FAILURE", "DELAY"} and len(set(words)) == len(words))


def _orcpt(value: str) -> bool:
    return len(value) <= MAX_ORCPT and bool(ORCPT.fullmatch(value) or ORCPT_UTF8.fullmatch(value))


# Each with the extension that offers it, and what its value must be.
Rules = dict[str, tuple[Callable[[Capabilities], bool], Callable[[str], bool]]]
MAIL: Rules = {
    "SIZE": (lambda offered: offered.size is not None, _size),
    "BODY": (lambda offered: offered.eightbitmime, _is_one_of("7BIT", "8BITMIME")),
    "SMTPUTF8": (lambda offered: offered.smtputf8, lambda value: not value),
    "RET": (lambda offered: offered.dsn, _is_one_of("FULL", "HDRS")),
    "ENVID": (lambda offered: offered.dsn, lambda value: len(value) <= MAX_ENVID and bool(ENVID.fullmatch(value))),
}
RCPT: Rules = {
    "NOTIFY": (lambda offered: offered.dsn, _notify),
    "ORCPT": (lambda offered: offered.dsn, _orcpt),
}


def _refusal(parameters: Sequence[Parameter], rules: Rules, offered: Capabilities | None) -> Reply | None:
    seen = set()
    for parameter in parameters:
        rule = rules.get(parameter.keyword)
        if rule is None or offered is None or not rule[0](offered):
            return NO_PARAMETER
        if parameter.keyword in seen:
            return TWICE
        if not rule[1](parameter.value):
            return own_reply(501, "5.5.4", f"Malformed {parameter.keyword}")
        seen.add(parameter.keyword)
    return None
