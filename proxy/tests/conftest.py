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
from greylist_proxy.config_values import Endpoint
from greylist_proxy.gate import Gate
from greylist_proxy.log import Log
from greylist_proxy.policy import Rules
from greylist_proxy.smtp.relay import Backend
from greylist_proxy.smtp.transaction import Services
from greylist_proxy.store.sqlite import SqliteStore
from greylist_proxy.tasks import Tasks

from .peers import Proxy, ScriptedPeer, Sink, closing


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
def start_proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Start the program before the given backend ports; settings by section."""
    with ExitStack() as stack:

        def start(*backend_ports: int, environment: dict[str, str] | None = None, **settings: Any) -> Proxy:
            proxy: Proxy = stack.enter_context(closing(Proxy(tmp_path, list(backend_ports), **settings)))
            proxy.environment.update(environment or {})
            return proxy.start()

        yield start


@pytest.fixture
def make_services(tmp_path: Path) -> Callable[..., Services]:
    """Make what sessions share, for sessions inside the test's own event loop; no delay, and a log to read."""

    class LoggedServices(Services):
        def log_lines(self, event: str) -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in stream.getvalue().splitlines()]
            return [line for line in lines if line["event"] == event]

    stream = io.StringIO()

    def make(port: int) -> Services:
        log = Log(stream)
        tasks = Tasks(log)
        rules = Rules(delay=0)
        return LoggedServices(
            hostname="mx.test",
            domains=frozenset({"here.test"}),
            max_message_size=1 << 20,
            ipv4_prefix=24,
            ipv6_prefix=64,
            backend=Backend([Endpoint("127.0.0.1", port)], "mx.test"),
            gate=Gate(SqliteStore(tmp_path / "greylist.db", rules), "accept", log, tasks),
            log=log,
            tasks=tasks,
        )

    return make
