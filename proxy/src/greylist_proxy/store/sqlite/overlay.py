# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written behind, and how it is laid over what the file says: pure.

What a process writes becomes a *generation*, which is filled for 100 ms at most, then sealed and committed
in one transaction. Until then the process itself sees it in the overlay. There are at most two at a time: one
being filled, and one that is sealed.

What another process has committed meanwhile is merged, not overwritten, here and by the same rules in
`commit.py`: of two first sights the earlier one counts, a known record beats a pending one, and the last
delivery is the one that is written last. A record that had expired when it was seen again is replaced, not merged:
its first sight is no longer one. So it is of no account whether the file already holds a record that is also in the
overlay: laying it over twice changes nothing.

That is not so for what is earned, which is a count. So each commit writes its number into the file, every
lookup reads it in the same statement, and only generations with a higher number are laid over. A generation is
let go when no lookup is under way that may have been begun before its commit.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import NamedTuple

from greylist_proxy import policy
from greylist_proxy.policy import Earned, Record, Rules, Triplet
from greylist_proxy.store import Logged


def shared_triplet(client: str, recipient: str) -> Triplet:
    """Return the triplet of the record that a client's triplets share by rule 7."""
    return Triplet(client, "", shared_recipient(recipient))


@lru_cache(maxsize=1024)  # ours, most of the time
def shared_recipient(recipient: str) -> str:
    """Return the recipient of `shared_triplet`."""
    _local, at, domain = recipient.rpartition("@")
    return f"@{domain}" if at else "@"


def is_shared(triplet: Triplet) -> bool:
    """Tell whether a record is one of rule 7's; no address begins with an `@`."""
    return triplet.sender == "" and triplet.recipient.startswith("@")


class Kept(NamedTuple):
    """What the file says of one triplet: there may be an expired known record beside a pending one."""

    known: Record | None
    pending: Record | None


class Delivery(NamedTuple):
    """One step of what an earner earns."""

    time: float
    counts: bool


