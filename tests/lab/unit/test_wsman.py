# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from xml.etree import ElementTree

import pytest

from lab.wsman import Endpoint, Fault, Request, clean, parse_xml

MESSAGE_ID = "uuid:11111111-2222-3333-4444-555555555555"
URI = "http://example.test/thing"
ACTION = f"{URI}/Do"
NAMESPACES = (
    'xmlns:s="http://www.w3.org/2003/05/soap-envelope" '
    'xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" '
    'xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"'
)
HEADERS = {
    "Action": f'<a:Action s:mustUnderstand="true">{ACTION}</a:Action>',
    "MessageID": f"<a:MessageID>{MESSAGE_ID}</a:MessageID>",
    "ResourceURI": f'<w:ResourceURI s:mustUnderstand="true">{URI}</w:ResourceURI>',
}


class Echo:
    """A resource that keeps what it was asked and answers what it was told to."""

    def __init__(self, answer: str | Fault = "<done/>") -> None:
        self.seen: list[Request] = []
        self._answer = answer

    def describe(self, request: Request) -> str:
        return "Do it"

    def answer(self, request: Request) -> str:
        self.seen.append(request)
        if isinstance(self._answer, Fault):
            raise self._answer
        return self._answer


def envelope(body: str = "", extra: str = "", **replaced: str) -> bytes:
    header = "".join({**HEADERS, **replaced}.values()) + extra
    text = f"<s:Envelope {NAMESPACES}><s:Header>{header}</s:Header><s:Body>{body}</s:Body></s:Envelope>"
    return text.encode()


def ask(request: bytes, resource: Echo | None = None) -> tuple[int, ElementTree.Element, str | None]:
    reply = Endpoint({URI: resource or Echo()}, machine="LAB1").answer(request)
    return reply.status, parse_xml(reply.body), reply.note


def fault(root: ElementTree.Element) -> tuple[str | None, str | None, str | None]:
    detail = root.find(".//{*}Detail/{*}WSManFault")
    assert detail is not None
    return root.findtext(".//{*}Code/{*}Value"), root.findtext(".//{*}Subcode/{*}Value"), detail.get("Code")


def test_a_request_reaches_its_resource_whole() -> None:
    selectors = (
        '<w:SelectorSet><w:Selector Name="Name">A &amp; B</w:Selector>'
        '<w:Selector Name="X">1</w:Selector></w:SelectorSet>'
    )
    echo = Echo()
    status, root, note = ask(envelope("<call><x>1</x></call>", selectors), echo)
    (seen,) = echo.seen
    assert (status, note) == (200, "Do it")
    assert (seen.action, seen.resource_uri, seen.message_id) == (ACTION, URI, MESSAGE_ID)
    assert seen.selectors == {"name": "A & B", "x": "1"}
    assert seen.body is not None
    assert seen.body.findtext("x") == "1"
    assert root.find(".//{*}Body/done") is not None


def test_a_reply_names_its_request() -> None:
    _status, root, _headers = ask(envelope())
    assert root.findtext(".//{*}RelatesTo") == MESSAGE_ID
    assert root.findtext(".//{*}Header/{*}Action") == f"{ACTION}Response"
    own = root.findtext(".//{*}Header/{*}MessageID")
    assert own not in (None, MESSAGE_ID)


def test_the_longest_prefix_wins_and_case_does_not_matter() -> None:
    short, long = Echo(), Echo()
    endpoint = Endpoint({"http://example.test/": short, URI.upper(): long}, machine="LAB1")
    assert endpoint.answer(envelope()).status == 200
    assert (len(short.seen), len(long.seen)) == (0, 1)


