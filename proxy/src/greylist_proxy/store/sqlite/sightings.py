# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gathering sightings for one lookup, and working its answers off.

There is at most one lookup under way. What is asked meanwhile waits for the next one, so the busier it is, the more is
answered at once. The answers are worked off one after the other in the event loop, each over what the ones
before it wrote: that makes a sighting one step.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from greylist_proxy import policy
from greylist_proxy.policy import Found, Identity, Record, Rules, Triplet
from greylist_proxy.store import Limits, Sighting, StoreError
from greylist_proxy.store.sqlite.behind import WriteBehind
from greylist_proxy.store.sqlite.lookup import Answer, Answers, Question, look_up
from greylist_proxy.store.sqlite.overlay import Kept, shared_triplet
from greylist_proxy.store.sqlite.worker import Worker

MAX_ASKING = 10_000  # sightings that wait for an answer


class _Asking(NamedTuple):
    """A sighting that waits for its answer."""

    identities: Sequence[Identity]
    sender: str
    recipient: str
    record: bool
    now: float
    future: asyncio.Future[Sighting]


class _Seen(NamedTuple):
    """A record that is to be written: the one before, and what the file said."""

    triplet: Triplet
    before: Record | None
    kept: Kept


class Sightings:
    """The sightings that are being answered."""

    def __init__(
        self, name: str, worker: Worker, behind: WriteBehind, rules: Callable[[], Rules], limits: Limits
    ) -> None:
        self._name = name
        self._worker = worker
        self._behind = behind
        self._rules = rules
        self._limits = limits
        self._asking: list[_Asking] = []
        self._asked: list[_Asking] | None = None  # whose lookup is under way
        self._deadline: asyncio.TimerHandle | None = None
        self._is_late = False

    async def observe(
        self, identities: Sequence[Identity], sender: str, recipient: str, now: float, *, record: bool
    ) -> Sighting:
        """Answer a sighting; see `Store.observe`."""
        if self._is_late or len(self._asking) >= MAX_ASKING:
            raise StoreError(f"{self._name}: it does not answer")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sighting] = loop.create_future()
        if not self._asking and self._asked is None:
            loop.call_soon(self._ask)  # after everything else that is ready in this round
        self._asking.append(_Asking(identities, sender, recipient, record, now, future))
        return await future

    def stop(self, error: StoreError) -> None:
        """Answer all that wait with an error."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._fail([*(self._asked or []), *self._asking], error)
        self._asking = []

    def _ask(self) -> None:
        asked, self._asking = self._asking, []
        if not asked:
            return
        questions = [
            Question(Triplet(identity.key, asking.sender, asking.recipient), identity.earner, asking.now)
            for asking in asked
            for identity in asking.identities
        ]
        # What has been delivered is no longer pending, whatever the file still says: it has to be asked for.
        passed = [
            Question(triplet, "", asked[-1].now)
            for client in {question.triplet.client for question in questions}
            for triplet in self._behind.overlay.passed(client)
        ]
        rules, writer = self._rules(), self._behind.writer
        most_pending = rules.max_pending + len(passed)
        try:
            self._worker.submit(
                lambda connection: look_up(connection, [*questions, *passed], writer, most_pending, rules),
                lambda answers, error: self._answered(answers, error, passed),
            )
        except StoreError as error:
            self._fail(asked, error)
            return
        self._asked = asked
        self._behind.lookup_begins()
        self._deadline = asyncio.get_running_loop().call_later(self._limits.timeout, self._late)

    def _late(self) -> None:
        self._is_late = True
        error = StoreError(f"{self._name}: no answer within {self._limits.timeout:g} seconds")
        self._fail([*(self._asked or []), *self._asking], error)
        self._asking = []

    def _answered(self, answers: Answers, error: StoreError | None, passed: Sequence[Question]) -> None:
        asked, self._asked = self._asked or [], None
        self._is_late = False
        if self._deadline is not None:
            self._deadline.cancel()
        if error is not None:
            self._fail(asked, error)
        else:
            following = iter(answers.answers)
            no_longer = Counter(
                question.triplet.client
                for question, answer in zip(passed, answers.answers[len(answers.answers) - len(passed) :], strict=True)
                if _counts(answer.kept.pending, question.now, self._rules())
            )
            for asking in asked:
                # Each takes its own, also where nobody waits for it any more.
                its_answers = [next(following) for _identity in asking.identities]
                if not asking.future.done():
                    self._answer(asking, its_answers, answers.committed, no_longer)
        self._behind.lookup_ends()
        self._ask()

    def _answer(self, asking: _Asking, answers: Sequence[Answer], committed: int, no_longer: Mapping[str, int]) -> None:
        rules = self._rules()
        found: list[Found] = []
        seen: list[_Seen] = []
        for identity, answer in zip(asking.identities, answers, strict=True):
            pending = answer.pending - no_longer.get(identity.key, 0)
            facts, its_seen = self._find(asking, identity, answer._replace(pending=pending), committed, rules)
            found.append(facts)
            if its_seen is not None and policy.seen(its_seen.before, asking.now, rules) != its_seen.before:
                seen.append(its_seen)
        if asking.record and seen:
            if (error := self._behind.trouble()) is not None:
                asking.future.set_exception(error)
                return
            for triplet, before, kept in seen:
                self._behind.overlay.see(triplet, before, kept, asking.now, rules)
            self._behind.changed()
        asking.future.set_result(Sighting(asking.now, tuple(found)))

    def _find(
        self, asking: _Asking, identity: Identity, answer: Answer, committed: int, rules: Rules
    ) -> tuple[Found, _Seen | None]:
        """Say what is known of one identity, and which record the sighting is about."""
        overlay, now = self._behind.overlay, asking.now
        triplet = Triplet(identity.key, asking.sender, asking.recipient)
        record = overlay.record(triplet, answer.kept, now, rules)
        earned = overlay.earned(identity.earner, answer.earned, committed, rules)
        if policy.has_earned(earned, now, rules):
            return Found(record, earned=earned), None
        if not _counts(record, now, rules):
            shared = shared_triplet(identity.key, asking.recipient)
            its_record = overlay.record(shared, answer.shared, now, rules)
            is_full = overlay.is_full(identity.key, answer.pending, committed, now, rules)
            if is_full or _counts(its_record, now, rules):
                return Found(its_record, shared=True, earned=earned), _Seen(shared, its_record, answer.shared)
        return Found(record, earned=earned), _Seen(triplet, record, answer.kept)

    @staticmethod
    def _fail(askings: Sequence[_Asking], error: StoreError) -> None:
        for asking in askings:
            if not asking.future.done():
                asking.future.set_exception(error)


def _counts(record: Record | None, now: float, rules: Rules) -> bool:
    return record is not None and not policy.is_expired(record, now, rules)
