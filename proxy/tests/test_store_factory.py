# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store that a configuration names, and what is said of files that can't be used."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.config import ConfigError
from greylist_proxy.config_sections import StoreSection
from greylist_proxy.log import Log
from greylist_proxy.policy import Identity, Rules
from greylist_proxy.store import Store
from greylist_proxy.store.factory import make_store
from greylist_proxy.store.sqlite import SqliteStore
from greylist_proxy.store.valkey import ValkeyStore

from .valkey_servers import Server, make_certificate, running


def section(**values: Any) -> StoreSection:
    return StoreSection.model_validate(values)


def make(**values: Any) -> Store:
    return make_store(section(**values), Rules(), Log())


@pytest.mark.parametrize(
    ("url", "kind", "name"),
    [
        ("sqlite:////nowhere/greylist.db", SqliteStore, "/nowhere/greylist.db"),
        ("valkey://db.test:6379/3", ValkeyStore, "valkey://db.test:6379/3"),
        ("rediss://db.test:6379", ValkeyStore, "valkeys://db.test:6379/0"),
        (
            "redis+sentinel://a.test:26379,b.test:26379/mail/1",
            ValkeyStore,
            "valkey+sentinel://a.test:26379,b.test:26379/mail/1",
        ),
        ("valkeys+cluster://[::1]:7000", ValkeyStore, "valkeys+cluster://[::1]:7000"),
    ],
)
def test_kinds(url: str, kind: type, name: str) -> None:
    store = make(url=url)
    assert isinstance(store, kind)
    assert store.name == name
    asyncio.run(store.close())


def test_all_settings_arrive(tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "server", "127.0.0.1")
    password = tmp_path / "password"
    password.write_text("the password\n")
    server = Server(tmp_path, user='mail on "~mail-test:*" "+@all" "#' + digest("the password") + '"').with_tls(files)
    server.settings["requirepass"] = "another"
    server.password = "another"

    async def play() -> None:
        store = make(
            url=f"valkeys://127.0.0.1:{server.port}",
            username="mail",
            password_file=str(password),
            ca_file=str(files.authority),
            prefix="mail-test",
        )
        await store.observe([Identity("192.0.2.0/24", "")], "a@far.test", "u@here.test")
        await store.close()

    with running(server):
        asyncio.run(play())
        with server.client() as client:
            assert client.keys() == [b"mail-test:p:{192.0.2.0/24}"]


def digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read: No such file or directory; it must be there, and readable"),
        (b"", "must hold the password and nothing else"),
        (b"\n", "must hold the password and nothing else"),
        (b"two\nlines", "must hold the password and nothing else"),
        (b"x" * 5000, "must hold the password and nothing else"),
        (b"tell-\xff-nobody", "not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("key", ["password_file", "sentinel_password_file"])
def test_password_files(tmp_path: Path, key: str, content: bytes | None, said: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        make(url="valkey://db.test:6379", **{key: str(path)})
    assert str(caught.value).startswith(f"store.{key} = {path}: ")
    assert said in str(caught.value)
    assert "nobody" not in str(caught.value)
