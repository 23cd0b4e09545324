# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Received field that is put before each message (RFC 5321 section 4.4). No I/O.

    Received: from mail.example.net (mx7.example.net [192.0.2.7])     what it called itself (what its name is)
     (using TLSv1.3 TLS_AES_256_GCM_SHA384)                           under TLS
     by mx1.example.org (greylist-proxy) with ESMTPS id 0A1B2C3D4E5F  RFC 3848; UTF8SMTP: RFC 6531 section 4.3
     for <u@example.org>;                                             one recipient only
     Sun, 01 Mar 2026 12:00:05 +0000

All that the client had a say in is written only where it is of a form that can't break the field, or add one.
"""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Sequence
from functools import lru_cache

from greylist_proxy.client import Client
from greylist_proxy.smtp.address import is_address_literal, is_domain

IDENT = "\0"  # stands for each character of the message's name: in no name of a host
WIDTH = 78  # characters of a line, where they can be kept to (RFC 5322 section 2.1.1); 998 is the limit
COMMENT = re.compile(r"[A-Za-z0-9._/ -]{1,200}")  # what a comment may hold without quoting (RFC 5322 section 3.2.2)


def received(
    *,
    helo: str,
    esmtp: bool,
    smtputf8: bool,
    tls: str,
    client: Client,
    names: Sequence[str],
    hostname: str,
    ident: str,
    recipient: str | None,
    now: float,
) -> bytes:
    """Return the field with its CRLF.

    `helo` is what the client said. `tls` is version and cipher, "" in clear. `names` are the client's confirmed names.
    `recipient` is given for a message to one alone: naming one of several would tell it to the others (Bcc). `now` is
    in seconds since 1970.
    """
    # Only a message with internationalised headers may have an address with other characters in them (RFC 6532).
    if recipient is not None and not (smtputf8 or recipient.isascii()):
        recipient = None
    protocol = _protocol(esmtp=esmtp, smtputf8=smtputf8, tls=bool(tls))
    whence = _from(helo, client.literal, tuple(names), tls)
    whither = _by(hostname, protocol, len(ident), recipient).replace(IDENT * len(ident), ident, 1)
    return f"{whence}\r\n {whither}\r\n {_date(int(now))}\r\n".encode()


@lru_cache(maxsize=64)  # who sends one message often sends more
def _from(helo: str, literal: str, names: tuple[str, ...], tls: str) -> str:
    """Return the clauses about the client; `literal` is its address."""
    # An address literal means the same to everybody; any other text could break the field.
    says = helo if is_domain(helo) or is_address_literal(helo) else "unknown"
    # Its own name among several, if it gave one of them.
    name = helo.lower() if helo.lower() in names else next(iter(names), "")
    seen = f"({name} {literal})" if is_domain(name) else f"({literal})"
    clauses: list[Sequence[str]] = [("Received: from", says, seen)]
    if tls and COMMENT.fullmatch(tls):
        clauses.append((f"(using {tls})",))
    return "\r\n ".join(map(_folded, clauses))


@lru_cache(maxsize=1024)  # of our recipients
def _by(hostname: str, protocol: str, ident_length: int, recipient: str | None) -> str:
    """Return the clauses about us and the recipient, with as many of IDENT as the message's name is long."""
    clauses: list[Sequence[str]] = [("by", hostname, "(greylist-proxy)", "with", protocol, "id", IDENT * ident_length)]
    if recipient is not None:
        clauses.append(("for", f"<{recipient}>"))
    *others, last = clauses
    return "\r\n ".join(map(_folded, (*others, (*last[:-1], f"{last[-1]};"))))


def _protocol(*, esmtp: bool, smtputf8: bool, tls: bool) -> str:
    if not esmtp:
        return "SMTP"
    return f"{'UTF8SMTP' if smtputf8 else 'ESMTP'}{'S' if tls else ''}"


@lru_cache(maxsize=4)  # many messages come within a second
def _date(second: int) -> str:
    """Return a time, in seconds since 1970, as a header field has it."""
    return email.utils.format_datetime(datetime.datetime.fromtimestamp(second, datetime.UTC))


def _folded(words: Sequence[str]) -> str:
    """Put words on a line, and on more lines where they are too long for one."""
    line = " ".join(words)
    if len(line) < WIDTH:
        return line
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) < WIDTH - 1:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\r\n ".join(lines)
