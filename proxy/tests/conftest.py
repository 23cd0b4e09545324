# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the proxy's tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from greylist_proxy.assembly import assemble
from greylist_proxy.config import Config
from greylist_proxy.log import Log
from greylist_proxy.services import services_of
from greylist_proxy.smtp.shared import Services
from greylist_proxy.store.factory import make_store
from greylist_proxy.tasks import Tasks

from .command_line import line, sqlite_line, vienna
from .dns_server import DnsServer
from .greylisters import daemon_folder
from .peers import Proxy, ScriptedPeer, Sink, closing
from .postfix_server import start_postfix
from .scene import make_scene
from .sessions import stage
from .sqlite_files import files
from .stores import stores

# Fixtures that live beside what they make; these and those below serve all tests.
__all__ = ["daemon_folder", "files", "line", "make_scene", "sqlite_line", "stage", "start_postfix", "stores", "vienna"]


@pytest.fixture
def sink() -> Iterator[Sink]:
    """A mail server that takes mail."""
    with closing(Sink()) as server:
        yield server


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedPeer]]:
    """Make mail servers by script."""
    with ExitStack() as stack:

        def make(replies: dict[str, Any] | None = None) -> ScriptedPeer:
            peer: ScriptedPeer = stack.enter_context(closing(ScriptedPeer(replies or {})))
            return peer

        yield make


@pytest.fixture
def make_dns() -> Iterator[Callable[..., DnsServer]]:
    """Make DNS servers with the given zones."""
    with ExitStack() as stack:

        def make(zone: str = "") -> DnsServer:
            server: DnsServer = stack.enter_context(closing(DnsServer(zone)))
            return server

        yield make


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Start the program before the given backend ports; settings by section."""
    with ExitStack() as stack:

        def start(*backend_ports: int, environment: dict[str, str] | None = None, **settings: Any) -> Proxy:
            proxy: Proxy = stack.enter_context(closing(Proxy(tmp_path, list(backend_ports), **settings)))
            proxy.environment.update(environment or {})
            stack.callback(lambda: print("".join(proxy.raw)))  # pytest shows it where a test fails
            return proxy.start()

        yield start


class MakeServices:
    """Makes what sessions share, for sessions inside the test's own event loop; no delay, and a log to read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stream = io.StringIO()

    def __call__(self, port: int, workers: int = 1, **backend: int) -> Services:
        config = Config.model_validate(
            {
                "smtp": {"hostname": "mx.test", "max_message_size": "1MiB"},
                "backend": {"hosts": [f"127.0.0.1:{port}"], "domains": ["here.test"], **backend},
                "greylist": {"delay": 0, "client_key": "network"},
                "allow": {"well_known": False},
                "trap": {},
                "dns": {},
                "store": {"url": f"sqlite:///{self._folder}/greylist.db"},
                "tarpit": {},
                "admin": {},
            }
        )
        log = Log(self._stream)
        tasks = Tasks(log)
        judgement = assemble(config, make_store(config.store, config.greylist.rules, log), log, tasks)
        return services_of(config, judgement, log, tasks, workers=workers)

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def make_services(tmp_path: Path) -> MakeServices:
    """Make services before a backend port."""
    return MakeServices(tmp_path)
