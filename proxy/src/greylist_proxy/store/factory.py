# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store that the configuration names."""

from __future__ import annotations

from pathlib import Path

from greylist_proxy.config import ConfigError
from greylist_proxy.config_sections import StoreSection
from greylist_proxy.config_values import FileAddress
from greylist_proxy.log import Log
from greylist_proxy.policy import Rules
from greylist_proxy.store import Limits, Store
from greylist_proxy.store.sqlite import SqliteStore

LONGEST_PASSWORD = 4096  # bytes; /dev/zero is longer


def make_store(section: StoreSection, rules: Rules, log: Log) -> Store:
    """Make the store; nothing is opened yet. ConfigError: a password or certificate file can't be used."""
    limits = Limits(section.timeout, section.decisions_lifetime, section.max_decisions)
    if isinstance(section.url, FileAddress):
        return SqliteStore(section.url.path, rules, limits, log)
    # The library behind takes 4 MB and 50 ms, which only those pay who use it.
    from greylist_proxy.store.valkey import ValkeyStore
    from greylist_proxy.store.valkey.servers import Access

    access = Access(
        section.username,
        _password("store.password_file", section.password_file),
        _password("store.sentinel_password_file", section.sentinel_password_file),
        section.ca_file,
    )
    return ValkeyStore(section.url, rules, limits, log, access, section.prefix)


def _password(key: str, path: Path | None) -> str:
    """Read a password: the file's text without the line's end."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_PASSWORD + 1)
        password = data.decode().rstrip("\r\n")
    except OSError as error:
        mend = "it must be there, and readable for the user that the proxy runs as"
        raise ConfigError([f"{key} = {path}: can't be read: {error.strerror}; {mend}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{key} = {path}: not UTF-8 text"]) from error
    if not password or len(data) > LONGEST_PASSWORD or not password.isprintable():
        raise ConfigError([f"{key} = {path}: must hold the password and nothing else, in one line"])
    return password
