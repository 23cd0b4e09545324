# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SMTP replies: over the wire and back, and what is none."""

from __future__ import annotations

import pytest
from greylist_proxy.smtp.replies import Reply, ReplyError, own_reply, take_reply
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None)
@given(
    st.integers(200, 599),
    st.lists(st.binary(max_size=40).map(lambda text: bytes(b for b in text if b >= 0x20 and b != 0x7F)), min_size=1),
    st.integers(0, 200),
)
def test_replies_survive_the_wire_in_any_pieces(code: int, lines: list[bytes], cut: int) -> None:
    reply = Reply(code, tuple(lines[:100]))
    wire = reply.wire()
    buffer = bytearray(wire[:cut])
    first = take_reply(buffer)
    if cut < len(wire):
        assert first is None
        assert buffer == wire[:cut]
        buffer += wire[cut:] + b"250 next"
        assert take_reply(buffer) == reply
        assert buffer == b"250 next"
    else:
        assert first == reply


@pytest.mark.parametrize(
    "wire",
    [
        b"hello\r\n",
        b"25 x\r\n",
        b"2500 x\r\n",
        b"150 x\r\n",
        b"650 x\r\n",
        b"\xb2\xb3\xb4 x\r\n",
        b"250-a\r\n251 b\r\n",
        b"250 a\x00b\r\n",
        b"250 a\r\r\n",
        b"250 " + b"x" * 3000,
        b"250-x\r\n" * 101,
    ],
)
def test_what_is_no_reply(wire: bytes) -> None:
    with pytest.raises(ReplyError):
        take_reply(bytearray(wire))


def test_our_own_replies() -> None:
    assert own_reply(250, "2.0.0", "OK").wire() == b"250 2.0.0 OK\r\n"
    assert str(Reply(550, (b"a\xff", b"b"))) == "550 a\\xff / b"
