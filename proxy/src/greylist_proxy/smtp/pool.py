# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mail servers behind, together: which one a transaction goes to, and what a client may be promised.

The hosts are tried in order, the next one when one fails. One that goes on failing is left alone for a while, and
where all are, nobody is made to wait for nothing. A transaction begins and ends at one host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

from greylist_proxy.config_values import Endpoint
from greylist_proxy.log import Log, json_line
from greylist_proxy.metrics.counts import blank
from greylist_proxy.metrics.table import BackendState, Cells, relayed_cell
from greylist_proxy.smtp import envelope
from greylist_proxy.smtp.address import Path
from greylist_proxy.smtp.backend import BUSY, TROUBLE, UNREACHABLE, BackendError, Connection, for_client
from greylist_proxy.smtp.capabilities import Capabilities, Promises
from greylist_proxy.smtp.forwarding import Introduce
from greylist_proxy.smtp.host import BackendSettings, Host
from greylist_proxy.smtp.opening import Opener, tls_context
from greylist_proxy.smtp.parameters import Parameter
from greylist_proxy.smtp.replies import Reply
from greylist_proxy.tasks import Tasks

PROBE_EVERY = 300.0  # seconds
ACCEPTED = relayed_cell("end-of-data", "accepted")

# Hears of each failure: the host (None: there was none to try), the stage, and the error.
Report = Callable[[Endpoint | None, str, BackendError], None]


class Recipient(NamedTuple):
    """What a RCPT command says."""

    address: str
    parameters: Sequence[Parameter] = ()


class Begun(NamedTuple):
    """A transaction that has begun: the replies to MAIL and to the first RCPT (None where that was not asked)."""

    connection: Connection
    mail: Reply
    rcpt: Reply | None

    @property
    def is_ended(self) -> bool:
        """Tell whether the host ends the session."""
        return 421 in (self.mail.code, self.rcpt and self.rcpt.code)