@pytest.mark.parametrize(
    ("request_body", "expected"),
    [
        (envelope(Action=""), ("s:Sender", "a:MessageInformationHeaderRequired", "2150858769")),
        (envelope(MessageID=""), ("s:Sender", "a:MessageInformationHeaderRequired", "2150858769")),
        (envelope(ResourceURI=""), ("s:Sender", "a:MessageInformationHeaderRequired", "2150858769")),
        (envelope(Action="<a:Action/>"), ("s:Sender", "a:InvalidMessageInformationHeader", "2150858767")),
        (envelope(extra=HEADERS["Action"]), ("s:Sender", "a:InvalidMessageInformationHeader", "2150858767")),
        (
            envelope(ResourceURI="<w:ResourceURI>http://elsewhere.test</w:ResourceURI>"),
            ("s:Sender", "a:DestinationUnreachable", "2150858811"),
        ),
        (envelope("<one/><two/>"), ("s:Sender", "w:SchemaValidationError", "2150858817")),
        (
            envelope(extra="<w:SelectorSet><w:Selector>x</w:Selector></w:SelectorSet>"),
            ("s:Sender", "w:InvalidSelectors", "2150858813"),
        ),
        (
            envelope(extra='<w:SelectorSet><w:Selector Name="A"/><w:Selector Name="a"/></w:SelectorSet>'),
            ("s:Sender", "w:InvalidSelectors", "2150858813"),
        ),
        (envelope(extra='<new s:mustUnderstand="1"/>'), ("s:MustUnderstand", None, "2150858768")),
    ],
    ids=[
        "no action",
        "no message id",
        "no resource",
        "empty action",
        "two actions",
        "unknown resource",
        "two bodies",
        "selector without a name",
        "selector twice",
        "unknown header",
    ],
)
def test_a_request_without_sense_is_a_fault(
    request_body: bytes, expected: tuple[str | None, str | None, str | None]
) -> None:
    echo = Echo()
    status, root, note = ask(request_body, echo)
    assert (status, fault(root), note, echo.seen) == (500, expected, None, [])
    assert root.findtext(".//{*}RelatesTo") == (None if b"MessageID" not in request_body else MESSAGE_ID)


def test_an_unknown_header_that_may_be_ignored_is() -> None:
    assert ask(envelope(extra="<new/>"))[0] == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not well-formed"),
        (b"<s:Envelope>", "not well-formed"),
        (b"\x00\x01\x02", "not well-formed"),
        (b'<?xml version="1.0" encoding="no-such"?><x/>', "not well-formed"),
        (b"<!DOCTYPE x><x/>", "document type"),
        (b'<!DOCTYPE x [<!ENTITY a "aaa"><!ENTITY b "&a;&a;">]><x>&b;</x>', "document type"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>', "document type"),
        ('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x><x/>'.encode("utf-16"), "document type"),
        (b"<Envelope/>", "not a SOAP 1.2 Envelope"),
        (b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"/>', "not a SOAP 1.2 Envelope"),
        (b'<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"/>', "no Body"),
    ],
)
def test_what_is_no_envelope_is_malformed(body: bytes, words: str) -> None:
    status, root, note = ask(body)
    assert (status, note) == (400, None)
    assert words in (root.findtext(".//{*}Reason/{*}Text") or "")


def test_an_envelope_may_come_in_utf_16() -> None:
    assert ask(envelope().decode().encode("utf-16"))[0] == 200


def test_a_header_is_needed_though_soap_makes_it_optional() -> None:
    text = f"<s:Envelope {NAMESPACES}><s:Body/></s:Envelope>"
    status, root, _ignored = ask(text.encode())
    assert (status, fault(root)[1]) == (500, "a:MessageInformationHeaderRequired")


def test_a_provider_fault_carries_the_extended_status() -> None:
    refusal = Fault(7, "a:DestinationUnreachable", "<no> & no", detail="X", provider=True, extended="<why/>")
    status, root, note = ask(envelope(), Echo(refusal))
    assert (status, fault(root), note) == (500, ("s:Sender", "a:DestinationUnreachable", "7"), "Do it")
    inner = root.find(".//{*}ProviderFault/{*}WSManFault")
    assert inner is not None
    assert (inner.get("Code"), inner.findtext("{*}Message")) == ("7", "<no> & no")
    assert root.find(".//{*}ProviderFault/{*}ExtendedError/why") is not None
    assert root.findtext(".//{*}Reason/{*}Text") == "<no> & no"
    assert (root.findtext(".//{*}FaultDetail") or "").endswith("/wsman/1/wsman/faultDetail/X")


def test_a_fault_of_no_provider_has_neither() -> None:
    _status, root, _headers = ask(envelope(), Echo(Fault(7, "w:InternalError", "no")))
    assert root.find(".//{*}ProviderFault") is None
    assert root.findtext(".//{*}WSManFault/{*}Message") == "no"


def test_characters_that_xml_cannot_carry_are_replaced() -> None:
    assert clean("a\x00b\x1f\ud800\ufffe\tc\U0001f600") == "a�b���\tc\U0001f600"
