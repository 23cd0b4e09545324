# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is exempt and who is blocked, in which order, and what an attacker's claims are worth."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from greylist_proxy.client import Client, Origin
from greylist_proxy.config_sections import AllowSection, TrapSection
from greylist_proxy.exemptions import Exemptions
from greylist_proxy.lists import ListError
from greylist_proxy.lists.entries import EntryError
from greylist_proxy.policy import Decision
from greylist_proxy.resolver import Answer, Resolver
from greylist_proxy.spf import Spf
from greylist_proxy.store import Action, Changes, Entry, Kind, Removed, Source
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_000_000.0
ALLOW, BLOCK = Action.ALLOW, Action.BLOCK
OPERATOR, LEARNED, TRAP = Source.OPERATOR, Source.LEARNED, Source.TRAP


@dataclass
class Visitor:
    """An Origin whose DNS is this object: confirmed names, and the domain that SPF passes for; `asked` what was."""

    address: str = "192.0.2.1"
    sender: str = "user@example.net"
    confirmed: tuple[str, ...] = ()
    spf_pass: str = ""
    asked: list[str] = field(default_factory=list)

    @property
    def client(self) -> Client:
        return Client(self.address, "192.0.2.0/24")

    async def names(self) -> tuple[str, ...]:
        self.asked.append("names")
        return self.confirmed

    async def spf(self) -> Spf:
        self.asked.append("spf")
        return Spf("pass" if self.spf_pass else "none", self.spf_pass)


VERIFIED = Visitor("192.0.2.1", "user+x@a.example.net", ("mx.example.net",), "a.example.net")


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def entry(
    kind: str, value: str, action: Action = ALLOW, source: Source = OPERATOR, expires: float | None = None
) -> Entry:
    return Entry(Kind(kind), value, action, source, NOW, expires)


def page(*changed: Entry | Removed, restart: bool = False, more: bool = False) -> Changes:
    return Changes(restart, changed, "1", more)


def with_entries(*entries: Entry, allow: AllowSection | None = None) -> Exemptions:
    exemptions = Exemptions(allow or AllowSection(well_known=False), TrapSection(), None, Clock())
    assert exemptions.apply(page(*entries)) == []
    return exemptions


def decide(exemptions: Exemptions, visitor: Visitor, recipient: str = "to@example.org") -> Decision | None:
    return asyncio.run(exemptions.match(cast(Origin, visitor), recipient))


def told(decision: Decision | None) -> str:
    return f"{decision.verdict} {decision.reason} {decision.rule}".rstrip() if decision else ""


# Every rule that matches VERIFIED's mail to to@example.org, from the one that wins to the one that loses.
ORDER = [
    (entry("client", "192.0.2.1"), "allow allowed-client operator-entry:192.0.2.1"),
    (entry("client", "example.net"), "allow allowed-name operator-entry:example.net"),
    (entry("sender", "example.net"), "allow allowed-sender-domain operator-entry:example.net"),
    (entry("sender", "user@a.example.net"), "allow allowed-sender operator-entry:user@a.example.net"),
    (entry("recipient", "to@example.org"), "allow allowed-recipient operator-entry:to@example.org"),
    (entry("client", "192.0.2.0/25", BLOCK), "block blocked-client operator-entry:192.0.2.0/25"),
    (entry("client", "mx.example.net", BLOCK), "block blocked-client operator-entry:mx.example.net"),
    (entry("sender", "net", BLOCK), "block blocked-sender operator-entry:net"),
    (entry("recipient", "to@", BLOCK), "block blocked-recipient operator-entry:to@"),
    (entry("client", "192.0.2.0/31", BLOCK, TRAP, NOW + 60.5), "defer trapped-client trap-entry:192.0.2.0/31"),
    (entry("client", "192.0.2.0/30", ALLOW, LEARNED), "allow allowed-client learned-entry:192.0.2.0/30"),
    (entry("client", "net", ALLOW, LEARNED), "allow allowed-name learned-entry:net"),
    (entry("sender", "a.example.net", ALLOW, LEARNED), "allow allowed-sender-domain learned-entry:a.example.net"),
    (
        entry("sender", "user+x@a.example.net", ALLOW, LEARNED),
        "allow allowed-sender learned-entry:user+x@a.example.net",
    ),
    (entry("recipient", "example.org", ALLOW, LEARNED), "allow allowed-recipient learned-entry:example.org"),
]


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_precedence(first: int) -> None:
    """Without the rules before it, each rule wins against all that come after it, in whatever order they were made."""
    entries = [item for item, _words in ORDER[first:]]
    wins = ORDER[first][1]
    assert told(decide(with_entries(*entries), VERIFIED)) == wins
    assert told(decide(with_entries(*reversed(entries)), VERIFIED)) == wins


