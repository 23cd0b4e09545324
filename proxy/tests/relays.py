# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of the backend's half are made of: hosts by port, transactions at them, and a log to read."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any

from greylist_proxy.config_values import Endpoint
from greylist_proxy.log import Log
from greylist_proxy.metrics.table import RELAYED
from greylist_proxy.smtp.address import Path
from greylist_proxy.smtp.backend import Timeouts
from greylist_proxy.smtp.capabilities import Capabilities, Promises
from greylist_proxy.smtp.forwarding import Introduction
from greylist_proxy.smtp.host import BackendSettings
from greylist_proxy.smtp.parameters import Parameter
from greylist_proxy.smtp.pool import Backends
from greylist_proxy.smtp.relay import Relay
from greylist_proxy.smtp.replies import Reply
from greylist_proxy.tasks import Tasks

from .peers import until

SHORT = Timeouts(slot=0.3, connect=5, opening=0.4, command=0.3, data=0.3, block=0.3, end_of_data=0.3, quit=0.3)
PATIENT = Timeouts(slot=10, connect=10, opening=10, command=10, data=10, block=10, end_of_data=10, quit=10)
ALL = Capabilities(0, eightbitmime=True, smtputf8=True, dsn=True, enhancedstatuscodes=True, pipelining=True)
BODY = b"Subject: x\r\n\r\nbody\r\n"
CLIENT = Introduction(ip_address("192.0.2.7"), 40123, "192.0.2.25", 25, "mail.far.test", "helo.far.test", esmtp=True)


def parameter(raw: str) -> Parameter:
    """Make a parameter of MAIL or RCPT of how it looks."""
    keyword, _ignored, value = raw.partition("=")
    return Parameter(raw, keyword.upper(), value)


def closed_port() -> int:
    """Return a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Brake:
    """The client's side of a message: notes when it is to wait."""

    def __init__(self) -> None:
        self.is_pressed = False
        self.pauses = 0

    def pause(self) -> None:
        self.is_pressed = True
        self.pauses += 1

    def resume(self) -> None:
        self.is_pressed = False


class Played:
    """What came of a message: the stage reached, the last reply, and the log."""

    def __init__(self, stage: str, reply: Reply) -> None:
        self.stage = stage
        self.reply = reply
        self.text = reply.wire().decode("latin-1")
        self.log: list[dict[str, Any]] = []


class Rig:
    """Backends at these ports of loopback, inside a running event loop."""

    def __init__(self, *ports: int, path: FilePath | None = None, **settings: Any) -> None:
        self._stream = io.StringIO()
        self.log = Log(self._stream)
        self.tasks = Tasks(self.log)
        self.flow = Brake()
        hosts = [Endpoint("127.0.0.1", port) for port in ports]
        self.settings = BackendSettings(**{"hosts": hosts, "timeouts": SHORT, **settings})
        self.promises = Promises(path)
        self.backends = Backends(self.settings, "mx.test", self.promises, self.log, self.tasks)

    def relay(
        self,
        *parameters: Parameter,
        promised: Capabilities | None = ALL,
        client: Introduction = CLIENT,
        sender: str = "a@far.test",
    ) -> Relay:
        return Relay(self.backends, self.tasks, "ID", Path(sender), parameters, lambda: client, promised, self.flow)

    async def play(
        self,
        *parameters: Parameter,
        body: bytes = BODY,
        recipients: Sequence[tuple[str, Sequence[Parameter]]] = (("u@here.test", ()),),
        promised: Capabilities | None = ALL,
        client: Introduction = CLIENT,
        pause: float = 0.05,
    ) -> Played:
        """Play one message as far as the answers allow, with a pause of so many seconds after its beginning."""
        relay = self.relay(*parameters, promised=promised, client=client)
        stage, reply = await self._steps(relay, body, recipients, pause)
        relay.close()
        return Played(stage, reply)

    async def _steps(
        self, relay: Relay, body: bytes, recipients: Sequence[tuple[str, Sequence[Parameter]]], pause: float
    ) -> tuple[str, Reply]:
        for address, parameters in recipients:
            reply = await relay.rcpt(address, parameters)
        if not reply.is_positive:
            return "rcpt", reply
        reply = await relay.data()
        if reply.code != 354:
            return "data", reply
        for start in range(0, len(body), 4096):
            relay.write(body[start : start + 4096])
            # What the peer says meanwhile arrives; and who is told to wait, waits.
            await asyncio.sleep(pause if start == 0 else 0)
            await until(lambda: not self.flow.is_pressed)
        return "end", await relay.finish()

    async def settle(self) -> None:
        """Wait until everything that was begun is done, and compare what was counted with what was logged."""
        await self.backends.close()
        await until(lambda: not self.tasks)
        logged = Counter((line["stage"], line["outcome"]) for line in self.lines())
        assert {words: self.backends.cells[cell] for words, cell in RELAYED.cells.items()} == {
            words: logged[words] for words in RELAYED.cells
        }
        assert logged.keys() <= RELAYED.cells.keys()

    def lines(self, event: str = "relay") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


def play(*ports: int, **how: Any) -> Played:
    """Play one message in an event loop of its own; `settings` are the backends'."""

    async def message() -> Played:
        rig = Rig(*ports, **how.pop("settings", {}))
        played = await rig.play(*how.pop("parameters", ()), **how)
        await rig.settle()
        played.log = rig.lines()
        return played

    return asyncio.run(message())
