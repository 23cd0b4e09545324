# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided by lists, before the greylist is asked: who is exempt, who is blocked, and in which order.

1.  `postmaster` and `abuse` are never greylisted, whatever a list says (RFC 5321 section 4.5.1, RFC 2142 section 4).
2.  The operator's allow: the list files, and entries with action `allow`.
3.  The operator's block: entries with action `block`. Refused.
4.  Automatic blocks: clients that mailed a spam trap. Deferred.
5.  Other exemptions: what was learned, and the list that ships with the package. The automatic allow-list of the store
    (rule 8 of `policy.py`) comes after these, and DNS allow-lists (`dns_allowed`) last: they cost a question each.

Within 2 and 5 the order is: client address or network, client name, sender domain, sender, recipient.

What a client says about itself exempts nobody: its name counts only when it is forward-confirmed, and a sender
only with an SPF pass for the sender's own domain. To *block* a sender his claim is enough. The DNS is asked only
where a table has something that the answer could make count: a name is looked up if any list has names, SPF is
checked if the claimed sender is in a list.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from greylist_proxy.client import Origin
from greylist_proxy.config_sections import AllowSection, TrapSection
from greylist_proxy.config_values import DnsList
from greylist_proxy.lists import dns_lists, postgrey, well_known
from greylist_proxy.lists.entries import EntryError, fold, fold_name
from greylist_proxy.lists.postgrey import Loaded
from greylist_proxy.lists.runtime import RuntimeEntries
from greylist_proxy.lists.tables import Match, Tables
from greylist_proxy.patience import in_a_task
from greylist_proxy.policy import EXEMPT, Decision, Reason, Verdict, is_exempt
from greylist_proxy.resolver import Resolver
from greylist_proxy.store import Changes, Entry


class _Question(NamedTuple):
    """One recipient of one transaction, folded for comparisons."""

    origin: Origin
    now: float
    sender: tuple[str, str]
    recipient: tuple[str, str]


class _Configured(NamedTuple):
    """What comes from the configuration, replaced as a whole."""

    files: Loaded
    shipped: Tables
    dns_lists: Sequence[DnsList]


