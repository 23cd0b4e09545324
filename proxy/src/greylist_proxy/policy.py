# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The greylisting decision (RFC 6647), pure: facts, records and a time give a verdict.

The rules:

1.  The delay runs from the first sight of a triplet (client, sender, recipient). An early retry changes nothing.
2.  A retry after the delay and within `retry_window` of the first sight passes. A later one counts as new.
3.  A triplet that passed is *known* once the backend took a message for it with its final 250, and stays
    known for `lifetime` since the last such message. Until then only rules 1 and 2 hold. What passed only because
    the store failed earns nothing: an outage must not make every sender known.
4.  A time that lies in the future (the clock was set back) is brought back to now: nobody waits longer than
    the delay for it, and nobody stays known for longer than `lifetime`.
5.  In a transaction the first recipient that is neither exempt nor refused sets the verdict, and the others
    take it. Exempt recipients neither set nor take it, and a known triplet is never deferred.
6.  One client may be known by several keys at once (its network, and the domain that vouches for it by SPF). Each
    has a record of its own, and whichever passes first wins.
7.  A key with `max_pending` triplets that nobody has come back for gets no further records: what comes then
    shares one record for each recipient domain, whose delay counts for all of it. That record answers for new
    triplets until its window ends, also below the cap again: who was told to come back must find his wait counted.
8.  A client that passed `auto_allow_after` triplets, counted at most one an hour, is exempt from then on, until
    nothing of it was delivered for `lifetime`.

Times are seconds since 1970, durations seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

COUNT_EVERY = 3600.0  # seconds between two passed triplets that count for rule 8


class Verdict(StrEnum):
    """What happens to a recipient: it goes on to the backend, is put off (4xx), or is refused (5xx)."""

    ALLOW = "allow"
    DEFER = "defer"
    BLOCK = "block"


class Mode(StrEnum):
    """Whether the policy acts, only watches (RFC 6647 section 6), or is not asked."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    OFF = "off"


class Reason(StrEnum):
    """Why. These words are fixed: logs are searched for them."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Reason:
        """Give each word its meaning, for documentation and for `explain`."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member

    NEW = "new", "first sight, or the last one is too long ago: deferred (allowed where the delay is 0)"
    EARLY = "early", "seen before, the delay is not over: deferred"
    RETRIED = "retried", "came back after the delay and within the retry window: allowed"
    KNOWN = "known", "the backend took a message for this triplet within the lifetime: allowed"
    PENDING_CAP = (
        "pending-cap",
        "the client has too many triplets that nobody came back for; they share a record now, whose delay is not "
        "over: deferred",
    )
    AUTO_ALLOWED = "auto-allowed", "the client has passed often enough to be exempt: allowed"
    TRANSACTION = "transaction", "takes the verdict of the transaction's first recipient, against its own"
    EXEMPT_POSTMASTER = "exempt-postmaster", "postmaster or abuse at a domain of ours is never greylisted"
    ALLOWED_CLIENT = "allowed-client", "a list or an entry exempts the client's address or network: allowed"
    ALLOWED_NAME = "allowed-name", "a list or an entry exempts the client's forward-confirmed name: allowed"
    ALLOWED_DOMAIN = (
        "allowed-sender-domain",
        "a list or an entry exempts the sender's domain, and SPF confirms it: allowed",
    )
    ALLOWED_SENDER = "allowed-sender", "a list or an entry exempts the sender's address, and SPF confirms it: allowed"
    ALLOWED_RECIPIENT = "allowed-recipient", "a list or an entry exempts the recipient: allowed"
    DNS_ALLOWED = "dns-allowed", "a DNS allow-list names the client: allowed"
    BLOCKED_CLIENT = "blocked-client", "an entry blocks the client's address, network or name: refused"
    BLOCKED_SENDER = "blocked-sender", "an entry blocks the sender's address or domain: refused"
    BLOCKED_RECIPIENT = "blocked-recipient", "an entry blocks the recipient's address or domain: refused"
    TRAP = "trap", "the recipient is a spam trap, and the client is blocked for a while: deferred"
    TRAPPED = "trapped-client", "the client has mailed a spam trap a short while ago: deferred"
    OFF = "off", "greylisting is switched off: allowed"
    STORE_FAILED = "store-failed", "the store did not answer: allowed or deferred, as store.on_failure says"
    RELAY_DENIED = "relay-denied", "the recipient's domain is not one of backend.domains: refused"
    UNKNOWN_DOMAIN = (
        "unknown-domain",
        'the recipient\'s domain is not one of backend.domains, and backend.unknown_domain is "defer": deferred',
    )
    ROUTING = "routing", "the recipient asks for onward routing (%, !, a second @, a source route): refused"
    UNKNOWN_RECIPIENT = (
        "unknown-recipient",
        "backend.recipients does not name the recipient, or the backend, asked first, refuses it: refused",
    )
    HARVESTING = "harvesting", "the client asked for too many recipients that there are not, within an hour: deferred"


# Rule 5 is about these: what the greylist itself says. All other reasons stand for one recipient alone.
GREYLISTED = frozenset(
    {Reason.NEW, Reason.EARLY, Reason.RETRIED, Reason.KNOWN, Reason.PENDING_CAP, Reason.STORE_FAILED}
)
# What the backend's final 250 makes known.
PASSED = frozenset({Reason.NEW, Reason.RETRIED, Reason.KNOWN, Reason.TRANSACTION})

# Who tries out names hides behind none of these: they say nothing of the client, or only that it came back.
HARVESTABLE = (GREYLISTED - {Reason.KNOWN}) | {Reason.TRANSACTION, Reason.ALLOWED_RECIPIENT, Reason.OFF}


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of the decision, in seconds. `config.py` has their ranges."""

    delay: float = 60
    retry_window: float = 48 * 3600
    lifetime: float = 36 * 86400
    auto_allow_after: int = 5  # 0: never
    max_pending: int = 1000
    mode: Mode = Mode.ENFORCE


