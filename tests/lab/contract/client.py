# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A CIM client of the tests' own on pywinrm, so that the lab is not tested with the code that it tests.

pywinrm does HTTP, the login and the encryption; the envelopes are made and read here.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from xml.etree import ElementTree

import xmltodict  # type: ignore[import-untyped]
from winrm.exceptions import WSManFaultError
from winrm.protocol import Protocol

from lab.hosts import LabHost

WMI: Final = "http://schemas.microsoft.com/wbem/wsman/1/wmi"
REGISTRY: Final = f"{WMI}/root/default/StdRegProv"
SERVICE: Final = f"{WMI}/root/cimv2/Win32_Service"
GET: Final = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Get"
HKLM: Final = 0x80000002
PARAMETERS: Final = r"SYSTEM\CurrentControlSet\Services\SMTPSVC\Parameters"

SOAP: Final = "http://www.w3.org/2003/05/soap-envelope"
NIL: Final = "{http://www.w3.org/2001/XMLSchema-instance}nil"

Values = dict[str, str | None]
Encryption = Literal["auto", "always", "never"]
Transport = Literal["basic", "ntlm"]


@dataclass(frozen=True)
class Account:
    """Who logs in."""

    name: str
    password: str


class WinRM:
    """One client session with one host."""

    def __init__(
        self,
        host: LabHost,
        account: Account,
        transport: Transport = "ntlm",
        encryption: Encryption = "auto",
    ) -> None:
        self.protocol = Protocol(
            host.endpoint,
            transport=transport,
            username=account.name,
            password=account.password,
            message_encryption=encryption,
            ca_trust_path=None,  # type: ignore[arg-type]
            proxy=None,
        )

    def send(
        self, action: str, uri: str, body: Mapping[str, Any] | None = None, **selectors: str
    ) -> ElementTree.Element:
        """Send a request; the reply's envelope, or pywinrm's error."""
        header: dict[str, Any] = self.protocol.build_wsman_header(action, uri)
        if selectors:
            items = [{"@Name": name, "#text": value} for name, value in selectors.items()]
            header["env:Header"]["w:SelectorSet"] = {"w:Selector": items}
        header["env:Body"] = body or {}
        reply = self.protocol.send_message(xmltodict.unparse({"env:Envelope": header}))
        envelope = read_xml(reply)
        sent, related = header["env:Header"]["a:MessageID"], envelope.findtext(".//{*}RelatesTo")
        assert related == sent, "the reply is to another request"
        return envelope

    def call(self, uri: str, method: str, parameters: Mapping[str, object] | None = None, **selectors: str) -> Values:
        """Call a CIM method: ReturnValue and the output parameters."""
        given = {f"r:{name}": value for name, value in (parameters or {}).items()}
        body = {f"r:{method}_INPUT": {"@xmlns:r": uri, **given}}
        return read_body(self.send(f"{uri}/{method}", uri, body, **selectors))

    def registry(self, method: str, /, uri: str = REGISTRY, **parameters: object) -> Values:
        """Call a method of StdRegProv on the service's key; parameters replace the usual ones."""
        place = {"hDefKey": HKLM, "sSubKeyName": PARAMETERS, "sValueName": "TarpitTime"}
        return self.call(uri, method, {**place, **parameters})

    def service(self, method: str, name: str = "SMTPSVC", **parameters: object) -> Values:
        """Call a method of a service."""
        return self.call(SERVICE, method, parameters, Name=name)

    def get_service(self, name: str = "SMTPSVC") -> Values:
        """Get a service's properties."""
        return read_body(self.send(GET, SERVICE, Name=name))

    def wait_for_state(self, state: str, *, seconds: float = 30) -> Values:
        """Poll a service until it has this state."""
        deadline = time.monotonic() + seconds
        while (found := self.get_service())["State"] != state:
            assert time.monotonic() < deadline, f"SMTPSVC is {found['State']}, not {state}, after {seconds} s"
            time.sleep(0.01)
        return found

    def restart(self) -> None:
        """Stop the service, wait, start it, wait."""
        assert self.service("StopService")["ReturnValue"] == "0"
        self.wait_for_state("Stopped")
        assert self.service("StartService")["ReturnValue"] == "0"
        self.wait_for_state("Running")


def read_xml(text: str | bytes) -> ElementTree.Element:
    """Read what the lab answered."""
    return ElementTree.fromstring(text)


def read_body(envelope: ElementTree.Element) -> Values:
    """Read the children of the only element in the Body by local name; None for null."""
    body = envelope.find(f"{{{SOAP}}}Body")
    assert body is not None
    (output,) = body
    return {child.tag.rpartition("}")[2]: None if child.get(NIL) == "true" else child.text or "" for child in output}


@dataclass(frozen=True)
class FaultSeen:
    """What a client can learn from a fault."""

    code: int | None
    subcode: str
    names_service: str | None

    @classmethod
    def of(cls, error: WSManFaultError) -> FaultSeen:
        """Read the fault that pywinrm has raised."""
        envelope = read_xml(error.response)
        subcode = envelope.findtext(".//{*}Subcode/{*}Value") or ""
        status = envelope.find(".//{*}__ExtendedStatus")
        named = None if status is None else status.findtext("{*}ParameterInfo")
        return cls(error.wsman_fault_code, subcode.rpartition(":")[2], named)


@dataclass(frozen=True)
class SmtpReply:
    """A reply and how long it took."""

    code: int
    text: str
    seconds: float


class Smtp:
    """An SMTP session that measures each reply."""

    def __init__(self, port: int | None) -> None:
        assert port is not None, "the host has no SMTPSVC"
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._file = self.socket.makefile("rb")
        self.banner = self._read(time.monotonic())

    def __enter__(self) -> Smtp:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def say(self, line: str) -> SmtpReply:
        """Send a command and read its whole reply."""
        started = time.monotonic()
        self.socket.sendall(line.encode() + b"\r\n")
        return self._read(started)

    def ask_to_relay(self) -> SmtpReply:
        """Go as far as the recipient that no server of ours relays for."""
        for line in ("EHLO probe.test", "MAIL FROM:<a@probe.test>"):
            assert self.say(line).code == 250
        return self.say("RCPT TO:<postmaster@relay-probe.invalid>")

    def _read(self, started: float) -> SmtpReply:
        lines = []
        while True:
            line = self._file.readline().decode().rstrip("\r\n")
            if not line:
                raise ConnectionResetError("the server closed the session")
            lines.append(line)
            if line[3:4] != "-":
                return SmtpReply(int(line[:3]), "\n".join(lines), time.monotonic() - started)
