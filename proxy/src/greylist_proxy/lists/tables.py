# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables that find a client, a sender or a recipient among a million in microseconds.

All but patterns are dictionaries: for networks one for each length of prefix that occurs, tried from the longest; for
domains one, tried with the name and each of its parents. So a lookup costs by what is looked for, not by how much
there is. A tree (radix, trie) would be no faster in Python, and take several times the memory.

A value is the text of the rule, or a pair of it and the time (seconds since 1970) at which it stops to count. Measured
with CPython 3.13, rule text included: about 140 bytes a network, 170 an address.

Keys come from `entries.py`, which also folds what is looked for.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple, TypeVar

from greylist_proxy.lists.entries import Network
from greylist_proxy.resolver import Address
from greylist_proxy.store import Kind

Value = str | tuple[str, float]

# A regular expression is the one thing here that costs by number, and by what an attacker sends. Names and addresses
# are cut to what DNS and SMTP allow at most anyway.
MAX_PATTERNS = 1000
MAX_MATCHED = 512
PATTERN_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{[0-9]*,[0-9]*\}|.", re.DOTALL)

K = TypeVar("K", int, str)


class Match(NamedTuple):
    """The rule that was found, and until when it counts (None: for ever)."""

    rule: str
    expires: float | None = None


class PatternError(ValueError):
    """A regular expression that can't be used; the text says why and what to do."""


class Networks:
    """Networks of both families; the longest that holds an address is found."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int], dict[int, Value]] = {}  # by family and host bits
        self._order: dict[int, list[tuple[int, dict[int, Value]]]] = {4: [], 6: []}  # the same, longest prefix first

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    def add(self, network: Network, rule: str, expires: float | None = None) -> None:
        """Add or replace a network."""
        host_bits = network.max_prefixlen - network.prefixlen
        table = self._tables.get((network.version, host_bits))
        if table is None:
            table = self._tables[network.version, host_bits] = {}
            self._sort()
        table[int(network.network_address) >> host_bits] = _value(rule, expires)

    def remove(self, network: Network, expired_at: float | None = None) -> None:
        """Remove a network, if it is here; with `expired_at` only if it does not count at that time."""
        host_bits = network.max_prefixlen - network.prefixlen
        table = self._tables.get((network.version, host_bits))
        if table is not None:
            _remove(table, int(network.network_address) >> host_bits, expired_at)
            if not table:
                del self._tables[network.version, host_bits]
                self._sort()

    def find(self, address: Address, now: float) -> Match | None:
        """Find the longest network that holds the address and counts at `now`."""
        number = int(address)
        for host_bits, table in self._order[address.version]:
            value = table.get(number >> host_bits)
            if value is not None and (match := _live(value, now)):
                return match
        return None

    def _sort(self) -> None:
        for order in self._order.values():
            order.clear()
        for (family, host_bits), table in sorted(self._tables.items(), key=itemgetter(0)):
            self._order[family].append((host_bits, table))


class Domains:
    """Domains; one matches itself and every name below it, never a name that only ends in the same letters."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}

    def __len__(self) -> int:
        return len(self._values)

    def add(self, domain: str, rule: str, expires: float | None = None) -> None:
        """Add or replace a domain."""
        self._values[domain] = _value(rule, expires)

    def remove(self, domain: str, expired_at: float | None = None) -> None:
        """Remove a domain, as `Networks.remove` does."""
        _remove(self._values, domain, expired_at)

    def find(self, name: str, now: float) -> Match | None:
        """Find the domain closest to the name that counts at `now`."""
        while name and self._values:
            value = self._values.get(name)
            if value is not None and (match := _live(value, now)):
                return match
            name = name.partition(".")[2]
        return None


class Mailboxes:
    """Addresses, domains and local parts: the keys are those of `entries.mailbox`."""

    def __init__(self) -> None:
        self._addresses: dict[str, Value] = {}  # user@example.net, and user@
        self._domains = Domains()

    def __len__(self) -> int:
        return len(self._addresses) + len(self._domains)

    def add(self, key: str, rule: str, expires: float | None = None) -> None:
        """Add or replace `user@domain`, `user@` or `@domain`."""
        if key.startswith("@"):
            self._domains.add(key[1:], rule, expires)
        else:
            self._addresses[key] = _value(rule, expires)

    def remove(self, key: str, expired_at: float | None = None) -> None:
        """Remove a key, as `Networks.remove` does."""
        if key.startswith("@"):
            self._domains.remove(key[1:], expired_at)
        else:
            _remove(self._addresses, key, expired_at)

    def find(self, local: str, domain: str, now: float) -> Match | None:
        """Find whatever matches: the address first, then the domain, then the local part."""
        return (
            self.find_address(local, domain, now) or self.find_domain(domain, now) or self.find_address(local, "", now)
        )

    def find_address(self, local: str, domain: str, now: float) -> Match | None:
        """Find the address, or the same without its `+extension`; an empty domain finds `user@`."""
        if not self._addresses or not local:
            return None
        for candidate in (local, local.partition("+")[0]) if "+" in local else (local,):
            value = self._addresses.get(f"{candidate}@{domain}")
            if value is not None and (match := _live(value, now)):
                return match
        return None

    def find_domain(self, domain: str, now: float) -> Match | None:
        """Find the domain, or one above it."""
        return self._domains.find(domain, now)


