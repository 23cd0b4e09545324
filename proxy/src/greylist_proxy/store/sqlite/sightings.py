# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answering sightings: at once where the file can be read in the event loop (`inline.py`), else by a thread.

For the thread, sightings are gathered. There is at most one lookup of its under way, what is asked meanwhile waits for
the next one, so the busier it is, the more is answered at once. Either way the answers are worked off one after the
other in the event loop, each over what the ones before it wrote: that makes a sighting one step.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from greylist_proxy import policy
from greylist_proxy.policy import Found, Identity, Record, Rules, Triplet
from greylist_proxy.store import Limits, Sighting, StoreError
from greylist_proxy.store.sqlite.behind import WriteBehind
from greylist_proxy.store.sqlite.inline import InlineReader
from greylist_proxy.store.sqlite.lookup import NOTHING, Answer, Answers, Question, look_up
from greylist_proxy.store.sqlite.overlay import Kept, shared_triplet
from greylist_proxy.store.sqlite.worker import Worker

MAX_ASKING = 10_000  # sightings that wait for an answer


class _Asking(NamedTuple):
    """A sighting that is to be answered."""

    identities: Sequence[Identity]
    sender: str
    recipient: str
    record: bool
    now: float


class _Waiting(NamedTuple):
    """One that waits for a thread."""

    asking: _Asking
    future: asyncio.Future[Sighting]


class _Seen(NamedTuple):
    """The record that a sighting is about: before and after it, and what the file said."""

    triplet: Triplet
    before: Record | None
    after: Record
    kept: Kept


