# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The message after DATA: where it ends, what comes out, in any pieces; and that nothing in it can be smuggled."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

import pytest
from greylist_proxy.smtp.body import BARE_LINE_END, BARE_NUL, HEADER_TOO_BIG, LEADING_BLANK, TOO_MANY_HOPS, Body
from greylist_proxy.smtp.events import Limits
from greylist_proxy.smtp.replies import TOO_BIG, Reply
from hypothesis import example, given, settings
from hypothesis import strategies as st

NORMALISE = Limits(max_hops=2, max_header_size=80)
REFUSE = Limits(max_hops=2, max_header_size=80, bare_line_ends="refuse")
# Everything that matters for finding the end, for what must not be passed on, and for the header.
TRICKY = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"x", b" ", b"\x00", b"\r\n.\r\n", b"Received:", b"\r\nreceived: y"]),
    max_size=25,
).map(b"".join)


@dataclass
class Expected:
    """What becomes of a message, found from the whole of it, line by line."""

    text: bytes  # what a reader at the backend gets to see
    rest: bytes
    normalised: int
    faults: list[Reply] = field(default_factory=list)  # which of several is named is left open


def model(stream: bytes, max_size: int, limits: Limits) -> Expected:
    end = (b"\r\n" + stream).find(b"\r\n.\r\n")
    lines = stream[:end].split(b"\r\n")[:-1]
    # RFC 5321 section 4.5.2: of a line that begins with a dot, the dot goes. What is left may have line ends in it.
    read = [re.split(rb"[\r\n]", line.removeprefix(b".")) for line in lines]
    text = b"".join(line + b"\r\n" for parts in read for line in parts)
    found = Expected(text, stream[end + 3 :], sum(len(parts) - 1 for parts in read))
    if text.startswith((b" ", b"\t", b"\x00")):
        found.faults.append(LEADING_BLANK)
    if found.normalised and limits.bare_line_ends == "refuse":
        found.faults.append(BARE_LINE_END)
    if len(text) > max_size:
        found.faults.append(TOO_BIG)
    header = list(itertools.takewhile(lambda line: line, text.split(b"\r\n")))
    if sum(len(line) + 2 for line in header) > limits.max_header_size:
        found.faults.append(HEADER_TOO_BIG)
    if sum(line.lower().startswith(b"received:") for line in header) > limits.max_hops:
        found.faults.append(TOO_MANY_HOPS)
    return found


def ends(wire: bytes) -> bool:
    """Tell whether a careless server would see an end of data in this: bare line ends count, NULs are dropped or end
    the line.
    """
    for line in re.split(rb"\r\n|\r|\n", wire):
        if b"." in (line.replace(b"\x00", b""), line.partition(b"\x00")[0]):
            return True
    return False


def unstuffed(wire: bytes) -> bytes:
    return (b"\r\n" + wire).replace(b"\r\n.", b"\r\n")[2:]


