# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SMTP on both sides: the clients in front, the mail server behind, one transaction from one to the other.

In front stand edge, conversation and server, which are a session, with listener, limits, timers, tarpit, tls,
proxy_header and settings. The language is protocol, with its parts events, answers, parameters, address, body, foreign
and replies, all without I/O. In between is transaction, with recipients, verification and trace. Behind are relay,
pool, host, opening and backend, with breaker, capabilities, forwarding and envelope, which have no I/O.
"""