class Exemptions:
    """The lists, in their order. Files are read when it is made, and by `reload`; entries come by `apply` and `put`.

    ListError: a file can't be read. Without a resolver no DNS list is asked. `clock` gives seconds since 1970 and
    should agree with the store's, by which entries were given the time when they expire.
    """

    def __init__(
        self, allow: AllowSection, trap: TrapSection, resolver: Resolver | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._resolver = resolver
        self._clock = clock
        self._configured = _read(allow, trap)
        self._entries = RuntimeEntries()
        self._coming: RuntimeEntries | None = None  # those that a restart tells anew, until all are there
        self._arrange()

    async def reload(self, allow: AllowSection, trap: TrapSection) -> Sequence[str]:
        """Read the files again, and return the new `warnings`; entries stay. ListError: everything stays as it was."""
        # A million lines take seconds.
        self._configured = await asyncio.to_thread(_read, allow, trap)
        self._arrange()
        return self.warnings

    @property
    def warnings(self) -> Sequence[str]:
        """One sentence for each line of the files that does not count."""
        return self._configured.files.warnings

    @property
    def counts(self) -> dict[str, int]:
        """How many rules the files have, by kind."""
        return self._configured.files.counts

    def apply(self, changes: Changes) -> list[str]:
        """Take over what happened to the entries; return a sentence for each that can't count.

        After a restart the old ones count until the new ones are complete: no block has a gap.
        """
        if changes.restart:
            self._coming = RuntimeEntries()
        entries = self._entries if self._coming is None else self._coming
        problems = []
        for change in changes.changed:
            try:
                if isinstance(change, Entry):
                    entries.put(change)
                else:
                    entries.remove(change.kind, change.value)
            except EntryError as error:
                problems.append(f"an entry of kind {change.kind} does not count: {error}")
        if self._coming is not None and not changes.more:
            self._entries, self._coming = self._coming, None
        self._arrange()
        return problems

    def put(self, entry: Entry) -> None:
        """Take over an entry that was just made, in place of one with its kind and value. EntryError: can't count."""
        for entries in filter(None, (self._entries, self._coming)):
            entries.put(entry)
        self._arrange()

    def expire(self, now: float) -> None:
        """Let go of entries that have expired. They count no more in any case; this frees their memory."""
        self._entries.expire(now)
        self._arrange()

    async def match(self, origin: Origin, recipient: str) -> Decision | None:
        """Decide by lists; None: no list says anything, and the greylist is to be asked."""
        if is_exempt(recipient):
            return EXEMPT
        if not self._has_lists:
            return None
        question = _Question(origin, self._clock(), fold(origin.sender), fold(recipient))
        return (
            (await self._allowed(self._allowing, question) if self._allowing else None)
            or (await self._blocked(question) if self._entries.block else None)
            or self._trapped_client(question)
            or (await self._allowed(self._exempting, question) if self._exempting else None)
        )

    @property
    def are_none(self) -> bool:
        """Whether no list of any kind has anything in it, and the DNS has none to be asked."""
        return not (self._has_lists or self._has_traps or self._configured.dns_lists)

    async def dns_allowed(self, origin: Origin) -> Decision | None:
        """Ask the DNS allow-lists; None: not listed, or nobody to ask."""
        lists = self._configured.dns_lists
        if self._resolver is None or not lists:
            return None
        await in_a_task()
        zone = await dns_lists.listed(self._resolver, origin.client.address, lists)
        return Decision(Verdict.ALLOW, Reason.DNS_ALLOWED, rule=zone) if zone else None

    def is_trap(self, recipient: str) -> bool:
        """Tell whether a recipient is a spam trap, by file or entry; postmaster and abuse never are."""
        if not self._has_traps or is_exempt(recipient):
            return False
        local, domain = fold(recipient)
        now = self._clock()
        return bool(
            self._configured.files.traps.find(local, domain, now) or self._entries.traps.find(local, domain, now)
        )

    def _arrange(self) -> None:
        """Note which lists have anything in them: the others need not be looked at for each recipient."""
        files, entries = self._configured.files, self._entries
        self._allowing = [tables for tables in (files.tables, entries.allow) if tables]
        self._exempting = [tables for tables in (entries.learned, self._configured.shipped) if tables]
        self._has_lists = bool(self._allowing or entries.block or entries.trapped or self._exempting)
        self._has_traps = bool(files.traps or entries.traps)

    async def _allowed(self, lists: Sequence[Tables], question: _Question) -> Decision | None:
        origin, now = question.origin, question.now
        for tables in lists:
            if match := tables.networks.find(origin.client.address, now):
                return _allow(Reason.ALLOWED_CLIENT, match)
        if match := await _find_name(lists, question):
            return _allow(Reason.ALLOWED_NAME, match)
        if found := _find_sender(lists, question):
            reason, match = found
            if fold_name((await origin.spf()).domain) == question.sender[1]:
                return _allow(reason, match)
        for tables in lists:
            if match := tables.find_recipient(*question.recipient, now):
                return _allow(Reason.ALLOWED_RECIPIENT, match)
        return None

    async def _blocked(self, question: _Question) -> Decision | None:
        now = question.now
        local, domain = question.sender
        if match := self._entries.block.networks.find(question.origin.client.address, now) or await _find_name(
            (self._entries.block,), question
        ):
            return Decision(Verdict.BLOCK, Reason.BLOCKED_CLIENT, rule=match.rule)
        if match := self._entries.block.senders.find(local, domain, now):
            return Decision(Verdict.BLOCK, Reason.BLOCKED_SENDER, rule=match.rule)
        if match := self._entries.block.find_recipient(*question.recipient, now):
            return Decision(Verdict.BLOCK, Reason.BLOCKED_RECIPIENT, rule=match.rule)
        return None

    def _trapped_client(self, question: _Question) -> Decision | None:
        match = self._entries.trapped.networks.find(question.origin.client.address, question.now)
        if match is None:
            return None
        seconds = 0 if match.expires is None else math.ceil(match.expires - question.now)
        return Decision(Verdict.DEFER, Reason.TRAPPED, seconds, rule=match.rule)


def _read(allow: AllowSection, trap: TrapSection) -> _Configured:
    files = postgrey.load(allow.client_files, allow.recipient_files, trap.recipient_files)
    return _Configured(files, well_known.load().tables() if allow.well_known else Tables(), allow.dns_lists)


async def _find_name(lists: Sequence[Tables], question: _Question) -> Match | None:
    asked = [tables for tables in lists if tables.has_names]
    if not asked:
        return None
    names = [fold_name(name) for name in await question.origin.names()]
    return next((match for tables in asked for name in names if (match := tables.find_name(name, question.now))), None)


def _find_sender(lists: Sequence[Tables], question: _Question) -> tuple[Reason, Match] | None:
    local, domain = question.sender
    if not local:
        return None
    for tables in lists:
        if match := tables.senders.find_domain(domain, question.now):
            return Reason.ALLOWED_DOMAIN, match
    for tables in lists:
        if match := tables.senders.find_address(local, domain, question.now):
            return Reason.ALLOWED_SENDER, match
    return None


def _allow(reason: Reason, match: Match) -> Decision:
    return Decision(Verdict.ALLOW, reason, rule=match.rule)