@pytest.mark.parametrize("recipient", ["postmaster", "Postmaster@example.org", "abuse@example.org"])
def test_nothing_stands_before_postmaster_and_abuse(recipient: str) -> None:
    exemptions = with_entries(
        entry("client", "192.0.2.1", BLOCK),
        entry("recipient", "example.org", BLOCK),
        entry("trap", "example.org", BLOCK),
    )
    assert told(decide(exemptions, Visitor(), recipient)) == "allow exempt-postmaster"
    assert not exemptions.is_trap(recipient)


def test_no_list_says_nothing() -> None:
    visitor = Visitor(confirmed=("mx.example.net",), spf_pass="example.net")
    assert decide(with_entries(), visitor) is None
    assert visitor.asked == []


@pytest.mark.parametrize(
    ("item", "visitor", "reason"),
    [
        # a name counts only when it is confirmed; a bare PTR record confirms nothing and is not among `names`
        (entry("client", "example.net"), Visitor(confirmed=()), ""),
        (entry("client", "example.net"), Visitor(confirmed=("a.example.org", "MX.Example.NET.")), "allowed-name"),
        (entry("client", "example.net"), Visitor(confirmed=("evil-example.net",)), ""),
        (entry("client", "example.net"), Visitor(confirmed=("example.net.evil.example",)), ""),
        # a sender counts only with a pass for his own domain
        (entry("sender", "example.net"), Visitor(), ""),
        (entry("sender", "example.net"), Visitor(spf_pass="example.net"), "allowed-sender-domain"),
        (entry("sender", "example.net"), Visitor(spf_pass="evil.example"), ""),
        (
            entry("sender", "example.net"),
            Visitor(sender="u@Sub.Example.NET", spf_pass="sub.example.net"),
            "allowed-sender-domain",
        ),
        (entry("sender", "example.net"), Visitor(sender="u@sub.example.net", spf_pass="example.net"), ""),
        (entry("sender", "example.net"), Visitor(sender="u@evil-example.net", spf_pass="evil-example.net"), ""),
        (
            entry("sender", "example.net"),
            Visitor(sender="u@example.net.evil.example", spf_pass="example.net.evil.example"),
            "",
        ),
        (entry("sender", "example.net"), Visitor(sender='"u@example.net"@evil.example', spf_pass="evil.example"), ""),
        (entry("sender", "example.net"), Visitor(sender="u@example.net@evil.example", spf_pass="evil.example"), ""),
        (
            entry("sender", "example.net"),
            Visitor(sender="u@example.net.", spf_pass="example.net"),
            "allowed-sender-domain",
        ),
        (entry("sender", "user@example.net"), Visitor(), ""),
        (
            entry("sender", "user@example.net"),
            Visitor(sender="USER@example.net", spf_pass="example.net"),
            "allowed-sender",
        ),
        (
            entry("sender", "user@example.net"),
            Visitor(sender="user+a@example.net", spf_pass="example.net"),
            "allowed-sender",
        ),
        (entry("sender", "user@example.net"), Visitor(sender="other@example.net", spf_pass="example.net"), ""),
        (entry("sender", "user@example.net"), Visitor(sender="user@sub.example.net", spf_pass="sub.example.net"), ""),
        # the null sender is nobody; SPF for it is about the HELO name
        (entry("sender", "example.net"), Visitor(sender="", spf_pass="example.net"), ""),
        # to be blocked, a claim is enough
        (entry("sender", "example.net", BLOCK), Visitor(), "blocked-sender"),
        (entry("sender", "example.net", BLOCK), Visitor(sender="u@evil-example.net"), ""),
        (entry("client", "example.net", BLOCK), Visitor(), ""),
        (entry("client", "example.net", BLOCK), Visitor(confirmed=("mx.example.net",)), "blocked-client"),
        # addresses
        (entry("client", "192.0.2.0/24"), Visitor("192.0.2.255"), "allowed-client"),
        (entry("client", "192.0.2.0/24"), Visitor("192.0.3.0"), ""),
        (entry("client", "2001:db8::/32"), Visitor("2001:db8:ffff::1"), "allowed-client"),
        (entry("client", "::ffff:192.0.2.1"), Visitor("192.0.2.1"), "allowed-client"),
        # recipients
        (entry("recipient", "To@Example.ORG"), Visitor(), "allowed-recipient"),
        (entry("recipient", "to@"), Visitor(), "allowed-recipient"),
        (entry("recipient", "org"), Visitor(), "allowed-recipient"),
        (entry("recipient", "xample.org"), Visitor(), ""),
    ],
)
def test_what_a_claim_is_worth(item: Entry, visitor: Visitor, reason: str) -> None:
    decision = decide(with_entries(item), visitor)
    assert (decision.reason if decision else "") == reason


