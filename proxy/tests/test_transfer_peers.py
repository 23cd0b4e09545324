# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What postgrey and sqlgrey leave behind, from tables, and from the real programs."""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from greylist_proxy.policy import Earned, Record, Rules, Triplet
from greylist_proxy.store import Action, Allowance, Entry, Item, Kind, Remembered
from greylist_proxy.transfer import Loaded, TransferError, load, postgrey, sqlgrey

from .greylisters import needs_daemons, remembered, running
from .peers import free_port
from .stores import START, Stores

# -- postgrey --

SETTINGS = postgrey.Settings()


def dump(*pairs: tuple[bytes, bytes], printable: bool = True) -> bytes:
    """What db_dump writes of these pairs."""

    def line(part: bytes) -> bytes:
        if not printable:
            return b" " + part.hex().encode() + b"\n"
        shown = (
            b"\\\\" if byte == 0x5C else bytes([byte]) if 0x20 <= byte < 0x7F else b"\\%02x" % byte for byte in part
        )
        return b" " + b"".join(shown) + b"\n"

    head = b"VERSION=3\nformat=%s\ntype=btree\nHEADER=END\n" % (b"print" if printable else b"bytevalue")
    return head + b"".join(line(part) for pair in pairs for part in pair) + b"DATA=END\n"


def from_postgrey(tmp_path: Path, content: bytes, settings: postgrey.Settings = SETTINGS) -> tuple[list[Item], Loaded]:
    path = tmp_path / "postgrey.txt"
    path.write_bytes(content)
    into = Loaded()
    return list(postgrey.read(path, settings, into)), into


@pytest.mark.parametrize("printable", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "triplet", "record"),
    [
        # last - first is what tells a known one: postgrey's delay is 300 seconds here
        (b"192.0.2.0/a@x.example/u@here.test", b"100,399", ("192.0.2.0/24", "a@x.example", "u@here.test"), (100, None)),
        (b"192.0.2.0/a@x.example/u@here.test", b"100,400", ("192.0.2.0/24", "a@x.example", "u@here.test"), (100, 400)),
        # what follows is the client's name, in old versions
        (b"192.0.2.0/a@x.example/u@here.test", b"1,1,mx", ("192.0.2.0/24", "a@x.example", "u@here.test"), (1, None)),
        (b"192.0.2.0//u@here.test", b"1,1", ("192.0.2.0/24", "", "u@here.test"), (1, None)),
        (
            b"192.0.2.0/a/b@x.example/c/d@here.test",
            b"1,1",
            ("192.0.2.0/24", "a/b@x.example", "c/d@here.test"),
            (1, None),
        ),
        (b"192.0.2.0//a@x.example/postmaster", b"1,1", ("192.0.2.0/24", "/a@x.example", "postmaster"), (1, None)),
        # --lookup-by-host
        (b"192.0.2.7/32/a@x.example/u@here.test", b"1,1", ("192.0.2.0/24", "a@x.example", "u@here.test"), (1, None)),
        (b"2001:db8:0:0:0:0:0:0/a@x.example/u@d.test", b"1,1", ("2001:db8::/64", "a@x.example", "u@d.test"), (1, None)),
        (
            b"192.0.2.0/a\\b\x01\xff@x.example/u@d.test",
            b"1,1",
            ("192.0.2.0/24", "a\\b\x01\xff@x.example", "u@d.test"),
            (1, None),
        ),
        (
            b"192.0.2.0/n-12345@x.example/u@here.test",
            b"1,1",
            ("192.0.2.0/24", "n-#@x.example", "u@here.test"),
            (1, None),
        ),
    ],
)
def test_a_triplet_of_postgreys(
    tmp_path: Path,
    key: bytes,
    value: bytes,
    triplet: tuple[str, str, str],
    record: tuple[float, float | None],
    printable: bool,
) -> None:
    items, into = from_postgrey(tmp_path, dump((key, value), printable=printable))
    assert items == [Remembered(Triplet(*triplet), Record(*record))]
    assert not into.left_out


