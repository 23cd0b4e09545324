# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A greylisting SMTP proxy: first contacts are asked to come back, everything else goes to the mail server.

The way of a connection, and nothing calls back up:

    smtp/server      the connection: bytes, timers, TLS
    smtp/protocol    what the bytes mean: replies, commands, pieces of a message
    smtp/transaction one MAIL to one end of data: what each recipient is told
    client, policy   who it is, and the decision; gate.py asks the store for what is remembered
    smtp/relay       the same transaction at the mail server behind
    smtp/backend     one connection to it

`policy.py`, `client.py`, and in `smtp/` the protocol with all that it imports, and `trace.py`, do no I/O.
`app.py` puts it all together, `cli.py` is the command line.
"""

__version__ = "0.1.0"
