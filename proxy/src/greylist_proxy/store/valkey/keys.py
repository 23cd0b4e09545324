# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How things are called and written in Valkey, and the scripts that work on them.

All keys begin with the store's prefix (`greylist`, by default). What belongs to one identity has its key as hash tag
(`{…}`), so that a cluster keeps it in one slot, where a script can reach all of it:

    greylist:k:{192.0.2.0/24}SENDER\\0RECIPIENT   string   a known triplet: first_seen and last_used
    greylist:p:{192.0.2.0/24}                     zset     pending triplets: SENDER\\0RECIPIENT, by first_seen
    greylist:s:{192.0.2.0/24}                     zset     what rule 7 of `policy.py` shares: @DOMAIN, by first_seen
    greylist:e:{192.0.2.9}                        string   what an earner has earned: passes, counted_at, last_used
    greylist:entries:{greylist} and four more              entries and what happened to them, see lua/entries.lua
    greylist:decisions                            stream   decisions

Pending triplets are most of what there is, and mostly junk: in a sorted set one takes a third of what a key of its own
would, where a client has several, and the set's size is what rule 7 asks for. Known ones have keys of their own,
because each lives for as long as it is used, and Redis 7 knows no TTL inside of anything.

Nothing from outside can break out: what would end a tag or a sender is written as %XX, and scripts get everything
as KEYS and ARGV. Times are whole milliseconds. Texts are UTF-8, in which lone surrogates are let through (Python
makes them of bytes that are not UTF-8).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from greylist_proxy.policy import Earned, Record, Triplet

Word = bytes | str | int

RECORD = struct.Struct(">dd")
EARNED = struct.Struct(">ddd")
KNOWN, PENDING, SHARED, EARNER = b"k", b"p", b"s", b"e"
IN_TAG = str.maketrans({"%": "%25", "}": "%7D"})
IN_SENDER = str.maketrans({"%": "%25", "\0": "%00"})
EMPTY_TAG = "%"  # `{}` would be no hash tag at all
IN_GLOB = str.maketrans({mark: f"\\{mark}" for mark in "*?[]\\"})


class Command(NamedTuple):
    """What is sent: to whom (who has `key`), the words, and the script that they run, should the server not know it."""

    key: bytes
    words: tuple[Word, ...]
    script: Script | None = None

    def with_text(self) -> tuple[Word, ...]:
        """Return the words with the script itself in place of its digest."""
        return self.words if self.script is None else ("EVAL", self.script.text, *self.words[2:])


class Script:
    """A Lua script; the server runs it as one step."""

    def __init__(self, name: str) -> None:
        folder = resources.files(__package__) / "lua"
        self.text = "".join((folder / f"{part}.lua").read_text("utf-8") for part in ("common", name))
        # How servers name scripts; nothing depends on its strength.
        self._digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[bytes], *arguments: Word | None) -> Command:
        """Make the command that runs it; None is the empty text."""
        words = ("" if word is None else word for word in arguments)
        return Command(keys[0], ("EVALSHA", self._digest, len(keys), *keys, *words), self)


class Keys:
    """The keys under a prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        self.decisions = self._prefix + b":decisions"
        names = (b"entries", b"changes", b"meta", b"expiry", b"graves")
        self.entries = [b"%s:%s:{%s}" % (self._prefix, name, self._prefix) for name in names]

    def of(self, kind: bytes, name: str) -> bytes:
        """Return what there is of a kind under an identity's key, or an earner."""
        return b"%s:%s:{%s}" % (self._prefix, kind, encode(name.translate(IN_TAG) or EMPTY_TAG))

    def known(self, client: str, members: Sequence[bytes]) -> list[bytes]:
        """Return the keys of an identity's known triplets."""
        begin = self.of(KNOWN, client)
        return [begin + member for member in members]

    def pattern(self, kind: bytes, name: str | None = None) -> bytes:
        """Return the glob that all keys of a kind match, or those under one name."""
        if name is None:
            return b"%s:%s:*" % (self._prefix, kind)
        # The prefix has no character that a glob knows.
        return encode(decode(self.of(kind, name)).translate(IN_GLOB)) + b"*"

    def split(self, key: bytes) -> tuple[bytes, str, bytes]:
        """Return kind, name and the rest. ValueError: not a key of ours."""
        kind, colon, tagged = key.removeprefix(self._prefix + b":").partition(b":")
        tag, brace, rest = tagged.partition(b"}")
        if not (key.startswith(self._prefix + b":") and colon and brace and tag.startswith(b"{")):
            raise ValueError("not a key of this store")
        name = decode(tag[1:])
        return kind, "" if name == EMPTY_TAG else _unescape(name), rest


def member(sender: str, recipient: str) -> bytes:
    """Return how a triplet is called within its identity."""
    return encode(f"{sender.translate(IN_SENDER)}\0{recipient}")


def shared_member(recipient: str) -> bytes:
    """Return how the record that new triplets share (rule 7) is called within their identity."""
    return encode(f"@{recipient.rpartition('@')[2]}")


def triplet(client: str, name: bytes) -> Triplet:
    """Return the triplet that `member` named. ValueError: it did not."""
    sender, separator, recipient = decode(name).partition("\0")
    if not separator:
        raise ValueError("not a member of ours")
    return Triplet(client, _unescape(sender), recipient)


def read_record(value: bytes) -> Record:
    """Read a known triplet's value. ValueError: it is none."""
    first_seen, last_used = _unpack(RECORD, value)
    return Record(seconds(first_seen), seconds(last_used))


def read_sighting(value: bytes) -> tuple[float, bool, Record | None]:
    """Read what `observe` found besides what is earned: now, whether the record is shared, the record."""
    now, shared, first_seen, last_used = value.split(b" ")
    record = Record(seconds(first_seen), seconds(last_used) if last_used else None) if first_seen else None
    return seconds(now), shared == b"1", record


def read_earned(value: bytes) -> Earned:
    """Read an earner's value. ValueError: it is none."""
    passes, counted_at, last_used = _unpack(EARNED, value)
    return Earned(int(passes), seconds(counted_at), seconds(last_used))


def milliseconds(time: float) -> int:
    """Write a time or duration, given in seconds."""
    return round(time * 1000)


def seconds(time: float | bytes) -> float:
    """Read a time, given in milliseconds. ValueError: it is none."""
    return float(time) / 1000


def encode(text: str) -> bytes:
    """Write a text."""
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    """Read a text. ValueError: it is none."""
    return data.decode("utf-8", "surrogatepass")


def _unpack(form: struct.Struct, value: bytes) -> tuple[float, ...]:
    try:
        return form.unpack(value)
    except struct.error as error:
        raise ValueError("not a value of ours") from error


def _unescape(text: str) -> str:
    # The percent sign comes last: each one that is left begins an escape.
    return text.replace("%7D", "}").replace("%00", "\0").replace("%25", "%")
