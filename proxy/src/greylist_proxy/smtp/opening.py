# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From nothing to a connection that takes MAIL: TCP, PROXY header, greeting, EHLO, STARTTLS, XCLIENT."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greylist_proxy.config_values import Endpoint
from greylist_proxy.smtp.backend import TROUBLE, UNREACHABLE, BackendError, Connection, Timeouts
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.forwarding import Introduction, ehlo_name, proxy_header, xclient

StartTls = Literal["never", "opportunistic", "required", "verify"]
SendClientAddress = Literal["none", "xclient", "proxy-v1", "proxy-v2"]


class TlsError(BackendError):
    """The backend offers TLS, and it does not work."""


def tls_context(starttls: StartTls, ca_file: Path | None) -> ssl.SSLContext | None:
    """Return the context for a backend, None for `never`. OSError: the CA file can't be read, or holds none.

    Only `verify` looks at the certificate: the others encrypt against listeners, and have no name to check.
    """
    if starttls == "never":
        return None
    if starttls == "verify":
        context = ssl.create_default_context(cafile=ca_file)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


@dataclass(frozen=True)
class Opener:
    """How connections are opened; `seconds` is what one host has for all of it."""

    hostname: str
    timeouts: Timeouts
    seconds: float
    starttls: StartTls
    context: ssl.SSLContext | None
    forward: SendClientAddress

    async def open(self, host: Endpoint, introduction: Introduction | None, *, tls: bool) -> Connection:
        """Open a connection, up to the EHLO that counts. `tls` False: leave TLS out, as far as it may be left out.

        `introduction` is for the PROXY header alone; None: it speaks for us, to probe.
        TlsError: TLS was tried, and failed. BackendError: anything else.
        """
        connection = Connection(host)
        try:
            async with asyncio.timeout(self.seconds):
                await self._connect(connection, host)
                await self._greet(connection, introduction)
                if self.starttls != "never" and (tls or self.starttls != "opportunistic"):
                    await self._encrypt(connection)
        except TimeoutError:
            connection.abort()
            raise BackendError(UNREACHABLE, "no greeting in time") from None
        except BaseException:
            connection.abort()
            raise
        connection.xclient = connection.capabilities.xclient
        return connection

    async def introduce(self, connection: Connection, introduction: Introduction) -> None:
        """Say for whom the next transaction is, where the backend takes that. BackendError: it would not.

        A backend that does not offer XCLIENT is not told: the Received field tells it.
        """
        if self.forward != "xclient" or not connection.xclient:
            return
        for line in xclient(connection.xclient, introduction):
            answer = await connection.command(line, self.seconds)
            if answer.code != 220:
                raise BackendError(TROUBLE, f"answered XCLIENT with {answer}")
        await self._ehlo(connection, ehlo_name(introduction, self.hostname))

    async def _connect(self, connection: Connection, host: Endpoint) -> None:
        try:
            async with asyncio.timeout(self.timeouts.connect):
                await asyncio.get_running_loop().create_connection(lambda: connection, host.host, host.port)
        except TimeoutError:
            raise BackendError(UNREACHABLE, f"no connection within {self.timeouts.connect:g} seconds") from None
        except OSError as error:
            raise BackendError(UNREACHABLE, str(error)) from error

    async def _greet(self, connection: Connection, introduction: Introduction | None) -> None:
        if self.forward in ("proxy-v1", "proxy-v2"):
            whom = introduction or connection.itself(self.hostname)
            connection.send(proxy_header(1 if self.forward == "proxy-v1" else 2, whom))
        try:
            greeting = await connection.reply(self.seconds)
            if greeting.code != 220:
                raise BackendError(TROUBLE, f"greeted with {greeting}")
            await self._ehlo(connection, self.hostname)
        except BackendError as error:
            # Lost before it took part in anything: as good as not there.
            raise error if error.reply is TROUBLE else BackendError(UNREACHABLE, str(error)) from error

    async def _encrypt(self, connection: Connection) -> None:
        if self.context is None or not connection.capabilities.starttls:
            if self.starttls == "opportunistic":
                return
            raise BackendError(TROUBLE, "it does not offer STARTTLS, which backend.starttls requires")
        seconds = min(self.timeouts.connect, self.seconds / 2)
        try:
            async with asyncio.timeout(seconds):
                await connection.start_tls(self.context, seconds)
                await self._ehlo(connection, self.hostname)
        except TimeoutError:
            raise TlsError(TROUBLE, f"TLS took more than {seconds:g} seconds") from None
        except BackendError as error:
            raise TlsError(TROUBLE, str(error)) from error

    async def _ehlo(self, connection: Connection, name: str) -> None:
        answer = await connection.command(b"EHLO " + name.encode("ascii"), self.seconds)
        if answer.code != 250:
            raise BackendError(TROUBLE, f"answered EHLO with {answer}")
        connection.capabilities = Capabilities.of(answer.lines[1:])
