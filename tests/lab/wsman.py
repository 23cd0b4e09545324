# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""WS-Management without I/O: a SOAP envelope in, a reply envelope and its HTTP status out.

`parse` reads a request, `Endpoint` finds the resource that its ResourceURI names, and the resource gives
the XML of the reply's Body or raises a `Fault`. An `Endpoint` knows nothing of what resources do (cim.py,
shell.py), of encryption or of HTTP connections, so all of it is tested with strings.

The lab is as strict as the specification allows, stricter than Windows here and there: what it accepts,
Windows should accept too. Faults carry a WSManFault ([MS-WSMV] 2.2.4.43) and the subcodes of DSP0226, the
WS-Management specification; their numbers are those of the Windows SDK's wsmerror.h.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

SOAP: Final = "http://www.w3.org/2003/05/soap-envelope"
ADDRESSING: Final = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
WSMAN: Final = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
WSMAN_FAULTS: Final = "http://schemas.dmtf.org/wbem/wsman/1/wsman"
WSMAN_MICROSOFT: Final = "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd"
TRANSFER: Final = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
ENUMERATION: Final = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
SHELL: Final = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
WSMAN_FAULT: Final = "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault"
SCHEMA_INSTANCE: Final = "http://www.w3.org/2001/XMLSchema-instance"
ANONYMOUS: Final = f"{ADDRESSING}/role/anonymous"
SOAP_TYPE: Final = "application/soap+xml;charset=UTF-8"

# Windows' default MaxEnvelopeSizekb is 500; nothing that the lab serves needs a tenth of it.
MAX_ENVELOPE: Final = 500 * 1024

RESOURCE_NOT_FOUND: Final = 2150858752
INVALID_MESSAGE_INFORMATION_HEADER: Final = 2150858767
MUST_UNDERSTAND: Final = 2150858768
MESSAGE_INFORMATION_HEADER_REQUIRED: Final = 2150858769
ACTION_NOT_SUPPORTED: Final = 2150858771
INVALID_RESOURCE_URI: Final = 2150858811
INVALID_SELECTORS: Final = 2150858813
SCHEMA_VALIDATION_ERROR: Final = 2150858817

# DSP0226: a service must fault on a header with mustUnderstand that it does not know. These are known.
_UNDERSTOOD: Final = frozenset(
    f"{{{namespace}}}{name}"
    for namespace, names in {
        ADDRESSING: "To ReplyTo FaultTo From Action MessageID RelatesTo",
        WSMAN: "ResourceURI SelectorSet OptionSet MaxEnvelopeSize OperationTimeout Locale FragmentTransfer",
        WSMAN_MICROSOFT: "DataLocale SessionId OperationID SequenceId ActivityId",
        SHELL: "CompressionType",
    }.items()
    for name in names.split()
)
_DURATION = re.compile(r"PT(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9}(?:\.\d{1,9})?)S)?")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Malformed(Exception):
    """The body is no SOAP envelope at all: HTTP 400."""


