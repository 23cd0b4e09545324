# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What went wrong with a Valkey server, as one sentence with the way to mend it."""

from __future__ import annotations

import re

from valkey import exceptions

LONGEST = 300  # characters of what a server or a library says

# By the library's class, which hides the word that the server's answer began with.
BY_CLASS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.AskError, "TRYAGAIN"),
    (exceptions.TryAgainError, "TRYAGAIN"),
)
# By the server's word, also where it stands in the middle: Redis 6 quotes what failed inside of a script.
MEANING = {
    "OOM": "its memory is full: raise its maxmemory, or lower greylist.lifetime and greylist.max_pending_per_network",
    "READONLY": "it is a replica, which takes no changes: name the primary in store.url, or its sentinels",
    "LOADING": "it is still loading its data, and will answer when that is done",
    "NOAUTH": "it wants a password: set store.password_file, and store.username where it has users",
    "WRONGPASS": "it refuses the user or the password: check store.username and store.password_file",
    "NOPERM": "its ACL does not let this user do what the store needs",
    "MASTERDOWN": "it is a replica that lost its primary",
    "CLUSTERDOWN": "its cluster is down, or a part of the slots has no server: see CLUSTER INFO there",
    "TRYAGAIN": "its cluster is moving these keys to another node, and will answer when that is done",
    "MISCONF": "it takes no changes because it can't save them: see its own log",
    "WRONGTYPE": "its keys with this prefix are another program's: choose another store.prefix",
    "BUSY": "a script runs there and does not end",
}
# What a sentinel means by a word, where that is something else.
SENTINEL_MEANING = {
    "NOAUTH": "it wants a password: set store.sentinel_password_file, and store.sentinel_username where it has users",
    "WRONGPASS": (
        "it refuses the user or the password: check store.sentinel_username and store.sentinel_password_file"
    ),
    "NOPERM": "its ACL does not let this user ask for the primary's address",
}
WORD = re.compile(rf"\b(?:{'|'.join(MEANING)})\b")
# Answers that say it without such a word.
PHRASES = (
    ("user executing the script can't", "NOPERM"),
    ("can't access at least one of the keys", "NOPERM"),
    ("invalid username-password pair", "WRONGPASS"),
    ("Authentication required", "NOAUTH"),
)


class Explained(Exception):
    """A failure whose text says all there is to say."""


class Superseded(Explained):
    """Instead of an answer: the sentinels name another primary by now, and the old one is waited for no longer."""


def explain(error: BaseException, *, sentinel: bool = False) -> str:
    """Say why, and what mends it; no secret is in what servers and the library say, and none is added."""
    if isinstance(error, Explained):
        return str(error)
    meaning = MEANING | SENTINEL_MEANING if sentinel else MEANING
    said = " ".join(str(error).split())[:LONGEST] or type(error).__name__
    word = next((word for kind, word in BY_CLASS if isinstance(error, kind)), None)
    if word is None:
        word = next((word for phrase, word in PHRASES if phrase in said), None)
    if word is None and (match := WORD.search(said)):
        word = match[0]
    if word is not None:
        return f"{meaning[word]} ({said})"
    if isinstance(error, exceptions.AuthenticationError):
        return f"{meaning['WRONGPASS']} ({said})"
    return said
