# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the Valkey store talks to its servers: bounded in time, and every failure is a `StoreError`.

`run` sends commands, those for one server in one write, and returns their answers in order. All of it, from
finding the server to the last answer, takes `timeout` seconds at most. A command is sent again only where the server
said that it did not carry it out: it lies elsewhere (MOVED, ASK, READONLY), or the script is not known there; and to
the new primary, where sentinels name one while the old one is waited for. Anything else fails the call, and the next
one begins anew: connections that broke are opened again, and who has what is asked again.

A timeout may hit a command that the server carries out after all. For a store of this kind that does no harm: a
sighting may be noted that nobody was told of.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from valkey.asyncio.cluster import ClusterParser
from valkey.asyncio.connection import ConnectionPool, SSLConnection
from valkey.crc import key_slot
from valkey.exceptions import (
    AskError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from greylist_proxy.config_values import Endpoint, ServerAddress
from greylist_proxy.log import Log
from greylist_proxy.store import StoreError
from greylist_proxy.store.valkey.errors import Superseded, explain
from greylist_proxy.store.valkey.keys import Command, Word
from greylist_proxy.store.valkey.topology import SENTINEL, make_topology

MAX_CALLS = 32  # at once; each has a connection of its own, and the server does one thing at a time anyway
ROUNDS = 5  # to send a command at most, where servers redirect
TRY_AGAIN = 0.02  # seconds; while a slot moves, some keys are here and some there
SCAN_COUNT = 500  # keys that a server looks at for one page; well under a millisecond
OLDEST = (6, 2)
# What says that a command was not carried out, and may be elsewhere or later. MOVED is an ASK for the library.
NOT_DONE = (NoScriptError, AskError, TryAgainError, ReadOnlyError, Superseded)


class NoAnswer(StoreError):
    """The time was over: what was sent may be carried out after all."""


@dataclass(frozen=True, slots=True)
class Access:
    """What it takes to be let in, and by which authorities servers are known (None: the system's)."""

    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    ca_file: Path | None = None


class Servers:
    """One server, a primary behind sentinels, or a cluster. Connections are opened when they are needed.

    OSError, when it is made: the authorities' file can't be read, or holds none.
    """

    def __init__(self, address: ServerAddress, access: Access, timeout: float, log: Log) -> None:
        self.name = str(address)
        self._address = address
        self._access = access
        self._timeout = timeout
        self._log = log
        self._topology = make_topology(address, self._ask, timeout, self._primary_changed)
        self._pools: dict[tuple[Endpoint, bool], ConnectionPool] = {}
        self._tls = ssl.create_default_context(cafile=access.ca_file) if address.tls else None
        self._room = asyncio.Semaphore(MAX_CALLS)
        self._talks: dict[asyncio.Timeout, Endpoint] = {}  # with primaries, each until it is cut short
        self._met: set[Endpoint] = set()
        self._warned: set[str] = set()

    def deadline(self) -> float:
        """Return when a call that begins now must be over, by the event loop's clock."""
        return asyncio.get_running_loop().time() + self._timeout

    def together(self, *keys: bytes) -> bool:
        """Tell whether one script may use these keys."""
        return self._address.kind != "cluster" or len({key_slot(key) for key in keys}) == 1

    async def run(self, commands: Sequence[Command], deadline: float | None = None) -> list[Any]:
        """Return the answers. StoreError: at least one failed, the others may have been carried out.

        NoAnswer: any of them may be carried out yet.
        """
        async with self._attempt(deadline):
            return await self._run(commands)

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Give pages of the keys that match. One may come twice, or be gone meanwhile."""
        async with self._attempt():
            primaries = await self._topology.primaries()
        for primary in primaries:
            cursor: Word = 0
            while True:
                words = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
                async with self._attempt():
                    cursor, keys = await self._ask(primary, words)
                    is_last = int(cursor) == 0
                if keys:
                    yield keys
                if is_last:
                    break

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Make a StoreError of an answer that can't be read."""
        try:
            yield
        except (ValueError, TypeError, LookupError) as error:
            raise StoreError(
                f"{self.name}: what it answers was not written by this store: choose another store.prefix ({error})"
            ) from error

    async def close(self) -> None:
        """Close all connections; no error."""
        pools, self._pools = list(self._pools.values()), {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await asyncio.gather(*(pool.disconnect() for pool in pools), return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _attempt(self, deadline: float | None = None) -> AsyncIterator[None]:
        """Bound what is done inside, and make a StoreError of what goes wrong."""
        try:
            async with asyncio.timeout_at(deadline or self.deadline()), self._room:
                yield
        except StoreError:
            raise
        except TimeoutError as error:
            self._topology.forget()
            raise NoAnswer(f"{self.name}: no answer within {self._timeout:g} seconds") from error
        except Exception as error:
            # Whatever the library makes of what a server says, or does not say: it is a failed call.
            self._topology.forget()
            raise StoreError(f"{self.name}: {explain(error)}") from error

    async def _run(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        words = [command.words for command in commands]
        asking: dict[int, Endpoint] = {}
        waiting: Sequence[int] = range(len(commands))
        for _round in range(ROUNDS):
            groups: dict[tuple[Endpoint, bool], list[int]] = {}
            for index in waiting:
                place = asking.get(index) or await self._topology.locate(commands[index].key)
                groups.setdefault((place, index in asking), []).append(index)
            for ((place, _is_asking), group), answers in zip(
                groups.items(),
                await self._exchange_all([(*to, [words[index] for index in group]) for to, group in groups.items()]),
                strict=True,
            ):
                for index, reply in zip(group, answers, strict=True):
                    replies[index] = reply
                    asking.pop(index, None)
                    if isinstance(reply, NoScriptError):
                        words[index] = commands[index].with_text()
                    elif isinstance(reply, MovedError):
                        self._topology.moved(reply.slot_id, Endpoint(reply.host or place.host, reply.port))
                    elif isinstance(reply, AskError):
                        asking[index] = Endpoint(reply.host or place.host, reply.port)
                    elif isinstance(reply, ReadOnlyError):
                        self._topology.forget()
            waiting = [index for index in waiting if isinstance(replies[index], NOT_DONE)]
            if not waiting:
                break
            if any(isinstance(replies[index], TryAgainError) for index in waiting):
                await asyncio.sleep(TRY_AGAIN)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def _exchange_all(
        self, parts: Sequence[tuple[Endpoint, bool, Sequence[tuple[Word, ...]]]]
    ) -> list[list[Any]]:
        """Exchange with several servers at the same time; the first failure, when all are done."""
        if len(parts) == 1:
            return [await self._exchange(*parts[0])]
        outcomes = await asyncio.gather(*(self._exchange(*part) for part in parts), return_exceptions=True)
        answers = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            answers.append(outcome)
        return answers

    async def _exchange(self, endpoint: Endpoint, asking: bool, words: Sequence[tuple[Word, ...]]) -> list[Any]:
        """Send commands to one server and return its answers, errors among them."""
        if self._address.kind != "sentinel":
            return await self._talk(endpoint, asking, words)
        # Who waits for a primary that is dead would learn of the next one only when his time is over.
        try:
            async with asyncio.timeout(None) as talk:
                self._talks[talk] = endpoint
                return await self._talk(endpoint, asking, words)
        except TimeoutError:
            if not talk.expired():
                raise
            return [Superseded(f"{endpoint} is not the primary any more")] * len(words)
        finally:
            del self._talks[talk]

    async def _talk(self, endpoint: Endpoint, asking: bool, words: Sequence[tuple[Word, ...]]) -> list[Any]:
        if endpoint not in self._met:
            await self._meet(endpoint)
        if asking:
            answers = await self._send(endpoint, [part for line in words for part in (("ASKING",), line)])
            return answers[1::2]
        return await self._send(endpoint, words)

    async def _ask(self, endpoint: Endpoint, words: tuple[Word, ...]) -> Any:
        """Put one command to one server, or sentinel."""
        [answer] = await self._send(endpoint, [words], sentinel=words[0] == SENTINEL)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _send(
        self, endpoint: Endpoint, words: Sequence[tuple[Word, ...]], *, sentinel: bool = False
    ) -> list[Any]:
        pool = self._pool(endpoint, sentinel=sentinel)
        connection = await pool.get_connection("")  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(_pack(words))
            answers: list[Any] = []
            for _word in words:
                try:
                    answers.append(await connection.read_response())
                except ResponseError as error:
                    answers.append(error)
            return answers
        finally:
            # One that broke, or that a timeout left with answers to come, is closed by now, and opens itself again.
            await pool.release(connection)

    def _pool(self, endpoint: Endpoint, *, sentinel: bool) -> ConnectionPool:
        pool = self._pools.get((endpoint, sentinel))
        if pool is None:
            access = self._access
            settings: dict[str, Any] = {
                "host": endpoint.host,
                "port": endpoint.port,
                "db": 0 if sentinel else self._address.database,
                "username": (access.sentinel_username if sentinel else access.username) or None,
                "password": (access.sentinel_password if sentinel else access.password) or None,
                "parser_class": ClusterParser,
                # Calls are bounded as a whole; this bounds the closing of a connection.
                "socket_timeout": None,
                "socket_connect_timeout": self._timeout,
                # CLIENT SETINFO would be one more thing for an ACL to allow.
                "lib_name": None,
                "lib_version": None,
            }
            if self._tls is not None:
                settings |= {"connection_class": _TlsConnection, "context": self._tls}
            pool = self._pools[endpoint, sentinel] = ConnectionPool(**settings)
        return pool

    async def _meet(self, endpoint: Endpoint) -> None:
        """See once what kind of server this is. StoreError: too old. Says nothing where INFO is not allowed."""
        answers = await self._send(endpoint, [("INFO", "server"), ("INFO", "memory")])
        text = b"".join(answer for answer in answers if isinstance(answer, bytes)).decode()
        info = dict(re.findall(r"^(\w+):(.*?)\r?$", text, re.MULTILINE))
        version = tuple(int(number) for number in re.findall(r"\d+", info.get("redis_version", ""))[:2])
        if version and version < OLDEST:
            raise StoreError(f"{self.name}: {endpoint} is Redis {info['redis_version']}, and this needs 6.2 or later")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            self._warn(
                f"{self.name}: maxmemory-policy is {policy}: when memory is full, the server drops triplets "
                "unasked, and senders wait again; set it to noeviction"
            )
        if not _is_loopback(endpoint) and not (self._address.tls and self._access.password):
            self._warn(
                f"{self.name}: beyond this host without TLS and a password, anybody on the way can read who mails "
                "whom, and change it; use valkeys:// and store.password_file"
            )
        self._met.add(endpoint)

    def _primary_changed(self, endpoint: Endpoint) -> None:
        now = asyncio.get_running_loop().time()
        for talk, place in self._talks.items():
            if place != endpoint:
                talk.reschedule(now)
        self._log.event("store", state="primary", store=self.name, primary=str(endpoint))

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._log.event("store", state="warning", message=message)


class _TlsConnection(SSLConnection):
    """A TLS connection by a context of ours: the library's own trusts the system's authorities besides the given."""

    def __init__(self, *, context: ssl.SSLContext, **settings: Any) -> None:
        super().__init__(**settings)
        self.ssl_context.context = context


def _pack(lines: Sequence[tuple[Word, ...]]) -> bytes:
    """Write commands as the protocol has them (arrays of bulk strings); in a third of the library's own time."""
    parts = []
    for words in lines:
        parts.append(b"*%d\r\n" % len(words))
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _is_loopback(endpoint: Endpoint) -> bool:
    try:
        return ip_address(endpoint.host).is_loopback
    except ValueError:
        return endpoint.host == "localhost"
