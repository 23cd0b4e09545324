# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What backends offer: read from EHLO, kept in a file, and promised to clients only where all of them agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.smtp.capabilities import MAX_FILE, Capabilities, Promises, intersection
from hypothesis import given
from hypothesis import strategies as st

ALL = Capabilities(1000, True, True, True, True, True, True, ("NAME", "ADDR"))
A, B = "a.test:25", "b.test:25"


@pytest.mark.parametrize(
    ("lines", "capabilities"),
    [
        ([], Capabilities()),
        ([b"SIZE 1000"], Capabilities(1000)),
        ([b"SIZE"], Capabilities(0)),
        ([b"size 0"], Capabilities(0)),
        ([b"SIZE many"], Capabilities(0)),
        ([b"SIZE " + b"9" * 21], Capabilities(0)),
        ([b"SIZE \xb2"], Capabilities(0)),
        ([b"8bitmime", b"PipeLining", b""], Capabilities(eightbitmime=True, pipelining=True)),
        ([b"X8BITMIME", b"DSNX", b"AUTH DSN", b"STARTTLS"], Capabilities(starttls=True)),
        ([b"XCLIENT name ADDR ADDR bad=1 " + b"X" * 65], Capabilities(xclient=("NAME", "ADDR"))),
        ([b"SIZE 1000", b"8BITMIME", b"SMTPUTF8", b"DSN", b"ENHANCEDSTATUSCODES", b"PIPELINING", b"STARTTLS",
          b"XCLIENT NAME ADDR"], ALL),
    ],
)  # fmt: skip
def test_an_ehlo_reply(lines: list[bytes], capabilities: Capabilities) -> None:
    assert Capabilities.of(lines) == capabilities


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_any_ehlo_reply_can_be_read_and_kept(lines: list[bytes]) -> None:
    answer = Capabilities.of(lines)
    assert intersection([answer, answer]) == answer


def test_configured() -> None:
    assert Capabilities.configured(["SIZE 1000", "8bitmime"]) == Capabilities(1000, eightbitmime=True)
    assert Capabilities.configured([]) == Capabilities()


@pytest.mark.parametrize("word", ["AUTH PLAIN", "STARTTLS", "CHUNKING", "8BITMIME yes", "SIZE x", "XCLIENT NAME", ""])
def test_what_cant_be_configured(word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word}$"):
        Capabilities.configured([word])


@pytest.mark.parametrize(
    ("answers", "common"),
    [
        ([], None),
        ([ALL], ALL),
        ([ALL, Capabilities()], Capabilities()),
        ([Capabilities(1000), Capabilities(500)], Capabilities(500)),
        ([Capabilities(1000), Capabilities(0)], Capabilities(1000)),
        ([Capabilities(0), Capabilities(0)], Capabilities(0)),
        ([Capabilities(dsn=True, smtputf8=True), Capabilities(dsn=True)], Capabilities(dsn=True)),
        ([Capabilities(xclient=("A", "B")), Capabilities(xclient=("B", "C"))], Capabilities(xclient=("B",))),
    ],
)
def test_intersection(answers: list[Capabilities], common: Capabilities | None) -> None:
    assert intersection(answers) == common


def test_promises_outlive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "backends.json"
    promises = Promises(path)
    assert promises.common([A, B]) is None
    assert promises.learn(A, ALL)
    assert not promises.learn(A, ALL)
    assert promises.learn(B, Capabilities(10, dsn=True))
    assert promises.learn("old.test:25", Capabilities())
    promises.save([A, B])
    again = Promises(path)
    assert again.common([A]) == ALL
    assert again.common([A, B]) == Capabilities(10, dsn=True)
    assert again.common([A, "new.test:25"]) == ALL  # nothing is known of the new one
    assert again.common(["old.test:25"]) is None
    assert [each.name for each in tmp_path.iterdir()] == ["backends.json"]


def test_memory_only() -> None:
    promises = Promises(None)
    promises.learn(A, ALL)
    promises.save([A])
    assert promises.common([A]) == ALL


def test_a_file_that_cant_be_written(tmp_path: Path) -> None:
    promises = Promises(tmp_path / "missing/backends.json")
    promises.learn(A, ALL)
    with pytest.raises(OSError, match="missing"):
        promises.save([A])
    assert promises.common([A]) == ALL


GOOD: dict[str, Any] = {
    "size": 5, "eightbitmime": True, "smtputf8": False, "dsn": False, "enhancedstatuscodes": False,
    "pipelining": False, "starttls": False, "xclient": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[" * 100_000,
        b"[1, 2]",
        b"null",
        b" " * (MAX_FILE + 1),
        json.dumps({A: 1}).encode(),
        json.dumps({A: {}}).encode(),
        *(
            json.dumps({A: {**GOOD, **change}}).encode()
            for change in (
                {"size": -1}, {"size": True}, {"size": 1.5}, {"size": "5"}, {"size": 10**30}, {"dsn": 1}, {"dsn": None},
                {"xclient": "NAME"}, {"xclient": [1]}, {"more": True},
            )
        ),
    ],
)  # fmt: skip
def test_a_damaged_file_is_no_knowledge(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "backends.json"
    path.write_bytes(text)
    promises = Promises(path)
    assert promises.common([A]) is None
    promises.learn(A, ALL)
    promises.save([A])
    assert Promises(path).common([A]) == ALL


def test_one_bad_entry_does_not_spoil_the_others(tmp_path: Path) -> None:
    path = tmp_path / "backends.json"
    path.write_text(json.dumps({A: {**GOOD, "xclient": ["NAME", "A\r\nB"]}, B: {"size": 1}}))
    promises = Promises(path)
    assert promises.common([A]) == Capabilities(5, eightbitmime=True, xclient=("NAME",))
    assert promises.common([B]) is None
