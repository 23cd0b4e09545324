# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One mail server behind: how it fares, its connections in use, and those that are kept for the next transaction.

It has at most `max_connections`; who finds none free waits for a while, in turn.

A connection is kept only while everything about it is certain: its last reply was read to the end and nothing has
come after it, none was a 5xx (servers count errors a session) or a 421, none was waited for in vain. Servers have
limits for a session, and who comes next must not pay for what others sent: so it is left early, and also where a
message is refused on it that was not its first. It serves one transaction at a time. With PROXY it belongs to one
client, and is never kept; with XCLIENT it is kept where the server lets it speak for another client afterwards.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from greylist_proxy.config_values import Endpoint
from greylist_proxy.log import Log
from greylist_proxy.patience import in_a_task
from greylist_proxy.smtp.backend import BUSY, TROUBLE, UNREACHABLE, BackendError, Connection, Timeouts
from greylist_proxy.smtp.breaker import Breaker
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.forwarding import Introduction
from greylist_proxy.smtp.opening import Opener, SendClientAddress, StartTls, TlsError
from greylist_proxy.smtp.turns import Turns
from greylist_proxy.tasks import Tasks

MAX_TRANSACTIONS = 100  # a connection: so that a server which is drained or limits them is left in time
MAX_OCTETS = 4 << 20  # of a connection's messages: the Windows SMTP service has a limit for a session, 10 MB by default
# Seconds from its opening on, until it begins no further transaction: Exchange counts from there (`ConnectionTimeout`,
# 10 minutes by default, 5 on an Edge server), and then ends it in the middle of a message.
MAX_AGE = 240.0
PROBE_PATIENCE = 30.0  # seconds
PROBE_AGAIN = 10.0  # seconds after a failure, so that it is soon known whether that was all


@dataclass(frozen=True)
class BackendSettings:
    """`[backend]`: the hosts in order, and how they are talked to."""

    hosts: Sequence[Endpoint]
    starttls: StartTls = "opportunistic"
    ca_file: Path | None = None  # for `verify`; None: the system's authorities
    send_client_address: SendClientAddress = "none"
    capabilities: Capabilities | None = None  # what to offer, whatever the hosts say; None: ask them
    max_connections: int = 100  # a host
    idle_connections: int = 20  # a host
    idle_timeout: float = 60.0  # seconds
    timeouts: Timeouts = field(default_factory=Timeouts)


