# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where triplets are remembered: the interface of every store.

A store is called from one thread at a time, may block, and raises `StoreError` for whatever goes wrong: what
then happens to mail is decided by `gate.py`. After an error it is called again, and works again as soon as
it can; nobody has to tell it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from greylist_proxy.policy import Decision, Triplet


class StoreError(Exception):
    """The store could not do it; the text says why."""


class Store(Protocol):
    """Triplets and what `policy.py` keeps of them. Each call is atomic, also between processes."""

    def observe(self, triplet: Triplet, now: float) -> Decision:
        """Judge a sighting (`policy.observe`) and keep the record that comes of it."""

    def delivered(self, triplets: Iterable[Triplet], now: float) -> None:
        """Note the backend's final 250 for a message of these triplets (`policy.delivered`)."""

    def expire(self, now: float, limit: int) -> int:
        """Remove up to `limit` records that no longer count, and return how many those were."""

    def close(self) -> None:
        """Let go of files and connections; no error."""