@pytest.mark.parametrize(("key", "earner"), [(b"192.0.2.7", "192.0.2.7"), (b"2001:DB8:0:0:0:0:0:1", "2001:db8::1")])
def test_a_client_of_postgreys(tmp_path: Path, key: bytes, earner: str) -> None:
    items, _into = from_postgrey(tmp_path, dump((key, b"7,1000")))
    assert items == [Allowance(earner, Earned(7, 1000, 1000))]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"192.0.2.0/a@x.example/u@here.test", b"100", "not postgrey's value"),
        (b"192.0.2.0/a@x.example/u@here.test", b"100,", "not postgrey's value"),
        (b"192.0.2.0/a@x.example/u@here.test", b"1" * 400 + b",2", "not postgrey's value"),
        (b"192.0.2.0.0/a@x.example/u@here.test", b"1,2", "not postgrey's key"),
        (b"999.0.2.0/a@x.example/u@here.test", b"1,2", "not postgrey's key"),
        (b"192.0.2.0/a@x.example", b"1,2", "not postgrey's key"),
        (b"something else", b"1,2", "not postgrey's key"),
        (b"1.2.3", b"1,2", "not postgrey's key"),
    ],
)
def test_what_is_not_postgreys_is_counted(tmp_path: Path, key: bytes, value: bytes, reason: str) -> None:
    items, into = from_postgrey(tmp_path, dump((key, value)))
    assert items == []
    assert into.left_out == {reason: 1}


def test_a_network_of_postgreys_is_not_made_smaller(tmp_path: Path) -> None:
    pairs = [(b"192.0.0.0/a@x.example/u@here.test", b"1,2"), (b"192.0.2.7/32/a@x.example/u@here.test", b"1,2")]
    items, into = from_postgrey(tmp_path, dump(*pairs), postgrey.Settings(ipv4_cidr=16))
    assert [item.triplet.client for item in items if isinstance(item, Remembered)] == ["192.0.2.0/24"]
    assert into.left_out == {"postgrey's networks are larger than ours": 1}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (dump((b"0123456789abcdef0123456789abcdef01234567", b"1,2")), "--privacy"),
        (b"something else\n", "neither a Berkeley DB file nor the text of db_dump"),
        (b"", "the dump ends without DATA=END"),
        (dump((b"192.0.2.7", b"1,2")).replace(b"DATA=END\n", b""), "the dump ends without DATA=END"),
        (dump((b"192.0.2.7", b"1,2")).replace(b" 1,2\n", b""), "line 6 of the dump: a key without a value"),
        (dump((b"192.0.2.7", b"1,2")).replace(b" 1,2", b"1,2"), "line 6 of the dump begins without a blank"),
        (dump((b"x", b"y"), printable=False).replace(b"78", b"7g"), "line 5 of the dump is not hexadecimal"),
        (dump((b"x" * 20_000, b"y")), "line 5 of the dump is longer than"),
        (dump().replace(b"btree", b"hash"), "line 3 of the dump: postgrey's databases are B-trees, this is type=hash"),
    ],
)
def test_a_dump_that_is_none_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(TransferError, match=says):
        from_postgrey(tmp_path, content)


def test_a_folder_without_postgreys_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"neither postgrey\.db nor postgrey_clients\.db"):
        postgrey.files(tmp_path)


def test_a_running_postgrey_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "postgrey.db").write_bytes(b"")
    with (tmp_path / "postgrey.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TransferError, match="stop it first"):
            postgrey.files(tmp_path)
    assert postgrey.files(tmp_path) == [tmp_path / "postgrey.db"]


def test_a_real_postgreys_files(stores: Stores, daemon_folder: Path) -> None:
    needs_daemons("postgrey", "db5.3_dump")
    port = free_port()
    started = time.time()
    command = [
        "postgrey",
        f"--inet=127.0.0.1:{port}",
        f"--dbdir={daemon_folder}",
        "--delay=1",
        "--auto-whitelist-clients=1",
    ]
    shutil.chown(daemon_folder, "postgrey")
    with running(command, port) as server:
        assert server.ask("192.0.2.7", "Joe@sender.example", "u@here.test") == "DEFER_IF_PERMIT"
        assert server.ask("192.0.2.8", "", "u@here.test") == "DEFER_IF_PERMIT"
        assert server.ask("2001:db8::1", "a/b@sender.example", "c/d@here.test") == "DEFER_IF_PERMIT"
        server.retry_until_passed("192.0.2.7", "Joe@sender.example", "u@here.test")
        with pytest.raises(TransferError, match="stop it first"):
            postgrey.files(daemon_folder)
    into = Loaded()

    async def play() -> list[Item]:
        stores.clock.now = now = time.time()
        store = stores.make()
        for path in postgrey.files(daemon_folder):
            items = postgrey.read(path, postgrey.Settings(delay=1), into)
            await load(store, items, Rules(), now, into, dry_run=False)
        return await remembered(store)

    found = stores.run(play())
    assert (into.triplets, into.allowances, into.expired) == (3, 1, 0)
    assert not into.left_out
    triplets = {item.triplet: item.record for item in found if isinstance(item, Remembered)}
    assert set(triplets) == {
        Triplet("192.0.2.0/24", "joe@sender.example", "u@here.test"),
        Triplet("192.0.2.0/24", "", "u@here.test"),
        Triplet("2001:db8::/64", "a/b@sender.example", "c/d@here.test"),
    }
    assert [triplet.sender for triplet, record in triplets.items() if record.last_used] == ["joe@sender.example"]
    assert all(started - 1 <= record.first_seen <= time.time() for record in triplets.values())
    (allowance,) = [item for item in found if isinstance(item, Allowance)]
    assert (allowance.earner, allowance.earned.passes) == ("192.0.2.7", 1)


def test_a_damaged_database_is_told_in_one_line(tmp_path: Path) -> None:
    needs_daemons("db5.3_dump")
    path = tmp_path / "postgrey.db"
    path.write_bytes(bytes(12) + b"\x62\x31\x05\x00" + bytes(500))
    with pytest.raises(TransferError, match="db_dump can't read it") as caught:
        list(postgrey.read(path, SETTINGS, Loaded()))
    assert "\n" not in str(caught.value)


def test_without_db_dump_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "postgrey.db"
    path.write_bytes(bytes(12) + b"\x62\x31\x05\x00" + bytes(500))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TransferError, match="apt install db5.3-util"):
        list(postgrey.read(path, SETTINGS, Loaded()))


