# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data of the store benchmark: as many triplets as wanted, each made from its number alone.

Nothing is kept: whatever the size, the same number gives the same triplet in each run and each process, so any of
10 million can be asked for at random. The unit is a *sighting*, one client, sender and recipient. Every other client
is known by its network and by its domain (SPF), which makes two triplets of the sighting, as in the proxy.

    how many       20 % are known, the others pending, as with a greylist that much spam knocks at
    who            sizes of networks and of domains follow a power law (the nth has 1/n of the first); no client
                   has more pending triplets than the proxy's own cap allows (`policy.py`, rule 7)
    how old        pending ones evenly over the retry window, known ones evenly over the lifetime; none expires in the
                   next hour
    how long       lengths as in mail logs: networks 10 to 20 characters, IPv6 among them, addresses 12 to 40
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from greylist_proxy.policy import Identity, Record, Rules, Triplet
from greylist_proxy.store import Remembered

KNOWN_ONE_IN = 5  # sightings
IPV6_ONE_IN = 8  # networks
SEED = 6647
SPARE = 3600.0  # seconds that a run may take before the first of its triplets expires
MAILBOXES = 20_000  # recipients of ours
# Steps through all numbers in an order without neighbours: multiplication by a prime greater than any count is one
# to one. Two of them, so that the order of networks says nothing of the order of domains.
STEP, OTHER_STEP = 2_654_435_761, 4_294_967_291
SYLLABLES = [c + v + e for c in "bdfgklmnprstvz" for v in "aeiou" for e in ("", "n", "r", "s")]
TOP_LEVEL = ("com", "com", "com", "com", "net", "org", "de", "co.uk", "info", "io", "com.br", "online")
OURS = tuple(f"{name}.example" for name in ("mail", "shop", "university", "town-hall", "a", "engineering-office"))
_MASK = (1 << 64) - 1


class Sighting(NamedTuple):
    """One client, sender and recipient; the arguments of `Store.observe`."""

    identities: tuple[Identity, ...]
    sender: str
    recipient: str


class Sizes:
    """Groups whose sizes follow a power law, and which together have `count` members: the nth has 1/n of the first.

    None has more than `largest`. The sum of 1/n is taken for a logarithm, so a group's number can be computed from
    its member's; sizes are right but for rounding.
    """

    def __init__(self, count: int, largest: float) -> None:
        self.count = count
        groups = count / 2
        for _turn in range(50):  # until count = groups * (1 + log(largest)); each turn halves the error, or more
            groups = count / (1 + math.log(max(min(largest, groups), 1.0)))
        self._groups, self._largest = groups, min(largest, groups)

    def group(self, member: int) -> int:
        """Return the number, from 0, of the group that a member (from 0) is in."""
        if member < self._groups:
            return int(member / self._largest)
        return int(self._groups / self._largest * math.exp(member / self._groups - 1))


