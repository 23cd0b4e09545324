# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is at the other end of this connection?

`Authenticator` holds what one TCP connection has proved, since that is what NTLM proves: a connection, not
a request ([MS-NTHT] 1.3). Each request's Authorization header goes in, a `Verdict` comes out. Basic is
judged per request. Negotiate and NTLM run pyspnego's acceptor, which one depends on the token: clients
put raw NTLM messages under either scheme name, and SPNEGO around NTLM under Negotiate.

Once a handshake is complete, `context` seals and unseals the bodies that follow (see sealing.py). It
counts messages, so a connection handles its requests strictly one after the other.

Kerberos comes through the same door, bare or in SPNEGO. Its acceptor finds its keys in the environment of
the process (see kdc.py). Over TLS a client may also log in by its certificate, which it must say with
every request ([MS-WSMV] 2.2.9.1 leaves this to TLS; the scheme is DSP0226's, annex C.4).
"""

from __future__ import annotations

import base64
import binascii
import logging
from dataclasses import dataclass
from typing import Final

import spnego
from spnego.channel_bindings import GssChannelBindings

from lab.users import Users

log = logging.getLogger(__name__)

# What Windows offers on a 401 with its default configuration and Basic switched on, and in a domain.
OFFERS: Final = ("Negotiate", 'Basic realm="WSMAN"')
DOMAIN_OFFERS: Final = ("Negotiate", "Kerberos", 'Basic realm="WSMAN"')
CERTIFICATE: Final = "http://schemas.dmtf.org/wbem/wsman/1/wsman/secprofile/https/mutual"

_NTLM_SIGNATURE: Final = b"NTLMSSP\0"
_NTLM_NEGOTIATE: Final = _NTLM_SIGNATURE + b"\x01\0\0\0"
# RFC 2743 3.1: the tag that begins the first token of a GSS-API mechanism, and no later one.
_GSS_INITIAL_TOKEN: Final = b"\x60"


@dataclass(frozen=True)
class Verdict:
    """What to answer: go on as `user`, or 401 where there is none; with these WWW-Authenticate headers."""

    user: str | None
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Admission:
    """Who may log in to a host: local accounts, Kerberos principals (`name@REALM`), over which channel."""

    users: Users
    principals: frozenset[str] = frozenset()
    bindings: GssChannelBindings | None = None

    @property
    def denied(self) -> Verdict:
        """The answer to everybody else."""
        return Verdict(None, DOMAIN_OFFERS if self.principals else OFFERS)


class Authenticator:
    """The authentication state of one connection, whose TLS certificate may name an account."""

    def __init__(self, admission: Admission, certified: str | None = None) -> None:
        self._admission = admission
        self._users = admission.users
        self._certified = certified
        # The handshake under way, and then the one that was completed: never both.
        self._pending: spnego.ContextProxy | None = None
        self.context: spnego.ContextProxy | None = None
        self._user: str | None = None

    def authenticate(self, authorization: str | None) -> Verdict:
        """Judge one request by its Authorization header and by what came before on the connection."""
        if authorization is None:
            return Verdict(self._user) if self._user else self._admission.denied
        scheme, _ignored, parameter = authorization.strip().partition(" ")
        self._user = self.context = None
        if scheme.lower() == CERTIFICATE:
            self._pending = None
            return Verdict(self._certified) if self._certified in self._users else self._admission.denied
        try:
            secret = base64.b64decode(parameter.strip(), validate=True)
        except (binascii.Error, ValueError):
            self._pending = None
            return self._admission.denied
        match scheme.lower():
            case "basic":
                return self._basic(secret)
            case "negotiate" | "ntlm" | "kerberos":
                return self._handshake(scheme, secret)
            case _:
                return self._admission.denied

    def _basic(self, secret: bytes) -> Verdict:
        try:
            name, colon, password = secret.decode("utf-8").partition(":")
        except UnicodeDecodeError:
            return self._admission.denied
        if not colon or not self._users.accepts(name, password):
            return self._admission.denied
        return Verdict(name)

    def _handshake(self, scheme: str, token: bytes) -> Verdict:
        if token.startswith((_NTLM_NEGOTIATE, _GSS_INITIAL_TOKEN)):
            self._pending = _new_context(token, self._admission.bindings)
        context, self._pending = self._pending, None
        if context is None:
            return self._admission.denied
        try:
            answer = context.step(token)
        except Exception as error:  # noqa: BLE001 - the token is a stranger's; any failure to read it is a no
            log.info("handshake refused: %s", error)
            return self._admission.denied
        headers = (f"{scheme} {base64.b64encode(answer).decode()}",) if answer else ()
        if not context.complete:
            self._pending = context
            return Verdict(None, headers)
        return self._completed(context, headers)

    def _completed(self, context: spnego.ContextProxy, headers: tuple[str, ...]) -> Verdict:
        # The user file serves every lab of the process, the realm every host: this host's own list decides.
        principal = context.client_principal or ""
        if context.negotiated_protocol == "kerberos":
            user, known = principal, principal in self._admission.principals
        else:
            user = principal.rpartition("\\")[2]
            known = user in self._users
        if not known:
            return self._admission.denied
        self._user, self.context = user, context
        return Verdict(user, headers)


def _new_context(token: bytes, bindings: GssChannelBindings | None) -> spnego.ContextProxy:
    """Build an acceptor for the mechanism that the client's first token speaks."""
    ntlm = token.startswith(_NTLM_SIGNATURE)
    options = spnego.NegotiateOptions.use_ntlm if ntlm else spnego.NegotiateOptions.use_negotiate
    return spnego.server(protocol="ntlm" if ntlm else "negotiate", options=options, channel_bindings=bindings)