class Fault(Exception):
    """A request that was understood and refused: HTTP 500.

    `subcode` and `detail` are DSP0226's; `provider` marks a fault that the WMI provider raised, which
    Windows wraps in a ProviderFault; `extended` is the XML of an `__ExtendedStatus` to put into that.
    """

    def __init__(
        self,
        code: int,
        subcode: str,
        reason: str,
        *,
        detail: str | None = None,
        provider: bool = False,
        extended: str = "",
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.subcode = subcode
        self.reason = reason
        self.detail = detail
        self.provider = provider
        self.extended = extended


@dataclass(frozen=True)
class Request:
    """What a request asks for, and who asks. Names of selectors are in lower case: they ignore case.

    `timeout` is its OperationTimeout in seconds, None where it has none that can be read.
    """

    action: str
    resource_uri: str
    message_id: str
    selectors: Mapping[str, str]
    body: ElementTree.Element | None
    user: str = ""
    timeout: float | None = None


class Resource(Protocol):
    """Something that requests are about: WMI, shells."""

    def describe(self, request: Request) -> str:
        """Say what is asked, for the journal: `GetDWORDValue TarpitTime`."""

    def answer(self, request: Request) -> str:
        """Do it and give the XML of the reply's Body, or raise Fault."""


class Exchange(Protocol):
    """One request and its reply: the three moments in which something may go wrong (see faults.py)."""

    def carry_out(self, act: Callable[[], str]) -> str:
        """Do what is asked; the XML of the reply's Body, or Fault."""

    def shape(self, reply: Reply) -> Reply:
        """Give the reply as it is to leave."""

    def deliver(self, message: bytes, write: Callable[[bytes], None]) -> None:
        """Send the HTTP reply, or raise ConnectionError to end the connection."""


class Interference(Protocol):
    """What may interfere with requests."""

    def begin(self, request: Request, note: str) -> Exchange:
        """Take note of a request that is about to be carried out."""


class Undisturbed:
    """All goes well."""

    def begin(self, request: Request, note: str) -> Exchange:
        return self

    def carry_out(self, act: Callable[[], str]) -> str:
        return act()

    def shape(self, reply: Reply) -> Reply:
        return reply

    def deliver(self, message: bytes, write: Callable[[bytes], None]) -> None:
        write(message)


@dataclass(frozen=True)
class Reply:
    """An HTTP status, an envelope, and the journal's line about the request (none: it was unreadable).

    Where the connection is encrypted, so is the reply, unless `sealed` says that it is none of WinRM's own.
    """

    status: int
    body: bytes
    note: str | None
    exchange: Exchange = field(default_factory=Undisturbed)
    media_type: str = SOAP_TYPE
    sealed: bool = True


class _RefusingBuilder(ElementTree.TreeBuilder):
    """Builds a tree, but no document type: SOAP 1.2 (part 1, 5) forbids it, and it is how XML attacks."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise Malformed("a document type is not allowed")


def parse_xml(body: bytes) -> ElementTree.Element:
    """Read XML of a stranger; entities cannot be declared, since document types are refused."""
    parser = ElementTree.XMLParser(target=_RefusingBuilder())
    try:
        parser.feed(body)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Malformed(f"not well-formed XML: {error}") from error
    return root


def read_header(envelope: ElementTree.Element) -> ElementTree.Element:
    """The SOAP header of an envelope, empty where it has none."""
    if envelope.tag != f"{{{SOAP}}}Envelope":
        raise Malformed("the root element is not a SOAP 1.2 Envelope")
    if envelope.find(f"{{{SOAP}}}Body") is None:
        raise Malformed("the Envelope has no Body")
    header = envelope.find(f"{{{SOAP}}}Header")
    return ElementTree.Element(f"{{{SOAP}}}Header") if header is None else header


def read_request(envelope: ElementTree.Element, header: ElementTree.Element, user: str) -> Request:
    """Check the headers that every request needs, and collect them."""
    for block in header:
        demanded = block.get(f"{{{SOAP}}}mustUnderstand", "").strip().lower() in ("true", "1")
        if demanded and block.tag not in _UNDERSTOOD:
            raise Fault(MUST_UNDERSTAND, "", f"The header {block.tag} is not understood.")
    body = envelope.find(f"{{{SOAP}}}Body")
    children = [] if body is None else list(body)
    if len(children) > 1:
        raise Fault(SCHEMA_VALIDATION_ERROR, "w:SchemaValidationError", "The Body has several elements.")
    return Request(
        action=_required(header, ADDRESSING, "Action"),
        resource_uri=_required(header, WSMAN, "ResourceURI"),
        message_id=_required(header, ADDRESSING, "MessageID"),
        selectors=_read_selectors(header),
        body=children[0] if children else None,
        user=user,
        timeout=read_seconds(header.findtext(f"{{{WSMAN}}}OperationTimeout") or ""),
    )


def read_seconds(duration: str) -> float | None:
    """Seconds of an xs:duration of hours, minutes and seconds; None for anything else."""
    match = _DURATION.fullmatch(duration.strip())
    if match is None or not any(match.groups()):
        return None
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def _required(header: ElementTree.Element, namespace: str, name: str) -> str:
    blocks = header.findall(f"{{{namespace}}}{name}")
    if not blocks:
        reason = f"The request has no {name} header."
        raise Fault(MESSAGE_INFORMATION_HEADER_REQUIRED, "a:MessageInformationHeaderRequired", reason)
    value = (blocks[0].text or "").strip()
    if len(blocks) > 1 or not value:
        reason = f"The {name} header is empty or there are several."
        raise Fault(INVALID_MESSAGE_INFORMATION_HEADER, "a:InvalidMessageInformationHeader", reason)
    return value


def _read_selectors(header: ElementTree.Element) -> dict[str, str]:
    selectors: dict[str, str] = {}
    for selector in header.iterfind(f"{{{WSMAN}}}SelectorSet/{{{WSMAN}}}Selector"):
        name = selector.get("Name", "").lower()
        if not name or name in selectors:
            reason = "A selector has no name, or two have the same."
            raise Fault(INVALID_SELECTORS, "w:InvalidSelectors", reason, detail="DuplicateSelectors")
        selectors[name] = selector.text or ""
    return selectors


class Endpoint:
    """What answers at `/wsman`: the resources by the beginning of their URIs, longest first."""

    def __init__(
        self, resources: Mapping[str, Resource], *, machine: str, interference: Interference | None = None
    ) -> None:
        self._resources = sorted(resources.items(), key=lambda item: -len(item[0]))
        self._machine = machine
        self._interference = interference or Undisturbed()

    def answer(self, body: bytes, user: str = "") -> Reply:
        """Answer one request of a user; never raises for what a client sent."""
        try:
            envelope = parse_xml(body)
            header = read_header(envelope)
        except Malformed as error:
            fault = Fault(SCHEMA_VALIDATION_ERROR, "w:SchemaValidationError", str(error))
            return Reply(400, self._fault_envelope(fault, None), None)
        relates_to = header.findtext(f"{{{ADDRESSING}}}MessageID")
        note = None
        exchange: Exchange = Undisturbed()
        try:
            request = read_request(envelope, header, user)
            resource = self._find(request)
            note = resource.describe(request)
            exchange = self._interference.begin(request, note)
            content = exchange.carry_out(lambda: resource.answer(request))
            reply = Reply(200, _envelope(f"{request.action}Response", relates_to, content), note, exchange)
        except Fault as fault:
            reply = Reply(500, self._fault_envelope(fault, relates_to), note, exchange)
        return exchange.shape(reply)

    def _find(self, request: Request) -> Resource:
        wanted = request.resource_uri.lower()
        for prefix, resource in self._resources:
            if wanted.startswith(prefix.lower()):
                return resource
        raise unknown_resource()

    def _fault_envelope(self, fault: Fault, relates_to: str | None) -> bytes:
        message = escape(clean(fault.reason))
        machine = quoteattr(self._machine)
        if fault.provider:
            code = f'<f:WSManFault Code="{fault.code}" Machine={machine}>'
            inner = f"{code}<f:Message>{message}</f:Message></f:WSManFault>"
            extended = f"<f:ExtendedError>{fault.extended}</f:ExtendedError>" if fault.extended else ""
            path = r'path="%systemroot%\system32\WsmWmiPl.dll"'
            message = f'<f:ProviderFault provider="WMI Provider" {path}>{inner}{extended}</f:ProviderFault>'
        subcode = f"<s:Subcode><s:Value>{fault.subcode}</s:Value></s:Subcode>" if fault.subcode else ""
        # Of the subcodes in use, DSP0226 blames only this one on the service. A header that is not understood
        # has a code of its own in SOAP 1.2 (part 1, 5.4.6) and no subcode.
        code = {"": "s:MustUnderstand", "w:InternalError": "s:Receiver"}.get(fault.subcode, "s:Sender")
        detail = f"<w:FaultDetail>{WSMAN_FAULTS}/faultDetail/{fault.detail}</w:FaultDetail>" if fault.detail else ""
        content = (
            f"<s:Fault><s:Code><s:Value>{code}</s:Value>{subcode}</s:Code>"
            f'<s:Reason><s:Text xml:lang="en-US">{escape(clean(fault.reason))}</s:Text></s:Reason>'
            f'<s:Detail>{detail}<f:WSManFault xmlns:f="{WSMAN_FAULT}" Code="{fault.code}" Machine={machine}>'
            f"<f:Message>{message}</f:Message></f:WSManFault></s:Detail></s:Fault>"
        )
        # Each specification has an action for its own faults.
        namespace = {"a": ADDRESSING, "n": ENUMERATION}.get(fault.subcode.partition(":")[0], WSMAN_FAULTS)
        return _envelope(f"{namespace}/fault", relates_to, content)


def unknown_resource() -> Fault:
    """The fault where the ResourceURI names nothing that is here."""
    reason = "The resource URI is missing or has an incorrect format."
    return Fault(INVALID_RESOURCE_URI, "a:DestinationUnreachable", reason, detail="InvalidResourceURI")


def _envelope(action: str, relates_to: str | None, content: str) -> bytes:
    related = "" if relates_to is None else f"<a:RelatesTo>{escape(relates_to)}</a:RelatesTo>"
    return (
        f'<s:Envelope xml:lang="en-US" xmlns:s="{SOAP}" xmlns:a="{ADDRESSING}" xmlns:x="{TRANSFER}" '
        f'xmlns:n="{ENUMERATION}" xmlns:w="{WSMAN}" xmlns:p="{WSMAN_MICROSOFT}"><s:Header>'
        f"<a:Action>{escape(action)}</a:Action>"
        f"<a:MessageID>uuid:{str(uuid.uuid4()).upper()}</a:MessageID>"
        f"<a:To>{ANONYMOUS}</a:To>{related}</s:Header><s:Body>{content}</s:Body></s:Envelope>"
    ).encode()


def clean(text: str) -> str:
    """Replace the characters that XML 1.0 cannot carry, such as the controls of a registry string."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
