# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SMTP on both sides: the clients in front, the mail server behind, one transaction from one to the other.

    in front        edge, conversation, server: a session; listener, limits, timers, tarpit, tls, proxy_header, settings
    the language    protocol, and its parts: events, answers, parameters, address, body, foreign, replies. No I/O
    in between      transaction: recipients, verification, trace
    behind          relay, pool, host, opening, backend; breaker, capabilities, forwarding, envelope without I/O
"""
