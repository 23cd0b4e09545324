# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One transaction, from MAIL to the end of data: what each recipient is told, and why.

    refused here    a domain that is not ours, routing inside the address, a block by the operator: 550
    deferred        greylisted, or the client has mailed a spam trap: 450, and the backend never hears of it
    passed          put to the backend at once: its answer to RCPT is the client's answer

The null sender, and the names that address callouts use, are different: a callout must get the backend's true
answer (RFC 6647 section 4.2), so their recipients are put to the backend even when they are to be deferred, and
the deferral is the answer to DATA. DATA has one answer for all recipients, so such a transaction is not allowed
to mix: the recipients of either kind that come later are told to come again by themselves.
"""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass, field

from greylist_proxy import policy
from greylist_proxy.client import Client, Identifier
from greylist_proxy.gate import Gate
from greylist_proxy.log import Log
from greylist_proxy.policy import Decision, Reason, Verdict
from greylist_proxy.smtp.address import ROUTING_DENIED, AddressError, Parameter, Path, parse_recipient
from greylist_proxy.smtp.relay import Backend, Relay
from greylist_proxy.smtp.replies import Reply, own_reply
from greylist_proxy.smtp.tarpit import Tarpit
from greylist_proxy.smtp.trace import received
from greylist_proxy.tasks import Tasks

# Sessions that may hold a backend connection for a recipient which will be deferred at DATA.
MAX_CALLOUTS = 20
MAX_RECIPIENTS = 1000  # a transaction; RFC 5321 section 4.5.3.1.8 wants 100 at least, Postfix has 1,000
# Senders that address verification is done with, besides the null sender (Postfix: double-bounce).
CALLOUT_SENDERS = frozenset({"postmaster", "double-bounce"})

RELAY_DENIED = own_reply(550, "5.7.1", "Relaying denied, this domain's mail is not handled here")
TOO_MANY_RECIPIENTS = own_reply(452, "4.5.3", "Too many recipients")
TOO_MANY_CALLOUTS = own_reply(451, "4.3.2", "Too many bounces at a time, try again later")
ONE_AT_A_TIME = own_reply(452, "4.5.3", "One recipient at a time for this sender")
RCPT_FIRST = own_reply(503, "5.5.1", "RCPT first")
NO_RECIPIENTS = own_reply(554, "5.5.1", "No valid recipients")
NOT_NOW = own_reply(451, "4.3.0", "No recipient can be taken now, try again later")
REFUSALS = {Reason.RELAY_DENIED: RELAY_DENIED, Reason.ROUTING: ROUTING_DENIED}


@dataclass
class Services:
    """What every session shares."""

    hostname: str
    domains: frozenset[str]
    max_message_size: int
    ipv4_prefix: int
    ipv6_prefix: int
    greylisted_reply: str  # with {seconds} and {id}
    identifier: Identifier
    backend: Backend
    gate: Gate
    log: Log
    tasks: Tasks
    tarpit: Tarpit
    callouts: int = field(default=0)  # how many of MAX_CALLOUTS are taken


@dataclass(frozen=True)
class Hello:
    """How the client introduced itself: the name it gave, and whether by EHLO."""

    name: str
    esmtp: bool


def screen(address: str, domains: frozenset[str]) -> tuple[Path, Decision | None]:
    """Parse a recipient, and decide what needs nobody to be asked. AddressError: not an address."""
    try:
        recipient = parse_recipient(address)
    except AddressError as error:
        if not error.routing:
            raise
        return Path(address), policy.ROUTING
    if recipient.domain and recipient.domain not in domains:
        return recipient, policy.RELAY_DENIED
    return recipient, None


class Transaction:
    """The state, in the order in which it comes about."""

    def __init__(
        self, services: Services, client: Client, hello: Hello, sender: Path, parameters: list[Parameter]
    ) -> None:
        self._services = services
        self._client = client
        self._origin = services.identifier.origin(client, hello.name, sender.address)
        self._hello = hello
        self._sender = sender
        self._is_callout = not sender.address or sender.local.lower() in CALLOUT_SENDERS
        self._ident = secrets.token_hex(6).upper()
        self._relay = Relay(services.backend, services.log, services.tasks, self._ident, sender, parameters)
        self._asked = 0  # RCPT commands, whatever became of them
        self._first: Decision | None = None  # the decision that set the transaction's verdict
        self._accepted: list[Path] = []  # the backend said 2xx
        self._decisions: list[tuple[str, Decision]] = []  # why they were let through
        self._owed: Reply | None = None  # the deferral that DATA has to give
        self._deferred: Reply | None = None  # what DATA says if nothing was accepted: the last 4xx
        self._has_slot = False  # one of MAX_CALLOUTS
        self.is_trapped = False  # this client mails spam traps, and is to be tarpitted

    async def rcpt(self, address: str) -> Reply:
        """Answer RCPT TO:<address>."""
        self._asked += 1
        if self._asked > MAX_RECIPIENTS:
            return TOO_MANY_RECIPIENTS
        ident = f"{self._ident}.{self._asked}"
        try:
            recipient, refusal = screen(address, self._services.domains)
        except AddressError as error:
            return error.reply
        if refusal is not None:
            self._log_decision(refusal, address, ident)
            return REFUSALS[refusal.reason]
        decision = policy.in_transaction(await self._services.gate.decide(self._origin, address), self._first)
        self._log_decision(decision, address, ident)
        self.is_trapped = self.is_trapped or decision.is_trapped
        reply = await self._answer(recipient, decision, ident)
        if reply.is_temporary:
            self._deferred = reply if decision.verdict is Verdict.DEFER else NOT_NOW
        return reply

    async def _answer(self, recipient: Path, decision: Decision, ident: str) -> Reply:
        if decision.verdict is Verdict.BLOCK:
            return own_reply(550, "5.7.1", f"Blocked by the administrator of this server ({ident})")
        defers = decision.verdict is Verdict.DEFER
        deferral = self._deferral(decision, ident)
        sets = decision.reason in policy.GREYLISTED
        if defers and (not self._is_callout or (self._accepted and not self._owed)):
            if sets:
                self._first = self._first or decision
            return deferral
        if defers and not self._take_slot():
            return TOO_MANY_CALLOUTS
        if not defers and self._owed:
            return ONE_AT_A_TIME
        reply = await self._relay.rcpt(recipient)
        if reply.is_positive:
            self._accepted.append(recipient)
            self._decisions.append((recipient.address, decision))
            if defers:
                self._owed = deferral
            if sets:
                self._first = self._first or decision
        return reply

    async def data(self) -> Reply:
        """Answer DATA: 354 means that the message may come. Any other answer ends the transaction."""
        if not self._asked:
            return RCPT_FIRST
        if self._owed or not self._accepted:
            # Where only deferred recipients are left this must be temporary, or the sender gives them up.
            return self._owed or self._deferred or NO_RECIPIENTS
        reply = await self._relay.data()
        if reply.code == 354:
            field = received(
                helo=self._hello.name,
                esmtp=self._hello.esmtp,
                client=self._client,
                hostname=self._services.hostname,
                ident=self._ident,
                recipient=self._accepted[0].address if len(self._accepted) == 1 else None,
                now=datetime.datetime.now(datetime.UTC),
            )
            await self._relay.write(field)
        return reply

    async def write(self, piece: bytes) -> None:
        """Pass a piece of the message on."""
        await self._relay.write(piece)

    async def commit(self) -> Reply:
        """End the message at the backend and return its word. Not to be cancelled: see `Session`."""
        reply = await self._relay.finish()
        if reply.is_positive:
            await self._services.gate.delivered(self._origin, self._decisions)
        self._give_slot()
        return reply

    def fail(self) -> None:
        """Go on as with a backend that was lost: something unexpected happened, nothing here is sure any more."""
        self._relay.close()

    def abandon(self, outcome: str, reply: Reply | None = None) -> None:
        """End the transaction without a message; a message that is under way never gets its final dot."""
        self._relay.abandon(outcome, reply)
        self._give_slot()

    def _take_slot(self) -> bool:
        if not self._has_slot and self._services.callouts < MAX_CALLOUTS:
            self._has_slot = True
            self._services.callouts += 1
        return self._has_slot

    def _give_slot(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._services.callouts -= 1

    def _log_decision(self, decision: Decision, recipient: str, ident: str) -> None:
        self._services.gate.record(self._origin, recipient, decision, ident)

    def _deferral(self, decision: Decision, ident: str) -> Reply:
        if decision.reason is Reason.STORE_FAILED:
            return own_reply(451, "4.3.0", f"Temporary failure, try again later ({ident})")
        if decision.is_trapped:
            return own_reply(450, "4.7.1", f"Too much unwanted mail from this address, try again later ({ident})")
        text = self._services.greylisted_reply.replace("{seconds}", str(decision.seconds_left)).replace("{id}", ident)
        return own_reply(450, "4.7.1", text)
