# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each recipient is told and why, with the real gate and store, and a script for the mail server behind."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any, cast

import pytest
from greylist_proxy.client import Identifier, Origin, identify
from greylist_proxy.config_sections import AllowSection, TrapSection
from greylist_proxy.exemptions import Exemptions
from greylist_proxy.gate import Gate
from greylist_proxy.log import Log
from greylist_proxy.policy import Mode, Rules
from greylist_proxy.smtp import transaction as transaction_module
from greylist_proxy.smtp import verification
from greylist_proxy.smtp.address import Path, parse_sender
from greylist_proxy.smtp.backend import Timeouts
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.events import Hello, Mail, Offers
from greylist_proxy.smtp.forwarding import Introduce, Introduction
from greylist_proxy.smtp.host import BackendSettings
from greylist_proxy.smtp.limits import Connections
from greylist_proxy.smtp.parameters import Parameter
from greylist_proxy.smtp.recipients import Acceptance
from greylist_proxy.smtp.replies import Reply, own_reply
from greylist_proxy.smtp.shared import MAX_CALLOUTS, MAX_CALLOUTS_PER_CLIENT, Services
from greylist_proxy.smtp.tarpit import Tarpit
from greylist_proxy.smtp.transaction import (
    NOT_NOW,
    TOO_MANY_CALLOUTS,
    TOO_MANY_MESSAGES,
    Transaction,
    Visitor,
)
from greylist_proxy.store import Action, Entry, Kind, Limits, Source, Wanted
from greylist_proxy.store.sqlite import SqliteStore
from greylist_proxy.tasks import Tasks

from .stores import Clock

RULES = Rules(delay=60, retry_window=600, lifetime=3600)
ALL = Capabilities(size=0, eightbitmime=True, smtputf8=True, dsn=True, enhancedstatuscodes=True, pipelining=True)
GO_ON = Reply(354, (b"go on",))
TAKEN = own_reply(250, "2.0.0", "taken")
UNKNOWN_USER = Reply(550, (b"5.1.1 <x>: no such user",))
UTF8 = Parameter("SMTPUTF8", "SMTPUTF8", "")


async def reply_to(transaction: Transaction, recipient: str, parameters: Sequence[Parameter] = ()) -> Reply:
    """Ask for a recipient, and wait for the answer where it is not there at once."""
    answer = transaction.rcpt(recipient, parameters)
    return answer if isinstance(answer, Reply) else await answer


class Behind:
    """The mail server behind: what it knows, and what it heard; users whose names begin with `no` are not there."""

    def __init__(self) -> None:
        self.relays: list[ScriptedRelay] = []
        self.asked: list[str] = []  # RCPT in earnest
        self.verified: list[tuple[str, str]] = []  # sender and recipient, by `verify`
        self.parameters: list[Sequence[Parameter]] = []
        self.answers: dict[str, Reply | Exception] = {}
        self.final: Reply | Exception = TAKEN
        self.hold: asyncio.Event | None = None
        self.settings = BackendSettings(hosts=(), timeouts=Timeouts(share=0.05))
        self.reports: list[tuple[str, str, str]] = []  # outcome, stage, error
        self.refuses_sender = False

    def answer(self, recipient: str) -> Reply:
        answer = self.answers.get(recipient) or (UNKNOWN_USER if recipient.startswith("no") else TAKEN)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def report(self, outcome: str, stage: str, ident: str, endpoint: None, *, error: str) -> None:
        self.reports.append((outcome, stage, error))

    async def verify(
        self, sender: Path, parameters: Sequence[Parameter], recipient: str, introduce: Introduce
    ) -> Reply | None:
        assert introduce().helo == "c.test"
        self.parameters.append(parameters)
        self.verified.append((sender.address, recipient))
        if self.hold is not None:
            await self.hold.wait()
        return None if self.refuses_sender else self.answer(recipient)


class ScriptedRelay:
    """Stands where a Relay would."""

    def __init__(
        self,
        backends: Behind,
        tasks: Tasks,
        ident: str,
        sender: Path,
        parameters: Sequence[Parameter],
        introduce: Introduce,
        promised: Capabilities | None,
        flow: object,
    ) -> None:
        self.behind = backends
        self.sender = sender
        self.parameters = parameters
        self.introduce = introduce
        self.promised = promised
        self.recipients: list[tuple[str, Sequence[Parameter]]] = []
        self.content = b""
        self.ends: list[str] = []
        self.refuses_sender = backends.refuses_sender
        backends.relays.append(self)

    async def rcpt(self, address: str, parameters: Sequence[Parameter]) -> Reply:
        self.behind.asked.append(address)
        reply = self.behind.answer(address)
        if reply.is_positive:
            self.recipients.append((address, parameters))
        return reply

    async def data(self) -> Reply:
        return GO_ON

    def write(self, piece: bytes) -> None:
        self.content += piece

    async def finish(self, last: bytes = b"") -> Reply:
        self.content += last
        self.ends.append("finish")
        if isinstance(self.behind.final, Exception):
            raise self.behind.final
        return self.behind.final

    def close(self) -> None:
        self.ends.append("close")

    def abandon(self, outcome: str, reply: Reply | None = None) -> None:
        self.ends.append(outcome)


