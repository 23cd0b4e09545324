# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server that runs with this configuration, found by its control socket, and asked to keep entries.

It is looked for where the configuration says; where it does not, in the folder that systemd makes for the unit and
beside the SQLite file. A server with another store is somebody else's. Where none answers, or this user may not ask it,
the command works on the store itself.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from greylist_proxy.admin.sockets import CONTROL, RUNTIME_FOLDER, socket_path
from greylist_proxy.config import Config
from greylist_proxy.lists.operator import as_json, from_json
from greylist_proxy.store import Entry, Kind, StoreError

CONNECT_WITHIN = 5.0  # seconds
ANSWER_WITHIN = 60.0  # seconds; the server has a bound of its own


class Server:
    """A running server, as a keeper of entries. StoreError: it can't be asked, or says that it can't do it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def serves(self, config: Config) -> bool:
        """Tell whether it has the store of this configuration. OSError, HTTPException: nobody is there who could."""
        status, answer = await asyncio.to_thread(self._exchange, "GET", "/v1/info", None)
        store = json.loads(answer).get("store", {}) if status == http.client.OK else {}
        return (store.get("address"), store.get("prefix")) == (str(config.store.url), config.store.prefix)

    async def entries(self) -> AsyncIterator[Entry]:
        """Give the entries that have not expired, in no order."""
        for line in (await self._ask("GET", "/v1/entries")).splitlines():
            try:
                yield from_json(json.loads(line))
            except (KeyError, TypeError, ValueError) as error:
                raise self._failed(f"gave something else than entries: {error}") from error

    async def put_entry(self, entry: Entry) -> bool:
        """Make or replace an entry; it counts when this returns. False: an operator's own stands in the way."""
        shown = as_json(entry)
        wish = {name: shown[name] for name in ("kind", "value", "expires", "note")}
        if entry.kind is not Kind.TRAP:
            wish["action"] = shown["action"]
        answer = await self._ask("PUT", "/v1/entry", json.dumps(wish).encode(), refused=http.client.CONFLICT)
        return answer != b""

    async def remove_entry(self, kind: Kind, value: str) -> bool:
        """Remove an entry; it counts no more when this returns. False where there is none."""
        answer = await self._ask("DELETE", f"/v1/entry?{urlencode({'kind': kind, 'value': value})}")
        changed: bool = json.loads(answer)["changed"]
        return changed

    async def _ask(self, method: str, target: str, body: bytes | None = None, refused: int = 0) -> bytes:
        """Return the body of the answer, "" where it has the status `refused`."""
        try:
            status, answer = await asyncio.to_thread(self._exchange, method, target, body)
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(f"gave no answer: {error or type(error).__name__}") from error
        if status == refused:
            return b""
        if status != http.client.OK:
            raise self._failed(f"says: {_sentence(answer) or f'status {status}'}")
        return answer

    def _exchange(self, method: str, target: str, body: bytes | None) -> tuple[int, bytes]:
        connection = _Connection(self._path)
        try:
            connection.request(method, target, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _failed(self, what: str) -> StoreError:
        return StoreError(f"the server at {self._path} {what}")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_WITHIN)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_WITHIN)
        self.sock.connect(str(self._path))
        self.sock.settimeout(ANSWER_WITHIN)


async def find_server(config: Config) -> Server | None:
    """Return the server that runs with this configuration, None: there is none that could be asked."""
    paths = [socket_path(config)]
    if config.admin.socket is None:
        paths.insert(0, RUNTIME_FOLDER / CONTROL)
    for path in dict.fromkeys(paths):
        if path is not None:
            server = Server(path)
            try:
                if await server.serves(config):
                    return server
            except (OSError, http.client.HTTPException, ValueError, AttributeError):
                continue
    return None


def _sentence(answer: bytes) -> str:
    try:
        found: Any = json.loads(answer)
        return str(found["error"])
    except (ValueError, KeyError, TypeError):
        return ""
