# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the admin side of a proxy, on its address or its control socket."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any

from .peers import DEADLINE, Proxy


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection(http.client.HTTPConnection):
    """An HTTP connection to a path, or to an address with its port."""

    def __init__(self, where: str) -> None:
        super().__init__("localhost", timeout=DEADLINE)
        self._where = where

    def connect(self) -> None:
        self.sock = connect(self._where)


def connect(where: str) -> socket.socket:
    """Connect to a path, or to an address with its port."""
    if where.startswith("/"):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(DEADLINE)
        client.connect(where)
        return client
    host, _colon, port = where.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), DEADLINE)


def ask(where: str, path: str, method: str = "GET", body: object = None, **headers: str) -> Answer:
    """Send a request and return the answer; a body goes out as JSON, octets as they are."""
    connection = Connection(where)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def address(proxy: Proxy) -> str:
    """Return where it listens for health and metrics."""
    return next(each for each in _addresses(proxy) if not each.startswith("/"))


def control(proxy: Proxy) -> str:
    """Return the path of its control socket."""
    return next(each for each in _addresses(proxy) if each.startswith("/"))


def _addresses(proxy: Proxy) -> list[str]:
    found: list[str] = proxy.select("listening")[-1]["admin"]
    return found
