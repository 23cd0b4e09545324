# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision as the SMTP side asks for it: exemptions, store and policy behind one coroutine that always answers.

    exemptions (lists, entries)  ->  store (what was known)  ->  policy (the verdict)  ->  traps  ->  mode

A store that fails, or does not answer in time, does not stop mail: `on_failure` says what happens then. While it
fails, one decision a second is put to it, and the others do not wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

from greylist_proxy import policy
from greylist_proxy.client import Origin
from greylist_proxy.exemptions import Exemptions
from greylist_proxy.log import DEL, ESCAPED_DEL, Log, quoted
from greylist_proxy.metrics.counts import blank
from greylist_proxy.metrics.table import CAME_BACK, DECISIONS, OBSERVED, STORE_FAILURES, Cells
from greylist_proxy.normalise import address_key, recipient_key
from greylist_proxy.patience import in_a_task, within
from greylist_proxy.policy import Decision, Found, Identity, Mode, Reason, Rules, Verdict
from greylist_proxy.store import Action, Entry, Kind, Logged, Sighting, Source, Store
from greylist_proxy.tasks import Tasks

P = ParamSpec("P")
T = TypeVar("T")

RETRY_EVERY = 1.0  # seconds between two questions to a store that fails
EXPIRE_EVERY = 600.0  # seconds between two passes over what has expired
EXPIRE_PAUSE = 0.05  # seconds between two steps of such a pass; decisions come in between
DELIVERY_PATIENCE = 1.0  # seconds that a client's 250 waits for the store
BECOMING = policy.PASSED - {Reason.KNOWN}  # what a delivery makes known for the first time
DECISION_CELLS = DECISIONS.cells
STORE_PATIENCE = 35.0  # seconds; a store bounds its calls by itself (store.timeout), this is for one that does not


