# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program put together: configuration in, listening sockets, and a polite end.

SIGTERM and SIGINT: no new connections, `421` to sessions between transactions, and the transactions that are
under way are finished, for at most STOP_PATIENCE seconds. SIGHUP: the configuration and the lists anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

from greylist_proxy.assembly import Judgement, assemble
from greylist_proxy.config import Config, ConfigError, advice
from greylist_proxy.lists import ListError
from greylist_proxy.log import Log, LogHandler
from greylist_proxy.smtp.relay import Backend
from greylist_proxy.smtp.server import COMMAND_PATIENCE, DATA_PATIENCE, Session
from greylist_proxy.smtp.tarpit import Tarpit
from greylist_proxy.smtp.transaction import Services
from greylist_proxy.store import Store
from greylist_proxy.store.factory import make_store
from greylist_proxy.systemd import notify
from greylist_proxy.tasks import Tasks

BACKLOG = 1024  # connections that wait to be accepted; the kernel has its own upper limit
STOP_PATIENCE = 630.0  # seconds; a backend may take ten minutes over the end of data (RFC 5321 section 4.5.3.2.6)
STOP_POLL = 0.05  # seconds


class StartError(Exception):
    """The program can't start; the text says why."""


async def serve(config: Config, log: Log, reread: Callable[[], Config]) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP reads the configuration again, by `reread`.

    StartError: an address can't be listened on. ConfigError: a list or a password can't be read.
    """
    logging.getLogger().addHandler(LogHandler(log))
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    tasks = Tasks(log)
    store = make_store(config.store, config.greylist.rules, log)
    try:
        judgement = assemble(config, store, log, tasks)
    except ListError as error:
        raise ConfigError(error.lines) from error
    services = services_of(config, judgement, log, tasks)
    # An operator's blocks and exemptions count from the first client on.
    await judgement.gate.load_entries()
    sessions: set[Session] = set()
    servers = await _listen(config, services, sessions)
    reloader = Reloader(config, reread, services, judgement, store, log)
    loop.add_signal_handler(signal.SIGHUP, lambda: tasks.spawn(reloader.reload()))
    for sentence in advice(config):
        log.event("warning", message=sentence)
    for sentence in judgement.exemptions.warnings:
        log.event("warning", message=sentence)
    addresses = [_shown(sock.getsockname()) for server in servers for sock in server.sockets]
    log.event("listening", addresses=addresses)
    notify("READY=1")
    helpers = [asyncio.create_task(judgement.gate.keep_house()), asyncio.create_task(judgement.gate.follow_entries())]

    await stopped.wait()

    log.event("stopping", sessions=len(sessions))
    notify("STOPPING=1")
    for server in servers:
        server.close()
    dropped = await _finish(sessions, tasks)
    for helper in helpers:
        helper.cancel()
    await judgement.close()
    log.event("stopped", dropped=dropped)


def services_of(config: Config, judgement: Judgement, log: Log, tasks: Tasks) -> Services:
    """Return what sessions share."""
    return Services(
        hostname=config.smtp.hostname,
        domains=frozenset(config.backend.domains),
        max_message_size=config.smtp.max_message_size,
        ipv4_prefix=config.greylist.ipv4_prefix,
        ipv6_prefix=config.greylist.ipv6_prefix,
        greylisted_reply=config.greylist.reply,
        identifier=judgement.identifier,
        backend=Backend(config.backend.hosts, config.smtp.hostname),
        gate=judgement.gate,
        log=log,
        tasks=tasks,
        tarpit=Tarpit(config.trap.tarpit),
    )


class Reloader:
    """Takes a changed configuration over while the program runs: all of it, or nothing."""

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config],
        services: Services,
        judgement: Judgement,
        store: Store,
        log: Log,
    ) -> None:
        self._config = config
        self._reread = reread
        self._services = services
        self._judgement = judgement
        self._store = store
        self._log = log

    async def reload(self) -> None:
        """Read the file and the lists again. An error keeps what was there, and the log says so."""
        notify("RELOADING=1")
        try:
            # Large lists take a while to read, and nobody has to wait for that.
            config = await asyncio.to_thread(self._reread)
            warnings = await self._judgement.exemptions.reload(config.allow, config.trap)
        except ConfigError as error:
            self._log.event("reload", state="failed", errors=error.lines)
        except ListError as error:
            self._log.event("reload", state="failed", errors=str(error).splitlines())
        else:
            self._take_over(config)
            for sentence in [*advice(config), *warnings]:
                self._log.event("warning", message=sentence)
            self._log.event("reload", state="done", after_restart=self._waiting(config))
        notify("READY=1")

    def _take_over(self, config: Config) -> None:
        rules = config.greylist.rules
        self._judgement.gate.rules = rules
        self._judgement.gate.trap_block = config.trap.block
        self._judgement.identifier.client_key = config.greylist.client_key
        self._store.rules = rules
        services = self._services
        services.domains = frozenset(config.backend.domains)
        services.max_message_size = config.smtp.max_message_size
        services.ipv4_prefix = config.greylist.ipv4_prefix
        services.ipv6_prefix = config.greylist.ipv6_prefix
        services.greylisted_reply = config.greylist.reply
        services.backend = Backend(config.backend.hosts, services.hostname)
        services.tarpit.seconds = config.trap.tarpit

    def _waiting(self, config: Config) -> list[str]:
        """Name what counts only after a restart: sockets, the store, the DNS client."""
        was, now = self._config, config
        changed = {
            "smtp.listen": was.smtp.listen != now.smtp.listen,
            "smtp.hostname": was.smtp.hostname != now.smtp.hostname,
            "store": was.store != now.store,
            "dns": was.dns != now.dns,
        }
        return [name for name, differs in changed.items() if differs]


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
