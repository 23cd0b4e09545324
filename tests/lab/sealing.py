# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How does an encrypted body look? ([MS-WSMV] 2.2.9.1)

WinRM encrypts over plain HTTP with the keys of the login: a MIME body of two parts, the first saying
what the clear text was and how long, the second a little-endian length, the signature of that length and
the sealed text. Header lines start with a tab and nothing separates them from the data but a line end, so
this is parsed by position, not by a MIME library. Exchange, and so its clients, tolerate white space
after the dashes of a boundary.
"""

from __future__ import annotations

import re
import struct
from typing import Final

import spnego

MEDIA_TYPE: Final = "multipart/encrypted"
PROTOCOL: Final = "application/HTTP-SPNEGO-session-encrypted"
# Where the login was by Kerberos itself; some clients say SPNEGO then too. The data is the same.
KERBEROS_PROTOCOL: Final = "application/HTTP-Kerberos-session-encrypted"
_BOUNDARY: Final = "Encrypted Boundary"

_BODY = re.compile(
    rb"""
    --\s*Encrypted\ Boundary\r\n
    \s*Content-Type:\s*(?P<protocol>[^\r\n;]+)\r\n
    \s*OriginalContent:\s*[^\r\n]*\bLength=(?P<length>[0-9]{1,9})\r\n
    --\s*Encrypted\ Boundary\r\n
    \s*Content-Type:\s*application/octet-stream\r\n
    (?P<sealed>.*)
    --\s*Encrypted\ Boundary--(?:\r\n)?
    """,
    re.VERBOSE | re.DOTALL,
)
_SIGNATURE_LENGTH = struct.Struct("<I")


class SealError(ValueError):
    """The body is not an encrypted message of this connection."""


def is_sealed(content_type: str) -> bool:
    """Does the Content-Type header announce an encrypted body?"""
    return content_type.partition(";")[0].strip().lower() == MEDIA_TYPE


def protocol_of(context: spnego.ContextProxy, content_type: str) -> str:
    """What the Content-Type header says that the body is encrypted by, if that is possible here."""
    if KERBEROS_PROTOCOL.lower() in content_type.lower() and context.negotiated_protocol == "kerberos":
        return KERBEROS_PROTOCOL
    return PROTOCOL


def unseal(context: spnego.ContextProxy, body: bytes, content_type: str = MEDIA_TYPE) -> bytes:
    """Check and decrypt one request."""
    match = _BODY.fullmatch(body)
    if match is None:
        raise SealError("the encrypted body has not the parts that [MS-WSMV] 2.2.9.1 describes")
    if match["protocol"].strip().lower() != protocol_of(context, content_type).lower().encode():
        raise SealError(f"the body is encrypted by {match['protocol'].decode(errors='replace')}")
    sealed = match["sealed"]
    if len(sealed) < _SIGNATURE_LENGTH.size:
        raise SealError("the encrypted part is too short for its signature's length")
    (size,) = _SIGNATURE_LENGTH.unpack_from(sealed)
    start = _SIGNATURE_LENGTH.size
    if size > len(sealed) - start:
        raise SealError("the encrypted part is shorter than its signature")
    try:
        clear = context.unwrap_winrm(sealed[start : start + size], sealed[start + size :])
    except Exception as error:
        raise SealError(f"the encrypted part does not decrypt: {error}") from error
    # The length counts the padding that Kerberos adds, which decryption has already removed.
    if len(clear) > int(match["length"]):
        raise SealError("the encrypted part is longer than its header says")
    return clear


def seal(context: spnego.ContextProxy, clear: bytes, protocol: str = PROTOCOL) -> tuple[str, bytes]:
    """Encrypt one reply: its Content-Type header and its body."""
    header, data, padding = context.wrap_winrm(clear)
    lines = (
        f"--{_BOUNDARY}",
        f"\tContent-Type: {protocol}",
        f"\tOriginalContent: type=application/soap+xml;charset=UTF-8;Length={len(clear) + padding}",
        f"--{_BOUNDARY}",
        "\tContent-Type: application/octet-stream",
        "",
    )
    body = "\r\n".join(lines).encode() + _SIGNATURE_LENGTH.pack(len(header)) + header + data
    content_type = f'{MEDIA_TYPE};protocol="{protocol}";boundary="{_BOUNDARY}"'
    return content_type, body + f"--{_BOUNDARY}--\r\n".encode()
