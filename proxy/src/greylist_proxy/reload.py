# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGHUP: the configuration and the files that it names anew, all of them or none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from greylist_proxy.admin.access import Access, read_token
from greylist_proxy.assembly import Judgement
from greylist_proxy.config import Config, ConfigError, advice
from greylist_proxy.descriptors import raise_limit
from greylist_proxy.lists import ListError
from greylist_proxy.log import Log
from greylist_proxy.services import change, read_files
from greylist_proxy.smtp.shared import Services
from greylist_proxy.store import Store

# What is made once: sockets, processes, the store, the DNS client, the name that backends know us by.
AFTER_RESTART = (
    "smtp.listen",
    "smtp.hostname",
    "smtp.workers",
    "smtp.receive_buffer",
    "store",
    "dns",
    "admin.listen",
    "admin.socket",
)


def for_now(started: Config, reread: Config) -> Config:
    """Return the configuration that was read again, with what counts only after a restart as it was at the start."""
    result = reread
    for name in AFTER_RESTART:
        section, _ignored, key = name.partition(".")
        value = getattr(started, section)
        if key:
            value = getattr(result, section).model_copy(update={key: getattr(value, key)})
        result = result.model_copy(update={section: value})
    return result


class Reloader:
    """Takes a changed configuration over while the program runs, in one of `workers` processes."""

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config],
        services: Services,
        judgement: Judgement,
        store: Store,
        log: Log,
        access: Access,
        workers: int = 1,
    ) -> None:
        self._config = config
        self._reread = reread
        self._services = services
        self._judgement = judgement
        self._store = store
        self._log = log
        self._access = access
        self._workers = workers
        self._lock = asyncio.Lock()

    async def reload(self, notify: Callable[[str], None]) -> None:
        """Read everything again. An error keeps what was there, and the log says so."""
        # One after the other: the last one that is asked for is the one that counts in the end.
        async with self._lock:
            notify("RELOADING=1")
            try:
                warnings, config = await self._take_over()
            except (ConfigError, ListError) as error:
                self._log.event("reload", state="failed", errors=error.lines)
            except OSError as error:
                self._log.event("reload", state="failed", errors=[str(error)])
            else:
                for sentence in [*advice(config), *warnings]:
                    self._log.event("warning", message=sentence)
                self._log.event("reload", state="done", after_restart=self._waiting(config))
            finally:  # systemd and our parent wait for it, whatever happened
                notify("READY=1")

    async def _take_over(self) -> tuple[list[str], Config]:
        # Large lists take a while to read, and nobody has to wait for that.
        config = await asyncio.to_thread(self._reread)
        files = await asyncio.to_thread(read_files, config)
        token = await asyncio.to_thread(read_token, config)
        warnings = await self._judgement.exemptions.reload(config.allow, config.trap)
        change(self._services, config, files, self._workers)
        limited = raise_limit(config)
        self._access.change_token(token)
        rules = config.greylist.rules
        self._judgement.gate.rules = rules
        self._judgement.gate.trap_block = config.trap.block
        self._judgement.identifier.client_key = config.greylist.client_key
        self._store.rules = rules
        return [*warnings, *limited], config

    def _waiting(self, config: Config) -> list[str]:
        return [name for name in AFTER_RESTART if _value(self._config, name) != _value(config, name)]


def _value(config: Config, name: str) -> object:
    value: object = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