class Sightings:
    """The sightings that are being answered."""

    def __init__(
        self,
        name: str,
        reader: InlineReader,
        worker: Worker,
        behind: WriteBehind,
        rules: Callable[[], Rules],
        limits: Limits,
    ) -> None:
        self._name = name
        self._reader = reader
        self._worker = worker
        self._behind = behind
        self._rules = rules
        self._limits = limits
        self._waiting: list[_Waiting] = []
        self._asked: list[_Waiting] | None = None  # whose lookup is under way
        self._deadline: asyncio.TimerHandle | None = None
        self._is_late = False

    async def observe(
        self, identities: Sequence[Identity], sender: str, recipient: str, now: float, *, record: bool
    ) -> Sighting:
        """Answer a sighting; see `Store.observe`."""
        asking = _Asking(identities, sender, recipient, record, now)
        sighting = self._at_once(asking)
        return await self._wait(asking) if sighting is None else sighting

    def observe_now(self, identities: Sequence[Identity], sender: str, recipient: str, now: float) -> Sighting | None:
        """Answer a sighting, if the file can be read now; see `Store.observe_now`."""
        if len(identities) > 1:
            return self._at_once(_Asking(identities, sender, recipient, True, now))
        # What follows is `_at_once` for one identity, which most clients have: with less made on the way.
        behind, rules = self._behind, self._rules()
        overlay = behind.overlay
        ((key, earner),) = identities
        triplet = Triplet(key, sender, recipient)
        answers = self._reader.use(look_up, (Question(triplet, earner, now),), behind.writer, rules.max_pending, rules)
        if answers is None:
            return None
        (answer,) = answers.answers
        if overlay.has_passed and overlay.is_full(key, answer.pending, answers.committed, now, rules):
            return self._at_the_cap(_Asking(identities, sender, recipient, True, now))
        if self._is_first(triplet, earner, answer, answers.committed, now, rules):
            if (error := behind.trouble()) is not None:
                raise error
            overlay.see(triplet, None, Record(now), NOTHING, now, rules)
            behind.changed()
            return Sighting(now, (policy.NOTHING_KNOWN,))
        asking = _Asking(identities, sender, recipient, True, now)
        return self._answer(asking, iter(answers.answers), answers.committed, {})

    def _at_once(self, asking: _Asking) -> Sighting | None:
        rules, writer = self._rules(), self._behind.writer
        answers = self._reader.use(look_up, _questions(asking), writer, rules.max_pending, rules)
        if answers is None:
            return None
        if self._is_full(asking, answers, rules):
            return self._at_the_cap(asking)
        return self._answer(asking, iter(answers.answers), answers.committed, {})

    def _at_the_cap(self, asking: _Asking) -> Sighting | None:
        """Look again: only now it matters what else is no longer pending, and all is to be of one moment."""
        rules, questions = self._rules(), _questions(asking)
        passed = self._passed(questions, asking.now)
        most_pending = rules.max_pending + len(passed)
        answers = self._reader.use(look_up, [*questions, *passed], self._behind.writer, most_pending, rules)
        if answers is None:
            return None
        return self._answer(asking, iter(answers.answers), answers.committed, self._no_longer(answers, passed))

    def _is_full(self, asking: _Asking, answers: Answers, rules: Rules) -> bool:
        """Tell whether a client may have reached the cap, if what was delivered still counts as the file has it."""
        overlay = self._behind.overlay
        return overlay.has_passed and any(
            overlay.is_full(identity.key, answer.pending, answers.committed, asking.now, rules)
            for identity, answer in zip(asking.identities, answers.answers, strict=True)
        )

    def stop(self, error: StoreError) -> None:
        """Answer all that wait with an error."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._fail([*(self._asked or []), *self._waiting], error)
        self._waiting = []

    # -- by a thread --

    async def _wait(self, asking: _Asking) -> Sighting:
        if self._is_late or len(self._waiting) >= MAX_ASKING:
            raise StoreError(f"{self._name}: it does not answer")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sighting] = loop.create_future()
        if not self._waiting and self._asked is None:
            loop.call_soon(self._ask)  # after everything else that is ready in this round
        self._waiting.append(_Waiting(asking, future))
        return await future

    def _ask(self) -> None:
        asked, self._waiting = self._waiting, []
        if not asked:
            return
        questions = [question for waiting in asked for question in _questions(waiting.asking)]
        passed = self._passed(questions, asked[-1].asking.now)
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
        self._fail([*(self._asked or []), *self._waiting], error)
        self._waiting = []

    def _answered(self, answers: Answers, error: StoreError | None, passed: Sequence[Question]) -> None:
        asked, self._asked = self._asked or [], None
        self._is_late = False
        if self._deadline is not None:
            self._deadline.cancel()
        if error is not None:
            self._fail(asked, error)
        else:
            following = iter(answers.answers)
            no_longer = self._no_longer(answers, passed)
            for asking, future in asked:
                # Each takes its own, also where nobody waits for it any more.
                its_answers = [next(following) for _identity in asking.identities]
                if future.done():
                    continue
                try:
                    future.set_result(self._answer(asking, iter(its_answers), answers.committed, no_longer))
                except StoreError as trouble:
                    future.set_exception(trouble)
            self._reader.open()
        self._behind.lookup_ends()
        self._ask()

    # -- the answer --

    def _passed(self, questions: Sequence[Question], now: float) -> Sequence[Question]:
        """Return what else is to be asked: what has been delivered is no longer pending, whatever the file says."""
        overlay = self._behind.overlay
        if not overlay.has_passed:
            return ()
        clients = dict.fromkeys(question.triplet.client for question in questions)
        return [Question(triplet, "", now) for client in clients for triplet in overlay.passed(client)]

    def _no_longer(self, answers: Answers, passed: Sequence[Question]) -> Mapping[str, int]:
        """Count by client what the file still has as pending, and is not: the answers to what `_passed` asked."""
        if not passed:
            return {}
        rules = self._rules()
        return Counter(
            question.triplet.client
            for question, answer in zip(passed, answers.answers[len(answers.answers) - len(passed) :], strict=True)
            if _counts(answer.kept.pending, question.now, rules)
        )

    def _answer(
        self, asking: _Asking, answers: Iterator[Answer], committed: int, no_longer: Mapping[str, int]
    ) -> Sighting:
        """Say what was known, and keep what is new; StoreError: it can't be kept."""
        rules = self._rules()
        found: list[Found] = []
        news: list[_Seen] = []
        for identity in asking.identities:
            answer = next(answers)
            if no_longer:
                answer = answer._replace(pending=answer.pending - no_longer.get(identity.key, 0))
            facts, seen = self._find(asking, identity, answer, committed, rules)
            found.append(facts)
            if seen is not None and seen.after is not seen.before:
                news.append(seen)
        if asking.record and news and not (len(found) > 1 and self._is_exempt(found, asking.now, rules)):
            if (error := self._behind.trouble()) is not None:
                raise error
            for triplet, before, after, kept in news:
                self._behind.overlay.see(triplet, before, after, kept, asking.now, rules)
            self._behind.changed()
        return Sighting(asking.now, tuple(found))

    @staticmethod
    def _is_exempt(found: Sequence[Found], now: float, rules: Rules) -> bool:
        return any(policy.has_earned(facts.earned, now, rules) for facts in found)

    def _find(
        self, asking: _Asking, identity: Identity, answer: Answer, committed: int, rules: Rules
    ) -> tuple[Found, _Seen | None]:
        """Say what is known of one identity, and which record the sighting is about."""
        overlay, now = self._behind.overlay, asking.now
        triplet = Triplet(identity.key, asking.sender, asking.recipient)
        if self._is_first(triplet, identity.earner, answer, committed, now, rules):
            # What follows would say the same, in three times the time.
            return policy.NOTHING_KNOWN, _Seen(triplet, None, Record(now), NOTHING)
        record = overlay.record(triplet, answer.kept, now, rules)
        earned = overlay.earned(identity.earner, answer.earned, committed, rules)
        if earned is not None and policy.has_earned(earned, now, rules):
            return Found(record, earned=earned), None
        is_shared, kept = False, answer.kept
        if not _counts(record, now, rules):
            shared = shared_triplet(identity.key, asking.recipient)
            its_record = overlay.record(shared, answer.shared, now, rules)
            is_shared = _counts(its_record, now, rules) or overlay.is_full(
                identity.key, answer.pending, committed, now, rules
            )
            if is_shared:
                triplet, record, kept = shared, its_record, answer.shared
        return Found(record, is_shared, earned), _Seen(triplet, record, policy.seen(record, now, rules), kept)

    def _is_first(
        self, triplet: Triplet, earner: str, answer: Answer, committed: int, now: float, rules: Rules
    ) -> bool:
        """Tell whether nothing at all is known that bears on a triplet: so it is with most of what comes."""
        overlay = self._behind.overlay
        return (
            (answer.kept is NOTHING and answer.shared is NOTHING and answer.earned is None)
            and overlay.is_silent(triplet, earner)
            and not overlay.is_full(triplet.client, answer.pending, committed, now, rules)
        )

    @staticmethod
    def _fail(waiting: Sequence[_Waiting], error: StoreError) -> None:
        for _asking, future in waiting:
            if not future.done():
                future.set_exception(error)


def _questions(asking: _Asking) -> list[Question]:
    return [
        Question(Triplet(key, asking.sender, asking.recipient), earner, asking.now) for key, earner in asking.identities
    ]


def _counts(record: Record | None, now: float, rules: Rules) -> bool:
    return record is not None and not policy.is_expired(record, now, rules)
