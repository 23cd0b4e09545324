# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The list that ships with the package, and what its loader refuses."""

from __future__ import annotations

import datetime
import re

import pytest
from greylist_proxy.lists import well_known
from greylist_proxy.store import Kind


def test_the_shipped_list() -> None:
    known = well_known.load()
    assert datetime.date(2026, 1, 1) <= known.date
    assert 20 <= len(known.entries) <= 50
    for entry in known.entries:
        assert len(entry.why) > 10
        # where it was reported, and when
        assert re.search(r"[0-9]{4}|no date", entry.source), entry
    tables = known.tables()
    outlook = tables.find_name("mail-eopbgr10051.outbound.protection.outlook.com", 0)
    assert outlook == ("well-known:outbound.protection.outlook.com", None)
    assert tables.find_name("outbound.protection.outlook.com.evil.example", 0) is None
    assert tables.senders.find_domain("mail.hotmail.com", 0) == ("well-known:hotmail.com", None)
    # no client is exempt by its address, no recipient at all
    assert (len(tables.networks), len(tables.recipients)) == (0, 0)
    assert len(tables.names) + len(tables.senders) == len(known.entries)


ENTRY = '[[client]]\ndomain = "example.net"\nwhy = "never retries"\nsource = "seen by us, 2026"\n'
DATE = "date = 2026-01-31\n"


def test_a_list() -> None:
    known = well_known.parse(DATE + ENTRY + ENTRY.replace("client", "sender"))
    assert known.date == datetime.date(2026, 1, 31)
    assert known.entries == (
        (Kind.CLIENT, "example.net", "never retries", "seen by us, 2026"),
        (Kind.SENDER, "example.net", "never retries", "seen by us, 2026"),
    )


@pytest.mark.parametrize(
    "text",
    [
        ENTRY,
        "date = 2026-01-31T00:00:00\n" + ENTRY,
        'date = "2026-01-31"\n' + ENTRY,
        DATE + ENTRY + ENTRY,
        DATE + ENTRY.replace("client", "recipient"),
        DATE + ENTRY.replace("why", "because"),
        DATE + ENTRY.replace("never retries", ""),
        DATE + ENTRY.replace("example.net", "Example.net"),
        DATE + ENTRY.replace("example.net", "192.0.2.1"),
        DATE + ENTRY.replace("example.net", "user@example.net").replace("client", "sender"),
        DATE + ENTRY.replace("example.net", "not a domain"),
        "date = ",
    ],
)
def test_lists_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        well_known.parse(text)
