# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Listening sockets. They are made (or taken from systemd) before workers are forked, and shared by them.

Out of file descriptors: uvloop accepts with a descriptor that it keeps in reserve and closes the connection at once, so
nothing spins, and clients that see the end of the connection come again. It does not say so; `Descriptors` does.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Sequence

from greylist_proxy.config_values import Endpoint
from greylist_proxy.log import Log

BACKLOG = 1024  # connections that wait to be accepted; the kernel has its own upper limit
AT_ONCE = 8  # connections of a socket that are accepted in one round of the loop
CHECK_EVERY = 1.0  # seconds


class ListenError(Exception):
    """A socket can't be had; the text says which, and why."""


def make_sockets(endpoints: Iterable[Endpoint], receive_buffer: int, backlog: int = BACKLOG) -> list[socket.socket]:
    """Return sockets that listen on these addresses. ListenError: one can't be had.

    `receive_buffer` is in bytes, 0: the system's own.
    """
    sockets: list[socket.socket] = []
    try:
        for endpoint in endpoints:
            sockets.append(_listen(endpoint, receive_buffer, backlog))
    except OSError as error:
        for made in sockets:
            made.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ListenError(f"can't listen on {endpoint}: {reason}") from error
    return sockets


def _listen(endpoint: Endpoint, receive_buffer: int, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # 0.0.0.0 is a listener of its own, and both are to work together.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        set_receive_buffer(listener, receive_buffer)
        listener.setblocking(False)
        listener.bind((endpoint.host, endpoint.port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def address(listener: socket.socket) -> str:
    """Return where a socket listens, as the configuration has it: an address with its port, or a path."""
    name = listener.getsockname()
    return name if isinstance(name, str) else str(Endpoint(*name[:2]))


def set_receive_buffer(listener: socket.socket, receive_buffer: int) -> None:
    """Have accepted connections inherit this buffer, in bytes; 0: as the system has it."""
    # The kernel doubles the number, for its own bookkeeping.
    if receive_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)


async def serve_on(
    sockets: Sequence[socket.socket], factory: Callable[[], asyncio.Protocol], backlog: int = BACKLOG
) -> list[asyncio.Server]:
    """Accept on each socket, which the servers own from then on; `factory` makes the protocol of a connection.

    libuv takes one connection in each round of the loop, however many wait. Then under load a round would serve little
    more than one session, and each reply wake its client up for itself. It takes one of each descriptor, though, so a
    socket gets several; to find that nothing is there costs half a microsecond. Who shares a socket with us must not
    make it blocking (with systemd: NonBlocking=yes), or we would wait there.
    """
    loop = asyncio.get_running_loop()
    return [
        await loop.create_server(factory, sock=descriptor, backlog=backlog)
        for listener in sockets
        for descriptor in (listener, *(listener.dup() for _n in range(AT_ONCE - 1)))
    ]


class Descriptors:
    """Looks whether there are file descriptors left, and logs when they run out and when there are some again."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._exhausted = False

    async def keep_watch(self) -> None:
        """Look once a second, for ever."""
        while True:
            self.look()
            await asyncio.sleep(CHECK_EVERY)

    def look(self) -> None:
        """Try to have one."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if not self._exhausted:
                self._exhausted = True
                self._log.event("descriptors", state="exhausted", error=error.strerror)
        else:
            if self._exhausted:
                self._exhausted = False
                self._log.event("descriptors", state="available")