class Generation:
    """What is committed together."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.records: dict[Triplet, Record] = {}
        # Triplets whose expired known record must go, or it would live again with a clock that is set back.
        self.replaced: set[Triplet] = set()
        self.fresh: defaultdict[str, set[Triplet]] = defaultdict(set)  # by client: what became pending here
        self.passed: defaultdict[str, set[Triplet]] = defaultdict(set)  # by client: what may have been pending
        self.earned: defaultdict[str, list[Delivery]] = defaultdict(list)
        self.decisions: list[Logged] = []

    def __bool__(self) -> bool:
        return bool(self.records or self.earned or self.decisions)

    @property
    def size(self) -> int:
        """How many records it holds."""
        return len(self.records) + len(self.earned)


class Overlay:
    """The generations that are not yet to be forgotten."""

    def __init__(self) -> None:
        self.filling = Generation(1)
        self.sealed: Generation | None = None

    @property
    def size(self) -> int:
        """How many records it holds."""
        return self.filling.size + (0 if self.sealed is None else self.sealed.size)

    @property
    def decisions(self) -> int:
        """How many decisions it holds."""
        return len(self.filling.decisions) + (0 if self.sealed is None else len(self.sealed.decisions))

    def seal(self) -> Generation:
        """Begin a new generation, and return the one that is to be committed now."""
        self.sealed = self.filling
        self.filling = Generation(self.sealed.number + 1)
        return self.sealed

    def let_go(self) -> None:
        """Forget the sealed generation: the file has it."""
        self.sealed = None

    def unseal(self) -> None:
        """Put a generation that could not be committed back, under what has come since."""
        old, new = self.sealed, self.filling
        if old is None:
            return
        old.number = new.number
        old.records.update(new.records)
        old.replaced.update(new.replaced)
        for client, triplets in new.fresh.items():
            old.fresh[client] |= triplets
        for client, triplets in new.passed.items():
            old.passed[client] |= triplets
        for earner, deliveries in new.earned.items():
            old.earned[earner] += deliveries
        old.decisions += new.decisions
        self.filling, self.sealed = old, None

    # -- writing --

    def see(self, triplet: Triplet, before: Record | None, after: Record, kept: Kept, now: float, rules: Rules) -> None:
        """Keep what `policy.seen` made of a record; `before` is what `record` said."""
        self.filling.records[triplet] = after
        if before is None or policy.is_expired(before, now, rules):
            if not is_shared(triplet):
                self.filling.fresh[triplet.client].add(triplet)
            if kept.known is not None or (before is not None and before.last_used is not None):
                self.filling.replaced.add(triplet)

    def deliver(self, triplet: Triplet, now: float, rules: Rules) -> None:
        """Make a triplet known. What the file says of it is merged when it is read, and when it is written."""
        before = self._written(triplet)
        if before is not None and policy.is_expired(before, now, rules):
            before = None
        self.filling.records[triplet] = policy.delivered(before, now)
        self.filling.passed[triplet.client].add(triplet)

    def earn(self, earner: str, delivery: Delivery, rules: Rules) -> None:
        """Keep a delivery for what an earner earns."""
        deliveries = self.filling.earned[earner]
        if len(deliveries) > 1:
            before, last = deliveries[-2:]
            # Of many in a row each only moves the time on, and every sighting would go through all of them.
            is_between = before.time <= last.time <= delivery.time <= before.time + rules.lifetime
            if is_between and not last.counts:
                del deliveries[-1]
        deliveries.append(delivery)

    # -- reading --

    def record(self, triplet: Triplet, kept: Kept, now: float, rules: Rules) -> Record | None:
        """Return what is known of a triplet, the file having said `kept`."""
        written = self._written(triplet)
        if written is None:
            return _current(kept, now, rules)
        then = written.first_seen if written.last_used is None else written.last_used
        before = _current(kept, then, rules)
        if before is None or policy.is_expired(before, then, rules):
            return written
        if written.last_used is None and before.last_used is not None:
            return before
        return Record(min(before.first_seen, written.first_seen), written.last_used)

    def earned(self, earner: str, kept: Earned | None, committed: int, rules: Rules) -> Earned | None:
        """Return what is earned, the file having said `kept` after the commit of number `committed`."""
        for generation in (self.sealed, self.filling):
            if generation is not None and generation.number > committed:
                for delivery in generation.earned.get(earner, ()):
                    kept = policy.earn(kept, delivery.time, rules, counts=delivery.counts)
        return kept

    def is_silent(self, triplet: Triplet, earner: str) -> bool:
        """Tell whether nothing is written behind that bears on a triplet, so that what the file says is all."""
        shared = shared_triplet(triplet.client, triplet.recipient)
        for generation in (self.filling, self.sealed):
            if generation is not None and (
                triplet in generation.records or shared in generation.records or earner in generation.earned
            ):
                return False
        return True

    @property
    def has_passed(self) -> bool:
        """Whether any client has such triplets as `passed` gives."""
        return bool(self.filling.passed) or (self.sealed is not None and bool(self.sealed.passed))

    def passed(self, client: str) -> set[Triplet]:
        """Return a client's triplets that a delivery made known, while the file may still say that they are pending."""
        return set().union(
            *(generation.passed.get(client, ()) for generation in (self.sealed, self.filling) if generation is not None)
        )

    def is_full(self, client: str, kept: int, committed: int, now: float, rules: Rules) -> bool:
        """Tell whether a client has `max_pending` live pending triplets, `kept` of them in the file.

        Those that have `passed` are to be left out of `kept`.
        """
        missing = rules.max_pending - kept
        fresh = [
            generation.fresh[client]
            for generation in (self.sealed, self.filling)
            if generation is not None and generation.number > committed and client in generation.fresh
        ]
        # Most clients are far from it, and need no look at each record.
        return sum(map(len, fresh)) >= missing and missing <= sum(
            self._is_pending(triplet, now, rules) for triplet in set().union(*fresh)
        )

    def _is_pending(self, triplet: Triplet, now: float, rules: Rules) -> bool:
        record = self._written(triplet)
        return record is not None and record.last_used is None and not policy.is_expired(record, now, rules)

    def _written(self, triplet: Triplet) -> Record | None:
        record = self.filling.records.get(triplet)
        if record is None and self.sealed is not None:
            record = self.sealed.records.get(triplet)
        return record


def _current(kept: Kept, now: float, rules: Rules) -> Record | None:
    """Return the record that counts at a time: known ones that live come first."""
    if kept.known is not None and (kept.pending is None or not policy.is_expired(kept.known, now, rules)):
        return kept.known
    return kept.pending
