# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from xml.etree import ElementTree

import pytest

from lab.enumeration import MAX_CONTEXTS, Contexts, read_enumerate
from lab.wsman import ENUMERATION, WSMAN, Fault, Request, parse_xml

URI = "http://example.test/thing"
N, W = f"{{{ENUMERATION}}}", f"{{{WSMAN}}}"


def request(name: str, **children: str | None) -> Request:
    body = ElementTree.Element(N + name)
    for child, text in children.items():
        namespace = W if name == "Enumerate" else N
        ElementTree.SubElement(body, namespace + child).text = text
    return Request(f"{ENUMERATION}/{name}", URI, "uuid:1", {}, body)


def read(xml: str) -> ElementTree.Element:
    return parse_xml(f'<r xmlns:n="{ENUMERATION}" xmlns:w="{WSMAN}">{xml}</r>'.encode())[0]


def numbers(reply: ElementTree.Element, namespace: str) -> list[str]:
    return [item.tag for item in reply.findall(f"{namespace}Items/*")]


@pytest.mark.parametrize("first", [0, 1, 2, 5])
@pytest.mark.parametrize("then", [1, 2, 7])
def test_all_come_in_order_however_they_are_fetched(first: int, then: int) -> None:
    contexts, things = Contexts(), [f"<i{number}/>" for number in range(5)]
    reply = read(contexts.open(request("Enumerate"), things, first))
    found, namespace = numbers(reply, W), W
    while reply.find(f"{namespace}EndOfSequence") is None:
        context = reply.findtext(f"{N}EnumerationContext")
        assert context
        reply, namespace = read(contexts.pull(request("Pull", EnumerationContext=context, MaxElements=str(then)))), N
        found += numbers(reply, N)
    assert found == [f"i{number}" for number in range(5)]
    assert not reply.findtext(f"{N}EnumerationContext"), "the end has no context to go on from"


def test_too_many_contexts_push_out_the_oldest() -> None:
    contexts = Contexts()
    opened = [
        read(contexts.open(request("Enumerate"), ["<i/>"], 0)).findtext(f"{N}EnumerationContext")
        for _number in range(MAX_CONTEXTS + 1)
    ]
    with pytest.raises(Fault):
        contexts.pull(request("Pull", EnumerationContext=opened[0]))
    contexts.pull(request("Pull", EnumerationContext=opened[-1]))


@pytest.mark.parametrize("text", ["0", "-1", "32001", "", "1.0", "9" * 5000])
def test_a_count_is_a_number_within_limits(text: str) -> None:
    with pytest.raises(Fault):
        read_enumerate(request("Enumerate", OptimizeEnumeration=None, MaxElements=text))


def test_one_is_meant_where_nothing_is_said() -> None:
    assert read_enumerate(request("Enumerate", OptimizeEnumeration=None)).max_elements == 1
    assert read_enumerate(request("Enumerate")).max_elements == 0
