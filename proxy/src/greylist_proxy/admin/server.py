# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accepts on the admin side's sockets, and sees to it that nobody there takes more than a little of the process.

Importing this takes some 10 MB and a quarter of a second, so only who serves does it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from greylist_proxy.admin.site import make_control, make_site
from greylist_proxy.admin.sockets import BACKLOG, AdminSockets
from greylist_proxy.admin.state import State

MOST_CONNECTIONS = 32  # on the address, and as many on the control socket
REQUEST_WITHIN = 10.0  # seconds from the connection to the whole request without its body
LIFETIME = 60.0  # seconds of a connection, whatever it does
LOOK_EVERY = 5.0  # seconds
STOP_PATIENCE = 2.0  # seconds for requests that are being answered

# The control socket's file is not this process's alone: sockets.py removes it. (Python 3.13 has this, and our loop.)
KEEP_FILE: dict[str, Any] = {"cleanup_socket": False}


class AdminServer:
    """The address and the control socket, served. `start` begins, `stop_listening` and `close` end."""

    def __init__(self, state: State, sockets: AdminSockets) -> None:
        self._sockets = sockets
        self._site = _Door(make_site(state))
        self._control = _Door(make_control(state))

    async def start(self) -> None:
        """Serve from now on."""
        await self._site.open(self._sockets.tcp)
        await self._control.open(self._sockets.control)

    def stop_listening(self) -> None:
        """Accept no more; what is being answered goes on."""
        self._site.shut()
        self._control.shut()
        self._sockets.close()

    async def close(self) -> None:
        """Wait a moment for what is being answered, and end all."""
        await asyncio.gather(self._site.close(), self._control.close())


class _Refusal(asyncio.Protocol):
    """Ends a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Door:
    """One application, its listening sockets, and the bounds on its connections."""

    def __init__(self, application: web.Application) -> None:
        self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=_logger(),
            keepalive_timeout=REQUEST_WITHIN,
            handler_cancellation=True,
            shutdown_timeout=STOP_PATIENCE,
        )
        self._servers: list[asyncio.Server] = []
        self._ends: dict[object, float] = {}  # when the connections that there are will have lasted for LIFETIME
        self._sweeping: asyncio.Task[None] | None = None

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Accept on these."""
        if not sockets:
            return
        loop = asyncio.get_running_loop()
        await self._runner.setup()
        for listener in sockets:
            create: Callable[..., Awaitable[asyncio.Server]] = loop.create_server
            if listener.family == socket.AF_UNIX:
                create = partial(loop.create_unix_server, **KEEP_FILE)
            self._servers.append(await create(self._protocol, sock=listener, backlog=BACKLOG))
        self._sweeping = asyncio.create_task(self._keep_sweeping())

    def shut(self) -> None:
        """Accept no more."""
        for server in self._servers:
            server.close()

    async def close(self) -> None:
        """End all connections, after STOP_PATIENCE."""
        await self._runner.cleanup()
        if self._sweeping is not None:
            self._sweeping.cancel()

    def _protocol(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None or len(server.connections) >= MOST_CONNECTIONS:
            return _Refusal()
        protocol = server()
        self._ends[protocol] = asyncio.get_running_loop().time() + LIFETIME
        return protocol

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            self._sweep(asyncio.get_running_loop().time())

    def _sweep(self, now: float) -> None:
        server = self._runner.server
        open_ones = server.connections if server is not None else []
        self._ends = {protocol: self._ends.get(protocol, now) for protocol in open_ones}
        for protocol in open_ones:
            # A reader that does not read, or a body that does not come.
            if self._ends[protocol] <= now and protocol.transport is not None:
                protocol.transport.abort()


def _logger() -> logging.Logger:
    logger = logging.getLogger("greylist_proxy.admin")
    logger.addFilter(_is_worth_a_line)
    return logger


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    # What is no HTTP gets its 400. It is no error of ours, and anybody could fill the log with it.
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