class Population:
    """`count` triplets at a time: what is remembered, sightings of it, and sightings that are new."""

    def __init__(self, count: int, rules: Rules, now: float) -> None:
        if not KNOWN_ONE_IN * 10 <= count <= OTHER_STEP // 2:
            raise ValueError("a number of triplets that the steps can order")
        self.count = count
        self.rules = rules
        self.now = now
        self.sightings = -(-count * 2 // 3)
        # Every even sighting has two triplets; where that makes one too many, the last of them has not.
        one_too_many = self.sightings + (self.sightings + 1) // 2 > count
        self._with_one = (self.sightings - 1) // 2 * 2 if one_too_many else -1
        known = -(-self.sightings // KNOWN_ONE_IN)
        self._known = Sizes(known, math.inf)
        self._pending = Sizes(self.sightings - known, rules.max_pending)
        self._mailboxes = [_mailbox(_mixed(number)) for number in range(MAILBOXES)]

    def is_known(self, number: int) -> bool:
        """Tell whether a sighting's triplets are known, not pending; new ones (from `sightings` on) are neither."""
        return number % KNOWN_ONE_IN == 0 and number < self.sightings

    def sighting(self, number: int) -> Sighting:
        """Make a sighting from its number; from `sightings` on it is a new one, of a client that is there already."""
        bits = _mixed(number)
        within = number % self.sightings
        if within % KNOWN_ONE_IN == 0:
            sizes, member, kind = self._known, within // KNOWN_ONE_IN, 0
        else:
            sizes, member, kind = self._pending, within - within // KNOWN_ONE_IN - 1, 1
        address, key = _network(_mixed(sizes.group(member * STEP % sizes.count) * 2 + kind))
        domain = _domain(_mixed(~(sizes.group(member * OTHER_STEP % sizes.count) * 2 + kind)))
        identities: tuple[Identity, ...] = (Identity(key, address),)
        if number % 2 == 0 and number != self._with_one:
            identities += (Identity(f"spf:{domain}", f"spf:{domain}"),)
        # The number makes two sightings of one client differ. Mailboxes are not written to evenly either.
        sender = f"{_word(bits, 1 + bits % 3)}{number:x}@{domain}"
        return Sighting(identities, sender, self._mailboxes[int(MAILBOXES ** ((bits >> 48) / 65536)) - 1])

    def record(self, number: int) -> Record:
        """Return what is remembered of a sighting's triplets."""
        age = _mixed(~number) / _MASK
        if not self.is_known(number):
            return Record(round(self.now - age * (self.rules.retry_window - SPARE), 3))
        used = self.now - age * (self.rules.lifetime - SPARE)
        return Record(round(used - age * self.rules.lifetime, 3), round(used, 3))

    def items(self) -> Iterator[Remembered]:
        """Give all triplets with their records, in an order in which neighbours have nothing in common."""
        for turn in range(self.sightings):
            number = turn * STEP % self.sightings
            sighting, record = self.sighting(number), self.record(number)
            for identity in sighting.identities:
                yield Remembered(Triplet(identity.key, sighting.sender, sighting.recipient), record)

    def pick(self, chance: random.Random, *, known: bool) -> int:
        """Return the number of a sighting that is known, or of one that is pending: each is as likely."""
        while True:
            number = chance.randrange(self.sightings)
            if self.is_known(number) is known:
                return number

    def seconds_until_half_expired(self) -> float:
        """How long after `now` half of all triplets have expired; ages are even, so each second takes as many."""
        known, rules = 1 / KNOWN_ONE_IN, self.rules
        return SPARE + 0.5 / ((1 - known) / (rules.retry_window - SPARE) + known / (rules.lifetime - SPARE))


def _mixed(number: int) -> int:
    """Turn a number into 64 bits that look random, always the same (the finaliser of SplitMix64)."""
    number = (number + SEED) * 0x9E3779B97F4A7C15 & _MASK
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31


def _word(bits: int, syllables: int) -> str:
    word = ""
    for _turn in range(syllables):
        bits, which = divmod(bits, len(SYLLABLES))
        word += SYLLABLES[which]
    return word


def _mailbox(bits: int) -> str:
    return f"{_word(bits, 2)}.{_word(bits >> 20, 2)}@{OURS[(bits >> 40) % len(OURS)]}"


def _network(bits: int) -> tuple[str, str]:
    """Return an address, and the key of its network."""
    if bits % IPV6_ONE_IN == 0:
        prefix = f"2a{bits >> 8 & 0xFF:02x}:{bits >> 16 & 0xFFF:x}:{bits >> 28 & 0xFFFF:x}:{bits >> 44 & 0xFFF:x}"
        return f"{prefix}::{bits >> 56 | 1:x}", f"{prefix}::/64"
    prefix = f"{(bits >> 8) % 223 + 1}.{bits >> 16 & 0xFF}.{bits >> 24 & 0xFF}"
    return f"{prefix}.{bits >> 32 & 0xFF}", f"{prefix}.0/24"


def _domain(bits: int) -> str:
    number = bits >> 50 & 0x7F
    return f"{_word(bits, 2 + bits % 3)}{number if number < 64 else ''}.{TOP_LEVEL[(bits >> 40) % len(TOP_LEVEL)]}"
