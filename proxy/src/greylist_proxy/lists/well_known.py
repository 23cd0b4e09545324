# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The list that ships with the package: senders known to retry badly, `well_known.toml`.

It is short, dated and ours: each entry says why it is there and where that was reported, so that it can be checked
and go again. It exempts nobody who only claims to be on it: a sender's domain counts with an SPF pass for that domain,
a client's name when it is forward-confirmed. `allow.well_known = false` switches it off.
"""

from __future__ import annotations

import datetime
import tomllib
from importlib import resources
from typing import NamedTuple

from greylist_proxy.lists.entries import canonical, key
from greylist_proxy.lists.tables import Tables
from greylist_proxy.store import Kind

FILE = "well_known.toml"
KINDS = {"client": Kind.CLIENT, "sender": Kind.SENDER}


class KnownSender(NamedTuple):
    """One entry: a client's name or a sender's domain, what goes wrong, and who says so."""

    kind: Kind
    domain: str
    why: str
    source: str


class WellKnown(NamedTuple):
    """The list, and the day on which it was last gone through."""

    date: datetime.date
    entries: tuple[KnownSender, ...]

    def tables(self) -> Tables:
        """Return it for looking up; a rule is called `well-known:` and the domain."""
        tables = Tables()
        for entry in self.entries:
            tables.add(entry.kind, key(entry.kind, entry.domain), f"well-known:{entry.domain}")
        return tables


def load() -> WellKnown:
    """Read the list that was installed with this package."""
    return parse(resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8"))


def parse(text: str) -> WellKnown:
    """Read a list. ValueError: it is not one, or an entry is given twice, not in its canonical form, or unexplained."""
    data = tomllib.loads(text)
    date = data.pop("date", None)
    # A date with a time is a date too, to Python.
    if not isinstance(date, datetime.date) or isinstance(date, datetime.datetime):
        raise ValueError(f"{FILE}: date: allowed is the day of the last review, such as 2026-01-31")
    entries = [_entry(section, item) for section, items in data.items() for item in items]
    if len({entry[:2] for entry in entries}) != len(entries):
        raise ValueError(f"{FILE}: an entry is given twice")
    return WellKnown(date, tuple(entries))


def _entry(section: str, item: dict[str, str]) -> KnownSender:
    if section not in KINDS or set(item) != {"domain", "why", "source"}:
        raise ValueError(f"{FILE}: allowed are [[client]] and [[sender]], each with domain, why and source")
    entry = KnownSender(KINDS[section], item["domain"], item["why"], item["source"])
    # Only names: what is exempted by address today is somebody else's tomorrow.
    if "@" in entry.domain or not entry.domain.rpartition(".")[2].isalpha():
        raise ValueError(f"{FILE}: {entry.domain}: allowed is a domain name")
    if canonical(entry.kind, entry.domain) != entry.domain or not (entry.why and entry.source):
        raise ValueError(f"{FILE}: {entry.domain}: allowed is a domain name in lower case, and a reason")
    return entry
