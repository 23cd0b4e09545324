# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's log: lines of syslog, with traditional or ISO 8601 times, joined by queue id.

    ... host postfix/submission/smtpd[1]: 4F1A2B: client=name[192.0.2.7], sasl_method=PLAIN, sasl_username=joe
    ... host postfix/qmgr[2]: 4F1A2B: from=<joe@example.org>, size=1234, nrcpt=1 (queue active)
    ... host postfix/smtp[3]: 4F1A2B: to=<ann@example.net>, relay=..., dsn=2.0.0, status=sent (250 ...)
    ... host postfix/qmgr[2]: 4F1A2B: removed

The first makes a message one of a user's: by `sasl_username`, or by a client in the networks that the operator names
(what `mynetworks` is to Postfix). Only such ids are remembered, and of those the latest, so inbound mail costs
nothing. Delivery to a content filter counts as delivery: what the filter hands back has no user.

Each line is read from its beginning: names, senders and remote servers put text of their own into it, and
`, sasl_username=` in a text of theirs must not make a user of them. What they can't do is begin a line.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from greylist_proxy.learn import Lines, Sent

MAX_QUEUED = 200_000  # messages of users that are remembered at once, the latest

LINE = re.compile(
    r"(?:[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(?:Z|[+-][0-9:]{4,6})?)"
    r" (\S{1,255}) postfix[\w-]{0,32}/(?:[\w.-]{1,64}/)?(smtpd|qmgr|smtp|lmtp)\[[0-9]+\]:"
    r" ([0-9A-Za-z]{6,20}): (.*)",
    re.ASCII,
)
CLIENT = re.compile(r"client=[^\s,\[\]]{1,255}\[([0-9A-Fa-f.:]+)\](?::[0-9]+)?(.*)", re.ASCII)
USER = re.compile(r", sasl_method=[\w-]+, sasl_username=[^\s,]", re.ASCII)
FROM = re.compile(r"from=<([^<>]*)>, size=[0-9]+, nrcpt=[0-9]+")
TO = re.compile(
    r"to=<([^<>]*)>, (?:orig_to=<([^<>]*)>, )?relay=[^\s,]+, (?:conn_use=[0-9]+, )?delay=[^=]*, delays=\S+, "
)
DELIVERED = "dsn=2."

Network = IPv4Network | IPv6Network


@dataclass(slots=True)
class _Message:
    sender: str | None = None


class Reader:
    """Reads files one after the other; `messages` counts what users submitted, `unreadable` lines that are too long."""

    def __init__(self, sent: Sent, networks: Collection[Network] = ()) -> None:
        self._sent = sent
        self._networks = tuple(networks)
        self._queued: dict[tuple[str, str], _Message] = {}  # by host and id, in order
        self.messages = 0
        self.unreadable = 0

    def read(self, lines: Lines) -> None:
        """Read one file. Logs of the same host go in the order of time."""
        for line in lines:
            if line is None:
                self.unreadable += 1
            elif b"postfix" in line and (match := LINE.match(line.decode("utf-8", "replace").rstrip("\r\n"))):
                host, program, queue_id, text = match.groups()
                self._event((host, queue_id), program, text)

    def _event(self, key: tuple[str, str], program: str, text: str) -> None:
        if program == "smtpd":
            if (match := CLIENT.match(text)) and (USER.match(match[2]) or (not match[2] and self._is_inside(match[1]))):
                self.messages += 1
                self._queued.pop(key, None)  # Postfix gives short ids anew
                self._queued[key] = _Message()
                if len(self._queued) > MAX_QUEUED:
                    del self._queued[next(iter(self._queued))]
            return
        message = self._queued.get(key)
        if message is None:
            return
        if program == "qmgr":
            if text == "removed":
                del self._queued[key]
            elif match := FROM.match(text):
                message.sender = match[1]
        elif message.sender is not None and (match := TO.match(text)) and text.startswith(DELIVERED, match.end()):
            self._sent(message.sender, match[1], match[2] or "", "\0".join(key))

    def _is_inside(self, address: str) -> bool:
        if not self._networks:
            return False
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._networks)
