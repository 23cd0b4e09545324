# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who exists is asked of the mail server behind, and is not told to clients that try names out.

`verify_recipient_first`: a recipient that would be deferred is put to the backend in a transaction of its own, and a
5xx is the client's answer at once, so that a sender with a misspelt address does not wait for days. Anything else (a
4xx, no answer in time, too many questions at once) lets greylisting go on as if nobody had asked. That a recipient
exists is remembered for a while; that it does not is not: somebody may just be making the mailbox.

Harvesting: a client that asks for `MAX_UNKNOWN` unknown users within `PERIOD` is told 450 for every recipient from then
on, and the backend is not asked. That holds for whoever says that a user is unknown: `backend.recipients`, the
question above, or the backend's own answer to RCPT, as any of them gives the names away. It does not hold for clients
that are exempt, nor for known triplets. A forwarder has dead addresses too, so each counts once however often it is
mailed, and a message that the backend takes starts the count anew. Each worker process counts for itself.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from itertools import islice

from greylist_proxy.client import Client
from greylist_proxy.normalise import recipient_key
from greylist_proxy.smtp.address import Path
from greylist_proxy.smtp.forwarding import Introduce
from greylist_proxy.smtp.parameters import Parameter
from greylist_proxy.smtp.pool import Backends
from greylist_proxy.smtp.replies import Reply

MAX_UNKNOWN = 5  # users that a client may ask for in vain within PERIOD
PERIOD = 3600.0  # seconds
MAX_CLIENTS = 20_000  # that are counted, some 10 MB; over it the oldest are forgotten
MAX_QUESTIONS = 20  # at once: each holds a backend connection, which mail needs more
PATIENCE = 30.0  # seconds for one question; a backend may make its 5xx wait (Exchange: 5 s)
REMEMBERED = 300.0  # seconds that a recipient is known to exist
MAX_REMEMBERED = 20_000

# Codes by which servers say that there is no such user, where their enhanced status does not say otherwise: RFC 3463
# section 3.2 (X.1.X, of which X.1.7 and X.1.8 are about senders), and Exchange Online's 5.4.1 for recipients that its
# directory does not have.
UNKNOWN_CODES = frozenset({550, 551, 553})
ENHANCED = re.compile(rb"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?: |$)")
UNKNOWN_STATUS = re.compile(rb"5\.(?:1\.(?![78](?: |$))[0-9]{1,3}|4\.1)(?: |$)")


def is_unknown_user(reply: Reply) -> bool:
    """Tell whether a reply to RCPT says that there is no such user."""
    text = reply.lines[0]
    return reply.code in UNKNOWN_CODES and (ENHANCED.match(text) is None or UNKNOWN_STATUS.match(text) is not None)


class Harvesters:
    """Counts the unknown users that each client asked for: an IPv4 address, an IPv6 /64. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When the count ends, and whom it counted (hashes: names are long, and not needed again). In order of time.
        self._counts: dict[bytes, tuple[float, frozenset[int]]] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, client: Client, recipient: str) -> None:
        """Count an unknown user; the same one counts once."""
        now = self._clock()
        key = _key(client)
        ends, users = self._counts.get(key, (0.0, frozenset[int]()))
        if ends <= now:
            self._counts.pop(key, None)
            ends, users = now + PERIOD, frozenset()
        if len(users) < MAX_UNKNOWN:
            self._counts[key] = (ends, users | {hash(recipient_key(recipient))})
        for old in [*islice(self._counts, 2)]:
            # Two for each that comes: what has expired goes away by and by.
            if self._counts[old][0] <= now or len(self._counts) > MAX_CLIENTS:
                del self._counts[old]

    def forgive(self, client: Client) -> None:
        """Start anew: it delivered a message."""
        if self._counts:
            self._counts.pop(_key(client), None)

    def has(self, client: Client) -> bool:
        """Tell whether a client has asked for too many."""
        if not self._counts:
            return False
        ends, users = self._counts.get(_key(client), (0.0, ()))
        return len(users) >= MAX_UNKNOWN and ends > self._clock()


class Verifier:
    """Asks whether recipients exist. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asking = 0
        self._existing: dict[str, float] = {}  # until when, in order of time

    async def refusal(
        self,
        backends: Backends,
        sender: Path,
        parameters: Sequence[Parameter],
        recipient: str,
        introduce: Introduce,
    ) -> Reply | None:
        """Return the backend's 5xx for this recipient of this sender; None: it exists, or there was no answer.

        An answer is for who asked: the backend may have something against one sender only.
        """
        key = recipient_key(recipient)
        if self._existing.get(key, 0.0) > self._clock() or self._asking >= MAX_QUESTIONS:
            return None
        self._asking += 1
        try:
            async with asyncio.timeout(PATIENCE):
                reply = await backends.verify(sender, parameters, recipient, introduce)
        except TimeoutError:
            return None
        finally:
            self._asking -= 1
        if reply is not None and reply.is_positive:
            self._remember(key)
        return reply if reply is not None and reply.code >= 500 else None

    def _remember(self, key: str) -> None:
        self._existing.pop(key, None)
        self._existing[key] = self._clock() + REMEMBERED
        if len(self._existing) > MAX_REMEMBERED:
            del self._existing[next(iter(self._existing))]


def _key(client: Client) -> bytes:
    return client.address.packed[:8]  # IPv4 has four octets
