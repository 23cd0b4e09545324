# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands export, import and learn, as they are typed."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from greylist_proxy import cli
from greylist_proxy.log import Log
from greylist_proxy.policy import Earned, Record, Rules, Triplet
from greylist_proxy.store import Action, Allowance, Entry, Item, Kind, Limits, Remembered, Source
from greylist_proxy.store.sqlite import SqliteStore

from .greylisters import remembered
from .test_learn import FROM, SENT, TO, USER, maillog, tracking
from .test_transfer_peers import SCHEMA, dump

DAY = 86400.0
NOW = round(time.time())
ITEMS: list[Item] = [
    Remembered(Triplet("192.0.2.0/24", "a@sender.example", "u@here.test"), Record(NOW - 60)),
    Remembered(Triplet("192.0.2.0/24", "b@sender.example", "u@here.test"), Record(NOW - DAY, NOW - 60)),
    Allowance("192.0.2.7", Earned(5, NOW - 60, NOW - 60)),
    Entry(Kind.CLIENT, "192.0.2.7", Action.ALLOW, created=NOW, note="the printer"),
]

Run = Callable[..., tuple[int, str, str]]


class Site:
    """A configuration with its store."""

    def __init__(self, folder: Path) -> None:
        self._database = folder / "greylist.db"
        self.config = folder / "config.toml"
        folder.mkdir()
        self.config.write_text(
            '[smtp]\nhostname = "mx.here.test"\n'
            '[backend]\nhosts = ["127.0.0.1:2525"]\ndomains = ["here.test"]\n'
            f'[store]\nurl = "sqlite:///{self._database}"\n'
        )

    def load(self, *items: Item) -> None:
        async def play() -> None:
            store = self._store()
            await store.load(items)
            await store.close()

        asyncio.run(play())

    def items(self) -> list[Item]:
        async def play() -> list[Item]:
            store = self._store()
            try:
                return await remembered(store)
            finally:
                await store.close()

        return asyncio.run(play())

    def _store(self) -> SqliteStore:
        return SqliteStore(self._database, Rules(), Limits(timeout=20), Log(io.StringIO()))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], site: Site) -> Run:
    """Run a command on the site, and give its status and what it said."""

    def run_it(*arguments: object, on: Site = site) -> tuple[int, str, str]:
        status = cli.main([*map(str, arguments), "--config", str(on.config)])
        return status, *capsys.readouterr()

    return run_it


@pytest.mark.parametrize("name", ["greylist.jsonl", "greylist.jsonl.gz"])
def test_an_export_is_imported_elsewhere(run: Run, site: Site, tmp_path: Path, name: str) -> None:
    site.load(*ITEMS)
    file = tmp_path / name
    file.write_text("an older one")
    status, output, said = run("export", file)
    assert (status, output, said) == (0, "", "2 triplets, 1 earners, 1 entries\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (file.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")
    other = Site(tmp_path / "other")
    status, output, _said = run("import", "archive", file, "--json", on=other)
    assert status == 0
    assert json.loads(output) == {
        "dry_run": False,
        "triplets": 2,
        "earners": 1,
        "entries": 1,
        "changed": 4,
        "expired": 0,
        "left_out": {},
    }
    assert other.items() == site.items() == sorted(ITEMS, key=repr)


def test_an_export_goes_through_pipes(
    site: Site, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.load(*ITEMS)
    assert cli.main(["export", "--config", str(site.config)]) == 0
    written = capsysbinary.readouterr().out
    other = Site(tmp_path / "other")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(written)))
    assert cli.main(["import", "archive", "-", "--config", str(other.config)]) == 0
    assert other.items() == sorted(ITEMS, key=repr)


