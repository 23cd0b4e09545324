# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store that the configuration names."""

from __future__ import annotations

from greylist_proxy.config import ConfigError
from greylist_proxy.config_sections import StoreSection
from greylist_proxy.config_values import FileAddress
from greylist_proxy.log import Log
from greylist_proxy.policy import Rules
from greylist_proxy.secret_file import read_secret
from greylist_proxy.store import Limits, Store
from greylist_proxy.store.sqlite import SqliteStore


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
        read_secret("store.password_file", section.password_file),
        section.sentinel_username,
        read_secret("store.sentinel_password_file", section.sentinel_password_file),
        section.ca_file,
    )
    try:
        return ValkeyStore(section.url, rules, limits, log, access, section.prefix)
    except OSError as error:
        mend = "it must hold certificates, and be readable for the user that the proxy runs as"
        why = error.strerror or str(error)
        raise ConfigError([f"store.ca_file = {section.ca_file}: can't be used: {why}; {mend}"]) from error