class Triplet(NamedTuple):
    """What is remembered: who, from whom, to whom; `client` is an `Identity.key`, the addresses are normalised."""

    client: str
    sender: str
    recipient: str


class Identity(NamedTuple):
    """One of the ways in which a client is recognised (rule 6).

    `key` is what its triplets are kept under: a network (`192.0.2.0/24`), `spf:DOMAIN` or `ptr:DOMAIN`. `earner` is
    what earns the automatic exemption of rule 8: the address for a network, the key itself for SPF, "" for nobody.
    """

    key: str
    earner: str


# Nobody changes what follows, and nothing stops who would: frozen ones take three times as long to make.
@dataclass(slots=True, unsafe_hash=True)
class Record:
    """What is remembered of a triplet: its first sight, and the last message that the backend took for it."""

    first_seen: float
    last_used: float | None = None


@dataclass(frozen=True, slots=True)
class Earned:
    """How far an earner has come by rule 8: passed triplets, when the last one counted, the last delivery."""

    passes: int
    counted_at: float
    last_used: float


@dataclass(slots=True, unsafe_hash=True)
class Found:
    """What a store knew of one identity *before* this sighting; `shared` where rule 7's common record answers."""

    record: Record | None = None
    shared: bool = False
    earned: Earned | None = None


NOTHING_KNOWN = Found()


@dataclass(slots=True, unsafe_hash=True)
class Decision:
    """The answer for one recipient.

    `seconds_left` is 0 unless a retry before then would be early. `key` is the identity that decided, `rule` what
    exempted or blocked (a file and line, an entry). `would` is the verdict that mode `observe` did not carry out.
    """

    verdict: Verdict
    reason: Reason
    seconds_left: int = 0
    key: str = ""
    rule: str = ""
    would: Verdict | None = None

    @property
    def is_trapped(self) -> bool:
        """Whether the client is to be tarpitted: it mails spam traps."""
        return self.verdict is Verdict.DEFER and self.reason in (Reason.TRAP, Reason.TRAPPED)


EXEMPT = Decision(Verdict.ALLOW, Reason.EXEMPT_POSTMASTER)
RELAY_DENIED = Decision(Verdict.BLOCK, Reason.RELAY_DENIED)
UNKNOWN_DOMAIN = Decision(Verdict.DEFER, Reason.UNKNOWN_DOMAIN)
ROUTING = Decision(Verdict.BLOCK, Reason.ROUTING)
UNKNOWN_RECIPIENT = Decision(Verdict.BLOCK, Reason.UNKNOWN_RECIPIENT)
HARVESTING = Decision(Verdict.DEFER, Reason.HARVESTING)
SWITCHED_OFF = Decision(Verdict.ALLOW, Reason.OFF)

# RFC 5321 section 4.5.1 (postmaster, also without a domain) and RFC 2142 section 4 (abuse).
EXEMPT_LOCAL_PARTS = frozenset({"postmaster", "abuse"})


# Senders that address verification is done with, besides the null sender (Postfix: double-bounce).
CALLOUT_SENDERS = frozenset({"", "postmaster", "double-bounce"})


def is_callout(sender: str) -> bool:
    """Tell whether a sender is one that servers verify addresses with; "": the null sender."""
    return (sender.rpartition("@")[0] or sender).lower() in CALLOUT_SENDERS  # some have no domain