class Stage:
    """Services with real parts, under a clock of their own."""

    def __init__(self, folder: FilePath) -> None:
        self.log = io.StringIO()
        log = Log(self.log)
        self.clock = Clock()
        self.behind = Behind()
        tasks = Tasks(log)
        self.store = SqliteStore(folder / "greylist.db", RULES, Limits(), log, self.clock)
        self.traps = folder / "traps"
        self.traps.write_text("trap@here.test\n")
        self.exemptions = Exemptions(
            AllowSection(well_known=False),
            TrapSection.model_validate({"recipient_files": [str(self.traps)]}),
            None,
            self.clock,
        )
        self.gate = Gate(self.store, self.exemptions, RULES, "accept", log, tasks, clock=self.clock)
        self.services = Services(
            hostname="mx.test",
            acceptance=Acceptance.load(["here.test", "bücher.test"]),
            ipv4_prefix=24,
            ipv6_prefix=64,
            greylisted_reply="Greylisted, {seconds} s ({id})",
            identifier=Identifier(None, None, "network", 5, log),
            backends=cast("Any", self.behind),
            gate=self.gate,
            log=log,
            tasks=tasks,
            tarpit=Tarpit(0, 0, 1),
            offers=Offers("mx.test", 1 << 20, ALL, starttls=False),
            connections=Connections(10, 10),
            verifier=verification.Verifier(self.clock),
            harvesters=verification.Harvesters(self.clock),
        )

    def mail(
        self,
        sender: str = "a@far.test",
        source: str = "192.0.2.7",
        *parameters: Parameter,
        helo: str = "c.test",
        esmtp: bool = True,
        early: bool = False,
        tls: str = "",
        promised: Capabilities | None = ALL,
    ) -> Transaction:
        visitor = Visitor(identify(source, 24, 64), 40000, lambda: ("127.0.0.1", 25), tls, early)
        mail = Mail(parse_sender(sender), parameters)
        return Transaction(self.services, visitor, Hello(helo, esmtp), mail, cast("Any", None), promised)

    async def rcpt(self, recipient: str, sender: str = "a@far.test", source: str = "192.0.2.7") -> str:
        """Ask for one recipient in a transaction of its own."""
        transaction = self.mail(sender, source)
        reply = await reply_to(transaction, recipient)
        transaction.abandon("reset")
        return str(reply)

    async def deliver(self, recipient: str, sender: str = "a@far.test", source: str = "192.0.2.7") -> str:
        transaction = self.mail(sender, source)
        assert (await reply_to(transaction, recipient)).is_positive
        assert (await transaction.data()).code == 354
        return str(await transaction.commit())

    async def known(self, recipient: str, sender: str = "a@far.test", source: str = "192.0.2.7") -> None:
        """Make a triplet known."""
        assert (await self.rcpt(recipient, sender, source)).startswith("450 4.7.1 Greylisted")
        self.clock.step(61)
        assert (await self.deliver(recipient, sender, source)).startswith("250 ")

    def decisions(self) -> list[dict[str, Any]]:
        return [each for each in map(json.loads, self.log.getvalue().splitlines()) if each["event"] == "decision"]

    def reasons(self) -> list[str]:
        return [each["reason"] for each in self.decisions()]

    def run(self, dialogue: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            try:
                async with asyncio.timeout(30):
                    await dialogue()
            finally:
                await self.gate.close()

        asyncio.run(whole())


@pytest.fixture
def stage(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(transaction_module, "Relay", ScriptedRelay)
    return Stage(tmp_path)


# -- the way of a message --


def test_a_message_from_first_sight_to_its_delivery(stage: Stage) -> None:
    async def dialogue() -> None:
        first = stage.mail()
        reply = await reply_to(first, "u@here.test")
        ident = stage.decisions()[0]["id"]
        assert re.fullmatch("[0-9A-F]{12}[.]1", ident)
        assert str(reply) == f"450 4.7.1 Greylisted, 60 s ({ident})"
        # The only recipient was deferred: a 554 would make the sender give it up.
        assert await first.data() == reply
        first.abandon("reset")
        assert stage.behind.relays == [], "nobody passed, so the backend heard of nothing"
        stage.clock.step(61)
        notify, size = Parameter("notify=NEVER", "NOTIFY", "NEVER"), Parameter("SIZE=7", "SIZE", "7")
        second = stage.mail("a@far.test", "192.0.2.9", size)
        assert await reply_to(second, "u@here.test", (notify,)) == TAKEN
        assert await second.data() == GO_ON
        second.write(b"Subject: x\r\n")
        second.write(b"\r\n..x\r\n")
        assert await second.commit() == TAKEN
        (relay,) = stage.behind.relays
        assert relay.sender.address == "a@far.test"
        assert (relay.parameters, relay.recipients) == ((size,), [("u@here.test", (notify,))])
        trace, _from, rest = relay.content.partition(b"Subject:")
        assert re.fullmatch(
            rb"Received: from c\.test \(\[192\.0\.2\.9\]\)\r\n"
            rb" by mx\.test \(greylist-proxy\) with ESMTP id [0-9A-F]{12}\r\n"
            rb" for <u@here\.test>;\r\n [^\r\n]+ \+0000\r\n",
            trace,
        )
        assert rest == b" x\r\n\r\n..x\r\n"
        assert relay.introduce() == Introduction(
            identify("192.0.2.9", 24, 64).address, 40000, "127.0.0.1", 25, None, "c.test", True
        )
        assert await reply_to(stage.mail(), "u@here.test") == TAKEN
        assert stage.reasons() == ["new", "retried", "known"]

    stage.run(dialogue)


def test_a_refused_message_makes_nothing_known(stage: Stage) -> None:
    async def dialogue() -> None:
        await stage.rcpt("u@here.test")
        stage.clock.step(61)
        stage.behind.final = Reply(452, (b"4.3.1 full",))
        assert await stage.deliver("u@here.test") == "452 4.3.1 full"
        await stage.rcpt("u@here.test")
        assert stage.reasons() == ["new", "retried", "retried"]

    stage.run(dialogue)


@pytest.mark.parametrize(
    ("recipients", "answer"),
    [
        ([], "503 5.5.1 "),
        (["u@away.test"], "554 5.5.1 "),
        (["not an address"], "554 5.5.1 "),
        (["new@here.test"], "450 4.7.1 Greylisted"),
        (["new@here.test", "u@away.test"], "450 4.7.1 Greylisted"),
        (["u@away.test", "new@here.test", "not an address"], "450 4.7.1 Greylisted"),
        (["full@here.test"], "451 4.3.0 "),  # what the backend said of one recipient is no answer to DATA
        (["nobody@here.test"], "554 5.5.1 "),
        (["nobody@here.test", "full@here.test"], "451 4.3.0 "),
        (["u@later.test"], "450 4.7.1 This domain"),
    ],
)
def test_the_answer_to_data_without_recipients(stage: Stage, recipients: list[str], answer: str) -> None:
    async def dialogue() -> None:
        stage.behind.answers["full@here.test"] = Reply(452, (b"4.2.2 mailbox full",))
        for recipient in ("full@here.test", "nobody@here.test"):
            await stage.rcpt(recipient)
        stage.clock.step(61)
        if "u@later.test" in recipients:
            stage.services.acceptance = Acceptance.load(["here.test"], unknown_domain="defer")
        transaction = stage.mail()
        for recipient in recipients:
            await reply_to(transaction, recipient)
        assert str(await transaction.data()).startswith(answer)

    stage.run(dialogue)


def test_too_many_recipients_are_to_come_again(stage: Stage) -> None:
    async def dialogue() -> None:
        stage.services.max_recipients = 3
        transaction = stage.mail()
        replies = [str(await reply_to(transaction, f"u{number}@away.test"))[:9] for number in range(4)]
        assert replies == ["550 5.7.1"] * 3 + ["452 4.5.3"]
        assert (await transaction.data()).is_temporary, "there was one that nobody looked at"
        assert len(stage.decisions()) == 3

    stage.run(dialogue)


def test_an_empty_message_has_its_received_all_the_same(stage: Stage) -> None:
    async def dialogue() -> None:
        transaction = stage.mail()
        await reply_to(transaction, "abuse@here.test")
        await transaction.data()
        assert stage.behind.relays[0].content == b""  # it goes with what comes first of the message
        await transaction.commit()
        assert stage.behind.relays[0].content.startswith(b"Received: from ")
        assert stage.behind.relays[0].ends == ["finish"]

    stage.run(dialogue)


def test_for_names_nobody_when_there_are_two(stage: Stage) -> None:
    """Bcc: what one recipient's copy says, the other reads."""

    async def dialogue() -> None:
        transaction = stage.mail()
        await reply_to(transaction, "postmaster@here.test")
        await reply_to(transaction, "abuse@here.test")
        await transaction.data()
        transaction.write(b"Subject: x\r\n")
        assert b"here.test" not in stage.behind.relays[0].content
        # The refused and the deferred do not get the message.
        transaction = stage.mail()
        await reply_to(transaction, "u@here.test")
        await reply_to(transaction, "abuse@here.test")
        await reply_to(transaction, "abuse@away.test")
        await transaction.data()
        transaction.write(b"Subject: x\r\n")
        assert b" for <abuse@here.test>;" in stage.behind.relays[1].content

    stage.run(dialogue)


def test_received_says_how_it_came(stage: Stage) -> None:
    async def dialogue() -> None:
        for changes, words in (
            ({"esmtp": False}, b"with SMTP id"),
            ({"tls": "TLSv1.3 AES"}, b"(using TLSv1.3 AES)\r\n by mx.test (greylist-proxy) with ESMTPS id"),
            ({"helo": "no name\r\nX: y"}, b"from unknown ([192.0.2.7])"),
        ):
            transaction = stage.mail(**cast("Any", changes))
            await reply_to(transaction, "abuse@here.test")
            await transaction.data()
            transaction.write(b"Subject: x\r\n")
            assert words in stage.behind.relays[-1].content
        transaction = stage.mail("a@far.test", "192.0.2.7", UTF8)
        await reply_to(transaction, "abuse@bücher.test")
        await transaction.data()
        transaction.write(b"Subject: x\r\n")
        assert b"with UTF8SMTP id" in stage.behind.relays[-1].content
        assert " for <abuse@bücher.test>;".encode() in stage.behind.relays[-1].content

    stage.run(dialogue)


def test_a_name_that_is_known_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dialogue() -> None:
        monkeypatch.setattr(Origin, "known_names", ("mx1.far.test", "mx2.far.test"))
        transaction = stage.mail(helo="mx2.far.test")
        await reply_to(transaction, "abuse@here.test")
        await transaction.data()
        transaction.write(b"Subject: x\r\n")
        assert b"from mx2.far.test (mx2.far.test [192.0.2.7])\r\n" in stage.behind.relays[0].content
        assert stage.behind.relays[0].introduce().name == "mx1.far.test"

    stage.run(dialogue)


# -- what was promised --


def test_the_relay_is_told_what_the_client_was_promised(stage: Stage) -> None:
    async def dialogue() -> None:
        for promised in (ALL, None):
            await reply_to(stage.mail(promised=promised), "abuse@here.test")
            assert stage.behind.relays[-1].promised is promised
        # HELO: nothing was promised, and nothing can be broken.
        await reply_to(stage.mail(esmtp=False, promised=None), "abuse@here.test")
        assert stage.behind.relays[-1].promised == Capabilities()

    stage.run(dialogue)


def test_greylisting_goes_on_without_a_backend(stage: Stage) -> None:
    async def dialogue() -> None:
        stage.behind.answers["u@here.test"] = own_reply(451, "4.3.0", "No backend")
        assert (await stage.rcpt("u@here.test")).startswith("450 4.7.1 Greylisted")
        stage.clock.step(61)
        assert await stage.rcpt("u@here.test") == "451 4.3.0 No backend"
        assert stage.reasons() == ["new", "retried"]

    stage.run(dialogue)


# -- failures --


def test_after_a_failure_of_ours_the_backend_counts_as_lost(stage: Stage) -> None:
    async def dialogue() -> None:
        transaction = stage.mail()
        assert (await reply_to(transaction, "abuse@here.test")).is_positive
        transaction.fail()
        (relay,) = stage.behind.relays
        assert relay.ends == ["close"]
        assert (await reply_to(transaction, "postmaster@here.test")).is_temporary
        assert (await transaction.data()).is_temporary
        assert (await transaction.commit()).is_temporary
        assert "finish" not in relay.ends
        assert len(stage.behind.relays) == 1

    stage.run(dialogue)


def test_what_the_backend_took_is_taken_whatever_fails_here(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_ignored: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(stage.gate, "delivered", fail)

    async def dialogue() -> None:
        assert await stage.deliver("abuse@here.test") == str(TAKEN)

    stage.run(dialogue)
    assert "a delivery could not be noted" in stage.log.getvalue()


def test_who_is_to_come_again_alone_is_no_pass_in_the_log(stage: Stage) -> None:
    """A callout's recipient was put to the backend and is owed a deferral: another one, who would pass, has to wait."""

    async def dialogue() -> None:
        transaction = stage.mail("")
        assert (await reply_to(transaction, "u@here.test")).is_positive
        assert str(await reply_to(transaction, "postmaster@here.test")).startswith("452 4.5.3 ")
        told = [(line["recipient"], line["verdict"], line["reason"]) for line in stage.decisions()]
        assert told == [("u@here.test", "defer", "new"), ("postmaster@here.test", "defer", "transaction")]
        assert (await transaction.data()).is_temporary

    stage.run(dialogue)


@pytest.mark.parametrize("when", ["before", "after", "commit"])
def test_a_callouts_place_is_given_back(stage: Stage, when: str) -> None:
    async def dialogue() -> None:
        transaction = stage.mail("")
        assert (await reply_to(transaction, "nobody@here.test")) == UNKNOWN_USER
        assert stage.services.callouts.taken == 1
        if when == "before":
            transaction.abandon("client-gone")
        else:
            await reply_to(transaction, "abuse@here.test")
            await transaction.data()
            if when == "after":
                transaction.abandon("client-gone")
            else:
                stage.behind.final = RuntimeError("a fault of ours")
                with pytest.raises(RuntimeError):
                    await transaction.commit()
                assert stage.behind.relays[-1].ends == ["finish", "close"], "its connection is given back"
        assert stage.services.callouts.taken == 0
        transaction.abandon("client-gone")
        assert stage.services.callouts.taken == 0, "only once"

    stage.run(dialogue)


def test_callouts_hold_so_many_connections_and_no_more(stage: Stage) -> None:
    async def dialogue() -> None:
        transactions = [
            stage.mail(("", "postmaster@far.test", "Double-Bounce@far.test")[number % 3], f"192.0.2.{number}")
            for number in range(MAX_CALLOUTS + 1)
        ]
        replies = [str(await reply_to(each, "u@here.test"))[:9] for each in transactions]
        assert replies == ["250 2.0.0"] * MAX_CALLOUTS + ["451 4.3.2"]
        assert len(stage.behind.relays) == MAX_CALLOUTS
        assert str(await transactions[0].data()).startswith("450 4.7.1 Greylisted")
        assert str(await transactions[-1].data()).startswith("451 ")
        transactions[0].abandon("reset")
        assert (await reply_to(transactions[-1], "u@here.test")).is_positive

    stage.run(dialogue)


def test_one_client_has_a_part_of_the_callouts(stage: Stage) -> None:
    async def dialogue() -> None:
        # An IPv6 client has a whole /64.
        for sources in (["192.0.2.7"] * 6, [f"2001:db8::{number}" for number in range(6)]):
            transactions = [stage.mail("", source) for source in sources]
            replies = [await reply_to(each, "u@here.test") for each in transactions]
            assert replies == [TAKEN] * MAX_CALLOUTS_PER_CLIENT + [TOO_MANY_CALLOUTS]
            transactions[0].abandon("reset")
            assert await reply_to(transactions[-1], "u@here.test") == TAKEN

    stage.run(dialogue)


# -- a client's share of the connections to the backend --


@pytest.mark.parametrize("end", ["abandon", "commit", "refused", "fault of ours", "gone while it waits"])
def test_a_share_is_given_back_once(stage: Stage, end: str) -> None:
    shares = stage.services.shares
    shares.most = 1

    async def dialogue() -> None:
        transaction = stage.mail()
        assert await reply_to(transaction, "abuse@here.test") == TAKEN
        assert await reply_to(transaction, "postmaster@here.test") == TAKEN
        assert shares.taken == 1
        if end == "gone while it waits":
            other = stage.mail()
            stage.behind.settings = BackendSettings(hosts=(), timeouts=Timeouts(share=30))
            waiting = asyncio.ensure_future(reply_to(other, "abuse@here.test"))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            other.abandon("client-gone")
            assert shares.taken == 1
        elif end == "fault of ours":
            transaction.fail()
            assert shares.taken == 0
            assert await reply_to(transaction, "abuse@here.test") == NOT_NOW
        elif end != "abandon":
            assert await transaction.data() == GO_ON
            stage.behind.final = TAKEN if end == "commit" else UNKNOWN_USER
            assert await transaction.commit() == stage.behind.final
            assert shares.taken == 0
        for _n in range(2):
            transaction.abandon("reset")
            assert (shares.taken, len(shares)) == (0, 0)

    stage.run(dialogue)


def test_a_client_over_its_share_waits_and_is_then_told_to_come_again(stage: Stage) -> None:
    stage.services.shares.most = 2

    async def dialogue() -> None:
        holding = [stage.mail() for _n in range(2)]
        for each in holding:
            assert await reply_to(each, "abuse@here.test") == TAKEN
        over = stage.mail()
        assert await reply_to(over, "abuse@here.test") == TOO_MANY_MESSAGES
        # It has waited once, and does not wait again for each recipient.
        stage.behind.settings = BackendSettings(hosts=(), timeouts=Timeouts(share=30))
        assert [await reply_to(over, "abuse@here.test"), await over.data()] == [NOT_NOW] * 2
        over.abandon("refused")
        # Others are not concerned, nor who needs no connection.
        assert (await stage.rcpt("abuse@here.test", source="192.0.2.8")).startswith("250 ")
        assert (await stage.rcpt("u@here.test")).startswith("450 4.7.1 Greylisted")
        waiting = asyncio.ensure_future(stage.rcpt("abuse@here.test"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        holding[0].abandon("reset")
        assert (await waiting).startswith("250 ")

    stage.run(dialogue)
    assert stage.behind.reports == [
        ("failed", "connect", "the client has 2 already: see backend.max_connections_per_client")
    ]


# -- whom replies are slow for --


def test_who_is_slow(stage: Stage) -> None:
    async def dialogue() -> None:
        plain = stage.mail()
        await reply_to(plain, "u@away.test")
        await reply_to(plain, "u@here.test")
        assert (plain.slow, plain.is_trapped) == (False, False)
        early = stage.mail(early=True)
        assert (early.slow, early.is_trapped) == (True, False)
        await reply_to(early, "u@here.test")
        assert [each.get("early") for each in stage.decisions()] == [None, None, True]
        stage.exemptions.put(Entry(Kind.SENDER, "bad.test", Action.BLOCK, Source.OPERATOR, 0.0, None, ""))
        blocked = stage.mail("a@bad.test")
        assert str(await reply_to(blocked, "u@here.test")).startswith("550 5.7.1 Blocked")
        assert (blocked.slow, blocked.is_trapped) == (True, False)
        for recipient in ("trap@here.test", "u@here.test"):
            trapped = stage.mail("a@other.test", "198.51.100.1")
            assert str(await reply_to(trapped, recipient)).startswith("450 4.7.1 Too much unwanted mail")
            assert (trapped.slow, trapped.is_trapped) == (True, True)
        # Mode observe tarpits nobody.
        stage.gate.rules = Rules(mode=Mode.OBSERVE)
        for transaction in (stage.mail(early=True), stage.mail("a@bad.test"), stage.mail("", "198.51.100.1")):
            assert (await reply_to(transaction, "u@here.test")).is_positive
            assert (transaction.slow, transaction.is_trapped) == (False, False)

    stage.run(dialogue)


# -- no relay for others --


@pytest.mark.parametrize(
    ("recipient", "answer", "reason"),
    [
        ("u@away.test", "550 5.7.1 ", "relay-denied"),
        ("postmaster@away.test", "550 5.7.1 ", "relay-denied"),
        ("u@[192.0.2.1]", "550 5.7.1 ", "relay-denied"),
        ("u%away.test@here.test", "550 5.1.3 ", "routing"),
        ("away.test!u@here.test", "550 5.1.3 ", "routing"),
        ('"u@away.test"@here.test', "550 5.1.3 ", "routing"),
        ("@here.test:u@away.test", "550 5.1.3 ", "routing"),
        ("abuse%away.test@here.test", "550 5.1.3 ", "routing"),
        ("u%away.test@bücher.test", "550 5.1.3 ", "routing"),
        ("u@away.test@here.test", "550 5.1.3 ", "routing"),
        ("u@here.test\r\nRCPT TO:<v@away.test>", "550 5.1.3 ", "routing"),
        ("u\r\nRCPT TO:<v>@here.test", "501 5.1.3 ", None),
        ("u\0@here.test", "501 5.1.3 ", None),
        ("u\x85@here.test", "501 5.1.3 ", None),
        ("u@here.test ", "501 5.1.3 ", None),
    ],
)
@pytest.mark.parametrize("sender", ["a@far.test", ""])
@pytest.mark.parametrize("first", [False, True])
def test_what_is_not_ours_never_reaches_the_backend(
    stage: Stage, recipient: str, answer: str, reason: str | None, sender: str, first: bool
) -> None:
    async def dialogue() -> None:
        stage.services.verify_recipient_first = first
        stage.gate.rules = Rules(mode=Mode.OFF)  # whatever the policy says
        transaction = stage.mail(sender)
        assert str(await reply_to(transaction, recipient)).startswith(answer)
        assert not (await transaction.data()).is_positive
        assert stage.behind.relays == []
        assert stage.behind.verified == []
        assert stage.reasons() == ([reason] if reason else [])
        assert all(line.isascii() and line.isprintable() for line in stage.log.getvalue().splitlines())

    stage.run(dialogue)


# -- users that there are --


def test_users_that_the_file_does_not_name(stage: Stage, tmp_path: FilePath) -> None:
    file = tmp_path / "recipients"
    file.write_text("u@here.test\n")
    stage.services.acceptance = Acceptance.load(["here.test"], file)

    async def dialogue() -> None:
        assert await stage.rcpt("v@here.test") == "550 5.1.1 No such user here"
        assert (await stage.rcpt("u@here.test")).startswith("450 4.7.1 Greylisted")
        assert await stage.rcpt("v@here.test", sender="") == "550 5.1.1 No such user here"
        assert (await stage.rcpt("postmaster@here.test")).startswith("250 ")
        assert stage.reasons() == ["unknown-recipient", "new", "unknown-recipient", "exempt-postmaster"]
        assert stage.behind.asked == ["postmaster@here.test"]
        # A refused recipient leaves no triplet behind.
        assert [each.triplet.recipient async for each in stage.store.triplets(Wanted())] == ["u@here.test"]

    stage.run(dialogue)


def test_recipients_are_verified_before_they_are_deferred(stage: Stage) -> None:
    async def dialogue() -> None:
        stage.services.verify_recipient_first = True
        size = Parameter("SIZE=7", "SIZE", "7")
        transaction = stage.mail("a@far.test", "192.0.2.7", size)
        assert await reply_to(transaction, "nobody@here.test") == UNKNOWN_USER
        assert str(await reply_to(transaction, "u@here.test")).startswith("450 4.7.1 Greylisted")
        assert stage.behind.verified == [("a@far.test", "nobody@here.test"), ("a@far.test", "u@here.test")]
        assert stage.behind.parameters == [(size,), (size,)]
        assert stage.reasons() == ["unknown-recipient", "new"]
        # That it exists is remembered for everybody, in any spelling of its domain.
        assert (await stage.rcpt("u@HERE.test", "b@far.test", "198.51.100.1")).startswith("450 4.7.1 Greylisted")
        assert len(stage.behind.verified) == 2
        # That it does not is not.
        assert await stage.rcpt("nobody@here.test") == str(UNKNOWN_USER)
        assert len(stage.behind.verified) == 3
        stage.clock.step(verification.REMEMBERED + 1)
        await stage.rcpt("u@here.test", "c@far.test")
        assert len(stage.behind.verified) == 4
        # Who passes, and a callout, is put to the backend anyway.
        await stage.rcpt("u@here.test")
        await stage.rcpt("v@here.test", "")
        await stage.rcpt("postmaster@here.test")
        assert len(stage.behind.verified) == 4
        assert stage.behind.asked == ["u@here.test", "v@here.test", "postmaster@here.test"]

    stage.run(dialogue)


def test_a_trap_closes_though_nobody_lives_there(stage: Stage) -> None:
    async def dialogue() -> None:
        stage.services.verify_recipient_first = True
        stage.behind.answers["trap@here.test"] = UNKNOWN_USER
        assert (await stage.rcpt("trap@here.test")).startswith("450 4.7.1 Too much unwanted mail")
        assert (await stage.rcpt("nobody@here.test")).startswith("450 4.7.1 Too much unwanted mail")
        assert stage.behind.verified == []

    stage.run(dialogue)


@pytest.mark.parametrize("answer", [Reply(451, (b"4.3.0 later",)), Reply(450, (b"4.2.0 greylisted",))])
def test_no_definite_answer_lets_greylisting_go_on(stage: Stage, answer: Reply) -> None:
    async def dialogue() -> None:
        stage.services.verify_recipient_first = True
        stage.behind.answers["u@here.test"] = answer
        assert (await stage.rcpt("u@here.test")).startswith("450 4.7.1 Greylisted")
        await stage.rcpt("u@here.test")
        assert len(stage.behind.verified) == 2

    stage.run(dialogue)


def test_a_backend_that_is_silent_holds_few_and_not_for_long(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PATIENCE", 0.2)

    async def dialogue() -> None:
        stage.services.verify_recipient_first = True
        stage.behind.hold = asyncio.Event()
        number = verification.MAX_QUESTIONS + 5
        tasks = [asyncio.create_task(stage.rcpt(f"no{n}@here.test", source=f"192.0.2.{n}")) for n in range(number)]
        replies = await asyncio.gather(*tasks)
        assert {reply[:20] for reply in replies} == {"450 4.7.1 Greylisted"}
        assert len(stage.behind.verified) == verification.MAX_QUESTIONS
        stage.behind.hold.set()
        assert await stage.rcpt("no@here.test") == str(UNKNOWN_USER)

    stage.run(dialogue)


# -- who tries names out --


async def harvest(stage: Stage, source: str = "192.0.2.7", sender: str = "a@far.test", number: int = 5) -> list[str]:
    return [await stage.rcpt(f"no{n}@here.test", sender, source) for n in range(number)]


TOLD = "450 4.7.1 Too many unknown users, try again later"


def test_after_five_unknown_users_the_backend_is_not_asked(stage: Stage) -> None:
    async def dialogue() -> None:
        stage.services.verify_recipient_first = True
        assert await harvest(stage) == [str(UNKNOWN_USER)] * 5
        asked = len(stage.behind.verified)
        # The answer is the same for who exists and who does not, whoever the sender claims to be.
        for recipient in ("no9@here.test", "u@here.test"):
            for sender in ("a@far.test", "b@other.test", "", "postmaster@far.test"):
                assert await stage.rcpt(recipient, sender) == TOLD
        assert (len(stage.behind.verified), stage.behind.asked) == (asked, [])
        assert stage.services.callouts.taken == 0
        # Others are not concerned, nor are postmaster and routing.
        assert await stage.rcpt("no9@here.test", source="192.0.2.8") == str(UNKNOWN_USER)
        assert (await stage.rcpt("postmaster@here.test")).startswith("250 ")
        assert (await stage.rcpt("u%x@here.test")).startswith("550 5.1.3 ")
        # It is not for ever, and the delay went on meanwhile.
        stage.clock.step(RULES.retry_window - 1)
        assert await stage.rcpt("u@here.test") == TOLD
        assert set(stage.reasons()[5:13]) == {"harvesting"}
        stage.clock.step(verification.PERIOD)
        assert (await stage.rcpt("u@here.test")).startswith("450 4.7.1 Greylisted")

    stage.run(dialogue)


def test_the_file_and_the_backends_own_answers_count_too(stage: Stage, tmp_path: FilePath) -> None:
    async def dialogue() -> None:
        # A callout sees the backend's answer at RCPT.
        assert await harvest(stage, sender="") == [str(UNKNOWN_USER)] * 5
        assert await stage.rcpt("u@here.test", "") == TOLD
        # Once its delay is over, so does everybody.
        for n in range(5):
            await stage.rcpt(f"no{n}@here.test", source="198.51.100.1")
        stage.clock.step(61)
        assert await harvest(stage, "198.51.100.1") == [str(UNKNOWN_USER)] * 5
        assert await stage.rcpt("no1@here.test", source="198.51.100.1") == TOLD
        file = tmp_path / "recipients"
        file.write_text("u@here.test\n")
        stage.services.acceptance = Acceptance.load(["here.test"], file)
        assert {reply[:9] for reply in await harvest(stage, "203.0.113.1")} == {"550 5.1.1"}
        assert await stage.rcpt("no9@here.test", source="203.0.113.1") == TOLD
        assert await stage.rcpt("u@here.test", source="203.0.113.1") == TOLD
        # Nothing is remembered of whom there is not.
        kept = [each.triplet async for each in stage.store.triplets(Wanted())]
        assert {each.recipient for each in kept if each.client == "203.0.113.0/24"} == {"u@here.test"}

    stage.run(dialogue)


def test_other_refusals_do_not_count(stage: Stage) -> None:
    async def dialogue() -> None:
        stage.services.verify_recipient_first = True
        for number in range(9):
            await stage.rcpt(f"u{number}%x@here.test")
            await stage.rcpt(f"u{number}@away.test")
            await stage.rcpt(f"u{number} @here.test")
            stage.behind.answers[f"u{number}@here.test"] = Reply(550, (b"5.7.1 your address is blocked",))
            await stage.rcpt(f"u{number}@here.test")
        assert (await stage.rcpt("u@here.test")).startswith("450 4.7.1 Greylisted")

    stage.run(dialogue)


def test_what_is_said_of_the_sender_counts_for_no_recipient(stage: Stage) -> None:
    async def dialogue() -> None:
        users = [f"u{number}@here.test" for number in range(verification.MAX_UNKNOWN)]
        for user in users:
            await stage.known(user)
        stage.behind.answers = dict.fromkeys(users, own_reply(553, "", "sender domain does not exist"))
        for refuses_sender, following in ((True, "450 4.7.1 Greylisted"), (False, TOLD)):
            stage.behind.refuses_sender = refuses_sender
            for user in users:
                assert (await stage.rcpt(user)).startswith("553 ")
            assert (await stage.rcpt("v@here.test")).startswith(following)

    stage.run(dialogue)


def test_a_forwarder_with_dead_addresses_goes_on(stage: Stage) -> None:
    async def dialogue() -> None:
        stage.services.verify_recipient_first = True
        await stage.known("u@here.test")
        # The same dead address counts once, however often somebody writes to it.
        for _n in range(9):
            assert await stage.rcpt("no@here.test") == str(UNKNOWN_USER)
        assert await harvest(stage, number=4) == [str(UNKNOWN_USER)] * 4
        assert await stage.rcpt("v@here.test") == TOLD
        # What is known passes, and a delivery starts the count anew.
        assert (await stage.deliver("u@here.test")).startswith("250 ")
        assert (await stage.rcpt("v@here.test")).startswith("450 4.7.1 Greylisted")
        assert await stage.rcpt("no@here.test") == str(UNKNOWN_USER)
        # An exempt client is nobody who has to try names out.
        await harvest(stage)
        assert await stage.rcpt("v@here.test") == TOLD
        stage.exemptions.put(Entry(Kind.CLIENT, "192.0.2.7", Action.ALLOW, Source.OPERATOR, 0.0, None, ""))
        assert (await stage.rcpt("v@here.test")).startswith("250 ")

    stage.run(dialogue)


def test_an_exempt_recipient_does_not_show_who_exists(stage: Stage) -> None:
    async def dialogue() -> None:
        stage.exemptions.put(Entry(Kind.RECIPIENT, "here.test", Action.ALLOW, Source.OPERATOR, 0.0, None, ""))
        assert await harvest(stage) == [str(UNKNOWN_USER)] * 5
        assert await stage.rcpt("u@here.test") == TOLD

    stage.run(dialogue)


def test_mode_observe_defers_no_harvester(stage: Stage) -> None:
    async def dialogue() -> None:
        stage.gate.rules = Rules(mode=Mode.OBSERVE)
        assert await harvest(stage, number=9) == [str(UNKNOWN_USER)] * 9
        assert (await stage.rcpt("u@here.test")).startswith("250 ")

    stage.run(dialogue)


@pytest.mark.parametrize(
    ("reply", "counts"),
    [
        ("550 5.1.1 no such user", True),
        ("550 5.1.10 RESOLVER.ADR.RecipientNotFound", True),
        ("550 5.4.1 Recipient address rejected: Access denied", True),
        ("553 5.1.3 bad mailbox", True),
        ("551 no such user", True),
        ("550 unknown", True),
        ("550 5.7.1 blocked", False),
        ("550 5.1.7 a bad sender", False),
        ("553 5.1.8 the sender's domain does not exist", False),
        ("550 5.1.18 what nobody has registered yet", True),
        ("550 5.2.1 disabled", False),
        ("552 5.2.2 full", False),
        ("554 no", False),
        ("450 4.1.1 later", False),
        ("250 2.1.5 fine", False),
    ],
)
def test_what_counts_as_an_unknown_user(reply: str, counts: bool) -> None:
    assert verification.is_unknown_user(Reply(int(reply[:3]), (reply[4:].encode(),))) is counts


def test_counting_harvesters_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MAX_CLIENTS", 50)
    clock = Clock()
    harvesters = verification.Harvesters(clock)
    for number in range(200):
        for user in range(9):
            harvesters.note(identify(f"10.0.{number}.1", 24, 64), f"u{user}@here.test")
        assert len(harvesters) <= 50
    assert harvesters.has(identify("10.0.199.1", 24, 64))
    assert not harvesters.has(identify("10.0.0.1", 24, 64))
    clock.step(verification.PERIOD + 1)
    for number in range(30):
        harvesters.note(identify(f"10.1.{number}.1", 24, 64), "u@here.test")
    assert len(harvesters) == 30, "what has expired goes"


def test_a_harvester_on_ipv6_has_a_whole_network() -> None:
    harvesters = verification.Harvesters()
    for number in range(verification.MAX_UNKNOWN):
        harvesters.note(identify(f"2001:db8::{number}", 24, 64), f"u{number}@here.test")
    assert harvesters.has(identify("2001:db8::ffff:1", 24, 64))
    assert not harvesters.has(identify("2001:db8:0:1::1", 24, 64))


# -- internationalised addresses --


def test_internationalised_addresses_are_greylisted_like_others(stage: Stage) -> None:
    async def dialogue() -> None:
        sender, recipient = "jürgen@straße.test", "用户@bücher.test"
        transaction = stage.mail(sender, "192.0.2.7", UTF8)
        assert str(await reply_to(transaction, recipient)).startswith("450 4.7.1 Greylisted")
        stage.clock.step(61)
        # At its retry it is written in another way.
        again = stage.mail("ju\u0308rgen@xn--strae-oqa.test", "192.0.2.7", UTF8)
        other = "用户@XN--bcher-kva.test"
        assert await reply_to(again, other) == TAKEN
        assert await again.data() == GO_ON
        assert await again.commit() == TAKEN
        assert stage.behind.relays[0].recipients == [(other, ())], "as it came"
        assert (await reply_to(stage.mail(sender, "192.0.2.7", UTF8), recipient)).is_positive
        assert stage.reasons() == ["new", "retried", "known"]
        assert all(line.isascii() and line.isprintable() for line in stage.log.getvalue().splitlines())
        assert stage.decisions()[0]["sender"] == sender
        await stage.store.flush()
        (kept,) = [each async for each in stage.store.triplets(Wanted())]
        assert kept.triplet[1:] == ("jürgen@xn--strae-oqa.test", "用户@xn--bcher-kva.test")
        logged = [each async for each in stage.store.decisions(Wanted(recipient=recipient))]
        assert [each.sender for each in logged] == [sender, sender]

    stage.run(dialogue)


def test_lists_take_internationalised_addresses(stage: Stage) -> None:
    async def dialogue() -> None:
        stage.exemptions.put(Entry(Kind.SENDER, "xn--bse-sna.test", Action.BLOCK, Source.OPERATOR, 0.0, None, ""))
        stage.exemptions.put(Entry(Kind.RECIPIENT, "fast@bücher.test", Action.ALLOW, Source.OPERATOR, 0.0, None, ""))
        for sender, recipient, answer in (
            ("a@böse.test", "u@here.test", "550 5.7.1 Blocked"),
            ("用户@BÖSE.test", "u@here.test", "550 5.7.1 Blocked"),
            ("a@far.test", "fast@bücher.test", "250 "),
            ("a@far.test", "FAST@BÜCHER.test", "250 "),
            ("a@far.test", "slow@bücher.test", "450 "),
        ):
            reply = await reply_to(stage.mail(sender, "192.0.2.7", UTF8), recipient)
            assert str(reply).startswith(answer), (sender, recipient)

    stage.run(dialogue)


def test_the_decision_of_one_recipient_is_the_next_ones(stage: Stage) -> None:
    """Rule 5 of the policy, with recipients between that neither set the verdict nor take it."""

    async def dialogue() -> None:
        await stage.known("known@here.test")
        transaction = stage.mail()
        answers = [
            str(await reply_to(transaction, recipient))[:4]
            for recipient in ("postmaster@here.test", "u@away.test", "nothing", "known@here.test", "new@here.test")
        ]
        assert answers == ["250 ", "550 ", "501 ", "250 ", "250 "]
        assert stage.reasons()[-2:] == ["known", "transaction"]

    stage.run(dialogue)
