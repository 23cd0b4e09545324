# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS allow-lists: what is asked, and which answers count."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from typing import cast

import pytest
from greylist_proxy.config_values import DnsList
from greylist_proxy.lists.dns_lists import listed
from greylist_proxy.resolver import Answer, Resolver

ANY = frozenset(range(256))
LIST = DnsList("list.example", (frozenset({127}), ANY, ANY, ANY))
PICKY = DnsList("picky.example", (frozenset({127}), frozenset({0}), ANY, frozenset({2, 3})))


class Names:
    """A resolver that knows some names; one lookup after another is a mistake that hangs."""

    def __init__(self, answers: Mapping[str, tuple[str, ...]], at_once: int = 1) -> None:
        self.asked: list[tuple[str, str]] = []
        self._answers = answers
        self._barrier = asyncio.Barrier(at_once)

    async def lookup(self, name: str, kind: str) -> Answer:
        self.asked.append((name, kind))
        async with asyncio.timeout(5):
            await self._barrier.wait()
        values = self._answers.get(name, ())
        return Answer("ok" if values else "nxdomain", values, 60)


def ask(
    address: str, lists: list[DnsList], answers: Mapping[str, tuple[str, ...]]
) -> tuple[str, list[tuple[str, str]]]:
    async def run() -> tuple[str, list[tuple[str, str]]]:
        names = Names(answers, len(lists))
        return await listed(cast(Resolver, names), ipaddress.ip_address(address), lists), names.asked

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.99", "99.2.0.192.list.example"),
        # RFC 5782 section 2.4: nibbles
        (
            "2001:db8:1:2:3:4:567:89ab",
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.list.example",
        ),
    ],
)
def test_the_reversed_address_is_asked_for(address: str, name: str) -> None:
    assert ask(address, [LIST], {name: ("127.0.0.2",)}) == ("list.example", [(name, "A")])
    assert ask(address, [LIST], {}) == ("", [(name, "A")])


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        (("127.0.5.2",), True),
        (("127.0.255.3",), True),
        (("127.0.5.1", "127.0.5.3"), True),
        # not one of the configured answers
        (("127.0.5.1",), False),
        (("127.1.5.2",), False),
        # refusals and lies spoil the whole answer
        (("127.0.0.255",), False),
        (("127.0.5.2", "127.0.0.255"), False),
        (("127.0.5.2", "127.255.255.254"), False),
        (("192.0.2.1",), False),
        (("127.0.5.2", "192.0.2.1"), False),
        (("127.0.5.2", "not an address"), False),
        ((), False),
    ],
)
def test_which_answers_count(values: tuple[str, ...], counts: bool) -> None:
    zone, _asked = ask("192.0.2.99", [PICKY], {"99.2.0.192.picky.example": values})
    assert zone == ("picky.example" if counts else "")


@pytest.mark.parametrize("refusal", ["127.0.0.255", "127.255.255.254", "126.0.0.2", "128.0.0.2"])
def test_no_configuration_makes_a_refusal_count(refusal: str) -> None:
    assert ask("192.0.2.99", [LIST], {"99.2.0.192.list.example": (refusal,)})[0] == ""


def test_lists_are_asked_at_once_and_the_first_in_order_is_told() -> None:
    answers = {"99.2.0.192.list.example": ("127.0.0.2",), "99.2.0.192.picky.example": ("127.0.0.2",)}
    assert ask("192.0.2.99", [PICKY, LIST], answers)[0] == "picky.example"
    assert ask("192.0.2.99", [LIST, PICKY], answers)[0] == "list.example"
