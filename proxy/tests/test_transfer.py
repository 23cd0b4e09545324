# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives, and files that are read line by line, into stores."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from greylist_proxy.policy import Earned, Record, Rules, Triplet
from greylist_proxy.store import Action, Allowance, Entry, Item, Kind, Logged, Remembered, Source
from greylist_proxy.transfer import CHUNK, Loaded, TransferError, archive, load
from greylist_proxy.transfer.source import opened
from hypothesis import given
from hypothesis import strategies as st

from .greylisters import remembered
from .stores import KINDS, START, Stores

HOUR, DAY = 3600.0, 86400.0

TRIPLETS = [
    Remembered(Triplet("192.0.2.0/24", "a@sender.example", "u@here.test"), Record(START - 60)),
    Remembered(Triplet("spf:sender.example", "", "u@here.test"), Record(START - DAY, START - HOUR)),
    Remembered(Triplet("2001:db8::/64", '"a b"@sender.example', "postmaster"), Record(START - 1.5, START - 0.25)),
]
ALLOWANCES = [
    Allowance("192.0.2.7", Earned(5, START - DAY, START - HOUR)),
    Allowance("spf:sender.example", Earned(1, START, START)),
]
ENTRIES = [
    Entry(Kind.CLIENT, "192.0.2.7", Action.ALLOW, created=START, note="the printer \u2028 \u202e"),
    Entry(Kind.SENDER, "sender.example", Action.ALLOW, Source.LEARNED, START, START + DAY),
    Entry(Kind.TRAP, "old@here.test", Action.BLOCK, created=START),
]
EVERYTHING: list[Item] = [*TRIPLETS, *ALLOWANCES, *ENTRIES]
DECISION = Logged(START, "defer", "new", "192.0.2.7", "192.0.2.0/24", "a@b.example", "u@here.test", 60, "id1")


def in_order(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=repr)


def numbered(data: bytes) -> Iterator[tuple[int, bytes | None]]:
    return iter(list(enumerate(data.splitlines(keepends=True), start=1)))


def read_archive(data: bytes) -> list[Item]:
    return list(archive.read(numbered(data), "FILE", Loaded()))


# -- archives --


@pytest.fixture
def written(stores: Stores) -> bytes:
    """An archive of everything, decisions too."""

    async def play() -> bytes:
        store = stores.make()
        await store.load(EVERYTHING)
        store.note(DECISION)
        await store.flush()
        file = io.BytesIO()
        writer = archive.Writer(file)
        await writer.write(store, START, decisions=True)
        assert writer.counts == {"triplets": 3, "earners": 2, "entries": 3, "decisions": 1}
        return file.getvalue()

    return stores.run(play())


def test_an_archive_loads_into_another_store_without_loss(stores: Stores, written: bytes) -> None:
    async def play() -> None:
        store = stores.make(data="other")
        into = Loaded()
        for changed in (8, 8):  # the second time nothing is new
            items = archive.read(numbered(written), "FILE", into)
            await load(store, items, Rules(), START, into, dry_run=False)
            assert into.changed == changed
        assert await remembered(store) == in_order(EVERYTHING)
        assert (into.triplets, into.allowances, into.entries, into.expired) == (6, 4, 6, 0)
        assert into.left_out == {"decisions are a log, and stay where they were made": 2}

    stores.run(play())


