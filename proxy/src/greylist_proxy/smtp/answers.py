# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the protocol core answers by itself: fixed words, in which nothing that a client said comes back to him."""

from __future__ import annotations

from functools import lru_cache

from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.replies import Reply, own_reply

OK = own_reply(250, "2.0.0", "OK")
GOODBYE = own_reply(221, "2.0.0", "Goodbye")
HELP = own_reply(214, "2.0.0", "See RFC 5321")
CANNOT_VERIFY = own_reply(252, "2.5.0", "Cannot verify, try RCPT")
UNKNOWN = own_reply(500, "5.5.2", "Command not recognized")
LINE_TOO_LONG = own_reply(500, "5.5.2", "Line too long")
BARE_LINE_FEED = own_reply(521, "5.5.2", "Lines must end in CRLF, goodbye")
BAD_LINE_END = own_reply(500, "5.5.2", "Lines must end in CRLF")
NO_ARGUMENTS = own_reply(501, "5.5.4", "This command has no arguments")
NO_NAME = own_reply(501, "5.5.4", "Expected a domain or an address literal")
NOT_IMPLEMENTED = own_reply(502, "5.5.1", "Command not implemented")
NO_HELLO = own_reply(503, "5.5.1", "EHLO or HELO first")
NO_MAIL = own_reply(503, "5.5.1", "MAIL first")
IN_TRANSACTION = own_reply(503, "5.5.1", "A transaction is under way")
UNDER_TLS = own_reply(503, "5.5.1", "TLS is on already")
TOO_MANY_ERRORS = own_reply(421, "4.7.0", "Too many errors, goodbye")
TOO_MANY_COMMANDS = own_reply(421, "4.7.0", "Too many commands without mail, goodbye")
NOT_SYNCHRONISED = own_reply(421, "4.7.0", "Wait for the reply to DATA, goodbye")


@lru_cache(maxsize=32)
def ehlo_reply(hostname: str, size: int, capabilities: Capabilities | None, starttls: bool) -> bytes:
    """Return what answers EHLO: what can be passed on and every backend has (GREYLISTING, rule 10), as known now."""
    words = [hostname, "PIPELINING"]
    if capabilities is not None:
        offered = (
            (f"SIZE {size}", capabilities.size is not None),
            ("8BITMIME", capabilities.eightbitmime),
            ("SMTPUTF8", capabilities.smtputf8),
            ("DSN", capabilities.dsn),
            ("ENHANCEDSTATUSCODES", capabilities.enhancedstatuscodes),
        )
        words += [word for word, is_there in offered if is_there]
    if starttls:
        words.append("STARTTLS")
    return Reply(250, tuple(word.encode("ascii") for word in words)).wire()
