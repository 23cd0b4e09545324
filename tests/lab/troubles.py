# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong with one request? A value for each kind of trouble; faults.py decides when.

A `Trouble` may change three moments: how the request is carried out, how the reply looks, and how it is
sent. The base class changes nothing. Whatever the kind, it says whether the host did what was asked: a
client must not take a reply that did not arrive for a change that was not made.

    Answer(return_value=2)                 a ReturnValue of a method, made up
    Refused(2150859013, "w:AccessDenied")  a WSManFault; ACCESS_DENIED has WMI's three
    Spelled, Misrelated, Padded            the true reply in another form
    Body                                   no reply of WinRM's at all; EMPTY_500 and GARBAGE
    Hang, Cut, Slow                        the connection
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from lab.cim import output_of
from lab.cim_class import Value
from lab.win32_service import extended_status
from lab.wsman import SOAP_TYPE, Fault, Reply, Request

Act = Callable[[], str]
Write = Callable[[bytes], None]


class CutError(ConnectionError):
    """The connection ends here, without a word."""


class Patience(Protocol):
    """How a request waits; both raise CutError where the test or the host ends first."""

    def hang(self) -> None:
        """Wait until the test lets it go on."""

    def pause(self, seconds: float) -> None:
        """Wait so long."""


class Trouble:
    """Nothing goes wrong: what the others change parts of."""

    def carry_out(self, request: Request, act: Act, patience: Patience) -> str:
        """Give the XML of the reply's Body, or raise Fault."""
        return act()

    def shape(self, reply: Reply) -> Reply:
        """Give the reply as it is to leave."""
        return reply

    def deliver(self, message: bytes, write: Write, patience: Patience) -> None:
        """Send the HTTP reply."""
        write(message)


# -- what WMI may say --


@dataclass(frozen=True)
class Answer(Trouble):
    """A method's ReturnValue, and output parameters where it has some."""

    return_value: int
    output: Mapping[str, Value] = field(default_factory=dict)
    carried_out: bool = False

    def carry_out(self, request: Request, act: Act, patience: Patience) -> str:
        if self.carried_out:
            act()
        method = request.action.rpartition("/")[2]
        return output_of(request.resource_uri, method, {"ReturnValue": self.return_value, **self.output})


@dataclass(frozen=True)
class Refused(Trouble):
    """A fault, with the `__ExtendedStatus` that names a service where there is one to name.

    `without` takes elements out of the reply by their local names: RelatesTo, Detail, Code, Subcode. A
    `code` of None leaves the WSManFault without its Code attribute.
    """

    code: int | None
    subcode: str = "w:InternalError"
    reason: str = "The lab was told to refuse this."
    service: str | None = None
    provider: bool = True
    without: frozenset[str] = frozenset()
    carried_out: bool = False

    def carry_out(self, request: Request, act: Act, patience: Patience) -> str:
        if self.carried_out:
            act()
        extended = "" if self.service is None else extended_status(self.service)
        raise Fault(self.code or 0, self.subcode, self.reason, provider=self.provider, extended=extended)

    def shape(self, reply: Reply) -> Reply:
        if self.code is not None and not self.without:
            return reply
        root = ElementTree.fromstring(reply.body)
        for parent in list(root.iter()):
            for child in [child for child in parent if child.tag.rpartition("}")[2] in self.without]:
                parent.remove(child)
            if self.code is None:
                parent.attrib.pop("Code", None)
        return replace(reply, body=ElementTree.tostring(root))


def _denied(code: int, who: str) -> Refused:
    return Refused(code, "w:AccessDenied", f"{who} returned an 'access denied' error.")


# [MS-WSMV] 3.1.4.1: by the WMI service, by the provider, and on the way to the service.
ACCESS_DENIED: Final = (
    _denied(2150859012, "The WMI service"),
    _denied(2150859013, "The WMI provider"),
    _denied(2150859014, "Connecting to the WMI service"),
)


# -- true replies in another form --