def test_an_export_that_fails_leaves_what_was_there(run: Run, site: Site, tmp_path: Path) -> None:
    site.load(*ITEMS)
    folder = tmp_path / "folder"
    folder.mkdir()
    status, _output, said = run("export", folder)
    assert status == 1
    assert said == f"greylist-proxy: {folder}: can't be written: Is a directory\n"
    assert sorted(tmp_path.iterdir()) == [folder, tmp_path / "site"]
    status, _output, said = run("export", tmp_path / "none" / "file")
    assert (status, said) == (1, f"greylist-proxy: {tmp_path}/none/file: can't be written: No such file or directory\n")


def test_an_export_goes_into_a_fifo_that_stays_one(run: Run, site: Site, tmp_path: Path) -> None:
    site.load(*ITEMS)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # Open for both, it waits for nobody; so little fits into it.
    descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert run("export", fifo)[0] == 0
        lines = os.read(descriptor, 1 << 16).splitlines()
    finally:
        os.close(descriptor)
    assert len(lines) == len(ITEMS) + 2  # a head and an end mark
    assert stat.S_ISFIFO(fifo.lstat().st_mode)
    assert sorted(tmp_path.iterdir()) == [fifo, tmp_path / "site"]


@pytest.mark.parametrize("is_there", [True, False])
def test_an_export_goes_to_where_a_symbolic_link_points(run: Run, site: Site, tmp_path: Path, is_there: bool) -> None:
    site.load(*ITEMS)
    target, link = tmp_path / "target.jsonl", tmp_path / "link"
    if is_there:
        target.write_text("an older one")
    link.symlink_to(target.name)
    assert run("export", link)[0] == 0
    assert link.is_symlink()
    assert len(target.read_text().splitlines()) == len(ITEMS) + 2


def test_an_archive_that_was_cut_off_says_how_much_is_loaded(run: Run, site: Site, tmp_path: Path) -> None:
    site.load(*ITEMS)
    file = tmp_path / "greylist.jsonl"
    run("export", file)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]))
    other = Site(tmp_path / "other")
    status, output, said = run("import", "archive", file, on=other)
    assert status == 1
    assert f"{file}: ends after line 3 without its end mark" in said
    assert "what came before that is loaded" in said
    assert output.splitlines()[0].split() == ["triplets", "2"]
    assert len(other.items()) == 2


def test_a_dry_run_of_an_import_changes_nothing(run: Run, site: Site, tmp_path: Path) -> None:
    site.load(*ITEMS)
    file = tmp_path / "greylist.jsonl"
    run("export", file)
    other = Site(tmp_path / "other")
    status, output, said = run("import", "archive", file, "--dry-run", on=other)
    assert (status, said) == (0, "nothing is loaded: this was a dry run\n")
    assert ["triplets", "2"] in [line.split() for line in output.splitlines()]
    assert list(other.config.parent.iterdir()) == [other.config]


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    status, _output, said = run("import", "archive", tmp_path / "none")
    assert (status, said) == (1, f"greylist-proxy: {tmp_path}/none: can't be read: No such file or directory\n")


def test_postgreys_dump_is_imported_with_postgreys_delay(run: Run, site: Site, tmp_path: Path) -> None:
    file = tmp_path / "postgrey.txt"
    pairs = [
        (b"192.0.2.0/a@sender.example/u@here.test", b"%d,%d" % (NOW - 1000, NOW - 940)),
        (b"192.0.2.0/b@sender.example/u@here.test", b"%d,%d" % (NOW - 1000, NOW - 941)),
        (b"192.0.2.0/old@sender.example/u@here.test", b"1,2"),
        (b"192.0.2.7", b"5,%d" % NOW),
        (b"what is this", b"1,2"),
    ]
    file.write_bytes(dump(*pairs))
    status, output, said = run("import", "postgrey", file, "--delay", "1m", "--json")
    assert (status, said) == (0, "")
    counts = json.loads(output)
    assert (counts["triplets"], counts["earners"], counts["expired"]) == (2, 1, 1)
    assert counts["left_out"] == {"not postgrey's key": 1}
    assert site.items() == [
        Allowance("192.0.2.7", Earned(5, NOW, NOW)),
        Remembered(Triplet("192.0.2.0/24", "a@sender.example", "u@here.test"), Record(NOW - 1000, NOW - 940)),
        Remembered(Triplet("192.0.2.0/24", "b@sender.example", "u@here.test"), Record(NOW - 1000)),
    ]


