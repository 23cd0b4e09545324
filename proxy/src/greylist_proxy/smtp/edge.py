# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection, below SMTP: the transport, who is on the other side, when to read, and how it ends.

It is aiosmtpd's protocol class, of which nothing runs: no stream, no task for a session. What may not go on now is a
reason not to read, a bit of `_pause`; when the last one is gone, reading goes on.

A connection begins with the limits (`421 4.7.0` over them), and with the PROXY header where the peer is a load balancer
that must send one. `_arrived` is called when it is known who comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import cast

from aiosmtpd.smtp import SMTP

from greylist_proxy.client import identify
from greylist_proxy.metrics.table import CONNECTIONS, CONNECTIONS_REFUSED, PROXY_HEADERS_REFUSED
from greylist_proxy.smtp.limits import Full, client_key
from greylist_proxy.smtp.proxy_header import HeaderError, HeaderReader, Named, Unnamed
from greylist_proxy.smtp.replies import own_reply
from greylist_proxy.smtp.shared import Services
from greylist_proxy.smtp.timers import Watch
from greylist_proxy.smtp.transaction import Visitor

TOO_MANY = own_reply(421, "4.7.0", "Too many connections, try again later").wire()
ACCEPTED = CONNECTIONS.cell

# Reasons not to read.
BACKEND = 1  # it does not take the message as fast as it comes
CLIENT = 2  # it does not read our replies
OWED = 4  # it sends on and on while a reply is owed
HELD = 8  # it waits in the tarpit
UPGRADE = 16  # the TLS handshake