# -- sqlgrey --

SCHEMA = """
    CREATE TABLE from_awl (sender_name varchar(64) NOT NULL, sender_domain varchar(255) NOT NULL,
        src varchar(39) NOT NULL, first_seen timestamp NOT NULL, last_seen timestamp NOT NULL);
    CREATE TABLE domain_awl (sender_domain varchar(255) NOT NULL, src varchar(39) NOT NULL,
        first_seen timestamp NOT NULL, last_seen timestamp NOT NULL);
    CREATE TABLE connect (sender_name varchar(64) NOT NULL, sender_domain varchar(255) NOT NULL,
        src varchar(39) NOT NULL, rcpt varchar(255) NOT NULL, first_seen timestamp NOT NULL);
    CREATE TABLE optin_domain (domain varchar(255) NOT NULL);
    CREATE TABLE optin_email (email varchar(255) NOT NULL);
    CREATE TABLE optout_domain (domain varchar(255) NOT NULL);
    CREATE TABLE optout_email (email varchar(255) NOT NULL);
"""


def from_sqlgrey(
    tmp_path: Path, rows: dict[str, list[tuple[object, ...]]], *, optout: bool = False
) -> tuple[list[Item], Loaded]:
    path = tmp_path / "a?b#c%20.db"
    with sqlite3.connect(path) as database:
        database.executescript(SCHEMA)
        for table, values in rows.items():
            marks = ",".join("?" * len(values[0]))
            database.executemany(f"INSERT INTO {table} VALUES ({marks})", values)  # noqa: S608
    database.close()
    into = Loaded()
    return list(sqlgrey.read(path, 24, 64, START, into, optout=optout)), into


@pytest.mark.parametrize(
    ("name", "domain", "src", "client", "sender"),
    [
        ("a", "x.example", "192.0.2", "192.0.2.0/24", "a@x.example"),
        ("a", "x.example", "192.0.2.7", "192.0.2.0/24", "a@x.example"),
        ("a", "x.example", "2001:0db8:0000:0001", "2001:db8:0:1::/64", "a@x.example"),
        ("a", "x.example", "2001:0db8:0000:0001:0000:0000:0000:0007", "2001:db8:0:1::/64", "a@x.example"),
        ("-undef-", "-undef-", "192.0.2", "192.0.2.0/24", ""),
        ("n-12345", "X.example", "192.0.2", "192.0.2.0/24", "n-#@x.example"),
    ],
)
def test_what_waits_at_sqlgrey(tmp_path: Path, name: str, domain: str, src: str, client: str, sender: str) -> None:
    items, into = from_sqlgrey(tmp_path, {"connect": [(name, domain, src, "u@here.test", 1000)]})
    assert items == [Remembered(Triplet(client, sender, "u@here.test"), Record(1000))]
    assert not +into.left_out


