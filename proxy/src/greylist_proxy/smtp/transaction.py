# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One transaction, from MAIL to the end of data: what each recipient is told, and why.

    refused here    a domain that is not ours, routing inside the address, a user that `backend.recipients` does not
                    name, a block by the operator: 550
    deferred        greylisted, or the client has mailed a spam trap or tried names out: 450, and the backend never
                    hears of it (`verify_recipient_first`: it is asked whether the recipient exists)
    passed          put to the backend at once: its answer to RCPT is the client's answer

The null sender, and the names that address callouts use, are different: a callout must get the backend's true
answer (RFC 6647 section 4.2), so their recipients are put to the backend even when they are to be deferred, and
the deferral is the answer to DATA. DATA has one answer for all recipients, so such a transaction is not allowed
to mix: the recipients of either kind that come later are told to come again by themselves.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from greylist_proxy import policy
from greylist_proxy.client import Client, Origin
from greylist_proxy.patience import in_a_task
from greylist_proxy.policy import Decision, Mode, Reason, Verdict
from greylist_proxy.smtp.address import ROUTING_DENIED, AddressError, Path
from greylist_proxy.smtp.backend import Flow
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.events import Hello, Mail
from greylist_proxy.smtp.forwarding import Introduce, Introduction
from greylist_proxy.smtp.limits import client_key
from greylist_proxy.smtp.parameters import Parameter
from greylist_proxy.smtp.recipients import screen
from greylist_proxy.smtp.relay import Relay
from greylist_proxy.smtp.replies import Reply, own_reply
from greylist_proxy.smtp.shared import MAX_CALLOUTS, Services
from greylist_proxy.smtp.trace import received
from greylist_proxy.smtp.verification import is_unknown_user

# Who was told nothing of what we can do (HELO) can't be disappointed.
NO_PROMISES = Capabilities()

RELAY_DENIED = own_reply(550, "5.7.1", "Relaying denied, this domain's mail is not handled here")
UNKNOWN_DOMAIN = own_reply(450, "4.7.1", "This domain's mail is not handled here, try again later")
UNKNOWN_RECIPIENT = own_reply(550, "5.1.1", "No such user here")
TOO_MANY_RECIPIENTS = own_reply(452, "4.5.3", "Too many recipients")
TOO_MANY_CALLOUTS = own_reply(451, "4.3.2", "Too many bounces at a time, try again later")
TOO_MANY_MESSAGES = own_reply(451, "4.3.2", "Too many messages at a time from this client, try again later")
TOO_MANY_UNKNOWN = own_reply(450, "4.7.1", "Too many unknown users, try again later")
ONE_AT_A_TIME = own_reply(452, "4.5.3", "One recipient at a time for this sender")
RCPT_FIRST = own_reply(503, "5.5.1", "RCPT first")
NO_RECIPIENTS = own_reply(554, "5.5.1", "No valid recipients")
NOT_NOW = own_reply(451, "4.3.0", "No recipient can be taken now, try again later")
# What is answered without more ado, by reason.
ANSWERS = {
    Reason.RELAY_DENIED: RELAY_DENIED,
    Reason.UNKNOWN_DOMAIN: UNKNOWN_DOMAIN,
    Reason.ROUTING: ROUTING_DENIED,
    Reason.UNKNOWN_RECIPIENT: UNKNOWN_RECIPIENT,
}
# A deferral for these may be told apart from one for a user that there is not.
VERIFIED_FIRST = policy.GREYLISTED | {Reason.TRANSACTION}


class Visitor(NamedTuple):
    """Who is connected, and how."""

    client: Client
    port: int
    local: Callable[[], tuple[str, int]]  # address and port that it connected to: asked for where mail is relayed
    tls: str = ""  # version and cipher, such as "TLSv1.3 TLS_AES_256_GCM_SHA384"; "": in clear
    early: bool = False  # it talked before the banner


