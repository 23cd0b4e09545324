# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CIM over WS-Management: call a WMI method or read an instance of a Windows host, and nothing else.

An envelope goes out, an envelope comes back; who carries it is a `Transport` (see `_transport.py`). No
shell and no PowerShell is started on the host: WinRM's own WMI plug-in answers.

Servers differ in the prefix, the namespace and the letter case of what they answer, so replies are read
by local name: the only element of the Body that is not a Fault is the output ([MS-WSMV] 3.1.4.1.32).
"""

from __future__ import annotations

import typing as t
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

WMI = "http://schemas.microsoft.com/wbem/wsman/1/wmi/"
ACTION_GET = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Get"
ENUMERATION = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
ANONYMOUS = f"{ADDRESSING}/role/anonymous"
ASSOCIATION_DIALECT = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter"
CIM_BINDING = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd"
XSI_NIL = "{http://www.w3.org/2001/XMLSchema-instance}nil"

# What a host with small quotas still accepts and answers within ([MS-WSMV] 3.1.4.1.31: at least 8192;
# 150 kB is the smallest default of any Windows version, Server 2008).
MAX_ENVELOPE_SIZE = 153600

# Every answer that is asked for here is a few kilobytes. What is larger is not from a WinRM service.
MAX_REPLY_SIZE = 1024 * 1024

# No enumeration that is asked for here has more than a few dozen instances, and all come with the first reply.
MAX_ELEMENTS = 200
MAX_PULLS = 20

Fields = dict[str, "str | None"]


class Transport(t.Protocol):
    """Carries one envelope to a host and brings the reply, authenticated and encrypted as the host asks."""

    @property
    def endpoint(self) -> str:
        """The URL that the envelope is addressed to."""

    @property
    def operation_timeout(self) -> int:
        """Seconds that the host may take for one operation."""

    def send(self, envelope: bytes) -> tuple[int, bytes]:
        """Send, and return the HTTP status and the body of the reply; raise where there is no reply."""

    def close(self) -> None:
        """Close the connection to the host."""


class CimError(Exception):
    """The host answered something that is not the answer to the call."""


class CimFault(CimError):
    """The host refused the call with a SOAP fault.

    `code` is Windows' number (`WSManFault/@Code`), `subcode` the SOAP subcode without its prefix, `reason`
    the text, `extended_status` what WMI adds in `__ExtendedStatus`: any of them may be missing.
    """

    def __init__(self, code: int | None, subcode: str, reason: str, extended_status: str) -> None:
        text = reason or "a fault without a reason"
        number = f" (Windows error {code}, 0x{code:08X})" if code is not None else ""
        super().__init__(f"{text}{number}")
        self.code = code
        self.subcode = subcode
        self.reason = reason
        self.extended_status = extended_status


@dataclass(frozen=True)
class CimClass:
    """A WMI class by its namespace (`root/cimv2`) and name (`Win32_Service`)."""

    namespace: str
    name: str

    @property
    def uri(self) -> str:
        """The resource URI of the class ([MS-WSMV] 2.2.4.40)."""
        return f"{WMI}{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Association:
    """The instances of `result` that the association `by` ties to one instance of `source`, in these roles.

    As WMI's "ASSOCIATORS OF" (DMTF DSP0227 section 7.2, [MS-WSMV] 3.1.5.2.1).
    """

    source: CimClass
    selectors: t.Mapping[str, str]
    by: str
    role: str
    result: CimClass
    result_role: str

    def filter(self) -> str:
        """The filter of the Enumerate request."""
        return (
            f'<w:Filter Dialect="{ASSOCIATION_DIALECT}"><b:AssociatedInstances xmlns:b="{CIM_BINDING}"><b:Object>'
            f"<a:Address>{ANONYMOUS}</a:Address><a:ReferenceParameters>"
            f"<w:ResourceURI>{self.source.uri}</w:ResourceURI>{_selector_set(self.selectors)}"
            f"</a:ReferenceParameters></b:Object><b:AssociationClassName>{self.by}</b:AssociationClassName>"
            f"<b:Role>{self.role}</b:Role><b:ResultClassName>{self.result.name}</b:ResultClassName>"
            f"<b:ResultRole>{self.result_role}</b:ResultRole></b:AssociatedInstances></w:Filter>"
        )


class CimSession:
    """Calls on one host, one after the other, over one transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, cls: CimClass, selectors: t.Mapping[str, str]) -> Fields:
        """Read one instance, named by its key properties. Raise CimFault where there is none."""
        return _fields(self._call(cls, ACTION_GET, "", selectors))

    def invoke(
        self,
        cls: CimClass,
        method: str,
        parameters: t.Mapping[str, str | int],
        selectors: t.Mapping[str, str] | None = None,
    ) -> Fields:
        """Call a method and return its output parameters, `ReturnValue` always among them.

        Numbers go out as plain decimals. Raise CimFault where the host refuses the call, CimError where
        the answer has no ReturnValue.
        """
        body = "".join(f"<r:{name}>{escape(str(value))}</r:{name}>" for name, value in parameters.items())
        body = f'<r:{method}_INPUT xmlns:r="{cls.uri}">{body}</r:{method}_INPUT>'
        fields = _fields(self._call(cls, f"{cls.uri}/{method}", body, selectors or {}))
        if not (fields.get("ReturnValue") or "").isdigit():
            raise CimError(f"the answer to {cls.name}.{method} has no ReturnValue")
        return fields

    def instances(self, cls: CimClass) -> list[Fields]:
        """All instances of a class."""
        return self._enumerate(cls, "")

    def associated(self, association: Association) -> list[Fields]:
        """The instances that an association leads to."""
        return self._enumerate(CimClass(association.source.namespace, "*"), association.filter())

    def _enumerate(self, cls: CimClass, chosen: str) -> list[Fields]:
        # One request where the host optimises, as every Windows does (DMTF DSP0226 section 8.2.3).
        body = (
            f'<n:Enumerate xmlns:n="{ENUMERATION}"><w:OptimizeEnumeration/>'
            f"<w:MaxElements>{MAX_ELEMENTS}</w:MaxElements>{chosen}</n:Enumerate>"
        )
        reply = self._call(cls, f"{ENUMERATION}/Enumerate", body, {})
        found = _items(reply)
        for _pull in range(MAX_PULLS):
            context = _text(_child(reply, "EnumerationContext"))
            if _child(reply, "EndOfSequence") is not None or not context:
                return found
            body = (
                f'<n:Pull xmlns:n="{ENUMERATION}"><n:EnumerationContext>{escape(context)}</n:EnumerationContext>'
                f"<n:MaxElements>{MAX_ELEMENTS}</n:MaxElements></n:Pull>"
            )
            reply = self._call(cls, f"{ENUMERATION}/Pull", body, {})
            found += _items(reply)
        raise CimError(f"the enumeration of {cls.name} does not end")

    def _call(self, cls: CimClass, action: str, body: str, selectors: t.Mapping[str, str]) -> ET.Element:
        message_id = f"uuid:{uuid.uuid4()}"
        envelope = self._envelope(cls, action, body, selectors, message_id)
        status, reply = self._transport.send(envelope.encode())
        return _reply_body(status, reply, message_id)

    def _envelope(self, cls: CimClass, action: str, body: str, selectors: t.Mapping[str, str], message_id: str) -> str:
        return (
            '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"'
            f' xmlns:a="{ADDRESSING}"'
            ' xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"><s:Header>'
            f"<a:To>{escape(self._transport.endpoint)}</a:To>"
            f'<w:ResourceURI s:mustUnderstand="true">{cls.uri}</w:ResourceURI>'
            f'<a:ReplyTo><a:Address s:mustUnderstand="true">{ANONYMOUS}</a:Address></a:ReplyTo>'
            f'<a:Action s:mustUnderstand="true">{action}</a:Action>'
            f'<w:MaxEnvelopeSize s:mustUnderstand="true">{MAX_ENVELOPE_SIZE}</w:MaxEnvelopeSize>'
            f"<a:MessageID>{message_id}</a:MessageID>"
            '<w:Locale xml:lang="en-US" s:mustUnderstand="false"/>'
            f"{_selector_set(selectors)}<w:OperationTimeout>PT{self._transport.operation_timeout}S</w:OperationTimeout>"
            f"</s:Header><s:Body>{body}</s:Body></s:Envelope>"
        )