def test_what_passed_at_sqlgrey_counts_for_the_address_once_an_hour(tmp_path: Path) -> None:
    rows: dict[str, list[tuple[object, ...]]] = {
        "from_awl": [
            ("a", "x.example", "192.0.2.7", 0, 500),
            ("b", "x.example", "192.0.2.7", 1800, 9000),  # within the hour
            ("c", "x.example", "192.0.2.7", 3600, 3700),
            ("c", "x.example", "198.51.100", 1, 2),
        ],
        "domain_awl": [("y.example", "192.0.2.7", 9000, 9000), ("y.example", "2001:db8::1", 5, 6)],
    }
    items, into = from_sqlgrey(tmp_path, rows)
    assert items == [
        Allowance("192.0.2.7", Earned(3, 9000, 9000)),
        Allowance("2001:db8::1", Earned(1, 5, 6)),
    ]
    assert +into.left_out == {"senders that passed from a network, not from one address": 1}


def test_sqlgreys_recipients_are_taken_where_asked_for(tmp_path: Path) -> None:
    rows: dict[str, list[tuple[object, ...]]] = {
        "optout_email": [("u@Here.test",), ("no address",)],
        "optout_domain": [("here.test",)],
        "optin_email": [("v@here.test",)],
    }
    items, into = from_sqlgrey(tmp_path, rows, optout=True)
    assert [(item.kind, item.value, item.action) for item in items if isinstance(item, Entry)] == [
        (Kind.RECIPIENT, "u@here.test", Action.ALLOW),
        (Kind.RECIPIENT, "here.test", Action.ALLOW),
    ]
    assert into.left_out == {"not a recipient": 1, "optin_* has no counterpart": 1}
    (tmp_path / "a?b#c%20.db").unlink()
    assert from_sqlgrey(tmp_path, rows)[0] == []


def test_hostile_rows_of_sqlgreys_are_counted(tmp_path: Path) -> None:
    rows: dict[str, list[tuple[object, ...]]] = {
        "connect": [
            ("a", "x.example", "192.0.2", "u@here.test", "yesterday"),
            ("a", "x.example", b"\xff", "u@here.test", 1),
            ("a" * 600, "x.example", "192.0.2", "u@here.test", 1),
            ("a", "x.example", "999.0.2", "u@here.test", 1),
        ],
        "from_awl": [("a", "x.example", "192.0.2.7", 1, "now")],
    }
    items, into = from_sqlgrey(tmp_path, rows)
    assert items == []
    assert +into.left_out == {"not sqlgrey's row": 4, "not sqlgrey's src": 1}


@pytest.mark.parametrize("content", [None, b"", b"something else" * 100])
def test_a_file_that_is_not_sqlgreys_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "sqlgrey.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TransferError, match="not an SQLite file of sqlgrey"):
        list(sqlgrey.read(path, 24, 64, START, Loaded()))
    assert path.exists() == (content is not None)


def test_a_real_sqlgreys_file(stores: Stores, daemon_folder: Path) -> None:
    needs_daemons("sqlgrey")
    port = free_port()
    path = daemon_folder / "sqlgrey.db"
    (daemon_folder / "sqlgrey.conf").write_text(
        f"conf_dir = /etc/sqlgrey\nuser = sqlgrey\ngroup = sqlgrey\npidfile = {daemon_folder}/pid\n"
        f"inet = 127.0.0.1:{port}\ndb_type = SQLite\ndb_name = {path}\nreconnect_delay = 0\ngreymethod = full\n"
        "clean_method = sync\n"
    )
    with running(["sqlgrey", "-f", str(daemon_folder / "sqlgrey.conf")], port) as server:
        assert server.ask("192.0.2.7", "Joe@sender.example", "u@here.test") == "DEFER_IF_PERMIT"
        assert server.ask("192.0.2.8", "", "u@here.test") == "DEFER_IF_PERMIT"
        server.retry_until_passed("192.0.2.7", "Joe@sender.example", "u@here.test")
    into = Loaded()

    async def play() -> list[Item]:
        stores.clock.now = now = time.time()
        store = stores.make()
        await load(store, sqlgrey.read(path, 24, 64, now, into), Rules(), now, into, dry_run=False)
        return await remembered(store)

    found = stores.run(play())
    assert [item.triplet for item in found if isinstance(item, Remembered)] == [
        Triplet("192.0.2.0/24", "", "u@here.test")
    ]
    assert [(item.earner, item.earned.passes) for item in found if isinstance(item, Allowance)] == [("192.0.2.7", 1)]
    assert not +into.left_out
