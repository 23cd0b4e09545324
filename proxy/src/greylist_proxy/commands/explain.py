# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`explain`: why was this mail late, and what happens to the next one.

It asks the very parts that the server decides with, of the same configuration and store, and changes nothing: no
triplet is made, no delay begins. What the server alone has in memory is not asked for, since it has nothing there that
the store does not get within a moment.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from greylist_proxy.assembly import assemble
from greylist_proxy.client import Origin, identify
from greylist_proxy.commands import DONE, Missing, WrongUsage, on_store, triplets
from greylist_proxy.commands.arguments import Commands, add_command, bare
from greylist_proxy.commands.decisions import COLUMNS, as_json, as_row
from greylist_proxy.commands.output import (
    local_time,
    remark,
    show_fields,
    show_json,
    show_table,
    visible,
)
from greylist_proxy.commands.progress import Working
from greylist_proxy.config import Config
from greylist_proxy.lists import ListError
from greylist_proxy.log import Log
from greylist_proxy.normalise import address_key, recipient_key
from greylist_proxy.policy import Decision, Reason, Record, Rules, Triplet, Verdict
from greylist_proxy.smtp.address import AddressError, parse_sender
from greylist_proxy.smtp.recipients import Acceptance, screen
from greylist_proxy.store import Logged, Remembered, Store, StoreError, Wanted
from greylist_proxy.tasks import Tasks

LATELY = 10  # decisions that are shown
# What no exemption of a client changes.
NOT_OURS = (Reason.RELAY_DENIED, Reason.UNKNOWN_DOMAIN, Reason.ROUTING, Reason.UNKNOWN_RECIPIENT)


@dataclass(frozen=True)
class Answer:
    """All that there is to say; `triplets` has what is remembered for each identity of the client."""

    origin: Origin
    recipient: str
    decision: Decision
    names: Sequence[str]
    spf: str
    triplets: Sequence[Remembered]
    lately: Sequence[Logged]


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "explain",
        "say what happens to a mail now, and why, without changing anything",
        on_store(run, missing=Missing.EMPTY),
        "explain --client 192.0.2.7 --sender a@example.net --recipient u@example.org",
    )
    parser.add_argument("--client", metavar="ADDRESS", required=True, help="the IP address of the sending server")
    parser.add_argument("--sender", metavar="S", required=True, help="the envelope sender; '' or '<>': the null sender")
    parser.add_argument("--recipient", metavar="R", required=True, help="the envelope recipient")
    parser.add_argument("--helo", metavar="NAME", default="", help="the HELO name: SPF checks it for the null sender")
    parser.add_argument("--json", action="store_true", help="one JSON object, times in UTC")


async def run(config: Config, store: Store, options: argparse.Namespace) -> int:
    """Decide without a trace, and show it."""
    async with Working("asking the DNS"):
        answer = await _ask(config, store, options)
    if options.json:
        show_json(_as_json(answer, config.greylist.rules))
    else:
        _show(answer, config, options)
    return DONE


async def _ask(config: Config, store: Store, options: argparse.Namespace) -> Answer:
    try:
        client = identify(options.client, config.greylist.ipv4_prefix, config.greylist.ipv6_prefix)
    except ValueError:
        raise WrongUsage(f"{options.client!r} is not an IP address") from None
    sender, recipient = bare(options.sender), bare(options.recipient)
    try:
        parse_sender(sender)
        backend = config.backend
        acceptance = Acceptance.load(backend.domains, backend.recipients, backend.unknown_domain)
        _ignored, refusal = screen(recipient, acceptance)
    except AddressError as error:
        raise WrongUsage(f"the server would answer: {error}") from None
    except ListError as error:
        raise StoreError(str(error)) from error
    try:
        judgement = assemble(config, store, Log(), Tasks(Log()))
    except ListError as error:
        raise StoreError(str(error)) from error
    try:
        await judgement.gate.load_entries()
        origin = judgement.identifier.origin(client, options.helo, sender)
        decision = refusal or await judgement.gate.decide(origin, recipient, record=False)
        return Answer(
            origin,
            recipient,
            decision,
            names=await origin.names() if _asks_names(config) else (),
            spf=await _spf(origin) if config.greylist.client_key == "spf" else "not asked",
            triplets=await _remembered(store, origin, recipient),
            lately=[each async for each in _lately(store, sender, recipient)],
        )
    finally:
        await judgement.resolver.close()


