# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom our own users write to, from the mail server's log: they will answer, and need not wait.

`exchange.py` and `postfix.py` read logs and tell of messages that users submitted; `choose.py` decides what is learned
of them. Logs are hostile: whoever sends mail to us writes into them. So nothing is taken from a line but what its
writer vouches for, and what is learned exempts only with an SPF pass (`exemptions.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

# A message that a user submitted: its sender, a recipient, what recipient that was before aliases ("" where it is
# the same), and something that tells the message from others.
Sent = Callable[[str, str, str, str], None]
# What a reader is given: the lines of one file (None: one that was too long), as bytes with their line ends.
Lines = Iterable[bytes | None]

MAX_LINE = 256 << 10  # bytes; a message to a thousand recipients is one line in Exchange's log