@pytest.mark.parametrize("delay", ["", "soon", "-1", "1y", "9" * 400, "9" * 5000])
def test_a_delay_that_is_none(run: Run, delay: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("import", "postgrey", "/nowhere", f"--delay={delay}")
    assert caught.value.code == 2
    assert "allowed is a duration" in capsys.readouterr().err


def test_sqlgreys_file_is_imported(run: Run, site: Site, tmp_path: Path) -> None:
    file = tmp_path / "sqlgrey.db"
    with sqlite3.connect(file) as database:
        database.executescript(SCHEMA)
        database.execute("INSERT INTO connect VALUES ('a', 'sender.example', '192.0.2', 'u@here.test', ?)", [NOW - 60])
        database.execute("INSERT INTO optout_email VALUES ('u@here.test')")
    database.close()
    status, output, said = run("import", "sqlgrey", file, "--optout", "--json")
    assert (status, said) == (0, "")
    assert (json.loads(output)["triplets"], json.loads(output)["entries"]) == (1, 1)
    assert ITEMS[0] in site.items()


def test_postgreys_lists_become_entries(run: Run, site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "postgrey"
    folder.mkdir()
    (folder / "whitelist_clients").write_text("# a comment\npartner.example\n192.0.2\n/^mx[0-9]+[.]/\n0.0.0.0/0\n")
    (folder / "whitelist_recipients.local").write_text("helpdesk@\nHere.test\n")
    single = tmp_path / "more_recipients"
    single.write_text("otp@here.test\n")
    status, output, said = run("import", "postgrey-lists", folder, single)
    assert status == 0
    assert ["entries", "5"] in [line.split() for line in output.splitlines()]
    assert f"{folder}/whitelist_clients:4: " in said
    assert "no entry can be a regular expression; name the file in [allow] instead" in said
    assert f"{folder}/whitelist_clients:5: " in said
    found = {(item.kind, item.value, item.note) for item in site.items() if isinstance(item, Entry)}
    assert found == {
        (Kind.CLIENT, "partner.example", "from whitelist_clients:2"),
        (Kind.CLIENT, "192.0.2.0/24", "from whitelist_clients:3"),
        (Kind.RECIPIENT, "helpdesk@", "from whitelist_recipients.local:1"),
        (Kind.RECIPIENT, "here.test", "from whitelist_recipients.local:2"),
        (Kind.RECIPIENT, "otp@here.test", "from more_recipients:1"),
    }
    status, _output, said = run("import", "postgrey-lists", tmp_path / "none")
    assert (status, said) == (1, f"greylist-proxy: {tmp_path}/none: can't be read: No such file or directory\n")


def test_a_folder_without_lists_is_told(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "postgrey"
    folder.mkdir()
    (folder / "postgrey.db").touch()
    assert run("import", "postgrey-lists", folder) == (
        1,
        "",
        f"greylist-proxy: {folder}: no file in this folder has a name that begins with whitelist_clients or "
        "whitelist_recipients\n",
    )


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Let nobody look into the folder, not even root, who becomes somebody else for that time."""
    folder.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.mark.parametrize("kind", ["postgrey", "postgrey-lists"])
def test_a_folder_that_cannot_be_read_is_told(run: Run, kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # where another user can reach what is in it, unlike pytest's
        site, folder = Site(Path(name) / "site"), Path(name) / "postgrey"
        for path in (Path(name), site.config.parent):
            path.chmod(0o755)
        folder.mkdir()
        (folder / "whitelist_clients").touch()
        with without_rights(folder):
            status, _output, said = run("import", kind, folder, "--dry-run", on=site)
    assert status == 1
    assert said.startswith(f"greylist-proxy: {folder}: can't be read: Permission denied\n")


# -- learn --


def entry(value: str, **fields: Any) -> Entry:
    return Entry(Kind.SENDER, value, **{"action": Action.ALLOW, "source": Source.LEARNED, "created": NOW, **fields})


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    """Mail to three domains, by Exchange and by Postfix."""
    exchange, postfix = tmp_path / "MSGTRK20240517-1.LOG", tmp_path / "mail.log.gz"
    exchange.write_bytes(tracking(*({**SENT, "recipient-address": f"x@{name}.example"} for name in ("one", "two"))))
    postfix.write_bytes(gzip.compress(maillog(("smtpd", USER), ("qmgr", FROM), ("smtp", TO))))
    return [exchange, postfix]


def test_logs_of_both_kinds_are_learned_from(run: Run, site: Site, logs: list[Path]) -> None:
    status, output, said = run("learn", *logs, "--json", "--expires", "30d")
    assert (status, said) == (0, "")
    counts = json.loads(output)
    assert counts["lines"] == 5 + 2 + 3
    assert (counts["messages"], counts["recipients"], counts["new"], counts["ignored"]) == (3, 3, 3, {})
    found = [item for item in site.items() if isinstance(item, Entry)]
    assert [(item.value, item.source) for item in found] == [
        ("one.example", Source.LEARNED),
        ("partner.example", Source.LEARNED),
        ("two.example", Source.LEARNED),
    ]
    assert all(item.expires and 29 * DAY < item.expires - item.created <= 30 * DAY for item in found)


def test_learning_again_puts_the_expiry_off_and_leaves_an_operators_entry(
    run: Run, site: Site, logs: list[Path]
) -> None:
    kept = [
        entry("one.example", source=Source.OPERATOR, action=Action.BLOCK),
        entry("partner.example", expires=NOW + 300 * DAY),
    ]
    site.load(*kept, entry("two.example", created=NOW - DAY, expires=NOW + DAY))
    status, output, _said = run("learn", *logs, "--json")
    assert status == 0
    counts = json.loads(output)
    assert [counts[name] for name in ("new", "refreshed", "unchanged", "operators")] == [0, 1, 1, 1]
    found = {item.value: item for item in site.items() if isinstance(item, Entry)}
    assert [found["one.example"], found["partner.example"]] == kept
    refreshed = found["two.example"]
    assert refreshed.created == NOW - DAY
    assert refreshed.expires is not None
    assert refreshed.expires > NOW + 89 * DAY


def test_a_dry_run_of_learning_changes_nothing(run: Run, site: Site, logs: list[Path]) -> None:
    status, output, said = run("learn", *logs, "--dry-run")
    assert (status, said) == (0, "nothing is changed: this was a dry run\n")
    assert ["new", "entries", "3"] in [line.split() for line in output.splitlines()]
    assert list(site.config.parent.iterdir()) == [site.config]


def test_a_log_that_cannot_be_read_does_not_spoil_the_others(run: Run, site: Site, logs: list[Path]) -> None:
    cut = logs[1].with_name("cut.gz")
    cut.write_bytes(logs[1].read_bytes()[:-20])
    status, _output, said = run("learn", *logs, cut, logs[0].with_name("none"))
    assert status == 1
    assert f"{cut}: ends too early to be unpacked" in said
    assert "none: can't be read: No such file or directory" in said
    assert len(site.items()) == 3


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--minimum=0", "allowed is a whole number from 1 to 1000"),
        ("--networks=10.1.2.3/8", "allowed is an address or a network"),
        ("--freemail=not a domain", "allowed is a domain"),
        ("--expires=yesterday", "allowed is a duration"),
        ("--format=sendmail", "invalid choice"),
    ],
)
def test_options_of_learn_are_checked(run: Run, capsys: pytest.CaptureFixture[str], option: str, says: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run("learn", "-", option)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_stdin_is_read_once(run: Run) -> None:
    assert run("learn", "-", "-")[::2] == (2, "greylist-proxy: stdin (-) can be read once\n")
