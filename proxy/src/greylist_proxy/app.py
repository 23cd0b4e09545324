# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program put together: configuration in, listening sockets, and a polite end.

SIGTERM and SIGINT: no new connections, `421` to sessions between transactions, and the transactions that are
under way are finished, for at most STOP_PATIENCE seconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from greylist_proxy.config import Config, advice
from greylist_proxy.gate import Gate
from greylist_proxy.log import Log, LogHandler
from greylist_proxy.smtp.relay import Backend
from greylist_proxy.smtp.server import COMMAND_PATIENCE, DATA_PATIENCE, Session
from greylist_proxy.smtp.transaction import Services
from greylist_proxy.store.sqlite import SqliteStore
from greylist_proxy.systemd import notify
from greylist_proxy.tasks import Tasks

BACKLOG = 1024  # connections that wait to be accepted; the kernel has its own upper limit
STOP_PATIENCE = 630.0  # seconds; a backend may take ten minutes over the end of data (RFC 5321 section 4.5.3.2.6)
STOP_POLL = 0.05  # seconds


class StartError(Exception):
    """The program can't start; the text says why."""


async def serve(config: Config, log: Log) -> None:
    """Run until SIGTERM or SIGINT. StartError: an address can't be listened on."""
    logging.getLogger().addHandler(LogHandler(log))
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    tasks = Tasks(log)
    gate = Gate(SqliteStore(config.store.url, config.greylist.rules), config.store.on_failure, log, tasks)
    services = Services(
        hostname=config.smtp.hostname,
        domains=frozenset(config.backend.domains),
        max_message_size=config.smtp.max_message_size,
        ipv4_prefix=config.greylist.ipv4_prefix,
        ipv6_prefix=config.greylist.ipv6_prefix,
        backend=Backend(config.backend.hosts, config.smtp.hostname),
        gate=gate,
        log=log,
        tasks=tasks,
    )
    sessions: set[Session] = set()
    servers = await _listen(config, services, sessions)
    for sentence in advice(config):
        log.event("warning", message=sentence)
    addresses = [_shown(sock.getsockname()) for server in servers for sock in server.sockets]
    log.event("listening", addresses=addresses)
    notify("READY=1")
    housekeeper = asyncio.create_task(gate.keep_house())

    await stopped.wait()

    log.event("stopping", sessions=len(sessions))
    notify("STOPPING=1")
    for server in servers:
        server.close()
    dropped = await _finish(sessions, tasks)
    housekeeper.cancel()
    await gate.close()
    log.event("stopped", dropped=dropped)


async def _listen(config: Config, services: Services, sessions: set[Session]) -> list[asyncio.Server]:
    loop = asyncio.get_running_loop()
    servers: list[asyncio.Server] = []
    for endpoint in config.smtp.listen:
        try:
            server = await loop.create_server(
                lambda: Session(services, sessions, (COMMAND_PATIENCE, DATA_PATIENCE)),
                endpoint.host,
                endpoint.port,
                backlog=BACKLOG,
            )
        except OSError as error:
            for server in servers:
                server.close()
            # asyncio wraps the system's own words in many more.
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise StartError(f"can't listen on {endpoint}: {reason}") from error
        servers.append(server)
    return servers


async def _finish(sessions: set[Session], tasks: Tasks) -> int:
    """Wait for what is under way, and return how many sessions had to be dropped in the end."""
    try:
        async with asyncio.timeout(STOP_PATIENCE):
            while sessions or tasks:
                # Again and again: a connection may have been accepted just before its listener closed.
                for session in list(sessions):
                    session.stop()
                await asyncio.sleep(STOP_POLL)
    except TimeoutError:
        for session in list(sessions):
            session.abort()
    return len(sessions)


def _shown(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
