# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is at the other end of this connection?

`Authenticator` holds what one TCP connection has proved, since that is what NTLM proves: a connection, not
a request ([MS-NTHT] 1.3). Each request's Authorization header goes in, a `Verdict` comes out. Basic is
judged per request. Negotiate and NTLM run pyspnego's acceptor, which one depends on the token: clients
put raw NTLM messages under either scheme name, and SPNEGO around NTLM under Negotiate.

Once a handshake is complete, `context` seals and unseals the bodies that follow (see sealing.py). It
counts messages, so a connection handles its requests strictly one after the other.

Kerberos tokens are SPNEGO tokens too: its acceptor will be chosen in `_new_context`.
"""

from __future__ import annotations

import base64
import binascii
import logging
from dataclasses import dataclass
from typing import Final

import spnego

from lab.users import Users

log = logging.getLogger(__name__)

# What Windows offers on a 401 with its default configuration and Basic switched on.
OFFERS: Final = ("Negotiate", 'Basic realm="WSMAN"')

_NTLM_SIGNATURE: Final = b"NTLMSSP\0"
_NTLM_NEGOTIATE: Final = _NTLM_SIGNATURE + b"\x01\0\0\0"
# RFC 2743 3.1: the tag that begins the first token of a GSS-API mechanism, and no later one.
_GSS_INITIAL_TOKEN: Final = b"\x60"


@dataclass(frozen=True)
class Verdict:
    """What to answer: go on as `user`, or 401 where there is none; with these WWW-Authenticate headers."""

    user: str | None
    headers: tuple[str, ...] = ()


_DENIED: Final = Verdict(None, OFFERS)


class Authenticator:
    """The authentication state of one connection."""

    def __init__(self, users: Users) -> None:
        self._users = users
        # The handshake under way, and then the one that was completed: never both.
        self._pending: spnego.ContextProxy | None = None
        self.context: spnego.ContextProxy | None = None
        self._user: str | None = None

    def authenticate(self, authorization: str | None) -> Verdict:
        """Judge one request by its Authorization header and by what came before on the connection."""
        if authorization is None:
            return Verdict(self._user) if self._user else _DENIED
        scheme, _, parameter = authorization.strip().partition(" ")
        self._user = self.context = None
        try:
            secret = base64.b64decode(parameter.strip(), validate=True)
        except (binascii.Error, ValueError):
            self._pending = None
            return _DENIED
        match scheme.lower():
            case "basic":
                return self._basic(secret)
            case "negotiate" | "ntlm":
                return self._handshake(scheme, secret)
            case _:
                return _DENIED

    def _basic(self, secret: bytes) -> Verdict:
        try:
            name, colon, password = secret.decode("utf-8").partition(":")
        except UnicodeDecodeError:
            return _DENIED
        if not colon or not self._users.accepts(name, password):
            return _DENIED
        return Verdict(name)

    def _handshake(self, scheme: str, token: bytes) -> Verdict:
        if token.startswith((_NTLM_NEGOTIATE, _GSS_INITIAL_TOKEN)):
            self._pending = _new_context(token)
        context, self._pending = self._pending, None
        if context is None:
            return _DENIED
        try:
            answer = context.step(token)
        except Exception as error:  # noqa: BLE001 - the token is a stranger's; any failure to read it is a no
            log.info("handshake refused: %s", error)
            return _DENIED
        headers = (f"{scheme} {base64.b64encode(answer).decode()}",) if answer else ()
        if not context.complete:
            self._pending = context
            return Verdict(None, headers)
        return self._completed(context, headers)

    def _completed(self, context: spnego.ContextProxy, headers: tuple[str, ...]) -> Verdict:
        # The user file serves every lab of the process: this host's accounts decide.
        user = (context.client_principal or "").rpartition("\\")[2]
        if user not in self._users:
            return _DENIED
        self._user, self.context = user, context
        return Verdict(user, headers)


def _new_context(token: bytes) -> spnego.ContextProxy:
    """Build an acceptor for the mechanism that the client's first token speaks."""
    if token.startswith(_NTLM_SIGNATURE):
        return spnego.server(protocol="ntlm", options=spnego.NegotiateOptions.use_ntlm)
    return spnego.server(protocol="negotiate", options=spnego.NegotiateOptions.use_negotiate)