class Gate:
    """Decides, remembers deliveries, and keeps the store small. `cells` is where it counts."""

    def __init__(
        self,
        store: Store,
        exemptions: Exemptions,
        rules: Rules,
        on_failure: str,
        log: Log,
        tasks: Tasks,
        *,
        trap_block: float = 3600.0,
        clock: Callable[[], float] = time.time,
        cells: Cells | None = None,
    ) -> None:
        self.rules = rules
        self.trap_block = trap_block
        self._store = store
        self._exemptions = exemptions
        self._on_failure = Decision(Verdict.ALLOW if on_failure == "accept" else Verdict.DEFER, Reason.STORE_FAILED)
        self._log = log
        self._tasks = tasks
        self._clock = clock
        self._cells = blank() if cells is None else cells
        self._failing = False
        self._is_proving = False
        self._next_try = 0.0
        self._followed: str | None = None  # the position in what happened to the entries

    # -- the decision --

    def decide_now(self, origin: Origin, recipient: str) -> Decision | None:
        """Do what `decide` does, if it needs nobody to be waited for; None, and nothing is changed: it has to be asked.

        Only where no list has to be looked at and the store reads at once. It is what most decisions are.
        """
        if self.rules.mode is not Mode.ENFORCE or not self._exemptions.are_none:
            return None
        if policy.is_exempt(recipient):
            return policy.EXEMPT
        identities = origin.known_identities()
        if identities is None:
            return None
        sighting = self._observe_now(identities, address_key(origin.sender), recipient_key(recipient))
        if sighting is None:
            return None
        decision = policy.judge([*zip(identities, sighting.found, strict=True)], sighting.now, self.rules)
        if decision.reason is Reason.RETRIED:
            self._came_back(decision, identities, sighting)
        return decision

    def _observe_now(self, identities: Sequence[Identity], sender: str, recipient: str) -> Sighting | None:
        # Also while it fails: nobody waits, and a store that can't be written still answers for those whom it knows.
        try:
            sighting = self._store.observe_now(identities, sender, recipient)
        except Exception:  # noqa: BLE001 - who asks runs into it as well, and knows what follows
            return None
        if self._failing and sighting is not None and all(facts == policy.NOTHING_KNOWN for facts in sighting.found):
            self._works_again()  # something new was kept
        return sighting

    async def decide(self, origin: Origin, recipient: str, *, record: bool = True) -> Decision:
        """Judge a sighting, now. Never raises; `record=False` only looks, and changes nothing."""
        if policy.is_exempt(recipient):
            return policy.EXEMPT
        if self.rules.mode is Mode.OFF:
            return policy.SWITCHED_OFF
        decision = await self._exemptions.match(origin, recipient)
        if decision is None:
            decision = await self._greylist(origin, recipient, record=record)
        return policy.in_mode(decision, self.rules.mode)

    async def _greylist(self, origin: Origin, recipient: str, *, record: bool) -> Decision:
        identities = await origin.identities()
        listed = await self._exemptions.dns_allowed(origin)
        sender, to = address_key(origin.sender), recipient_key(recipient)
        sighting = None
        if record and listed is None:
            sighting = self._observe_now(identities, sender, to)
        if sighting is None:
            await in_a_task()
            sighting = await self._ask(self._store.observe, identities, sender, to, record=record and listed is None)
        if sighting is None:
            return listed or self._on_failure
        decision = policy.judge(list(zip(identities, sighting.found, strict=True)), sighting.now, self.rules)
        if decision.reason is Reason.AUTO_ALLOWED:
            return decision
        if listed is not None:
            return listed
        if record and decision.reason is Reason.RETRIED:
            self._came_back(decision, identities, sighting)
        if await self._is_trapped(origin, recipient, decision, sighting.found):
            return await self._trap(origin, recipient, record=record)
        if record and self.rules.mode is Mode.OBSERVE and decision.reason is Reason.RETRIED:
            # Nobody was made to retry here, so a second sighting is all there will ever be.
            self._tasks.spawn(self._note_delivery(identities, sender, [to], counts=False))
        return decision

    async def _is_trapped(self, origin: Origin, recipient: str, decision: Decision, found: Sequence[Found]) -> bool:
        """Tell whether a trap closes: only on a client that nobody vouches for and that never delivered anything.

        Nor on one that only asks whether the address exists: it may have been mailed in the name of the trap.
        """
        return (
            self.trap_block > 0
            and self._exemptions.is_trap(recipient)
            and not policy.is_callout(origin.sender)
            and decision.reason is not Reason.KNOWN
            and all(facts.earned is None for facts in found)
            and not (await origin.spf()).domain
        )

    async def _trap(self, origin: Origin, recipient: str, *, record: bool) -> Decision:
        now = self._clock()
        decision = Decision(Verdict.DEFER, Reason.TRAP, round(self.trap_block), rule=f"trap {recipient}")
        if record and self.rules.mode is Mode.ENFORCE:
            address = origin.client.text
            note = f"mailed the spam trap {recipient}"
            entry = Entry(Kind.CLIENT, address, Action.BLOCK, Source.TRAP, now, now + self.trap_block, note)
            await in_a_task()
            if await self._ask(self._store.put_entry, entry):
                self._exemptions.put(entry)
            undo = f"greylist-proxy entries remove client {address}"
            self._log.event("trap", client=address, recipient=recipient, seconds=round(self.trap_block), undo=undo)
        return decision

    # -- what comes of it --

    def record(self, origin: Origin, recipient: str, decision: Decision, ident: str, *, is_early: bool = False) -> None:
        """Write the decision into the log, and into the store for those who will ask.

        `is_early` where the client talked before it was greeted; only the log has it.
        """
        client = origin.client
        logged = Logged(
            self._clock(),
            decision.verdict,
            decision.reason,
            client.text,
            client.network,
            origin.sender,
            recipient,
            decision.seconds_left,
            ident,
            decision.key,
            decision.rule,
            decision.would,
        )
        self._store.note(logged)
        self._cells[DECISION_CELLS[decision.verdict, decision.reason]] += 1
        # Not from a dictionary: that took longer than the judgement. An Enum's `value` costs as much as all the rest.
        inside = (
            f'"verdict": "{decision.verdict}", "reason": "{decision.reason}", '
            f'"client": {quoted(client.text)}, "network": {quoted(client.network)}, '
            f'"sender": {quoted(origin.sender)}, "recipient": {quoted(recipient)}, '
            f'"seconds_left": {decision.seconds_left}, "id": {quoted(ident)}'
        )
        if decision.key:
            inside += f', "key": {quoted(decision.key)}'
        if decision.rule:
            inside += f', "rule": {quoted(decision.rule)}'
        if decision.would:
            self._cells[OBSERVED.cells[decision.would,]] += 1
            inside += f', "would": "{decision.would.value}"'
        if is_early:
            inside += ', "early": true'
        self._log.record("decision", inside.replace(DEL, ESCAPED_DEL))

    def _came_back(self, decision: Decision, identities: Sequence[Identity], sighting: Sighting) -> None:
        """Count how long somebody took who had been deferred."""
        for identity, facts in zip(identities, sighting.found, strict=True):
            if identity.key == decision.key and facts.record is not None:
                CAME_BACK.observe(self._cells, max(sighting.now - facts.record.first_seen, 0.0))

    async def delivered(self, origin: Origin, accepted: Sequence[tuple[str, Decision]]) -> None:
        """Note the backend's final 250 for these recipients. Never raises.

        Returns once the store has it for good, so that no crash makes forget what the client was told, and after
        DELIVERY_PATIENCE in any case: the client waits for its 250. What was known before stays known in a crash, only
        its `lifetime` would run from the delivery before: that is not waited for.
        """
        reasons = {decision.reason for _ignored, decision in accepted}
        counting = policy.PASSED if self.rules.mode is Mode.ENFORCE else {Reason.KNOWN}
        recipients = [recipient_key(recipient) for recipient, decision in accepted if decision.reason in counting]
        if not recipients and Reason.AUTO_ALLOWED not in reasons:
            return
        counts = self.rules.mode is Mode.ENFORCE and Reason.RETRIED in reasons
        durably = bool(reasons & BECOMING)
        if not durably and self._note_delivery_now(origin, recipients):
            return
        noting = self._tasks.spawn(self._deliver(origin, recipients, counts=counts, durably=durably))
        if not noting.done():
            await asyncio.wait([noting], timeout=DELIVERY_PATIENCE)

    def _note_delivery_now(self, origin: Origin, recipients: Sequence[str]) -> bool:
        """Note a delivery of what is known already, if that needs nobody to be waited for."""
        identities = origin.known_identities()
        if identities is None:
            return False
        try:
            return self._store.delivered_now(identities, address_key(origin.sender), recipients, counts=False)
        except Exception:  # noqa: BLE001 - it is tried again, by who knows what follows
            return False

    async def _deliver(self, origin: Origin, recipients: Sequence[str], *, counts: bool, durably: bool) -> None:
        identities = await origin.identities()
        await self._note_delivery(identities, address_key(origin.sender), recipients, counts=counts)
        if durably:
            await self._ask(self._store.flush)

    async def _note_delivery(
        self, identities: Sequence[Identity], sender: str, recipients: Sequence[str], *, counts: bool
    ) -> None:
        await self._ask(self._store.delivered, identities, sender, recipients, counts=counts)

    # -- beside the decisions --

    @property
    def store_works(self) -> bool:
        """Tell whether the store answered when it was last asked."""
        return not self._failing

    async def load_entries(self) -> bool:
        """Fetch the entries that are new, at first all, so that the first client meets them. Not twice at a time.

        False: the store can't be asked; then nothing is new, and mail goes on.
        """
        more = True
        while more:
            changes = await self._ask(self._store.changes, self._followed)
            if changes is None:
                return False
            for sentence in self._exemptions.apply(changes):
                self._log.event("warning", message=sentence)
            self._followed, more = changes.position, changes.more
        return True

    async def keep_house(self) -> None:
        """Remove what has expired, now and then; runs until it is cancelled."""
        while True:
            more = await self._ask(self._store.expire)
            if not more:
                self._exemptions.expire(self._clock())
            await asyncio.sleep(EXPIRE_PAUSE if more else EXPIRE_EVERY)

    async def close(self) -> None:
        """Close the store after everything that was asked of it."""
        await self._store.close()

    async def _ask(
        self, question: Callable[P, Coroutine[Any, Any, T]], *arguments: P.args, **named: P.kwargs
    ) -> T | None:
        """Put a question to the store, if it works; None: no answer."""
        if self._failing and time.monotonic() < self._next_try:
            return None
        # While it fails, this one asks, and the others must not queue behind it.
        self._next_try = time.monotonic() + RETRY_EVERY
        try:
            deadline = asyncio.get_running_loop().time() + STORE_PATIENCE
            answer = await within(question(*arguments, **named), deadline)
        except Exception as error:  # noqa: BLE001 - whatever it is, mail goes on
            self._next_try = time.monotonic() + RETRY_EVERY
            self._cells[STORE_FAILURES.cell] += 1
            if not self._failing:
                self._failing = True
                text = str(error) or f"no answer within {STORE_PATIENCE:g} seconds"
                self._log.event("store", state="failed", error=text, kind=type(error).__name__)
            return None
        if self._failing and not self._is_proving:
            self._is_proving = True
            self._tasks.spawn(self._prove())
        return answer

    async def _prove(self) -> None:
        """See whether a store that answers can be written as well, by what waits to be written.

        Most answers say nothing of that: entries are looked for each second, and known senders are only read.
        """
        try:
            await within(self._store.flush(), asyncio.get_running_loop().time() + STORE_PATIENCE)
        except Exception:  # noqa: BLE001 - it fails still, for whatever reason
            return
        finally:
            self._is_proving = False
        if self._failing:
            self._works_again()

    def _works_again(self) -> None:
        self._failing = False
        self._log.event("store", state="working")
