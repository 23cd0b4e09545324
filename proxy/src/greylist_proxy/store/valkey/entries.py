# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries in Valkey: a thin caller of `lua/entries.lua`, which has the rules.

A reader's position is `epoch:floor:number`, as the script explains them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

from greylist_proxy.store import Action, Changes, Entry, Kind, Removed, Source
from greylist_proxy.store.texts import clean, clean_entry
from greylist_proxy.store.valkey.keys import Command, Keys, Script, decode, encode, milliseconds, seconds
from greylist_proxy.store.valkey.servers import Servers

PAGE = 1000  # changes at a time, as the interface has it
STEP = 100  # entries that one `expire` removes: far below a millisecond of the server's time


class Entries:
    """The entries of one store; `clock` gives a test's time, or None for the server's."""

    def __init__(self, servers: Servers, keys: Keys, clock: Callable[[], int | None]) -> None:
        self._servers = servers
        self._keys = keys
        self._clock = clock
        self._script = Script("entries")

    async def put(self, entry: Entry) -> bool:
        """Make or replace one; False: an operator's own stands in the way."""
        return bool(await self._call(self.put_command(entry, merge=False)))

    def put_command(self, entry: Entry, *, merge: bool) -> Command:
        """Make the command that puts one; `merge`: one that is the same, ends later, or is an operator's stays."""
        # The script's JSON knows no surrogates: such an entry could be neither replaced nor removed.
        entry = clean_entry(entry)
        name = _name(entry.kind, entry.value)
        expires = None if entry.expires is None else milliseconds(entry.expires)
        value = {
            "action": entry.action,
            "source": entry.source,
            "created": milliseconds(entry.created),
            "expires": expires,
            "note": entry.note,
        }
        # A name for the history that begins with this entry, where it is the store's first.
        epoch = secrets.token_hex(8)
        return self._command("put", name, json.dumps(value), entry.source, expires, epoch, int(merge))

    async def remove(self, kind: Kind, value: str) -> bool:
        """Remove one; False where there is none."""
        return bool(await self._call(self._command("remove", _name(kind, clean(value)))))

    async def changes(self, position: str | None) -> Changes:
        """Return what happened since a position."""
        # No history is called "-".
        epoch, floor, number = ((position or "-") + "::").split(":")[:3]
        answer = await self._call(self._command("changes", epoch, floor, number, PAGE))
        with self._servers.reading():
            restart, new_epoch, new_floor, last, more, *found = answer
            changed = tuple(_read(name, value) for name, value in zip(found[::2], found[1::2], strict=True))
            return Changes(bool(restart), changed, b":".join((new_epoch, new_floor, last)).decode(), bool(more))

    async def expire(self) -> bool:
        """Remove some that have expired; True: there may be more."""
        return bool(await self._call(self._command("expire", STEP)))

    async def all(self, now: float) -> AsyncIterator[Entry]:
        """Give those that have not expired."""
        position = None
        while True:
            page = await self.changes(position)
            for entry in page.changed:
                if isinstance(entry, Entry) and (entry.expires is None or entry.expires > now):
                    yield entry
            if not page.more:
                return
            position = page.position

    def count_command(self) -> Command:
        """Make the command that counts them."""
        return Command(self._keys.entries[0], ("HLEN", self._keys.entries[0]))

    def _command(self, doing: str, *arguments: bytes | str | int | None) -> Command:
        return self._script(self._keys.entries, doing, self._clock(), *arguments)

    async def _call(self, command: Command) -> Any:
        [answer] = await self._servers.run([command])
        return answer


def _name(kind: Kind, value: str) -> bytes:
    return encode(f"{kind}\0{value}")


def _read(name: bytes, value: bytes | None) -> Entry | Removed:
    kind, _separator, about = decode(name).partition("\0")
    if value is None:
        return Removed(Kind(kind), about)
    fields = json.loads(value)
    return Entry(
        Kind(kind),
        about,
        Action(fields["action"]),
        Source(fields["source"]),
        seconds(fields["created"]),
        None if fields["expires"] is None else seconds(fields["expires"]),
        fields["note"],
    )
