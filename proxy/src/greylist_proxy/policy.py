# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The greylisting decision (RFC 6647), pure: facts, a record and a time give a verdict and the next record.

The rules:

1.  The delay runs from the first sight of a triplet (client network, sender, recipient). An early retry
    changes nothing.
2.  A retry after the delay and within `retry_window` of the first sight passes. A later one counts as new.
3.  A triplet that passed is *known* once the backend took a message for it with its final 250, and stays
    known for `lifetime` since the last such message. Until then only rules 1 and 2 hold. What passed only because
    the store failed earns nothing: an outage must not make every sender known.
4.  A time that lies in the future (the clock was set back) is brought back to now: nobody waits longer than
    the delay for it, and nobody stays known for longer than `lifetime`.
5.  In a transaction the first recipient that is neither exempt nor refused sets the verdict, and the others
    take it. Exempt recipients neither set nor take it, and a known triplet is never deferred.

Times are seconds since 1970, durations seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """What happens to a recipient: it goes on to the backend, is put off (4xx), or is refused (5xx)."""

    ALLOW = "allow"
    DEFER = "defer"
    BLOCK = "block"


class Reason(StrEnum):
    """Why. These words are fixed: logs are searched for them."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Reason:
        """Give each word its meaning, for documentation and for `explain`-like output."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member

    NEW = "new", "first sight, or the last one is too long ago: deferred (allowed where the delay is 0)"
    EARLY = "early", "seen before, the delay is not over: deferred"
    RETRIED = "retried", "came back after the delay and within the retry window: allowed"
    KNOWN = "known", "the backend took a message for this triplet within the lifetime: allowed"
    TRANSACTION = "transaction", "takes the verdict of the transaction's first recipient, against its own"
    EXEMPT_POSTMASTER = "exempt-postmaster", "postmaster or abuse at a domain of ours is never greylisted"
    STORE_FAILED = "store-failed", "the store did not answer: allowed or deferred, as store.on_failure says"
    RELAY_DENIED = "relay-denied", "the recipient's domain is not one of backend.domains: refused"
    ROUTING = "routing", "the recipient asks for onward routing (%, !, a second @, a source route): refused"


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of the decision, in seconds. `config.py` has their ranges."""

    delay: float = 60
    retry_window: float = 48 * 3600
    lifetime: float = 36 * 86400


class Triplet(NamedTuple):
    """What is remembered: who (a network), from whom, to whom; the addresses as `address_key` gives them."""

    network: str
    sender: str
    recipient: str


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a triplet: its first sight, and the last message that the backend took for it."""

    first_seen: float
    last_used: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one recipient. `seconds_left` is 0 unless a retry before then would be early."""

    verdict: Verdict
    reason: Reason
    seconds_left: int = 0


EXEMPT = Decision(Verdict.ALLOW, Reason.EXEMPT_POSTMASTER)
RELAY_DENIED = Decision(Verdict.BLOCK, Reason.RELAY_DENIED)
ROUTING = Decision(Verdict.BLOCK, Reason.ROUTING)

# RFC 5321 section 4.5.1 (postmaster, also without a domain) and RFC 2142 section 4 (abuse).
EXEMPT_LOCAL_PARTS = frozenset({"postmaster", "abuse"})


def address_key(address: str) -> str:
    """Return the form in which an address is compared: the domain without case, the local part as it is."""
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain.lower()}" if at else address


def is_exempt(recipient: str) -> bool:
    """Tell whether a recipient (of our domains, or the bare `postmaster`) must never be greylisted."""
    local, at, _ignored = recipient.rpartition("@")
    return local.lower() in EXEMPT_LOCAL_PARTS if at else recipient.lower() == "postmaster"


def observe(record: Record | None, now: float, rules: Rules) -> tuple[Record, Decision]:
    """Judge a sighting at `now`, and return the record to keep. Same record returned: nothing to write."""
    if record is None or is_expired(record, now, rules):
        return Record(now), _waiting(Reason.NEW, rules.delay)
    kept = Record(min(record.first_seen, now), None if record.last_used is None else min(record.last_used, now))
    if kept.last_used is not None:
        return kept, Decision(Verdict.ALLOW, Reason.KNOWN)
    waited = now - kept.first_seen
    if waited < rules.delay:
        return kept, _waiting(Reason.EARLY, rules.delay - waited)
    return kept, Decision(Verdict.ALLOW, Reason.RETRIED)


def delivered(record: Record | None, now: float) -> Record:
    """Return the record after the backend's final 250 for a message of this triplet."""
    return Record(min(record.first_seen, now) if record else now, now)


def is_expired(record: Record, now: float, rules: Rules) -> bool:
    """Tell whether a record no longer counts, so that the next sighting is a first one."""
    if record.last_used is not None:
        return now - record.last_used > rules.lifetime
    return now - record.first_seen > rules.retry_window


def in_transaction(own: Decision, first: Decision | None) -> Decision:
    """Apply rule 5: `first` is the decision that set the transaction's verdict, None where none has yet."""
    if first is None or own.reason in (Reason.EXEMPT_POSTMASTER, Reason.KNOWN):
        return own
    if own.verdict is first.verdict:
        return replace(own, seconds_left=max(own.seconds_left, first.seconds_left))
    return Decision(first.verdict, Reason.TRANSACTION, first.seconds_left)


def _waiting(reason: Reason, seconds: float) -> Decision:
    if seconds <= 0:
        return Decision(Verdict.ALLOW, reason)
    return Decision(Verdict.DEFER, reason, math.ceil(seconds))