class Host:
    """The host at `endpoint`. `learn` is told of each new connection, `look` is set when the next probe has moved."""

    def __init__(
        self,
        endpoint: Endpoint,
        tasks: Tasks,
        log: Log,
        learn: Callable[[Endpoint, Capabilities], None],
        look: asyncio.Event,
    ) -> None:
        self.endpoint = endpoint
        self.breaker = Breaker(UNREACHABLE)
        self.next_probe = 0.0
        self._tasks = tasks
        self._log = log
        self._learn = learn
        self._look = look
        self._idle: deque[Connection] = deque()  # the one used last is at the right end
        self._current: set[Connection] = set()  # those in use that were opened under the settings of now
        self._turns = Turns(0)  # the connections in use, and who waits for one
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_tls_broken = False
        self._lacks_xclient = False
        self._is_retired = True  # until it is given settings

    def configure(self, settings: BackendSettings, opener: Opener) -> None:
        """Take settings; what was opened under others is not kept."""
        self.retire()
        # Under other ones they may be in clear, or speak for their first client only.
        self._current.clear()
        self._settings = settings
        self._opener = opener
        self._is_retired = False
        self.next_probe = 0.0
        self._turns.most = settings.max_connections
        if self._sweeper is not None:
            # It goes by the patience of before; nobody is idle now.
            self._sweeper.cancel()
            self._sweeper = None

    def retire(self) -> None:
        """Keep no connections any more: it is not one of the hosts now, or the program ends."""
        self._is_retired = True
        self._dismiss(len(self._idle))

    # -- a transaction's connection --

    def may_take(self, *, fresh: bool) -> bool:
        """Tell whether it makes sense to ask for a connection now."""
        return (bool(self._idle) and not fresh) or self.breaker.would_admit(self._now())

    def take_kept(self) -> Connection | None:
        """Return a connection that was kept, where that needs nobody to be waited for; `give` must follow."""
        opener = self._opener
        if opener.forward != "none" or not self._idle or not self._turns.take_now():
            return None
        connection = self._pop()
        if connection is None:
            self._turns.give()
            return None
        return self._lend(connection, opener)

    async def take(self, introduction: Introduction, patience: float, *, fresh: bool) -> Connection:
        """Return a connection on which this client is known; `give` must follow. BackendError: there is none.

        `patience` is how long to wait for a free one, in seconds; `fresh`: not one that was kept.
        """
        await in_a_task()
        if not await self._turns.take(patience):
            raise BackendError(BUSY, f"no connection was free for {patience:g} seconds")
        opener = self._opener
        try:
            kept = None if fresh else self._pop()
            if kept is not None:
                try:
                    await opener.introduce(kept, introduction)
                except BackendError:
                    kept.abort()  # it had died: a fresh one is better
                except BaseException:
                    kept.abort()
                    raise
                else:
                    return self._lend(kept, opener)
            # Where one that was kept is not good enough, it makes room for the one to come.
            self._dismiss(self._turns.taken + len(self._idle) - self._settings.max_connections)
            connection = await self._open(introduction, opener)
            try:
                await opener.introduce(connection, introduction)
            except BaseException:
                connection.abort()
                raise
        except BaseException:
            self._turns.give()
            raise
        return self._lend(connection, opener)

    def give(self, connection: Connection, *, reusable: bool) -> None:
        """Take a connection back, which serves no transaction any more; `reusable`: the caller is sure of its state."""
        connection.transactions += 1
        if reusable and self.keeps(connection):
            connection.reused = True
            connection.idle_since = self._now()
            self._idle.append(connection)
            self._sweep_later()
            self._turns.give()
        elif connection.is_lost:
            self._turns.give()
        else:
            self._tasks.spawn(self._leave(connection))
        self._current.discard(connection)

    def keeps(self, connection: Connection) -> bool:
        """Tell whether a connection can be kept."""
        forward = self._settings.send_client_address
        # Postfix takes no further XCLIENT where the client that it now sees may not use it, and then offers none.
        takes_another_client = not connection.xclient or bool(connection.capabilities.xclient)
        return (
            connection in self._current
            and not connection.spoiled
            and not connection.has_spoken()
            and connection.transactions < MAX_TRANSACTIONS
            and connection.octets < MAX_OCTETS
            and self._is_young(connection)
            and len(self._idle) < self._settings.idle_connections
            and (forward == "none" or (forward == "xclient" and takes_another_client))
            and not self._is_retired
        )

    def _lend(self, connection: Connection, opener: Opener) -> Connection:
        if opener is self._opener:  # else the settings have changed meanwhile
            self._current.add(connection)
        return connection

    async def probe(self) -> None:
        """Ask for its capabilities. BackendError: it did not answer as it should."""
        if self._turns.taken + len(self._idle) >= self._settings.max_connections:
            return  # busy, so it lives, and would take a further connection amiss
        opener = dataclasses.replace(self._opener, seconds=min(PROBE_PATIENCE, self._opener.seconds))
        connection = await self._open(None, opener)
        await connection.quit(self._settings.timeouts.quit)

    # -- opening --

    async def _open(self, introduction: Introduction | None, opener: Opener) -> Connection:
        """Open a connection, and draw the conclusions about the host."""
        breaker = self.breaker
        on_trial = breaker.is_open
        if not breaker.admit(self._now()):
            raise BackendError(breaker.reply, "it is down")
        try:
            connection = await self._open_somehow(introduction, opener)
        except BackendError as error:
            if breaker.failed(self._now(), error.reply, on_trial=on_trial):
                self.next_probe = breaker.until
                self._look.set()
                if not on_trial:
                    self._log_state("down", error)
            elif not breaker.is_open:
                self.next_probe = min(self.next_probe, self._now() + PROBE_AGAIN)
                self._look.set()
            raise
        except BaseException:
            breaker.unsettled(on_trial=on_trial)
            raise
        if breaker.is_open:
            self._log_state("up")
        breaker.succeeded()
        self._learn(self.endpoint, connection.capabilities)
        lacks_xclient = self._settings.send_client_address == "xclient" and not connection.xclient
        if lacks_xclient and not self._lacks_xclient:
            self._log_state("without xclient", BackendError(TROUBLE, "it does not offer XCLIENT to this proxy"))
        self._lacks_xclient = lacks_xclient
        return connection

    async def _open_somehow(self, introduction: Introduction | None, opener: Opener) -> Connection:
        """Open a connection, in clear where TLS is only an opportunity, and is missed (until a probe finds it)."""
        is_probe = introduction is None
        try:
            connection = await opener.open(self.endpoint, introduction, tls=is_probe or not self._is_tls_broken)
        except TlsError as error:
            if self._settings.starttls != "opportunistic":
                raise
            if not self._is_tls_broken:
                self._log_state("in clear", error)
            self._is_tls_broken = True
            return await opener.open(self.endpoint, introduction, tls=False)
        if is_probe:
            self._is_tls_broken = False
        return connection

    # -- connections that are kept --

    def _pop(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if self._is_young(connection) and not connection.is_lost:
                connection.idle_since = None
                return connection
            self._part_with(connection)
        return None

    def _is_young(self, connection: Connection) -> bool:
        return self._now() - connection.opened < MAX_AGE

    def _dismiss(self, count: int) -> None:
        """Part with that many idle connections, the oldest first."""
        for _n in range(min(count, len(self._idle))):
            self._part_with(self._idle.popleft())

    def _part_with(self, connection: Connection) -> None:
        connection.idle_since = None
        if not connection.is_lost:
            self._tasks.spawn(connection.quit(self._settings.timeouts.quit))

    async def _leave(self, connection: Connection) -> None:
        try:
            await connection.quit(self._settings.timeouts.quit)
        finally:
            self._turns.give()

    def _sweep_later(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._settings.idle_timeout, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        # The ones used last are at the end. A timer may ring a little early.
        oldest = self._now() - self._settings.idle_timeout + 0.01
        self._dismiss(sum(each.idle_since is not None and each.idle_since <= oldest for each in self._idle))
        if self._idle:
            self._sweep_later()

    # -- the operator's view --

    def _log_state(self, state: str, error: BackendError | None = None) -> None:
        fields = {"error": str(error), "level": "alarm"} if error is not None else {"error": None}
        self._log.event("backend", backend=str(self.endpoint), state=state, **fields)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