class Edge(SMTP):
    """The lower half of a session. `watch` knows all of them, and looks at their `deadline`."""

    # What aiosmtpd and asyncio expect of an instance, whose `__init__` never runs: it takes 100 us.
    transport: asyncio.Transport | None
    session = None
    envelope = None
    _tls_protocol = None
    _original_transport = None
    _handler_coroutine = None
    _timeout_handle = None

    # With a dictionary for each instance, an idle session would cost half as much again.
    __slots__ = (
        "_closing",
        "_early",
        "_eof",
        "_header",
        "_is_counted",
        "_is_unnamed",
        "_named",
        "_pause",
        "_peer",
        "_reading",
        "_services",
        "_tls",
        "_until",
        "_visitor",
        "_watch",
        "deadline",
        "transport",
    )

    def __init__(self, services: Services, watch: Watch) -> None:
        # Not super's: see above.
        self._services = services
        self._watch = watch
        self.transport = None
        self._peer = ("", 0)  # kept, because the system forgets it when the connection is reset
        self._closing = False
        self._eof = False
        self._reading = True
        self._pause = 0
        self._header: HeaderReader | None = None  # while the PROXY header is awaited
        self._named: Named | None = None  # whom it named
        self._is_unnamed = False  # it named nobody
        self._is_counted = False  # among its client's connections
        self._visitor: Visitor | None = None
        self._early = False  # it talked before the banner
        self._tls = ""  # what is spoken, "" in clear

    def __del__(self) -> None:
        """Nothing is to be done; aiosmtpd's looks for a stream."""

    # -- what the upper half does --

    def _arrived(self) -> None:
        """It is known who comes, and that he may."""
        raise NotImplementedError

    def _take(self, data: bytes) -> None:
        """Take what the client sent."""
        raise NotImplementedError

    def flush(self) -> None:
        """Send the replies that there are."""
        raise NotImplementedError

    def _is_busy(self) -> bool:
        """Say whether something may still be written to a client that has sent everything."""
        raise NotImplementedError

    def _go_on(self) -> None:
        """Look at the input again: what was in the way is gone."""
        raise NotImplementedError

    def _gone(self) -> None:
        """The client is gone; may be called more than once."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """Something unexpected happened."""
        raise NotImplementedError

    def overdue(self, now: float) -> None:
        """The deadline has passed. Called again and again until it is moved or the connection is lost."""
        raise NotImplementedError

    def stop(self) -> None:
        """End politely: now if nothing is under way, else after it."""
        raise NotImplementedError

    # -- the beginning --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection, and find out who it is."""
        self.transport = stream = cast("asyncio.Transport", transport)
        services, watch = self._services, self._watch
        now = watch.now()
        self.deadline = self._until = now + services.settings.session_timeout
        watch.add(self)
        services.cells[ACCEPTED] += 1
        full = services.connections.enter()
        try:
            peer = stream.get_extra_info("peername")
            if not peer:
                self.abort()  # it is gone already
                return
            host = peer[0]
            self._peer = (host, peer[1])
            if full:
                self._turn_away(host, full)
            elif services.settings.is_proxy(host):
                self._header = HeaderReader()
                self.deadline = min(self._until, now + services.settings.proxy_timeout)
            else:
                self._meet(host, now)
        except Exception as error:  # noqa: BLE001 - one connection's trouble must not become the listener's
            self.failed(error)

    def _meet(self, host: str, now: float) -> None:
        services = self._services
        key = client_key(host)
        self._is_counted = True
        full = services.connections.join(key)
        if full:
            self._turn_away(host, full)
            return
        if services.prevalence.seen(key, now):
            services.log.event(
                "warning",
                message=f"nearly all of the last connections came from {host}: if that is a proxy, list it in "
                "smtp.proxy_protocol_from and let it send PROXY headers",
            )
        self._arrived()

    def _turn_away(self, host: str, full: Full) -> None:
        self._services.cells[CONNECTIONS_REFUSED.cells[full,]] += 1
        self._services.log.event("connection-refused", client=host, limit=full)
        self._write(TOO_MANY)
        self._close()

    def _read_header(self, header: HeaderReader, data: bytes) -> None:
        try:
            found = header.feed(data)
        except HeaderError as error:
            self._refuse_header(str(error))
            return
        if found is None:
            return
        self._header = None
        if isinstance(found, Unnamed):
            self._is_unnamed = True
            self._arrived()
        else:
            self._named = found
            self._meet(found.address, self._now())
        if header.rest and not self._closing:
            self._take(header.rest)

    def _refuse_header(self, why: str) -> None:
        self._services.cells[PROXY_HEADERS_REFUSED.cell] += 1
        self._services.log.event("proxy-header", client=self.host, error=why)
        self.abort()

    @property
    def host(self) -> str:
        """The address of the client, or of the proxy that has not named one."""
        return self._named.address if self._named is not None else self._peer[0]

    def _met(self) -> Visitor:
        """Return who is connected. It is put together when mail comes: many connections never bring any."""
        if self._visitor is None:
            services, named = self._services, self._named
            host, port = self._peer if named is None else (named.address, named.port)
            client = identify(host, services.ipv4_prefix, services.ipv6_prefix)
            self._visitor = Visitor(client, port, self._local, self._tls, self._early)
        return self._visitor

    def _local(self) -> tuple[str, int]:
        """Return the address and port that the client connected to; "" and 0 where that can't be known any more."""
        named = self._named
        if named is not None:
            return named.local_address, named.local_port
        name = self.transport.get_extra_info("sockname") if self.transport is not None else None
        return (name[0], name[1]) if name else ("", 0)

    # -- what the transport calls --

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._closing:
            return
        try:
            if self._header is not None:
                self._read_header(self._header, data)
            else:
                self._take(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a temporary refusal
            self.failed(error)

    def eof_received(self) -> bool:
        """Let what came before the end be answered: the client may only have closed its half."""
        self._eof = True
        if self._closing:
            return False
        self.flush()  # or what waits for the end of the round would be lost
        # Under TLS the transport closes in any case. A message that is being committed goes on by itself.
        if self._header is None and self._is_busy() and not self._tls:
            return True
        self._gone()
        return False

    def pause_writing(self) -> None:
        """The client does not read: what it asks is not even looked at until it does."""
        self._hold_back(CLIENT)
        self.deadline = min(self._until, self._now() + self._services.settings.command_timeout)

    def resume_writing(self) -> None:
        """The client has read."""
        self._release(CLIENT)
        if not self._closing:
            self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection."""
        if self.transport is None:
            return
        self.transport = None
        self._closing = True
        self._watch.discard(self)
        self._services.connections.leave()
        if self._is_counted:
            self._services.connections.part(client_key(self.host))
        self._visitor = None  # it knows us
        self._gone()

    # -- reading, writing, the end --

    def _now(self) -> float:
        return self._watch.now()

    def _hold_back(self, reason: int) -> None:
        self._pause |= reason
        if self._reading and self.transport is not None:
            self._reading = False
            self.transport.pause_reading()

    def _release(self, reason: int) -> None:
        self._pause &= ~reason
        # After the end there is nothing more to read, and the transport would tell of it again.
        if not self._pause and not self._reading and not self._eof and self.transport is not None:
            self._reading = True
            self.transport.resume_reading()

    def _write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def _cork(self) -> None:
        """Let what is written from now on go out in one packet with the end of the connection, which must follow.

        It is a tenth of a session's cost (tcp(7), TCP_CORK). Not where the client may still be sending: what is unread
        at the end makes the system drop what was held back. Nor under TLS, whose own end is waited for.
        """
        connection = None if self.transport is None or self._tls else self.transport.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def _close(self) -> None:
        """Send what is still to be said, and close when everything is sent; who does not read it is cut off."""
        if self._closing or self.transport is None:
            return
        self.flush()
        self._closing = True
        settings = self._services.settings
        self.deadline = self._now() + min(settings.close_timeout, settings.command_timeout)
        self.transport.close()

    def abort(self) -> None:
        """End at once."""
        self._closing = True
        if self.transport is not None:
            self.transport.abort()
