# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""MAIL and RCPT as a backend gets them: addresses and parameters as they came, byte for byte. No I/O.

A parameter goes to a backend that offers its extension. One that only tells a backend what it finds out by itself
(SIZE, BODY=7BIT) is left out where it does not; any other was promised to the client, and an unkept promise
is a 451: the client must neither re-encode nor bounce.
"""

from __future__ import annotations

from collections.abc import Sequence

from greylist_proxy.smtp.backend import TROUBLE, BackendError
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.parameters import Parameter


def mail(sender: str, parameters: Sequence[Parameter], capabilities: Capabilities) -> bytes:
    """Return the MAIL command, without CRLF. BackendError: the backend lacks what was promised."""
    return _command(b"MAIL FROM:", sender, parameters, capabilities)


def rcpt(recipient: str, parameters: Sequence[Parameter], capabilities: Capabilities) -> bytes:
    """Return the RCPT command, without CRLF. BackendError: the backend lacks what was promised."""
    return _command(b"RCPT TO:", recipient, parameters, capabilities)


def _command(verb: bytes, path: str, parameters: Sequence[Parameter], capabilities: Capabilities) -> bytes:
    line = verb + b"<%b>" % path.encode("utf-8")
    for parameter in parameters:
        if _is_passed(parameter, capabilities):
            line += b" " + parameter.raw.encode("utf-8")
    return line


def _is_passed(parameter: Parameter, capabilities: Capabilities) -> bool:
    match parameter.keyword:
        case "SIZE":
            if capabilities.size and int(parameter.value) > capabilities.size:
                raise BackendError(TROUBLE, f"it takes {capabilities.size} octets, and more was promised")
            return capabilities.size is not None
        case "BODY" if parameter.value.upper() == "7BIT":
            return capabilities.eightbitmime
        case "BODY":
            extension, is_offered = "8BITMIME", capabilities.eightbitmime
        case "SMTPUTF8":
            extension, is_offered = "SMTPUTF8", capabilities.smtputf8
        case "RET" | "ENVID" | "NOTIFY" | "ORCPT":
            extension, is_offered = "DSN", capabilities.dsn
        case unknown:
            extension, is_offered = unknown, False
    if not is_offered:
        raise BackendError(TROUBLE, f"it does not offer {extension}, which was promised")
    return True