def feed(body: Body, stream: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """Feed a stream in pieces; return what came out, and what was left."""
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    out, rest = b"", b""
    for start, end in itertools.pairwise(places):
        if body.ended:
            rest += stream[start:end]
        else:
            out += body.feed(stream[start:end])
    return out, body.rest + rest


@settings(max_examples=600, deadline=None)
@given(
    TRICKY, st.lists(st.integers(0, 90), max_size=8), st.sampled_from([3, 1000]), st.sampled_from([NORMALISE, REFUSE])
)
@example(b" x", [], 1000, NORMALISE)
@example(b"\x00 x", [1], 1000, NORMALISE)
@example(b"\r\n. x", [2], 1000, NORMALISE)
@example(b"x\r", [1, 2], 1000, NORMALISE)
@example(b"\n.\r\n", [1], 1000, NORMALISE)
@example(b"\r\n\x00\x00.\r\n", [3, 4], 1000, NORMALISE)
@example(b"\n\x00.\r\n", [1, 2], 1000, NORMALISE)
@example(b"\r\n\r\n", [1, 2, 3], 1000, NORMALISE)
@example(b"Received:\r\nreceived: y\r\n.Received:", [], 1000, NORMALISE)
@example(b"Received:\r\n.received: y\r\n.Received:", [25, 26, 27, 28], 1000, NORMALISE)
@example(b".Received:\r\nreceived: y\r\nReceived:", [0, 1], 1000, NORMALISE)
def test_a_body_in_any_pieces(content: bytes, cuts: list[int], max_size: int, limits: Limits) -> None:
    stream = content + b"\r\n.\r\nQUIT\r\n"
    expected = model(stream, max_size, limits)
    body = Body(max_size, limits)
    out, rest = feed(body, stream, cuts)
    assert body.ended
    assert rest == expected.rest
    assert not ends(out)
    assert re.search(rb"(?<!\r)\n|\r(?!\n)", out) is None
    if expected.faults or body.refusal is BARE_NUL:
        # Only what could end a message somewhere is refused for its NULs.
        assert body.refusal in expected.faults or b"\x00" in content
        assert body.refusal is not None
        return
    assert body.refusal is None
    assert unstuffed(out) == expected.text
    assert (body.size, body.normalised) == (len(expected.text), expected.normalised)
    if not expected.normalised:
        assert out == stream[: len(stream) - len(rest) - 3], "it goes on as it came"


@settings(max_examples=100, deadline=None)
@given(TRICKY, st.lists(st.integers(0, 90), max_size=8))
def test_a_nul_is_refused_wherever_the_message_is_cut(content: bytes, cuts: list[int]) -> None:
    stream = content + b"\r\n.\r\n"
    whole, cut = Body(0, Limits()), Body(0, Limits())
    feed(whole, stream, [])
    feed(cut, stream, cuts)
    assert (whole.refusal, whole.size) == (cut.refusal, cut.size) or whole.refusal is not None is not cut.refusal


# What may look like an end of data to one server and not to another, between two lines of a message; what comes out.
LOOK_ALIKES = {
    "LF . LF": (b"\n.\n", b"\r\n..\r\n"),
    "LF . CRLF": (b"\n.\r\n", b"\r\n..\r\n"),
    "CR . CR": (b"\r.\r", b"\r\n..\r\n"),
    "CR . CRLF": (b"\r.\r\n", b"\r\n..\r\n"),
    "CRLF . LF": (b"\r\n.\n", b"\r\n\r\n"),
    "CRLF . CR": (b"\r\n.\r", b"\r\n\r\n"),
    "CRLF . CR CRLF": (b"\r\n.\r\r\n", b"\r\n\r\n\r\n"),
    "CR CRLF . LF": (b"\r\r\n.\n", b"\r\n\r\n\r\n"),
    "LF CR . LF CR": (b"\n\r.\n\r", b"\r\n\r\n..\r\n\r\n"),
    "LF .. LF": (b"\n..\n", b"\r\n...\r\n"),
    "CRLF NUL . CRLF": (b"\r\n\x00.\r\n", None),
    "CRLF . NUL CRLF": (b"\r\n.\x00\r\n", None),
    "LF NUL . LF": (b"\n\x00.\n", None),
    "CRLF NUL NUL . NUL CRLF": (b"\r\n\x00\x00.\x00\r\n", None),
    "CR NUL LF . CRLF": (b"\r\x00\n.\r\n", b"\r\n\x00\r\n..\r\n"),
    "CRLF . CR NUL LF": (b"\r\n.\r\x00\n", b"\r\n\r\n\x00\r\n"),
    "a NUL elsewhere": (b"\r\na\x00.\x00b\r\n", b"\r\na\x00.\x00b\r\n"),
    "a dot that is doubled": (b"\r\n..\r\n", b"\r\n..\r\n"),
    "a line that begins with a dot": (b"\r\n.x\r\n", b"\r\n.x\r\n"),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_what_looks_like_the_end_is_none(name: str) -> None:
    look_alike, becomes = LOOK_ALIKES[name]
    message = b"one" + look_alike + b"two\r\n"
    stream = message + b".\r\nQUIT\r\n"
    for cut in range(len(stream) + 1):
        body = Body(0, Limits())
        out, rest = feed(body, stream, [cut])
        assert rest == b"QUIT\r\n"
        if becomes is None:
            assert (body.refusal, out) == (BARE_NUL, out)
            assert not ends(out)
        else:
            assert (body.refusal, out) == (None, b"one" + becomes + b"two\r\n")
        strict = Body(0, Limits(bare_line_ends="refuse"))
        feed(strict, stream, [cut])
        assert (strict.refusal is not None) == (becomes is None or becomes != look_alike)


@pytest.mark.parametrize("limits", [NORMALISE, REFUSE])
def test_a_body_byte_by_byte_comes_out_whole(limits: Limits) -> None:
    stream = b"Subject: x\r\n\r\n..\r\n...\r\n\xff\x80\r\n\r\n.\r\n"
    body = Body(1000, limits)
    out, rest = feed(body, stream, list(range(len(stream))))
    assert (out, body.size, body.ended, rest) == (stream[:-3], len(stream) - 5, True, b"")


def test_at_most_four_octets_are_held_back() -> None:
    body = Body(0, Limits())
    sent, taken = 0, 0
    for piece in (b"x" * 100_000, b"y", b"\r", b"\n", b".", b".", b"\r", b"\n", b".", b"z", b"\r\n", b"\r\n."):
        sent += len(piece)
        taken += len(body.feed(piece))
        assert 0 <= sent - taken <= 4
    assert len(body.feed(b"x" * 10_000_000)) == 10_000_003


def test_hops_are_counted_in_the_header_only() -> None:
    header = b"received: a\r\nX: received: b\r\nRECEIVED: c\r\n continued received:\r\n"
    body = Body(0, Limits(max_hops=2))
    feed(body, header + b"\r\n" + b"Received: d\r\n" * 9 + b".\r\n", [])
    assert body.refusal is None
    body = Body(0, Limits(max_hops=1))
    feed(body, header + b".\r\n", [])
    assert body.refusal is TOO_MANY_HOPS


@pytest.mark.parametrize(("max_size", "refusal"), [(0, None), (8, TOO_BIG), (9, None)])
def test_the_size_is_without_doubled_dots(max_size: int, refusal: Reply | None) -> None:
    body = Body(max_size, Limits())
    feed(body, b"a: b\r\n..\r\n.\r\n", [])
    assert (body.size, body.refusal) == (9, refusal)
