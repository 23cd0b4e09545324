# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program put together: configuration in, listening sockets, and a polite end.

SIGTERM and SIGINT: no new connections, `421` to sessions between transactions, and the transactions that are
under way are finished, for at most STOP_PATIENCE seconds. SIGHUP: the configuration and the lists anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import uvloop

from greylist_proxy.admin.access import Access, read_token
from greylist_proxy.admin.sockets import AdminSockets
from greylist_proxy.admin.state import State
from greylist_proxy.assembly import assemble
from greylist_proxy.commands import DONE, WRONG
from greylist_proxy.commands.output import complain
from greylist_proxy.config import Config, ConfigError, advice
from greylist_proxy.descriptors import raise_limit
from greylist_proxy.lists import ListError
from greylist_proxy.log import Log, LogHandler
from greylist_proxy.log_writer import LineWriter, Sparing
from greylist_proxy.metrics.counts import Counts
from greylist_proxy.metrics.table import ERRORS, LOG_LINES_LOST, WORKER_ENDS, Cells, Counter, Phase
from greylist_proxy.news import News
from greylist_proxy.pulse import Pulse
from greylist_proxy.reload import Reloader, for_now
from greylist_proxy.services import services_of
from greylist_proxy.smtp.limits import Connections
from greylist_proxy.smtp.listener import Descriptors, address, make_sockets, serve_on, set_receive_buffer
from greylist_proxy.smtp.pool import Backends
from greylist_proxy.smtp.server import Session
from greylist_proxy.smtp.timers import Watch
from greylist_proxy.store.factory import make_store
from greylist_proxy.systemd import Given, given_sockets, notify
from greylist_proxy.tasks import Tasks
from greylist_proxy.watchdog import Watchdog
from greylist_proxy.workers import STOP_PATIENCE, Parent, Supervisor, processors

if TYPE_CHECKING:
    from greylist_proxy.admin.server import AdminServer

STDERR = 2
STOP_POLL = 0.05  # seconds
SUM_UP_EVERY = 1.0  # seconds
FIRST_PROBE = 2.0  # seconds that a start may wait for the backends


@dataclass(frozen=True)
class Place:
    """Where a process serves: alone, or as one of several. `listen` returns its sockets, or raises ListenError."""

    listen: Callable[[], Sequence[socket.socket]]
    connections: Connections
    admin: AdminSockets
    news: News
    counts: Counts
    watchdog: Watchdog
    workers: int = 1
    parent: Parent | None = None

    @property
    def number(self) -> int:
        """Which of the workers it is."""
        return self.parent.number if self.parent else 0

    @property
    def signal(self) -> Callable[[], None]:
        """What its event loop calls as a sign of life; of several, the parent looks at their rows."""
        return self.watchdog.alive if self.parent is None else lambda: None

    @property
    def cells(self) -> Cells:
        """Where it counts."""
        return self.counts.counting[self.number]


