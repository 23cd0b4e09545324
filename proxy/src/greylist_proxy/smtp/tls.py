# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS towards clients: the certificate, and what is spoken with it.

Mail servers encrypt opportunistically (RFC 7435): a client that finds no common cipher sends in clear. So the ciphers
are the library's, and only what is broken is off: TLS before 1.2, renegotiation, compression.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path


class TlsError(Exception):
    """The certificate can't be used; the text says why, in one line, without what is in the key."""


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the context for STARTTLS with this certificate (with its chain) and key, both PEM. TlsError: unusable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # Mail clients seldom come back soon enough to resume, and a ticket for each would be two writes for nothing.
    context.num_tickets = 0
    for name, file in (("smtp.tls_certificate", certificate), ("smtp.tls_key", key)):
        try:
            file.read_bytes()
        except OSError as error:
            raise TlsError(f"{name}: {file}: can't be read: {error.strerror}") from error
    try:
        # A password callback that gives none: without it, OpenSSL would ask on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        reason = (error.reason or "not PEM, or encrypted").replace("_", " ").lower()
        raise TlsError(
            f"smtp.tls_certificate, smtp.tls_key: {certificate} and {key}: can't be used: {reason}"
        ) from error
    return context


class Tls:
    """The context that new handshakes use, None while STARTTLS is not offered."""

    def __init__(self, certificate: Path | None = None, key: Path | None = None) -> None:
        self.context = server_context(certificate, key) if certificate and key else None

    def reload(self, certificate: Path | None, key: Path | None) -> None:
        """Take another certificate, or the same file anew. TlsError: unusable, and the old one stays."""
        self.context = server_context(certificate, key) if certificate and key else None


async def upgrade(
    transport: asyncio.Transport, protocol: asyncio.Protocol, context: ssl.SSLContext, patience: float
) -> asyncio.Transport:
    """Make the handshake as a server, and return the transport to use from then on. `patience` is for it, in seconds.

    OSError: it failed.

    The event loop does it, not aiosmtpd: under uvloop a session then costs 47 KiB, with asyncio's own code 278.
    """
    loop = asyncio.get_running_loop()
    upgraded = await loop.start_tls(transport, protocol, context, server_side=True, ssl_handshake_timeout=patience)
    # uvloop calls a handshake that was aborted a success, and tells the protocol of no end.
    if upgraded is None or upgraded.is_closing():
        raise ConnectionResetError("the client left")
    return upgraded


def spoken(transport: asyncio.Transport) -> str:
    """Return version and cipher, such as "TLSv1.3 TLS_AES_256_GCM_SHA384"."""
    name, version, _bits = transport.get_extra_info("cipher") or ("", "", 0)
    # OpenSSL names the version that introduced the cipher, which may be older than the one that is spoken.
    ssl_object = transport.get_extra_info("ssl_object")
    return f"{ssl_object.version() if ssl_object is not None else version} {name}".strip()
