# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The books themselves: what the tests of faults rely on to notice that something was lost, doubled or changed."""

from __future__ import annotations

import pytest

from .ledger import Ledger, Told, content

TRACE = (
    b"Received: from c ([127.0.0.1])\r\n by mx.test (greylist-proxy) with ESMTP id %b\r\n for <u@here.test>; now\r\n"
)
UNKNOWN = {"event": "relay", "outcome": "unknown", "id": "0A"}


def taken(*idents: bytes, number: int = 1) -> Ledger:
    ledger = Ledger()
    for ident in idents:
        ledger.take(TRACE % ident + content(number))
    return ledger


@pytest.mark.parametrize(
    ("idents", "told", "log", "is_fine"),
    [
        ([], [], [], True),
        ([], [Told.REFUSED, Told.UNSENT, Told.NOTHING], [], True),
        ([], [Told.DELIVERED], [], False),  # lost
        ([b"0A"], [Told.DELIVERED], [], True),
        ([b"0A"], [Told.REFUSED], [], False),  # told wrongly
        ([b"0A"], [Told.UNSENT], [], False),
        ([b"0A"], [Told.REFUSED], [UNKNOWN], True),
        ([b"0A"], [Told.NOTHING], [], True),
        ([b"0A", b"0B"], [Told.DELIVERED], [], False),  # twice
        ([b"0A", b"0B"], [Told.REFUSED, Told.DELIVERED], [UNKNOWN], True),
        ([b"0C", b"0B"], [Told.REFUSED, Told.DELIVERED], [UNKNOWN], False),  # that was another one's
        ([b"0A", b"0B"], [Told.NOTHING, Told.DELIVERED], [], True),
        ([b"0A", b"0B", b"0C"], [Told.NOTHING, Told.DELIVERED], [], False),
    ],
)
def test_what_has_to_be_explained(
    idents: list[bytes], told: list[Told], log: list[dict[str, str]], is_fine: bool
) -> None:
    ledger = taken(*idents)
    for each in told:
        ledger.told(1, each)
    assert (ledger.mistakes(log) == []) is is_fine


@pytest.mark.parametrize(
    "wire",
    [
        TRACE % b"0A" + content(1)[:-1],
        TRACE % b"0A" + content(1) + b"\r\n",
        TRACE % b"0A" + content(1).replace(b"..1", b".1", 1),
        TRACE % b"0A" + content(1).replace(b"X-Ledger: 1", b"X-Ledger: 2"),
        content(1),
    ],
)
def test_what_is_not_whole_is_noticed(wire: bytes) -> None:
    ledger = Ledger()
    ledger.take(wire)
    assert ledger.taken == {}
    assert len(ledger.mistakes([])) == 1


def test_messages_differ() -> None:
    assert len({content(number) for number in range(1, 9)}) == 8
    assert max(len(content(number)) for number in range(1, 9)) > 60_000
