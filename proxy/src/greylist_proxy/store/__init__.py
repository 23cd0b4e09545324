# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered, and the interface of every store.

A store keeps four things: triplets (pending until a delivery makes them known), what earners have earned (rule 8
of `policy.py`), entries (allow, block and trap, made at run time) and a log of decisions. It decides nothing:
it says what it knew before a sighting, and `policy.judge` makes a verdict of that.

    sqlite/       one file, shared by the processes of a host
    valkey/       a Valkey or Redis server, sentinels or a cluster, shared by proxies
    texts.py      text as all of them can hold it
    wanted.py     what a listing is narrowed to, for stores that look through what they have
    factory.py    the store that the configuration names

All calls are coroutines of one event loop, none blocks it, and each raises `StoreError` for whatever goes wrong:
what then happens to mail is decided by `gate.py`. After an error a store is called again, and works again as soon
as it can; nobody has to tell it. The store's clock decides what *now* is, so that proxies that share a store agree;
tests give it another one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from greylist_proxy.policy import Earned, Found, Identity, Record, Rules, Triplet


class StoreError(Exception):
    """The store could not do it; the text says why, names the store, and holds no secret."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a call may take, in seconds, and how many decisions are kept, and for how long."""

    timeout: float = 2.0
    decisions_lifetime: float = 7 * 86400
    max_decisions: int = 1_000_000


class Sighting(NamedTuple):
    """What `observe` found: when it was, and what was known of each identity before, in the order asked."""

    now: float
    found: tuple[Found, ...]


class Kind(StrEnum):
    """What an entry is about."""

    CLIENT = "client"  # an address, a network, or a name and what is below it
    SENDER = "sender"  # an address, or a domain and what is below it
    RECIPIENT = "recipient"  # the same
    TRAP = "trap"  # a recipient that nobody writes to who means well


class Action(StrEnum):
    """What an entry does; for a trap it says nothing, and is `block`."""

    ALLOW = "allow"
    BLOCK = "block"