@dataclass(frozen=True)
class Spelled(Trouble):
    """The output element under another name ({method} is filled in), in another namespace, by another prefix.

    An empty prefix makes the namespace the default one.
    """

    element: str = "{method}_OUTPUT"
    namespace: str | None = None
    prefix: str = "p"

    def carry_out(self, request: Request, act: Act, patience: Patience) -> str:
        method = request.action.rpartition("/")[2]
        name = self.element.format(method=method)
        content = re.sub(rf"(</?p:){re.escape(method)}_OUTPUT\b", rf"\g<1>{name}", act())
        if self.namespace is not None:
            content = re.sub(r'xmlns:p="[^"]*"', lambda _match: f"xmlns:p={quoteattr(self.namespace or '')}", content)
        colon = f"{self.prefix}:" if self.prefix else ""
        content = re.sub(r"(</?)p:", rf"\g<1>{colon}", content)
        return content.replace("xmlns:p=", f"xmlns:{self.prefix}=" if self.prefix else "xmlns=")


@dataclass(frozen=True)
class Misrelated(Trouble):
    """The true reply, but RelatesTo names another message, or none where it is None."""

    relates_to: str | None = "uuid:00000000-0000-0000-0000-000000000000"

    def shape(self, reply: Reply) -> Reply:
        header = "" if self.relates_to is None else f"<a:RelatesTo>{escape(self.relates_to)}</a:RelatesTo>"
        body = re.sub(rb"<a:RelatesTo>[^<]*</a:RelatesTo>", lambda _match: header.encode(), reply.body)
        return replace(reply, body=body)


@dataclass(frozen=True)
class Padded(Trouble):
    """The true reply, blown up by a comment of so many bytes: well-formed, and larger than was asked for."""

    size: int = 2 * 1024 * 1024

    def shape(self, reply: Reply) -> Reply:
        comment = b"<!--" + b" " * self.size + b"-->"
        return replace(reply, body=reply.body.replace(b"</s:Body>", comment + b"</s:Body>"))


@dataclass(frozen=True)
class Body(Trouble):
    """Any HTTP reply. `sealed=False` leaves it readable on an encrypted connection, as from a proxy between."""

    content: bytes
    status: int = 200
    media_type: str = SOAP_TYPE
    sealed: bool = True
    carried_out: bool = True

    def carry_out(self, request: Request, act: Act, patience: Patience) -> str:
        return act() if self.carried_out else ""

    def shape(self, reply: Reply) -> Reply:
        return replace(reply, status=self.status, body=self.content, media_type=self.media_type, sealed=self.sealed)


EMPTY_500: Final = Body(b"", 500)
GARBAGE: Final = Body(b"\x00\xff<html><p>not XML")


# -- the connection --


@dataclass(frozen=True)
class Hang(Trouble):
    """Wait until released, before it is carried out or after; then go on as if nothing had been."""

    carried_out: bool = False

    def carry_out(self, request: Request, act: Act, patience: Patience) -> str:
        if not self.carried_out:
            patience.hang()
        return act()

    def deliver(self, message: bytes, write: Write, patience: Patience) -> None:
        if self.carried_out:
            patience.hang()
        write(message)


@dataclass(frozen=True)
class Cut(Trouble):
    """End the connection after this part of the HTTP reply (0: nothing of it; 0.5: in the middle)."""

    part: float = 0.0
    carried_out: bool = True

    def carry_out(self, request: Request, act: Act, patience: Patience) -> str:
        return act() if self.carried_out else ""

    def deliver(self, message: bytes, write: Write, patience: Patience) -> None:
        if self.carried_out:
            write(message[: int(len(message) * self.part)])
        raise CutError("cut off on a test's behalf")


@dataclass(frozen=True)
class Slow(Trouble):
    """Send so many bytes a second, ten times a second some of them."""

    bytes_a_second: float

    def deliver(self, message: bytes, write: Write, patience: Patience) -> None:
        chunk = max(1, int(self.bytes_a_second / 10))
        for start in range(0, len(message), chunk):
            write(message[start : start + chunk])
            patience.pause(chunk / self.bytes_a_second)
