# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What comes to an SMTP port and is no SMTP: scanners, browsers that were lured here, TLS without STARTTLS.

A web page can make a browser send a form here, in which a line is an SMTP command. The request line and the header
before it give that away, and the connection is closed at the first of them. No SMTP command looks like any of these, so
they are looked for at all times: what follows a refused DATA may be a message that nobody asked for.
"""

from __future__ import annotations

# By the first octet of a line, before its end is there: binary protocols may never send one.
OCTETS = {
    b"\x03": "rdp",  # TPKT, RFC 2126
    b"\x04": "socks",
    b"\x05": "socks",
    b"\x16": "tls",  # a handshake record, RFC 8446 section 5.1
    b"\x80": "tls",  # ClientHello of SSL 2
    b"\xff": "telnet",  # negotiation, RFC 854
}
VERBS = {
    **dict.fromkeys(b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH CONNECT".split(), "http"),
    b"PRI": "http",  # HTTP/2, RFC 9113 section 3.4
    b"PROXY": "proxy",  # a load balancer that may not say whom it speaks for
}


def of_octet(octet: bytes) -> str | None:
    """Return what protocol a line with this first octet belongs to; None: it may be SMTP, or there is none yet."""
    if not octet or b" " <= octet <= b"~" or octet in b"\t\r\n":
        return None
    return OCTETS.get(octet, "binary")


def of_line(line: bytes) -> str | None:
    """Return what protocol a line belongs to that is no SMTP command; None: it is just unknown."""
    verb = line.rstrip().partition(b" ")[0].upper()
    if verb.endswith(b":"):
        return "header"  # as in "Host: example.net"
    if verb.startswith(b"SSH-"):
        return "ssh"
    return VERBS.get(verb) or of_octet(line[:1])