@lru_cache(maxsize=1024)  # of our recipients
def is_exempt(recipient: str) -> bool:
    """Tell whether a recipient (of our domains, or the bare `postmaster`) must never be greylisted."""
    local, at, _ignored = recipient.rpartition("@")
    return local.lower() in EXEMPT_LOCAL_PARTS if at else recipient.lower() == "postmaster"


def judge(found: Sequence[tuple[Identity, Found]], now: float, rules: Rules) -> Decision:
    """Judge a sighting at `now` by what was known of each identity before it (rules 1 to 4 and 6 to 8).

    ValueError: a client has at least one identity.
    """
    if len(found) == 1:
        ((identity, facts),) = found
        reason, wait = _judge_one(facts, now, rules)
    else:
        # Whose answer is told: the one that passes, else the one that waits least, else (all are new) the first.
        (reason, wait), identity = min(
            ((_judge_one(facts, now, rules), identity) for identity, facts in found),
            key=lambda judged: (_RANK[judged[0][0]], judged[0][1]),
        )
    if wait > 0:
        return Decision(Verdict.DEFER, reason, math.ceil(wait), identity.key)
    return Decision(Verdict.ALLOW, Reason.NEW if reason is Reason.PENDING_CAP else reason, 0, identity.key)


_RANK = {
    Reason.AUTO_ALLOWED: 0,
    Reason.KNOWN: 1,
    Reason.RETRIED: 2,
    Reason.EARLY: 3,
    Reason.PENDING_CAP: 3,
    Reason.NEW: 4,
}


def _judge_one(facts: Found, now: float, rules: Rules) -> tuple[Reason, float]:
    """Return why, and how many seconds are still to be waited."""
    if facts.earned is not None and has_earned(facts.earned, now, rules):
        return Reason.AUTO_ALLOWED, 0.0
    record = facts.record
    if record is None or is_expired(record, now, rules):
        return (Reason.PENDING_CAP if facts.shared else Reason.NEW), rules.delay
    if record.last_used is not None:
        return Reason.KNOWN, 0.0
    wait = rules.delay - (now - min(record.first_seen, now))
    if wait <= 0:
        return Reason.RETRIED, 0.0
    return (Reason.PENDING_CAP if facts.shared else Reason.EARLY), wait


def seen(record: Record | None, now: float, rules: Rules) -> Record:
    """Return the record to keep of a sighting; the same one where there is nothing to write."""
    if record is None or is_expired(record, now, rules):
        return Record(now)
    if record.first_seen <= now and (record.last_used is None or record.last_used <= now):
        return record
    return Record(min(record.first_seen, now), None if record.last_used is None else min(record.last_used, now))


def delivered(record: Record | None, now: float) -> Record:
    """Return the record after the backend's final 250 for a message of this triplet."""
    return Record(min(record.first_seen, now) if record else now, now)


def earn(earned: Earned | None, now: float, rules: Rules, *, counts: bool) -> Earned | None:
    """Return what an earner has after a delivery (rule 8); `counts` where it was of a triplet that newly passed."""
    if earned is not None and now - earned.last_used > rules.lifetime:
        earned = None
    if earned is None:
        return Earned(1, now, now) if counts else None
    counted_at = min(earned.counted_at, now)
    if counts and now - counted_at >= COUNT_EVERY:
        return Earned(earned.passes + 1, now, now)
    return Earned(earned.passes, counted_at, now)


def has_earned(earned: Earned | None, now: float, rules: Rules) -> bool:
    """Tell whether rule 8 exempts."""
    return (
        earned is not None and 0 < rules.auto_allow_after <= earned.passes and now - earned.last_used <= rules.lifetime
    )


def is_expired(record: Record, now: float, rules: Rules) -> bool:
    """Tell whether a record no longer counts, so that the next sighting is a first one."""
    if record.last_used is not None:
        return now - record.last_used > rules.lifetime
    return now - record.first_seen > rules.retry_window


def in_transaction(own: Decision, first: Decision | None) -> Decision:
    """Apply rule 5: `first` is the decision that set the transaction's verdict, None where none has yet."""
    if first is None or own.reason not in GREYLISTED or own.reason is Reason.KNOWN:
        return own
    if own.verdict is first.verdict:
        return replace(own, seconds_left=max(own.seconds_left, first.seconds_left))
    # What a failed store let pass earns nothing (rule 3), nor does what goes with it.
    reason = Reason.STORE_FAILED if first.reason is Reason.STORE_FAILED else Reason.TRANSACTION
    return replace(own, verdict=first.verdict, reason=reason, seconds_left=first.seconds_left)


def in_mode(decision: Decision, mode: Mode) -> Decision:
    """Apply the mode: `observe` tells what would have happened, and lets everything pass."""
    if mode is Mode.OBSERVE and decision.verdict is not Verdict.ALLOW:
        return replace(decision, verdict=Verdict.ALLOW, would=decision.verdict)
    return decision
