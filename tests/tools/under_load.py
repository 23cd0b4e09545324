# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a command while clients mail through a proxy, and keeps the books of what they were told.

    python under_load.py --host ADDRESS --recipient load@example.org --ledger FILE COMMAND…

Every message has a number, from which its content follows (proxy/tests/ledger.py). Some clients come and go, with a
connection for each message or for a few; one is always in the middle of a message, and takes its time over it. FILE
gets a line for each message that was acknowledged: its number, and the digest of what must be in the mailbox. JSON
comes out: the command's `status` and `output`, how many were `delivered`, `slow` ones among them, what went wrong
(`refused`: no connection; `lost`: it ended without a word; `unanswered`: after the whole message), and the `replies`
that turned a client away, by code.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "proxy"))

from tests.ledger import Ledger, LedgerClient, Told, content

CLIENTS = 4
PAUSE = 0.2  # seconds between two messages of a client
MESSAGES = 3  # at most over one connection
PARTS = 40  # of a slow message, one a PAUSE
OUTPUT = 20_000  # characters


class Client(LedgerClient):
    """A client that notes how it was turned away."""

    def __init__(self, host: str, recipient: str, ledger: Ledger, troubles: Counter[str]) -> None:
        super().__init__(25, ledger, host=host)
        self._recipients = (recipient,)
        self._troubles = troubles

    async def mail(self, number: int) -> bool:
        """Offer a message once, and tell whether it was delivered."""
        self.answer, refused = b"", self._troubles["refused"]
        told = await self.offer(number, self._recipients)
        if told is Told.DELIVERED:
            return True
        await self.leave()
        if self.answer[:1] in (b"4", b"5"):
            self._troubles[f"reply {self.answer[:3].decode()}"] += 1
        elif self._troubles["refused"] == refused:
            self._troubles["unanswered" if told is Told.NOTHING else "lost"] += 1
        return False

    async def _connect(self) -> None:
        try:
            await super()._connect()
        except OSError:
            self._troubles["refused"] += 1
            raise


class SlowClient(Client):
    """One that takes its time over a message."""

    async def _send(self, number: int) -> bytes:
        assert self._streams is not None
        wire = content(number)
        step = -(-len(wire) // PARTS)
        for begin in range(0, len(wire), step):
            self._streams[1].write(wire[begin : begin + step])
            await self._streams[1].drain()
            await asyncio.sleep(PAUSE)
        return await self._ask(b".")


async def come_and_go(client: Client, ledger: Ledger, end: asyncio.Event) -> None:
    """Mail until the end; what was not delivered is offered again, as a queueing client does."""
    while not end.is_set():
        for _n in range(MESSAGES):
            number = ledger.new()
            delivered = False
            while not delivered:
                delivered = await client.mail(number)
                await asyncio.sleep(PAUSE)
        await client.leave()


async def take_time(client: SlowClient, ledger: Ledger, end: asyncio.Event) -> int:
    """Mail slowly until the end; return how many messages were delivered like that."""
    delivered = 0
    while not end.is_set():
        delivered += await client.mail(ledger.new())
        await client.leave()
    return delivered


async def run(options: argparse.Namespace, ledger: Ledger) -> dict[str, object]:
    """Keep clients busy while the command runs."""
    troubles, end = Counter[str](), asyncio.Event()
    clients = [Client(options.host, options.recipient, ledger, troubles) for _n in range(CLIENTS)]
    slow_client = SlowClient(options.host, options.recipient, ledger, troubles)
    async with asyncio.TaskGroup() as group:
        slow = group.create_task(take_time(slow_client, ledger, end))
        for client in clients:
            group.create_task(come_and_go(client, ledger, end))
        process = await asyncio.create_subprocess_exec(
            *options.command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        printed, _nothing = await process.communicate()
        end.set()
    return {
        "status": process.returncode,
        "output": printed.decode("utf-8", "replace")[-OUTPUT:],
        "delivered": len(ledger.delivered),
        "slow": slow.result(),
        **{kind: troubles.pop(kind, 0) for kind in ("refused", "lost", "unanswered")},
        "replies": {kind.removeprefix("reply "): count for kind, count in sorted(troubles.items())},
    }


def mailbox_text(number: int) -> bytes:
    """Return what a mail server makes of the message: no doubled dots, LF at the ends of lines."""
    return content(number).replace(b"\r\n..", b"\r\n.").replace(b"\r\n", b"\n")


def main() -> None:
    """Read the arguments, do it, write the books."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True)
    parser.add_argument("--recipient", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--first", type=int, default=1, help="the first message's number")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    ledger = Ledger(options.first)
    told = asyncio.run(run(options, ledger))
    with options.ledger.open("a") as file:
        for number in sorted(ledger.delivered):
            file.write(f"{number} {hashlib.sha256(mailbox_text(number)).hexdigest()}\n")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
