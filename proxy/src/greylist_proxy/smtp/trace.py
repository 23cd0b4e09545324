# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Received field that is put before each message (RFC 5321 section 4.4, RFC 3848). No I/O."""

from __future__ import annotations

import datetime
import email.utils

from greylist_proxy.client import Client
from greylist_proxy.smtp.address import is_address_literal, is_domain


def received(
    *,
    helo: str,
    esmtp: bool,
    client: Client,
    hostname: str,
    ident: str,
    recipient: str | None,
    now: datetime.datetime,
) -> bytes:
    """Return the field with its CRLF.

    `helo` is what the client said, and is written only where it is a name or an address literal: anything else
    could break the field. `recipient` is given for a message to one alone; naming one of several would tell
    it to the others (Bcc).
    """
    name = helo if is_domain(helo) or is_address_literal(helo) else "unknown"
    protocol = "ESMTP" if esmtp else "SMTP"
    lines = [
        f"Received: from {name} ({client.literal})",
        f" by {hostname} (greylist-proxy) with {protocol} id {ident}",
    ]
    if recipient is not None:
        lines.append(f" for <{recipient}>")
    lines[-1] += ";"
    lines.append(f" {email.utils.format_datetime(now)}")
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")
