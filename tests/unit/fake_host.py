# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A transport that answers from a script, for the tests of what reads the answers."""

from __future__ import annotations

import re
from collections.abc import Iterable

STD_REG_PROV = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/default/StdRegProv"


class ScriptedTransport:
    """Answers each request with the next (status, body) of a script; `{id}` becomes the request's MessageID."""

    endpoint = "http://host:5985/wsman"
    operation_timeout = 20

    def __init__(self, script: Iterable[tuple[int, str]]) -> None:
        self.script = list(script)
        self.requests: list[str] = []

    def send(self, envelope: bytes) -> tuple[int, bytes]:
        request = envelope.decode()
        self.requests.append(request)
        message_id = re.search("<a:MessageID>(.*?)</a:MessageID>", request)
        assert message_id is not None
        status, body = self.script.pop(0)
        return status, body.replace("{id}", message_id[1]).encode()

    def close(self) -> None:
        self.script.clear()


def envelope(body: str, header: str = "<a:RelatesTo>{id}</a:RelatesTo>") -> str:
    return (
        '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"'
        ' xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f"<s:Header>{header}</s:Header><s:Body>{body}</s:Body></s:Envelope>"
    )


def output(method: str, **fields: object) -> tuple[int, str]:
    """The reply to a method call; None is a null."""
    parts = [
        f'<p:{name} xsi:nil="true"/>' if value is None else f"<p:{name}>{value}</p:{name}>"
        for name, value in fields.items()
    ]
    return 200, envelope(f'<p:{method}_OUTPUT xmlns:p="{STD_REG_PROV}">{"".join(parts)}</p:{method}_OUTPUT>')


def service(state: str, process_id: int = 7) -> tuple[int, str]:
    """The reply to a Get of Win32_Service."""
    return 200, envelope(
        '<p:Win32_Service xmlns:p="urn:any"><p:Name>SMTPSVC</p:Name>'
        f"<p:State>{state}</p:State><p:StartMode>Auto</p:StartMode>"
        f"<p:ProcessId>{process_id}</p:ProcessId></p:Win32_Service>"
    )


def fault(code: int | None = None, extended: str = "", subcode: str = "w:SomeFault") -> tuple[int, str]:
    """A SOAP fault with HTTP status 500."""
    number = f' Code="{code}"' if code is not None else ""
    status = f"<p:__ExtendedStatus><p:ParameterInfo>{extended}</p:ParameterInfo></p:__ExtendedStatus>"
    return 500, envelope(
        "<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode>"
        f"<s:Value>{subcode}</s:Value></s:Subcode></s:Code>"
        "<s:Reason><s:Text>It did not work.</s:Text></s:Reason>"
        f'<s:Detail><f:WSManFault xmlns:f="urn:fault"{number}/>'
        f'<x xmlns:p="urn:any">{status if extended else ""}</x></s:Detail></s:Fault>'
    )