@pytest.mark.parametrize(
    ("item", "sender", "asked"),
    [
        (entry("client", "198.51.100.0/24"), "user@example.net", []),
        (entry("client", "example.com"), "user@example.net", ["names"]),
        (entry("client", "example.com", BLOCK), "user@example.net", ["names"]),
        (entry("sender", "example.com"), "user@example.net", []),
        (entry("sender", "example.net"), "user@example.net", ["spf"]),
        (entry("sender", "example.net"), "", []),
        (entry("sender", "example.net", BLOCK), "user@example.net", []),
        (entry("recipient", "to@example.org"), "user@example.net", []),
    ],
)
def test_the_dns_is_asked_only_where_its_answer_could_count(item: Entry, sender: str, asked: list[str]) -> None:
    visitor = Visitor(sender=sender)
    decide(with_entries(item), visitor)
    assert visitor.asked == asked


def test_entries_come_change_and_go() -> None:
    exemptions = with_entries(entry("client", "192.0.2.1"), entry("sender", "example.net"))
    assert told(decide(exemptions, Visitor())) == "allow allowed-client operator-entry:192.0.2.1"
    # a changed entry leaves the table where it was
    exemptions.put(entry("client", "192.0.2.1", BLOCK))
    assert told(decide(exemptions, Visitor())) == "block blocked-client operator-entry:192.0.2.1"
    exemptions.apply(page(Removed(Kind.CLIENT, "192.0.2.1"), Removed(Kind.CLIENT, "never.example")))
    assert decide(exemptions, Visitor()) is None
    # restart: what is not told again is forgotten
    exemptions.put(entry("trap", "old@example.org", BLOCK))
    exemptions.apply(page(entry("recipient", "to@example.org"), restart=True))
    assert not exemptions.is_trap("old@example.org")
    assert decide(exemptions, Visitor(spf_pass="example.net"), "other@example.org") is None
    assert told(decide(exemptions, Visitor())) == "allow allowed-recipient operator-entry:to@example.org"


def test_no_entry_is_missed_while_all_are_told_anew() -> None:
    exemptions = with_entries(entry("client", "192.0.2.1", BLOCK), entry("client", "192.0.2.2", BLOCK))

    def blocked() -> list[str]:
        addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
        return [each for each in addresses if decide(exemptions, Visitor(each))]

    assert blocked() == ["192.0.2.1", "192.0.2.2"]
    exemptions.apply(page(entry("client", "192.0.2.1", BLOCK), restart=True, more=True))
    assert blocked() == ["192.0.2.1", "192.0.2.2"], "the second one may still come"
    exemptions.put(entry("client", "192.0.2.3", BLOCK))  # a trap closes meanwhile
    assert blocked() == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    exemptions.apply(page())
    assert blocked() == ["192.0.2.1", "192.0.2.3"]


def test_entries_expire() -> None:
    clock = Clock()
    exemptions = Exemptions(AllowSection(well_known=False), TrapSection(), None, clock)
    exemptions.put(entry("client", "192.0.2.1", BLOCK, TRAP, NOW + 60.5))
    exemptions.put(entry("trap", "old@example.org", BLOCK, OPERATOR, NOW + 90))
    decision = decide(exemptions, Visitor())
    assert decision is not None
    assert decision.is_trapped
    assert decision.seconds_left == 61
    clock.now = NOW + 60.5
    assert decide(exemptions, Visitor()) is None
    assert exemptions.is_trap("old@example.org")
    clock.now = NOW + 90
    assert not exemptions.is_trap("old@example.org")