class Transaction:
    """The state, in the order in which it comes about.

    `promised` is what the EHLO reply told this client that it may use; None: no backend was known then, and what would
    have to be relayed gets a 4xx.
    """

    __slots__ = (
        "_accepted",
        "_asked",
        "_decisions",
        "_deferred",
        "_first",
        "_flow",
        "_has_failed",
        "_has_share",
        "_has_slot",
        "_held",
        "_hello",
        "_ident",
        "_is_callout",
        "_mail",
        "_origin",
        "_owed",
        "_promised",
        "_relay",
        "_services",
        "_visitor",
        "is_trapped",
        "slow",
    )

    def __init__(
        self,
        services: Services,
        visitor: Visitor,
        hello: Hello,
        mail: Mail,
        flow: Flow,
        promised: Capabilities | None,
    ) -> None:
        sender = mail.path
        self._services = services
        self._visitor = visitor
        self._hello = hello
        self._mail = mail
        self._flow = flow
        self._promised = promised if hello.esmtp else NO_PROMISES
        self._origin = services.identifier.origin(visitor.client, hello.name, sender.address)
        self._is_callout = policy.is_callout(sender.address)
        self._ident = f"{random.getrandbits(48):012X}"  # a name, no secret: asking the system costs a call
        self._asked = 0  # RCPT commands, whatever became of them
        self._first: Decision | None = None  # the decision that set the transaction's verdict
        self._relay: Relay | None = None  # once a recipient has passed
        self._accepted: list[Path] = []  # the backend said 2xx
        self._decisions: list[tuple[str, Decision]] = []  # why they were let through
        self._owed: Reply | None = None  # the deferral that DATA has to give
        self._deferred: Reply | None = None  # what DATA says if nothing was accepted: the last 4xx
        self._has_slot = False  # one of MAX_CALLOUTS
        self._has_share = False  # one of the client's connections to backends
        self._has_failed = False
        self._held = b""  # the Received field, until the message begins; the last piece, until `commit`
        self.is_trapped = False  # this client mails spam traps
        # Its refusals are to go out byte by byte: it mails spam traps, is blocked, or talked too early.
        self.slow = visitor.early and services.gate.rules.mode is not Mode.OBSERVE

    def rcpt(self, address: str, parameters: Sequence[Parameter]) -> Reply | Coroutine[Any, Any, Reply]:
        """Answer RCPT TO:<address>: now, or by a coroutine where somebody has to be asked.

        Most recipients are put off without asking anybody, and a coroutine would cost as much as that.
        """
        self._asked += 1
        if self._asked > self._services.max_recipients:
            self._deferred = NOT_NOW
            return TOO_MANY_RECIPIENTS
        ident = f"{self._ident}.{self._asked}"
        try:
            recipient, refusal = screen(address, self._services.acceptance)
        except AddressError as error:
            return error.reply
        decision = self._decide_now(recipient, refusal)
        if decision is None:
            return self._rcpt_later(recipient, refusal, parameters, ident)
        reply = self._answer(recipient, decision, ident)
        return self._put(recipient, parameters, decision, ident) if reply is None else reply

    async def _rcpt_later(
        self, recipient: Path, refusal: Decision | None, parameters: Sequence[Parameter], ident: str
    ) -> Reply:
        decision, verified = await self._decide(recipient, refusal)
        reply = self._answer(recipient, decision, ident, verified)
        return await self._put(recipient, parameters, decision, ident) if reply is None else reply

    def _decide_now(self, recipient: Path, refusal: Decision | None) -> Decision | None:
        """Decide on a recipient in the ways that are most frequent, and need nobody to be asked; None: `_decide`."""
        services = self._services
        if services.verify_recipient_first or services.harvesters.has(self._visitor.client):
            return None
        if refusal is not None:
            return refusal
        own = services.gate.decide_now(self._origin, recipient.address)
        return None if own is None else policy.in_transaction(own, self._first)

    async def _decide(self, recipient: Path, refusal: Decision | None) -> tuple[Decision, Reply | None]:
        """Decide on a recipient; where the backend had to be asked whether it exists, its refusal comes with it."""
        services, address = self._services, recipient.address
        is_unknown = refusal is policy.UNKNOWN_RECIPIENT
        if refusal is not None and not is_unknown:
            return refusal, None
        is_harvester = services.harvesters.has(self._visitor.client) and services.gate.rules.mode is not Mode.OBSERVE
        if is_unknown and not is_harvester:
            return policy.UNKNOWN_RECIPIENT, None
        own = await services.gate.decide(self._origin, address, record=not is_unknown)
        decision = policy.in_transaction(own, self._first)
        if is_harvester and decision.reason in policy.HARVESTABLE:
            # The same for who exists and who does not, or the answer would tell.
            return policy.HARVESTING, None
        if is_unknown:
            return policy.UNKNOWN_RECIPIENT, None
        if services.verify_recipient_first and self._is_to_be_verified(decision):
            # After the decision, so that traps close, and nobody is verified who is put to the backend anyway.
            await in_a_task()
            reply = await services.verifier.refusal(
                services.backends, self._mail.path, self._mail.parameters, address, self._introduce()
            )
            if reply is not None:
                return policy.UNKNOWN_RECIPIENT, reply
        return decision, None

    def _is_to_be_verified(self, decision: Decision) -> bool:
        return decision.verdict is Verdict.DEFER and decision.reason in VERIFIED_FIRST and not self._is_callout

    def _answer(self, recipient: Path, decision: Decision, ident: str, verified: Reply | None = None) -> Reply | None:
        """Record the decision, and answer by it; None: the answer is the backend's.

        `verified` is what the backend said, where it was asked first.
        """
        noted = decision
        if self._owed and decision.verdict is Verdict.ALLOW:
            # ONE_AT_A_TIME: the log is to have what it is told.
            noted = replace(decision, verdict=Verdict.DEFER, reason=Reason.TRANSACTION)
        self._services.gate.record(self._origin, recipient.address, noted, ident, is_early=self._visitor.early)
        self._take_note(decision)
        reply = verified or self._own_answer(decision, ident)
        if reply is not None:
            self._note_reply(recipient, decision, reply)
        return reply

    def _note_reply(self, recipient: Path, decision: Decision, reply: Reply, *, is_of_sender: bool = False) -> None:
        if reply.is_temporary:
            self._deferred = reply if decision.verdict is Verdict.DEFER else NOT_NOW
        elif not is_of_sender and is_unknown_user(reply) and decision.reason is not Reason.ROUTING:
            self._services.harvesters.note(self._visitor.client, recipient.address)

    def _take_note(self, decision: Decision) -> None:
        is_trapped = decision.is_trapped
        if is_trapped:
            self.is_trapped = True
        if is_trapped or (decision.verdict is Verdict.BLOCK and decision.reason not in ANSWERS):
            self.slow = True

    def _own_answer(self, decision: Decision, ident: str) -> Reply | None:
        """Answer by the decision; None: the answer is the backend's."""
        if answer := ANSWERS.get(decision.reason):
            return answer
        if decision.verdict is Verdict.BLOCK:
            return own_reply(550, "5.7.1", f"Blocked by the administrator of this server ({ident})")
        if decision.reason is Reason.HARVESTING:
            return TOO_MANY_UNKNOWN
        defers = decision.verdict is Verdict.DEFER
        if defers and (not self._is_callout or (self._accepted and not self._owed)):
            self._set(decision)
            return self._deferral(decision, ident)
        if defers and not self._take_slot():
            return TOO_MANY_CALLOUTS
        if not defers and self._owed:
            return ONE_AT_A_TIME
        return None

    def _set(self, decision: Decision) -> None:
        if self._first is None and decision.reason in policy.GREYLISTED:
            self._first = decision

    async def _put(self, recipient: Path, parameters: Sequence[Parameter], decision: Decision, ident: str) -> Reply:
        """Put a recipient to the backend, which it is for by the decision."""
        reply = await self._relayed(recipient, parameters)
        if reply.is_positive:
            self._accepted.append(recipient)
            self._decisions.append((recipient.address, decision))
            if decision.verdict is Verdict.DEFER:
                self._owed = self._deferral(decision, ident)
            self._set(decision)
        # Whomever the refusal of a sender is told for: it says nothing of them.
        is_of_sender = self._relay is not None and self._relay.refuses_sender
        self._note_reply(recipient, decision, reply, is_of_sender=is_of_sender)
        return reply

    async def _relayed(self, recipient: Path, parameters: Sequence[Parameter]) -> Reply:
        if self._relay is None and not self._has_failed and not await self._take_share():
            self._has_failed = True  # it has waited: it is not to wait again for each recipient
            return TOO_MANY_MESSAGES
        if self._has_failed:
            return NOT_NOW
        if self._relay is None:
            services, mail = self._services, self._mail
            self._relay = Relay(
                services.backends,
                services.tasks,
                self._ident,
                mail.path,
                mail.parameters,
                self._introduce(),
                self._promised,
                self._flow,
            )
        return await self._relay.rcpt(recipient.address, parameters)

    async def data(self) -> Reply:
        """Answer DATA: 354 means that the message may come; 503 keeps the transaction; anything else ends it."""
        if not self._asked:
            return RCPT_FIRST
        if self._has_failed:
            return NOT_NOW
        if self._owed or not self._accepted or self._relay is None:
            # Where only deferred recipients are left this must be temporary, or the sender gives them up.
            return self._owed or self._deferred or NO_RECIPIENTS
        reply = await self._relay.data()
        if reply.code == 354:
            self._held = self._received()
        return reply

    def write(self, piece: bytes, *, is_last: bool = False) -> None:
        """Pass a piece of the message on, dot-stuffed as it came. The last one goes with `commit`."""
        if self._relay is not None:
            if self._held:
                # Together with what it precedes: a write for itself costs as much as one of a whole message.
                piece, self._held = self._held + piece, b""
            if is_last:
                self._held = piece
            else:
                self._relay.write(piece)

    async def commit(self) -> Reply:
        """End the message at the backend and return its word. Not to be cancelled where the client leaves."""
        try:
            if self._relay is None or self._has_failed:
                return NOT_NOW
            reply = await self._relay.finish(self._held)
        except BaseException:
            self.fail()  # or its connection would never be given back
            raise
        finally:
            self._give_back()
        if reply.is_positive:
            await self._note_delivery()
        return reply

    async def _note_delivery(self) -> None:
        # The message is the backend's now: no trouble of ours may make it look refused, or it comes again.
        try:
            self._services.harvesters.forgive(self._visitor.client)
            await self._services.gate.delivered(self._origin, self._decisions)
        except Exception as error:
            self._services.log.exception("a delivery could not be noted", error, id=self._ident)

    def fail(self) -> None:
        """Go on as with a backend that was lost: something unexpected happened, nothing here is sure any more."""
        self._has_failed = True
        if self._relay is not None:
            self._relay.close()
        self._give_back()

    def abandon(self, outcome: str, reply: Reply | None = None) -> None:
        """End the transaction without a message; a message that is under way never gets its final dot."""
        if self._relay is not None:
            self._relay.abandon(outcome, reply)
        self._give_back()

    def _received(self) -> bytes:
        return received(
            helo=self._hello.name,
            esmtp=self._hello.esmtp,
            smtputf8=any(parameter.keyword == "SMTPUTF8" for parameter in self._mail.parameters),
            tls=self._visitor.tls,
            client=self._visitor.client,
            names=self._origin.known_names,
            hostname=self._services.hostname,
            ident=self._ident,
            recipient=self._accepted[0].address if len(self._accepted) == 1 else None,
            now=time.time(),
        )

    def _introduce(self) -> Introduce:
        # Not a method of ours: the relay would know us, and we know it.
        return partial(_introduction, self._visitor, self._hello, self._origin)

    def _take_slot(self) -> bool:
        callouts = self._services.callouts
        if not self._has_slot and callouts.taken < MAX_CALLOUTS:
            self._has_slot = callouts.take_now(self._client_key)
        return self._has_slot

    async def _take_share(self) -> bool:
        services = self._services
        self._has_share = services.shares.take_now(self._client_key)
        if not self._has_share:
            await in_a_task()
            self._has_share = await services.shares.take(self._client_key, services.backends.settings.timeouts.share)
        if not self._has_share:
            error = f"the client has {services.shares.most} already: see backend.max_connections_per_client"
            services.backends.report("failed", "connect", self._ident, None, error=error)
        return self._has_share

    def _give_back(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._services.callouts.give(self._client_key)
        if self._has_share:
            self._has_share = False
            self._services.shares.give(self._client_key)

    @property
    def _client_key(self) -> bytes:
        return client_key(self._visitor.client.text)

    def _deferral(self, decision: Decision, ident: str) -> Reply:
        if decision.reason is Reason.STORE_FAILED:
            return own_reply(451, "4.3.0", f"Temporary failure, try again later ({ident})")
        if decision.is_trapped:
            return own_reply(450, "4.7.1", f"Too much unwanted mail from this address, try again later ({ident})")
        text = self._services.greylisted_reply.replace("{seconds}", str(decision.seconds_left)).replace("{id}", ident)
        return own_reply(450, "4.7.1", text)


def _introduction(visitor: Visitor, hello: Hello, origin: Origin) -> Introduction:
    name = next(iter(origin.known_names), None)
    return Introduction(visitor.client.address, visitor.port, *visitor.local(), name, hello.name, hello.esmtp)