class Backends:
    """The hosts, and what is known about them; `cells` is where they count.

    OSError: the CA file can't be read.
    """

    def __init__(
        self,
        settings: BackendSettings,
        hostname: str,
        promises: Promises,
        log: Log,
        tasks: Tasks,
        cells: Cells | None = None,
    ) -> None:
        self._hostname = hostname
        self._promises = promises
        self._log = log
        self._tasks = tasks
        self.cells = blank() if cells is None else cells
        self._known: dict[Endpoint, Host] = {}  # also those of earlier settings, whose connections may be in use
        self._hosts: list[Host] = []
        self._is_saving = False
        self._is_unsaved = False
        self._look = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None  # is called when `offered` may be another
        self.configure(settings)

    def configure(self, settings: BackendSettings) -> None:
        """Take settings over, for connections still to be made. OSError: the CA file can't be read; nothing changed."""
        context = tls_context(settings.starttls, settings.ca_file)
        self.settings = settings
        opener = Opener(
            hostname=self._hostname,
            timeouts=settings.timeouts,
            seconds=settings.timeouts.opening / max(len(settings.hosts), 1),
            starttls=settings.starttls,
            context=context,
            forward=settings.send_client_address,
        )
        for host in self._hosts:
            host.retire()
        for endpoint in settings.hosts:
            if endpoint not in self._known:
                self._known[endpoint] = Host(endpoint, self._tasks, self._log, self._learn, self._look)
        self._hosts = [self._known[endpoint] for endpoint in settings.hosts]
        for host in self._hosts:
            host.configure(settings, opener)
        self._look.set()
        self.on_change()

    @property
    def offered(self) -> Capabilities | None:
        """What a client may be promised; None while nothing is known of any host."""
        return self.settings.capabilities or self._promises.common(map(str, self.settings.hosts))

    def states(self) -> list[BackendState]:
        """Return how each host is, in their order, by how the last try went."""
        by_try = {None: BackendState.UNKNOWN, True: BackendState.UP, False: BackendState.DOWN}
        return [by_try[host.breaker.last] for host in self._hosts]

    def health(self) -> dict[str, str]:
        """Return `up`, `down` or `unknown` for each host, by how the last try went."""
        states = zip(self._hosts, self.states(), strict=True)
        return {str(host.endpoint): state.name.lower() for host, state in states}

    async def close(self) -> None:
        """Let go of the connections that are kept; those in use are not kept any more."""
        for host in self._known.values():
            host.retire()

    # -- transactions --

    async def begin(
        self,
        sender: Path,
        parameters: Sequence[Parameter],
        recipient: Recipient,
        introduce: Introduce,
        report: Report,
        *,
        fresh: bool = False,
    ) -> Begun:
        """Take a connection, and put MAIL and the first RCPT to it; `fresh`: not one that was kept.

        One that was kept may have died just now, and its refusal of MAIL may be about what it served before: it is
        replaced, once. A host that ends a fresh one here is passed over for the next. BackendError: no host took the
        transaction; `report` has heard of it.
        """
        passed: set[Endpoint] = set()
        only_fresh = fresh
        while True:
            connection = await self.acquire(introduce, report, fresh=only_fresh, without=passed)
            may_be_stale = connection.reused
            try:
                lines = [
                    envelope.mail(sender.address, parameters, connection.capabilities),
                    envelope.rcpt(recipient.address, recipient.parameters, connection.capabilities),
                ]
            except BackendError as error:
                report(connection.endpoint, "mail", error)
                self.release(connection, reusable=True)
                raise
            is_last = all(host.endpoint in passed | {connection.endpoint} for host in self._hosts)
            try:
                begun = await self._put(connection, lines)
            except BackendError as error:
                self.drop(connection)
                if not may_be_stale:
                    report(connection.endpoint, "mail", error)
                    if is_last:
                        raise
            else:
                if not begun.is_ended and not (may_be_stale and begun.mail.code >= 400):
                    return begun
                if is_last and not may_be_stale:
                    return begun  # with its own word
                self.drop(connection)
                if not may_be_stale:
                    report(connection.endpoint, "mail", BackendError(TROUBLE, "it ends the session with 421"))
            only_fresh = fresh or may_be_stale
            if not may_be_stale:
                passed.add(connection.endpoint)

    async def _put(self, connection: Connection, lines: Sequence[bytes]) -> Begun:
        try:
            mail, *others = await connection.commands(lines, self.settings.timeouts.command)
        except BackendError:
            raise  # it is lost: that is for the caller
        except BaseException:
            self.drop(connection)
            raise
        return Begun(connection, mail, others[0] if others else None)

    async def verify(
        self, sender: Path, parameters: Sequence[Parameter], recipient: str, introduce: Introduce
    ) -> Reply | None:
        """Ask for a recipient in a transaction of its own, and take it back. Never raises BackendError.

        None: nothing was said of the recipient, as the sender is refused.
        """

        def report(endpoint: Endpoint | None, stage: str, error: BackendError) -> None:
            self.log_failure(None, endpoint, stage, error)

        try:
            begun = await self.begin(sender, parameters, Recipient(recipient), introduce, report)
        except BackendError as error:
            return error.reply
        self._tasks.spawn(self.retire(begun.connection))
        return None if begun.rcpt is None or not for_client(begun.mail).is_positive else for_client(begun.rcpt)

    async def retire(self, connection: Connection) -> None:
        """End a transaction that has no message, and keep the connection if that went well."""
        reusable = self._known[connection.endpoint].keeps(connection)
        try:
            if reusable:
                reusable = (await connection.command(b"RSET", self.settings.timeouts.quit)).code == 250
        except BackendError:
            reusable = False
        except BaseException:
            self.drop(connection)
            raise
        self.release(connection, reusable=reusable)

    # -- connections --

    async def acquire(
        self, introduce: Introduce, report: Report, *, fresh: bool = False, without: Collection[Endpoint] = ()
    ) -> Connection:
        """Return a connection that takes MAIL for this client, to none of those hosts; `release` or `drop` must follow.

        BackendError, with the reply for the client: no host would; `report` has heard of each that was asked.
        """
        patience = self.settings.timeouts.slot / max(len(self._hosts), 1)
        errors: list[BackendError] = []
        for host in self._hosts:
            if host.endpoint in without:
                continue
            if not fresh and (kept := host.take_kept()) is not None:
                return kept
            if not host.may_take(fresh=fresh):
                continue
            try:
                return await host.take(introduce(), patience, fresh=fresh)
            except BackendError as error:
                report(host.endpoint, "connect", error)
                errors.append(error)
        if not errors:
            replies = [host.breaker.reply for host in self._hosts]
            errors.append(BackendError(TROUBLE if TROUBLE in replies else UNREACHABLE, "every host is down"))
            report(None, "connect", errors[0])
        # What somebody has to mend goes before what time will mend.
        raise max(errors, key=lambda error: (error.reply is TROUBLE, error.reply is BUSY))

    def release(self, connection: Connection, *, reusable: bool) -> None:
        """Give a connection back politely; `reusable`: no reply is owed, and no transaction is open."""
        self._known[connection.endpoint].give(connection, reusable=reusable)

    def drop(self, connection: Connection) -> None:
        """Give a connection back that can't be talked to any more, or must not be: in the middle of a message."""
        connection.abort()
        self.release(connection, reusable=False)

    # -- what is known --

    async def keep_probing(self) -> None:
        """Ask every host for its capabilities, at once and from time to time; runs until it is cancelled.

        A host that is left alone is asked when its rest is over, so that no client has to be the one who tries.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._look.clear()
            due = [host for host in self._hosts if host.next_probe <= loop.time()]
            for host in due:
                host.next_probe = loop.time() + PROBE_EVERY
            await asyncio.gather(*map(self._probe, due))
            next_probe = min((host.next_probe for host in self._hosts), default=loop.time() + PROBE_EVERY)
            try:
                async with asyncio.timeout(max(next_probe - loop.time(), 0.0)):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def _probe(self, host: Host) -> None:
        try:
            await host.probe()
        except BackendError as error:
            self.log_failure(None, host.endpoint, "probe", error)
        except Exception as error:  # noqa: BLE001 - the next probe may fare better, and the other hosts need theirs
            self._log.exception("a probe of a backend failed", error)

    def _learn(self, endpoint: Endpoint, capabilities: Capabilities) -> None:
        if self._promises.learn(str(endpoint), capabilities):
            self.on_change()
            self._is_unsaved = True
            if not self._is_saving:
                self._is_saving = True
                self._tasks.spawn(self._save())

    async def _save(self) -> None:
        # One after the other: what an earlier one knows must not replace what a later one has written.
        try:
            while self._is_unsaved:
                self._is_unsaved = False
                await asyncio.to_thread(self._promises.save, [str(host.endpoint) for host in self._hosts])
        except OSError as error:
            self._log.event("warning", message=f"what the backends offer can't be kept for a restart: {error}")
        finally:
            self._is_saving = False

    def log_failure(self, ident: str | None, endpoint: Endpoint | None, stage: str, error: BackendError) -> None:
        """Log that a host did not take a transaction; what somebody has to mend is an alarm."""
        self.report(error.outcome, stage, ident, endpoint, error=str(error))

    def report(self, outcome: str, stage: str, ident: str | None, endpoint: Endpoint | None, **fields: object) -> None:
        """Log, and count, what became of a transaction at a host; `trouble` is an alarm: it is not the mail's fault."""
        self.cells[relayed_cell(stage, outcome)] += 1
        level = {"level": "alarm"} if outcome == "trouble" else {}
        backend = str(endpoint) if endpoint else None
        self._log.event("relay", outcome=outcome, stage=stage, id=ident, backend=backend, **fields, **level)

    def report_accepted(self, ident: str, endpoint: Endpoint | None, code: int, size: int, seconds: float) -> None:
        """Do what `report` does for a message that was taken, without a dictionary: this is what happens most."""
        self.cells[ACCEPTED] += 1
        self._log.record(
            "relay",
            f'"outcome": "accepted", "stage": "end-of-data", "id": "{ident}", "backend": {_quoted(endpoint)}, '
            f'"code": {code}, "bytes": {size}, "seconds": {seconds!r}, "error": null',
        )


@lru_cache(maxsize=64)
def _quoted(endpoint: Endpoint | None) -> str:
    return json_line(str(endpoint) if endpoint else None)