def run(config: Config, reread: Callable[[], Config]) -> int:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the configuration again, by `reread`. Returns the exit status.

    ListenError: an address can't be listened on. ConfigError: a file can't be used.
    """
    given = given_sockets()
    admin = AdminSockets.open(config, given)
    try:
        return _run(config, reread, given, admin)
    finally:
        admin.remove()


def _run(config: Config, reread: Callable[[], Config], given: Given, admin: AdminSockets) -> int:
    warnings = [*advice(config), *raise_limit(config), *given.warnings, *admin.warnings]
    smtp = config.smtp
    workers = smtp.workers or processors()
    connections = Connections(smtp.max_connections, smtp.max_connections_per_client, workers)
    news = News(workers)
    counts = Counts(workers)
    watchdog = Watchdog(counts)

    def listen() -> Sequence[socket.socket]:
        for listener in given.smtp:
            set_receive_buffer(listener, smtp.receive_buffer)
        return given.smtp or make_sockets(smtp.listen, smtp.receive_buffer)

    if workers == 1:
        _serve_in_a_loop(config, reread, Place(listen, connections, admin, news, counts, watchdog), warnings)
        return DONE
    sockets = listen()
    log = Log(lines=Sparing(STDERR))
    for sentence in warnings:
        log.event("warning", message=sentence)

    current = config

    def follow() -> None:
        # For workers that take a dead one's place later. What is wrong with it, those that run will say; and whatever
        # that is, it must not end their parent.
        nonlocal current
        with contextlib.suppress(Exception):
            current = for_now(config, reread())
            raise_limit(current)

    def work(parent: Parent) -> int:
        connections.use(parent.number)
        news.use(parent.number)
        own = admin
        if parent.number:
            # Or those who ask while this one finishes its transactions would wait for an answer instead of being told.
            admin.close()
            own = AdminSockets()
        try:
            place = Place(lambda: sockets, connections, own, news, counts, watchdog, workers, parent)
            _serve_in_a_loop(current, reread, place, [])
        except ConfigError as error:
            for line in error.lines:
                complain(line)
            return WRONG
        return DONE

    def ready() -> None:
        log.event("listening", addresses=[address(listener) for listener in sockets], admin=admin.addresses)

    def bury(number: int) -> None:
        connections.clear(number)
        news.gone(number)
        counts.clear(number)
        counts.counting[number][WORKER_ENDS.cell] += 1

    def stop_listening() -> None:
        # Who knocks now is to hear at once that nobody is here.
        for listener in sockets:
            listener.close()
        admin.close()
        admin.remove()

    return Supervisor(
        workers, work, log, watchdog, on_ready=ready, on_death=bury, on_reload=follow, on_stop=stop_listening
    ).run()


def _serve_in_a_loop(config: Config, reread: Callable[[], Config], place: Place, warnings: list[str]) -> None:
    constant = {"worker": place.number} if place.parent else {}
    cells = place.cells

    def count(counter: Counter, number: int = 1) -> None:
        cells[counter.cell] += number

    writer = LineWriter(
        STDERR,
        lambda lines: log.line("log", {"state": "lost", "lines": lines}),
        on_lost=partial(count, LOG_LINES_LOST),
    )
    log = Log(lines=writer, constant=constant, on_error=partial(count, ERRORS))
    try:
        for sentence in warnings:
            log.event("warning", message=sentence)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, log, reread, place))
    finally:
        log.sum_up(everything=True)
        writer.close()


async def serve(config: Config, log: Log, reread: Callable[[], Config], place: Place) -> None:
    """Serve in this process, until it is told to stop or its parent is gone. ConfigError: a file can't be used."""
    logging.getLogger().addHandler(LogHandler(log))
    tell = place.parent.tell if place.parent else notify
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if place.parent:
        loop.add_reader(place.parent.life, stopped.set)
    tasks = Tasks(log)
    store = make_store(config.store, config.greylist.rules, log)
    try:
        judgement = assemble(config, store, log, tasks, place.cells)
    except ListError as error:
        raise ConfigError(error.lines) from error
    services = services_of(config, judgement, log, tasks, place.connections, place.workers, place.cells)
    pulse = Pulse(place.counts, place.number, services, place.signal, place.watchdog.every)
    beating = asyncio.create_task(pulse.keep_beating())
    access = Access(read_token(config), [config.smtp.hostname], is_local=place.admin.are_local)
    reloader = Reloader(config, reread, services, judgement, store, log, access, place.workers)
    loop.add_signal_handler(signal.SIGHUP, lambda: tasks.spawn(reloader.reload(tell)))
    if place.parent:
        place.parent.hear()
    sockets = place.listen()
    # An operator's blocks and exemptions count from the first client on.
    await place.news.look(judgement.gate.load_entries)
    helpers = [
        asyncio.create_task(helper)
        for helper in (
            judgement.gate.keep_house(),
            place.news.follow(judgement.gate.load_entries),
            services.backends.keep_probing(),
            Descriptors(log).keep_watch(),
            _keep_summing_up(log),
        )
    ]
    await _first_probe(services.backends)
    watch = Watch()
    state = State(
        config, services, judgement, store, watch, log, access, place.news, pulse, place.workers, place.number
    )
    admin = _admin_server(state, place.admin)
    servers = await serve_on(sockets, lambda: Session(services, watch))
    if admin:
        await admin.start()
    if place.number == 0:
        # All processes read the same files: one of them says what is wrong there.
        for sentence in judgement.exemptions.warnings:
            log.event("warning", message=sentence)
    if place.parent is None:
        log.event("listening", addresses=[address(listener) for listener in sockets], admin=place.admin.addresses)
    pulse.enter(Phase.SERVING)
    tell("READY=1")

    await stopped.wait()

    if place.parent:
        loop.remove_reader(place.parent.life)
    log.event("stopping", sessions=len(watch))
    pulse.enter(Phase.STOPPING)
    tell("STOPPING=1")
    for server in servers:
        server.close()
    if admin:
        admin.stop_listening()
    if place.parent is None:
        place.admin.remove()
    dropped = await _finish(watch, tasks)
    for helper in helpers:
        helper.cancel()
    if admin:
        await admin.close()
    await services.backends.close()
    await judgement.close()
    beating.cancel()
    log.event("stopped", dropped=dropped)


def _admin_server(state: State, sockets: AdminSockets) -> AdminServer | None:
    """Make the server of the admin side, before mail is taken: loading what it needs takes a while."""
    if not sockets:
        return None
    from greylist_proxy.admin.server import AdminServer

    return AdminServer(state, sockets)


async def _first_probe(backends: Backends) -> None:
    """Wait a little for what the backends offer, where nothing is known of it: clients would have to come again."""
    end = asyncio.get_running_loop().time() + FIRST_PROBE
    while backends.offered is None and "unknown" in backends.health().values():
        if asyncio.get_running_loop().time() > end:
            break
        await asyncio.sleep(FIRST_PROBE / 100)


async def _keep_summing_up(log: Log) -> None:
    while True:
        await asyncio.sleep(SUM_UP_EVERY)
        log.sum_up()


async def _finish(watch: Watch, tasks: Tasks) -> int:
    """Wait for what is under way, and return how many sessions had to be dropped in the end."""
    try:
        async with asyncio.timeout(STOP_PATIENCE):
            while len(watch) or len(tasks):
                # Again and again: a connection may have been accepted just before its listener closed.
                for session in watch:
                    session.stop()
                await asyncio.sleep(STOP_POLL)
    except TimeoutError:
        for session in watch:
            session.abort()
        tasks.give_up()
    return len(watch)