class Patterns:
    """Regular expressions, tried one after the other."""

    def __init__(self) -> None:
        self._patterns: list[tuple[re.Pattern[str], str]] = []

    def __len__(self) -> int:
        return len(self._patterns)

    def add(self, pattern: str, rule: str) -> None:
        """Add an expression, case-insensitive, found anywhere in the text. PatternError: can't be used."""
        if len(self._patterns) >= MAX_PATTERNS:
            raise PatternError(f"more than {MAX_PATTERNS} regular expressions; write domains and addresses instead")
        if _has_nested_repeats(pattern):
            raise PatternError(
                "a repeat inside a repeated group, such as (a+)+, can take for ever on a name made for it; write it "
                "with one repeat"
            )
        try:
            with warnings.catch_warnings():
                # Python warns, on stderr, of what another version might read differently.
                warnings.simplefilter("ignore", FutureWarning)
                compiled = re.compile(pattern, re.IGNORECASE | re.ASCII)
        except (re.error, OverflowError, RecursionError) as error:
            # It quotes the expression, which may hold what a terminal obeys.
            reason = "".join(char if " " <= char <= "~" else "?" for char in str(error))
            raise PatternError(f"not a regular expression that Python knows ({reason}); rewrite it") from error
        self._patterns.append((compiled, rule))

    def find(self, text: str) -> Match | None:
        """Find the first expression that matches; a text longer than MAX_MATCHED matches none."""
        if len(text) <= MAX_MATCHED:
            for pattern, rule in self._patterns:
                if pattern.search(text):
                    return Match(rule)
        return None


@dataclass(frozen=True, slots=True)
class Tables:
    """All the tables of one list."""

    networks: Networks = field(default_factory=Networks)
    names: Domains = field(default_factory=Domains)
    name_patterns: Patterns = field(default_factory=Patterns)
    senders: Mailboxes = field(default_factory=Mailboxes)
    recipients: Mailboxes = field(default_factory=Mailboxes)
    recipient_patterns: Patterns = field(default_factory=Patterns)

    def add(self, kind: Kind, key: Network | str, rule: str, expires: float | None = None) -> None:
        """Add or replace what `entries.key` made of an entry's value; not of a trap, which stands in no list."""
        if not isinstance(key, str):
            self.networks.add(key, rule, expires)
        else:
            self._by_text(kind).add(key, rule, expires)

    def remove(self, kind: Kind, key: Network | str, expired_at: float | None = None) -> None:
        """Remove an entry, as `Networks.remove` does."""
        if not isinstance(key, str):
            self.networks.remove(key, expired_at)
        else:
            self._by_text(kind).remove(key, expired_at)

    def find_name(self, name: str, now: float) -> Match | None:
        """Find a client's name."""
        return self.names.find(name, now) or self.name_patterns.find(name)

    def find_recipient(self, local: str, domain: str, now: float) -> Match | None:
        """Find a recipient."""
        return self.recipients.find(local, domain, now) or self.recipient_patterns.find(f"{local}@{domain}")

    @property
    def has_names(self) -> bool:
        """Whether a client's name could be found: without one, nobody has to ask the DNS for it."""
        return bool(self.names or self.name_patterns)

    def __bool__(self) -> bool:
        return bool(self.networks or self.has_names or self.senders or self.recipients or self.recipient_patterns)

    def _by_text(self, kind: Kind) -> Domains | Mailboxes:
        if kind is Kind.CLIENT:
            return self.names
        return self.senders if kind is Kind.SENDER else self.recipients


def _value(rule: str, expires: float | None) -> Value:
    return rule if expires is None else (rule, expires)


def _live(value: Value, now: float) -> Match | None:
    if isinstance(value, str):
        return Match(value)
    return Match(*value) if now < value[1] else None


def _remove(values: dict[K, Value], key: K, expired_at: float | None) -> None:
    value = values.get(key)
    if value is not None and (expired_at is None or _live(value, expired_at) is None):
        del values[key]


def _has_nested_repeats(pattern: str) -> bool:
    """Tell whether a repeated group holds a repeat: those backtrack for ever, 2 to the power of the text's length.

    Not all that is slow is found: `(a|a)*` is as bad, and each plain repeat multiplies the time by the length of the
    text. Only the operator writes patterns, so this is a guard against a slip, not against him.
    """
    holds_repeat = [False]  # for each open group
    after_repeat = False  # the last thing was a group that holds one
    for part in PATTERN_PART.findall(pattern):
        if part == "(":
            holds_repeat.append(False)
        elif part == ")" and len(holds_repeat) > 1:
            after_repeat = holds_repeat.pop()
            holds_repeat[-1] |= after_repeat
            continue
        elif part in ("*", "+") or _is_long_repeat(part):
            if after_repeat:
                return True
            holds_repeat[-1] = True
        after_repeat = False
    return False


def _is_long_repeat(part: str) -> bool:
    bounds = re.fullmatch(r"\{[0-9]*,([0-9]*)\}", part)
    return bounds is not None and (len(bounds[1]) > 2 or int(bounds[1] or 99) > 10)