def test_what_has_expired_is_let_go_and_what_was_made_anew_stays() -> None:
    clock = Clock()
    exemptions = Exemptions(AllowSection(well_known=False), TrapSection(), None, clock)
    exemptions.put(entry("client", "192.0.2.1", ALLOW, OPERATOR, NOW + 10))
    exemptions.put(entry("client", "192.0.2.2", ALLOW, OPERATOR, NOW + 10))
    exemptions.put(entry("client", "192.0.2.2", ALLOW, OPERATOR, NOW + 30))
    exemptions.expire(NOW + 20)
    # Looked at with a clock that is set back: what is gone is gone.
    assert decide(exemptions, Visitor("192.0.2.1")) is None
    assert decide(exemptions, Visitor("192.0.2.2")) is not None


@pytest.mark.parametrize(
    "item",
    [
        entry("client", "not a client"),
        entry("client", "192.0.2.1/24"),
        entry("sender", "user@"),
        entry("trap", "\x1b[2J"),
        entry("client", "192.0.2.1", BLOCK, LEARNED),
        entry("client", "192.0.2.1", ALLOW, TRAP),
        entry("sender", "example.net", BLOCK, TRAP),
    ],
)
def test_an_entry_that_can_not_count_is_told_and_costs_only_itself(item: Entry) -> None:
    exemptions = Exemptions(AllowSection(well_known=False), TrapSection(), None, Clock())
    problems = exemptions.apply(page(item, entry("recipient", "to@example.org")))
    assert len(problems) == 1
    assert problems[0].startswith(f"an entry of kind {item.kind} does not count: ")
    assert problems[0].isprintable()
    with pytest.raises(EntryError):
        exemptions.put(item)
    assert told(decide(exemptions, VERIFIED)) == "allow allowed-recipient operator-entry:to@example.org"


VALUES = {
    Kind.CLIENT: ["192.0.2.1", "192.0.2.0/24", "example.net"],
    Kind.SENDER: ["example.net", "user@example.net"],
    Kind.RECIPIENT: ["to@example.org", "example.org", "to@"],
    Kind.TRAP: ["to@example.org", "to@"],
}
ENTRIES = st.sampled_from(list(Kind)).flatmap(
    lambda kind: st.builds(
        entry,
        st.just(kind.value),
        st.sampled_from(VALUES[kind]),
        st.sampled_from([ALLOW, BLOCK]),
        st.just(OPERATOR),
        st.sampled_from([None, NOW - 1, NOW + 1]),
    )
)
CHANGES = st.lists(ENTRIES | ENTRIES.map(lambda item: Removed(item.kind, item.value)) | st.none(), max_size=20)


@given(CHANGES)
def test_whatever_happened_only_what_is_left_counts(changes: list[Entry | Removed | None]) -> None:
    """None stands for a restart."""
    exemptions = Exemptions(AllowSection(well_known=False), TrapSection(), None, Clock())
    left: dict[tuple[Kind, str], Entry] = {}
    for change in changes:
        if change is None:
            left.clear()
            exemptions.apply(page(restart=True))
            continue
        left.pop((change.kind, change.value), None)
        if isinstance(change, Entry):
            left[change.kind, change.value] = change
        exemptions.apply(page(change))
        exemptions.expire(NOW)
    fresh = with_entries(*(item for item in left.values() if item.expires is None or item.expires > NOW))
    for visitor in (VERIFIED, Visitor(), Visitor("198.51.100.1")):
        assert decide(exemptions, visitor) == decide(fresh, visitor)
    assert exemptions.is_trap("to@example.org") == fresh.is_trap("to@example.org")