class Source(StrEnum):
    """Who made an entry. An operator's is never overwritten by the others."""

    OPERATOR = "operator"
    LEARNED = "learned"  # from outbound mail
    TRAP = "trap"  # the client hit a spam trap


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule made at run time. There is one for each kind and value; `expires` None means never."""

    kind: Kind
    value: str  # as `lists.entries.canonical` writes it
    action: Action
    source: Source = Source.OPERATOR
    created: float = 0.0
    expires: float | None = None
    note: str = ""


class Removed(NamedTuple):
    """An entry that is there no more."""

    kind: Kind
    value: str


class Changes(NamedTuple):
    """A page of what happened to the entries; `restart`: forget all that is known of them first.

    `position` goes into the next call, and `more` says that the next one has something to give at once.
    """

    restart: bool
    changed: tuple[Entry | Removed, ...]
    position: str
    more: bool


@dataclass(frozen=True, slots=True)
class Remembered:
    """A triplet with its record, as it is listed and moved between stores."""

    triplet: Triplet
    record: Record


@dataclass(frozen=True, slots=True)
class Allowance:
    """An earner with what it has earned, as it is listed and moved between stores."""

    earner: str
    earned: Earned


@dataclass(slots=True)  # nobody changes one; frozen it would take three times as long to make
class Logged:
    """A decision as it is kept for questions: the fields of its log line. Addresses are as the client gave them."""

    time: float
    verdict: str
    reason: str
    client: str
    network: str
    sender: str
    recipient: str
    seconds_left: int
    id: str
    key: str = ""
    rule: str = ""
    would: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a listing is narrowed to; None: anything.

    `client` is compared with a triplet's client or an earner, and with a decision's client, network and key. `sender`
    and `recipient` are a whole address, or `@domain`; domains compare without case. `since` is about a decision's
    time or a triplet's first sight. `id` is a decision's, or (without a dot) that of a transaction with all its
    decisions.
    """

    client: str | None = None
    sender: str | None = None
    recipient: str | None = None
    verdict: str | None = None
    reason: str | None = None
    since: float | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How much there is. What has expired and is still to be removed may be counted."""

    pending: int
    known: int
    earners: int
    entries: int
    decisions: int


Item = Remembered | Allowance | Entry


class Store(Protocol):
    """Each call is atomic, also between processes that share the store."""

    rules: Rules  # the decision's; may be replaced while the store works

    @property
    def name(self) -> str:
        """What to call the store in messages: its path or address, without any secret."""

    # -- the decision --

    async def observe(
        self, identities: Sequence[Identity], sender: str, recipient: str, *, record: bool = True
    ) -> Sighting:
        """Look a sighting up and, in the same step, keep what is new of it.

        Where an earner is exempt (`policy.has_earned`) there is no record of any identity: what it lets pass never is
        delivered as a triplet, so nothing would ever be more than pending. Else, for each: a triplet without a record
        gets `Record(now)`; one whose record lies in the future gets it brought back to now (`policy.seen`). A triplet
        that would be new shares the record of `Triplet(key, "", "@" + the recipient's domain)` where that one is alive,
        or where the identity has `max_pending` live pending ones: then it is made. It is not counted, and is left
        out of listings. `record=False` changes nothing.
        """

    def observe_now(self, identities: Sequence[Identity], sender: str, recipient: str) -> Sighting | None:
        """Do what `observe` does, if that takes no waiting; None, and nothing is changed: it has to be awaited.

        StoreError: what is new could not be kept.
        """

    async def delivered(
        self, identities: Sequence[Identity], sender: str, recipients: Sequence[str], *, counts: bool
    ) -> None:
        """Note the backend's final 250: the triplets are known now (`policy.delivered`), what is earned is counted.

        For each identity with an earner: `policy.earn` once, `counts` as given. Recipients may be empty: an exempt
        client's delivery only refreshes what it has earned. Returns at once where the store writes behind.
        """

    def delivered_now(
        self, identities: Sequence[Identity], sender: str, recipients: Sequence[str], *, counts: bool
    ) -> bool:
        """Do what `delivered` does, if that takes no waiting; False, and nothing is changed: it has to be awaited.

        StoreError: it could not be kept.
        """

    # -- entries --

    async def put_entry(self, entry: Entry) -> bool:
        """Make or replace an entry; durable when it returns. False: an operator's own stands in the way."""

    async def remove_entry(self, kind: Kind, value: str) -> bool:
        """Remove an entry; False where there is none."""

    async def changes(self, position: str | None) -> Changes:
        """Return what happened to the entries since `position`, None: since ever. At most 1,000 at a time."""

    # -- decisions --

    def note(self, decision: Logged) -> None:
        """Keep a decision for questions. Never raises, written behind; dropped where the store can't keep up."""

    # -- looking and moving --

    def triplets(self, wanted: Wanted) -> AsyncIterator[Remembered]:
        """Give the triplets that have not expired, in no order."""

    def allowances(self, wanted: Wanted) -> AsyncIterator[Allowance]:
        """Give the earners (`wanted.client`) and what they have earned, in no order."""

    def entries(self) -> AsyncIterator[Entry]:
        """Give the entries that have not expired, in no order."""

    def decisions(self, wanted: Wanted) -> AsyncIterator[Logged]:
        """Give decisions, newest first."""

    async def remove_triplets(self, triplets: Sequence[Triplet]) -> int:
        """Remove these, and return how many there were. The records that they may share by rule 7 go with them."""

    async def load(self, items: Sequence[Item]) -> int:
        """Add what another store gave, durable when it returns; return how many items changed something.

        Merged with what is here: of a triplet the earlier first sight and the later use count, of an earner the
        greater count and the later times; an entry stays where an operator's own is here, or one of the same source
        that ends later.
        """

    async def counts(self) -> Counts:
        """Count. May take seconds with millions of triplets."""

    # -- the life of a store --

    async def expire(self) -> bool:
        """Remove some of what no longer counts, in a few milliseconds; True: call again, there may be more."""

    async def flush(self) -> None:
        """Return when everything that was written behind is in the store."""

    async def close(self) -> None:
        """Flush, and let go of files and connections; no error."""