def test_an_archive_crosses_from_each_kind_of_store_to_the_next(tmp_path: Path) -> None:
    data = b""
    for number, kind in enumerate([*KINDS, next(iter(KINDS))]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with KINDS[kind](folder) as made:

            async def play(made: Stores = made, data: bytes = data) -> bytes:
                store = made.make()
                items = archive.read(numbered(data), "FILE", Loaded()) if data else EVERYTHING
                await load(store, items, Rules(), START, Loaded(), dry_run=False)
                assert await remembered(store) == in_order(EVERYTHING)
                file = io.BytesIO()
                await archive.Writer(file).write(store, START, decisions=False)
                return file.getvalue()

            data = made.run(play())


def test_an_archive_is_ascii_with_an_object_a_line(written: bytes) -> None:
    types = [json.loads(line)["type"] for line in written.decode("ascii").splitlines()]
    assert types == ["header", *["triplet"] * 3, *["earner"] * 2, *["entry"] * 3, "decision", "end"]


def test_what_has_expired_is_not_loaded(stores: Stores) -> None:
    rules = Rules()
    late = START + rules.lifetime + HOUR
    items: list[Item] = [
        TRIPLETS[0],
        TRIPLETS[1],
        ALLOWANCES[0],
        ENTRIES[1],
        ENTRIES[0],
        replace(TRIPLETS[2], record=Record(late - 1)),
    ]

    async def play() -> None:
        stores.clock.now = late
        store = stores.make()
        into = Loaded()
        await load(store, items, rules, late, into, dry_run=False)
        assert into.expired == 4
        assert await remembered(store) == in_order(items[4:])

    stores.run(play())


def test_a_dry_run_changes_nothing(stores: Stores) -> None:
    async def play() -> None:
        store = stores.make()
        into = Loaded()
        await load(store, EVERYTHING, Rules(), START, into, dry_run=True)
        assert (into.triplets, into.allowances, into.entries, into.changed) == (3, 2, 3, 0)
        assert await remembered(store) == []

    stores.run(play())


def test_what_came_before_a_fault_is_loaded_and_counted(stores: Stores) -> None:
    def broken() -> Iterator[Item]:
        for number in range(CHUNK + 7):
            yield Remembered(Triplet("192.0.2.0/24", f"s{number}@x.example", "u@here.test"), Record(START))
        raise TransferError("broken")

    async def play() -> None:
        store = stores.make()
        into = Loaded()
        with pytest.raises(TransferError):
            await load(store, broken(), Rules(), START, into, dry_run=False)
        assert into.triplets == len(await remembered(store)) == CHUNK + 7

    stores.run(play())


HEADER = b'{"type":"header","format":"greylist-proxy","version":1,"created":1}\n'
TRIPLET = b'{"type":"triplet","client":"c","sender":"s","recipient":"r","first_seen":1,"last_used":null}\n'


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "FILE: ends after line 0 without its end mark: it was cut off"),
        (HEADER, "FILE: ends after line 1 without its end mark: it was cut off"),
        (HEADER + TRIPLET, "FILE: ends after line 2 without its end mark: it was cut off"),
        (HEADER + TRIPLET[:40], 'FILE: line 2 is damaged: "": Invalid JSON'),
        (b"\x1f\x8b\x08\0", "FILE: line 1: this is no archive of greylist-proxy"),
        (b'{"type":"header","format":"other","version":1}\n', "FILE: line 1: this is no archive"),
        (b'{"type":"header","format":"greylist-proxy","version":2,"more":1}\n', "is of version 2, this program reads"),
        (HEADER + b"[" * 60_000 + b"\n", "FILE: line 2 is damaged"),
        (HEADER + b'{"type":"triplet\x1b[2J"}\n', "FILE: line 2 is damaged"),
        (HEADER + b'{"type":"other"}\n', "FILE: line 2 is damaged"),
        (HEADER + TRIPLET.replace(b"null", b"NaN"), "FILE: line 2 is damaged"),
        (HEADER + TRIPLET.replace(b"null", b"1e999"), "FILE: line 2 is damaged"),
        (HEADER + TRIPLET.replace(b"null", b"-1"), 'FILE: line 2 is damaged: "triplet.last_used"'),
        (HEADER + TRIPLET.replace(b"null", b'"1"'), 'FILE: line 2 is damaged: "triplet.last_used"'),
        (HEADER + TRIPLET.replace(b'"c"', b'"' + b"c" * 5000 + b'"'), 'FILE: line 2 is damaged: "triplet.client"'),
        (HEADER + TRIPLET.replace(b"}", b',"\\u001b[2J":1}'), r'FILE: line 2 is damaged: "triplet.\u001b[2J"'),
        (
            HEADER + b'{"type":"end","lines":1,"sha256":"0"}\n',
            "FILE: line 2: the file was changed after it was written",
        ),
        (HEADER + HEADER, "FILE: line 2 is damaged"),
    ],
)
def test_a_damaged_archive_is_refused_with_its_line(data: bytes, says: str) -> None:
    with pytest.raises(TransferError) as caught:
        read_archive(data)
    text = str(caught.value)
    assert says in text
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize(
    ("field", "value"), [("kind", "client"), ("value", "0.0.0.0/0"), ("value", "not a domain"), ("action", "drop")]
)
def test_an_entry_in_an_archive_is_read_like_one_that_is_typed(field: str, value: str) -> None:
    entry = {
        "type": "entry",
        "kind": "sender" if field != "value" else "client",
        "value": "u@x.example",
        "action": "allow",
        "source": "operator",
        "created": 1,
        "expires": None,
        "note": "",
        field: value,
    }
    with pytest.raises(TransferError, match="line 2"):
        read_archive(HEADER + json.dumps(entry).encode() + b"\n")


def test_every_way_of_cutting_an_archive_is_noticed(written: bytes) -> None:
    for end in range(len(written) - 1):
        with pytest.raises(TransferError):
            read_archive(written[:end])
    # Only the last line's end is worth nothing.
    assert read_archive(written[:-1]) == read_archive(written)


@given(st.data())
def test_no_change_of_an_archive_goes_unnoticed(data: st.DataObject) -> None:
    whole = HEADER + TRIPLET * 3
    digest = hashlib.sha256(whole).hexdigest()
    whole += json.dumps({"type": "end", "lines": 4, "sha256": digest}).encode() + b"\n"
    place = data.draw(st.integers(0, len(whole) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[place]))
    changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
    try:
        items = read_archive(changed)
    except TransferError:
        return
    # A digest in capitals, another blank: the same archive written in another way.
    assert items == read_archive(whole)


def test_nothing_may_follow_the_end_mark(written: bytes) -> None:
    with pytest.raises(TransferError, match="something follows the end mark"):
        read_archive(written + TRIPLET)


# -- files --


def test_files_are_read_line_by_line_packed_or_not(tmp_path: Path) -> None:
    plain, packed = tmp_path / "log", tmp_path / "log.gz"
    content = b"first\r\n" + b"x" * 30 + b"\nlast"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    for path in (plain, packed):
        with opened(str(path), 20) as lines:
            assert list(lines) == [(1, b"first\r\n"), (2, None), (3, b"last")]


def test_progress_comes_to_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"line\n" * 5000)
    told: list[int] = []
    with opened(str(path), 100, told.append) as lines:
        assert len(list(lines)) == 5000
    assert 0 < sum(told) <= 25_000
    assert len(told) == 5


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none", None, "can't be read: No such file"),
        ("cut.gz", gzip.compress(bytes(range(256)) * 2, mtime=0)[:200], "ends too early"),
        ("plain.gz", b"not packed", "can't be unpacked"),
        ("bad.gz", gzip.compress(b"x" * 500, mtime=0)[:10] + b"\xff" * 50, "can't be unpacked"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TransferError, match=says) as caught, opened(str(path), 100) as lines:
        list(lines)
    assert str(path) in str(caught.value)