def test_files(tmp_path: Path) -> None:
    clients, recipients, traps = tmp_path / "clients", tmp_path / "recipients", tmp_path / "traps"
    clients.write_text("192.0.2.1\nexample.net\n/^mx[0-9]/\n")
    recipients.write_text("to@example.org\n/^info/\n")
    traps.write_text("old@example.org\n")
    lists = {"client_files": [str(clients)], "recipient_files": [str(recipients)], "well_known": False}
    allow = AllowSection.model_validate(lists)
    trap = TrapSection.model_validate({"recipient_files": [str(traps)]})
    exemptions = Exemptions(allow, trap, None, Clock())
    assert exemptions.warnings == []
    assert exemptions.counts == {"clients": 3, "recipients": 2, "traps": 1}
    stranger = Visitor("198.51.100.1")
    assert told(decide(exemptions, Visitor(), "a@example.org")) == "allow allowed-client clients:1"
    named = Visitor("198.51.100.1", confirmed=("mx1.example.com",))
    assert told(decide(exemptions, named, "a@example.org")) == "allow allowed-name clients:3"
    assert told(decide(exemptions, stranger)) == "allow allowed-recipient recipients:1"
    assert told(decide(exemptions, stranger, "INFO@example.org")) == "allow allowed-recipient recipients:2"
    assert exemptions.is_trap("Old+x@Example.org")
    # The operator's files stand before his blocks, and outlive what happens to entries.
    exemptions.apply(page(entry("client", "192.0.2.1", BLOCK), restart=True))
    assert told(decide(exemptions, Visitor(), "a@example.org")) == "allow allowed-client clients:1"

    # An error keeps all that was there, also of the files that could be read.
    clients.write_text("")
    recipients.unlink()
    traps.unlink()
    with pytest.raises(ListError) as caught:
        asyncio.run(exemptions.reload(allow, trap))
    assert [line.split(":")[0] for line in caught.value.lines] == [str(recipients), str(traps)]
    assert told(decide(exemptions, Visitor(), "a@example.org")) == "allow allowed-client clients:1"
    assert exemptions.is_trap("old@example.org")

    # And a good one changes the files' part, not the entries'.
    recipients.write_text("two words\n")
    traps.write_text("")
    warnings = asyncio.run(exemptions.reload(allow, trap))
    assert len(warnings) == 1
    assert warnings == exemptions.warnings
    assert told(decide(exemptions, Visitor(), "a@example.org")) == "block blocked-client operator-entry:192.0.2.1"
    assert not exemptions.is_trap("old@example.org")


def test_a_start_without_a_list_that_was_asked_for_fails(tmp_path: Path) -> None:
    allow = AllowSection.model_validate({"client_files": [f"{tmp_path}/missing"]})
    with pytest.raises(ListError, match="No such file"):
        Exemptions(allow, TrapSection(), None, Clock())


OUTLOOK = "mail-eopbgr10051.outbound.protection.outlook.com"


@pytest.mark.parametrize(
    ("visitor", "rule"),
    [
        (Visitor(confirmed=(OUTLOOK,)), "well-known:outbound.protection.outlook.com"),
        (Visitor(confirmed=(f"{OUTLOOK}.evil.example",)), ""),
        (Visitor(sender="u@hotmail.com", spf_pass="hotmail.com"), "well-known:hotmail.com"),
        (Visitor(sender="u@hotmail.com"), ""),
        (Visitor(), ""),
    ],
)
def test_the_well_known_list_comes_last_and_can_be_switched_off(visitor: Visitor, rule: str) -> None:
    exemptions = with_entries(allow=AllowSection())
    decision = decide(exemptions, visitor)
    assert (decision.rule if decision else "") == rule
    assert decide(with_entries(), visitor) is None
    exemptions.put(entry("client", "192.0.2.1", BLOCK, TRAP))
    assert told(decide(exemptions, visitor)) == "defer trapped-client trap-entry:192.0.2.1"


class Lists:
    """A resolver that knows one listed client."""

    async def lookup(self, name: str, kind: str) -> Answer:
        assert kind == "A"
        values = ("127.0.9.2",) if name == "1.2.0.192.list.example" else ()
        return Answer("ok" if values else "nxdomain", values, 60)


def test_dns_allow_lists() -> None:
    async def ask(address: str, resolver: object, *lists: str) -> Decision | None:
        allow = AllowSection.model_validate({"well_known": False, "dns_lists": list(lists)})
        exemptions = Exemptions(allow, TrapSection(), cast(Resolver | None, resolver), Clock())
        return await exemptions.dns_allowed(cast(Origin, Visitor(address)))

    zone = "list.example=127.0.[0..255].2"
    assert told(asyncio.run(ask("192.0.2.1", Lists(), zone))) == "allow dns-allowed list.example"
    assert asyncio.run(ask("192.0.2.2", Lists(), zone)) is None
    assert asyncio.run(ask("192.0.2.1", Lists(), "list.example=127.0.0.3")) is None
    assert asyncio.run(ask("192.0.2.1", Lists())) is None
    assert asyncio.run(ask("192.0.2.1", None, zone)) is None
