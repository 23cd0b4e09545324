# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator wants of an entry: read, refused, and compared with what is there."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from greylist_proxy.lists.entries import EntryError
from greylist_proxy.lists.operator import as_json, from_json, read_wish
from greylist_proxy.store import Action, Entry, Kind, Source

HERE = {"kind": "client", "value": "192.0.2.1"}
DAY = 86400.0


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([], "allowed is an object with the keys kind, value, action, expires, note"),
        (None, "allowed is an object"),
        (HERE | {"acton": "block"}, "allowed is an object with the keys"),
        ({"value": "192.0.2.1"}, 'kind "None": allowed is one of client, sender, recipient, trap'),
        ({"kind": [], "value": "192.0.2.1"}, "allowed is one of client, sender, recipient, trap"),
        ({"kind": "client"}, "value: allowed is text"),
        (HERE | {"value": 7}, "value: allowed is text"),
        (HERE | {"value": "192.0.2.1/24"}, "the network is 192.0.2.0/24"),
        (HERE | {"value": "x y\x1b"}, '"x y\\u001b"'),
        (HERE | {"action": "defer"}, 'action "defer": allowed is one of allow, block'),
        (HERE | {"action": {}}, "allowed is one of allow, block"),
        ({"kind": "trap", "value": "u@here.test", "action": "block"}, "a trap has no action"),
        (HERE | {"expires": "soon"}, "expires: 'soon': allowed is a duration"),
        (HERE | {"expires": "2001-01-01"}, "has passed already"),
        (HERE | {"expires": "40000d"}, "more than 100 years ahead"),
        (HERE | {"expires": ["1d"]}, "allowed is a duration"),
        (HERE | {"note": 7}, "note: allowed is text of up to 500 characters"),
        (HERE | {"note": "x\ud800"}, "note: allowed is text of up to 500 characters"),
        (HERE | {"note": "x\0"}, "note: allowed is text of up to 500 characters"),
        (HERE | {"expires": "x" * 101}, "expires: allowed is a duration"),
        (HERE | {"note": "x" * 501}, "note: allowed is text of up to 500 characters"),
    ],
)
def test_what_can_not_be_meant(data: object, error: str) -> None:
    with pytest.raises(EntryError) as raised:
        read_wish(data)
    assert error in str(raised.value)
    assert "\x1b" not in str(raised.value)


def test_what_is_left_out() -> None:
    entry = read_wish(HERE).entry
    assert (entry.action, entry.source, entry.expires, entry.note) == (Action.ALLOW, Source.OPERATOR, None, "")
    assert read_wish({"kind": "trap", "value": "old@here.test", "expires": "", "note": None}).entry.expires is None


def made(age: float, expires: str | None) -> Entry:
    """An entry that was made so many seconds ago, as it was wanted then."""
    entry = read_wish(HERE | {"note": "n"} | ({"expires": expires} if expires else {})).entry
    until = entry.expires if entry.expires is None or "T" in (expires or "") else entry.expires - age
    return replace(entry, created=entry.created - age, expires=until)


IN_A_WEEK = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 7 * DAY))


@pytest.mark.parametrize(
    ("there", "wanted", "is_met"),
    [
        (made(9 * DAY, None), {}, True),
        (made(9 * DAY, None), {"action": "allow"}, True),
        (made(9 * DAY, None), {"action": "block"}, False),
        (made(9 * DAY, None), {"note": "another"}, False),
        (made(9 * DAY, None), {"expires": "30d"}, False),
        # Asked for again within its time, an entry neither changes nor lasts longer.
        (made(9 * DAY, "30d"), {"expires": "30d"}, True),
        (made(9 * DAY, "30d"), {"expires": "720h"}, True),
        (made(9 * DAY, "30d"), {"expires": "21d"}, False),
        (made(9 * DAY, "30d"), {"expires": "31d"}, False),
        (made(9 * DAY, "30d"), {}, False),
        (made(9 * DAY, IN_A_WEEK), {"expires": IN_A_WEEK}, True),
        (made(9 * DAY, IN_A_WEEK), {"expires": IN_A_WEEK.replace("Z", "+00:00")}, True),
        (made(9 * DAY, IN_A_WEEK), {"expires": "2099-01-01T00:00Z"}, False),
        # What was learned, or a trap's doing, becomes the operator's own.
        (replace(made(0, None), source=Source.LEARNED), {}, False),
        (None, {}, False),
    ],
)
def test_an_entry_that_says_the_same_is_left_alone(there: Entry | None, wanted: dict[str, str], is_met: bool) -> None:
    assert read_wish(HERE | {"note": "n"} | wanted).is_met_by(there) is is_met


@pytest.mark.parametrize(
    "entry",
    [
        Entry(Kind.CLIENT, "192.0.2.7", Action.BLOCK, Source.TRAP, 1700000000.125, 1700003600.5, "mailed a trap\x1b"),
        Entry(Kind.SENDER, "joe@example.net", Action.ALLOW, Source.LEARNED, 1700000000.0),
    ],
)
def test_json_and_back(entry: Entry) -> None:
    assert from_json(as_json(entry)) == entry  # type: ignore[arg-type]