def _asks_names(config: Config) -> bool:
    """Tell whether the server would want to know the client's names: what it does not ask is no answer to why."""
    return config.greylist.client_key == "ptr" or config.allow.well_known or bool(config.allow.client_files)


async def _spf(origin: Origin) -> str:
    spf = await origin.spf()
    return f"{spf.result}, {spf.domain} vouches for the client" if spf.domain else spf.result


async def _remembered(store: Store, origin: Origin, recipient: str) -> list[Remembered]:
    identities, sender, to = await origin.identities(), address_key(origin.sender), recipient_key(recipient)
    sighting = await store.observe(identities, sender, to, record=False)
    return [
        Remembered(Triplet(identity.key, sender, to), facts.record)
        for identity, facts in zip(identities, sighting.found, strict=True)
        if facts.record is not None
    ]


async def _lately(store: Store, sender: str, recipient: str) -> AsyncIterator[Logged]:
    # Of any client: a pool has many, and the question is what became of the mail.
    number = 0
    async for logged in store.decisions(Wanted(sender=sender, recipient=recipient)):
        yield logged
        number += 1
        if number == LATELY:
            return


def _as_json(answer: Answer, rules: Rules) -> dict[str, object]:
    decision, origin = answer.decision, answer.origin
    return {
        "verdict": str(decision.verdict),
        "reason": str(decision.reason),
        "client": str(origin.client.address),
        "network": origin.client.network,
        "sender": origin.sender,
        "recipient": answer.recipient,
        "seconds_left": decision.seconds_left,
        "id": answer.lately[0].id if answer.lately else "",
        "meaning": decision.reason.meaning,
        "would": str(decision.would) if decision.would else None,
        "key": decision.key,
        "rule": decision.rule,
        "names": list(answer.names),
        "spf": answer.spf,
        "triplets": [triplets.as_json(each, rules, time.time()) for each in answer.triplets],
        "decisions": [as_json(logged) for logged in answer.lately],
    }


def _show(answer: Answer, config: Config, options: argparse.Namespace) -> None:
    decision, origin, rules = answer.decision, answer.origin, config.greylist.rules
    show_fields(
        [
            ("verdict", _verdict(decision)),
            ("reason", f"{decision.reason}, {decision.reason.meaning}"),
            ("decided by", decision.rule or decision.key),
            ("client", f"{origin.client.address} in {origin.client.network}"),
            ("names", ", ".join(answer.names)),
            ("SPF", answer.spf),
            *((f"triplet of {each.triplet.client}", _described(each.record, rules)) for each in answer.triplets),
        ]
    )
    if answer.lately:
        print(f"\nlately, from {visible(origin.sender) or '<>'} to {visible(answer.recipient)}:")
        show_table(COLUMNS, [as_row(logged) for logged in answer.lately])
    if decision.verdict is not Verdict.ALLOW and decision.reason not in NOT_OURS:
        remark("")
        remark(
            f"to let it in now: greylist-proxy entries add client {origin.client.address} --expires 1h "
            f"--config {options.config}"
        )


def _verdict(decision: Decision) -> str:
    words = {Verdict.ALLOW: "allow, goes on to the mail server", Verdict.BLOCK: "block, refused for good"}
    text = words.get(decision.verdict, f"defer, put off for {decision.seconds_left} seconds")
    return f"{text} (mode observe: {decision.would} if it were enforced)" if decision.would else text


def _described(record: Record, rules: Rules) -> str:
    words = f"{triplets.described(record, rules, time.time())}; first seen {local_time(record.first_seen)}"
    return words if record.last_used is None else f"{words}, last used {local_time(record.last_used)}"