def _selector_set(selectors: t.Mapping[str, str]) -> str:
    chosen = "".join(
        f"<w:Selector Name={quoteattr(name)}>{escape(value)}</w:Selector>" for name, value in selectors.items()
    )
    return f"<w:SelectorSet>{chosen}</w:SelectorSet>" if chosen else ""


def _items(reply: ET.Element) -> list[Fields]:
    items = _child(reply, "Items")
    return [_fields(item) for item in items] if items is not None else []


def _local(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _child(element: ET.Element | None, name: str) -> ET.Element | None:
    return next((child for child in element if _local(child) == name), None) if element is not None else None


def _text(element: ET.Element | None) -> str:
    return " ".join("".join(element.itertext()).split()) if element is not None else ""


def _reply_body(status: int, reply: bytes, message_id: str) -> ET.Element:
    """The output element of a reply; raise CimFault for a fault, CimError for what is no reply at all."""
    if len(reply) > MAX_REPLY_SIZE:
        raise CimError(f"the answer has {len(reply)} bytes: no WinRM service sends that much here")
    if b"<!DOCTYPE" in reply:  # SOAP 1.2 part 1, section 5: no document type declaration in an envelope
        raise CimError("the answer is not WS-Management: it declares a document type")
    try:
        root = ET.fromstring(reply)  # noqa: S314 - size is bounded, and entities need a document type
    except ET.ParseError:
        what = "nothing" if not reply else "something that is not XML"
        raise CimError(f"the host answered with HTTP status {status} and {what}") from None
    body = _child(root, "Body")
    fault = _child(body, "Fault")
    if fault is not None:
        raise _fault(fault)
    output = next(iter(body), None) if body is not None else None
    if output is None or status != 200:
        raise CimError(f"the host answered with HTTP status {status} and no WS-Management reply")
    relates_to = _text(_child(_child(root, "Header"), "RelatesTo"))
    # UUIDs compare without case (RFC 9562 section 4).
    if relates_to.lower() != message_id.lower():
        raise CimError("the answer belongs to another request")
    return output


def _fault(fault: ET.Element) -> CimFault:
    detail = _child(fault, "Detail")
    details = list(detail.iter()) if detail is not None else []
    number = next((element.get("Code") for element in details if element.get("Code")), None)
    subcode = _text(_child(_child(_child(fault, "Code"), "Subcode"), "Value"))
    extended = next((_text(element) for element in details if _local(element) == "__ExtendedStatus"), "")
    return CimFault(
        code=int(number) if number is not None and number.isdigit() else None,
        subcode=subcode.rpartition(":")[2],
        reason=_text(_child(fault, "Reason")),
        extended_status=extended,
    )


def _fields(output: ET.Element) -> Fields:
    """Properties or output parameters by local name; a null is None, an empty text is ''."""
    return {
        _local(child): None if child.get(XSI_NIL, "").lower() in ("true", "1") else _text(child) for child in output
    }
