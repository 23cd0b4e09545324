# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line in the test's own process, on a real store: `line("triplets", "list")` gives status and output."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from greylist_proxy.cli import main
from greylist_proxy.config import load
from greylist_proxy.log import Log
from greylist_proxy.policy import Earned, Record, Triplet
from greylist_proxy.store import Allowance, Entry, Item, Logged, Remembered
from greylist_proxy.store.factory import make_store

from .valkey_servers import single

CONFIG = """
[backend]
hosts = ["127.0.0.1:2525"]
domains = ["example.org"]
[store]
url = "{url}"
timeout = "20s"
{store}
"""


class Result(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The output's lines, each of which is to be an object of JSON in ASCII."""
        assert self.out.isascii()
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a table's rows; no cell of it may hold two blanks."""
        return [[cell.strip() for cell in line.split("  ") if cell] for line in self.out.splitlines()[1:]]


class CommandLine:
    """Commands with a configuration, and a way to put things into its store."""

    def __init__(self, config: Path) -> None:
        self.config = config

    @classmethod
    def on(cls, folder: Path, url: str, store: str = "") -> CommandLine:
        """Make one with a configuration for the store of this address."""
        config = folder / "config.toml"
        config.write_text(CONFIG.format(url=url, store=store))
        return cls(config)

    def __call__(self, *arguments: str) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([*arguments, "--config", str(self.config)])
            except SystemExit as end:  # argparse's word on wrong usage
                status = int(end.code or 0)
        return Result(status, out.getvalue(), err.getvalue())

    def fill(self, items: Sequence[Item] = (), decisions: Sequence[Logged] = ()) -> None:
        """Put things into the store."""

        async def put() -> None:
            config = load(self.config)
            store = make_store(config.store, config.greylist.rules, Log(io.StringIO()))
            await store.load([item for item in items if not isinstance(item, Entry)])
            for item in items:
                if isinstance(item, Entry):
                    await store.put_entry(item)
            for decision in decisions:
                store.note(decision)
            await store.flush()
            await store.close()

        asyncio.run(put())


@pytest.fixture(params=["sqlite", "valkey"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CommandLine]:
    """The command line on each kind of store in turn."""
    if request.param == "sqlite":
        yield CommandLine.on(tmp_path, f"sqlite:///{tmp_path}/greylist.db")
        return
    with single(tmp_path) as server:
        yield CommandLine.on(tmp_path, f"valkey://{server.endpoint}/0")


@pytest.fixture
def sqlite_line(tmp_path: Path) -> CommandLine:
    """The command line on a SQLite file that is not there yet."""
    return CommandLine.on(tmp_path, f"sqlite:///{tmp_path}/greylist.db")


@pytest.fixture
def vienna(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is Vienna's."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Vienna")
        time.tzset()
        yield
    time.tzset()


def triplet(
    client: str = "192.0.2.0/24",
    sender: str = "a@example.net",
    recipient: str = "u@example.org",
    *,
    age: float = 30,
    used: float | None = None,
) -> Remembered:
    """A triplet first seen `age` seconds ago, last used `used` seconds ago."""
    now = time.time()
    return Remembered(Triplet(client, sender, recipient), Record(now - age, None if used is None else now - used))


def allowance(earner: str, passes: int, *, used: float = 60) -> Allowance:
    """An earner whose last delivery was `used` seconds ago."""
    now = time.time()
    return Allowance(earner, Earned(passes, now - used, now - used))


def decided(age: float = 10, verdict: str = "defer", reason: str = "new", **fields: Any) -> Logged:
    """A decision of `age` seconds ago."""
    values: dict[str, Any] = {
        "client": "192.0.2.7",
        "network": "192.0.2.0/24",
        "sender": "a@example.net",
        "recipient": "u@example.org",
        "seconds_left": 0,
        "id": "0A1B2C3D4E5F.1",
    }
    return Logged(time=time.time() - age, verdict=verdict, reason=reason, **values | fields)
