# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enumerate, Pull, Release: how do several instances travel? (DSP0226, section 8; [MS-WSMV] 3.1.4.8)

What there is to enumerate is decided in cim.py when Enumerate comes; here the instances wait in a context
until they are fetched. An optimised Enumerate (DSP0226 8.2.3) brings the first of them along, in elements
of WS-Management's namespace, where Pull has the same ones in WS-Enumeration's. Without MaxElements it is
one instance a reply. A context lives until it is empty, released, or one too many is opened.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from lab.wsman import ENUMERATION, SCHEMA_VALIDATION_ERROR, WSMAN, Fault, Request

CIM_BINDING: Final = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd"

INVALID_ENUMERATION_CONTEXT: Final = 2150858779

# Windows' own limit of MaxElements.
MAX_ELEMENTS: Final = 32000
MAX_CONTEXTS: Final = 100

_ENUMERATE_CHILDREN: Final = frozenset(
    (f"{{{WSMAN}}}OptimizeEnumeration", f"{{{WSMAN}}}MaxElements", f"{{{WSMAN}}}Filter")
)
_PULL_CHILDREN: Final = frozenset(
    f"{{{ENUMERATION}}}{name}" for name in ("EnumerationContext", "MaxElements", "MaxCharacters", "MaxTime")
)


@dataclass(frozen=True)
class Enumerate:
    """An Enumerate's Body: how many items its reply may bring along (0: it is not optimised), and its filter."""

    max_elements: int
    filter: ElementTree.Element | None


def read_enumerate(request: Request) -> Enumerate:
    """Check and read the Body."""
    body = _body(request, "Enumerate", _ENUMERATE_CHILDREN)
    optimised = body.find(f"{{{WSMAN}}}OptimizeEnumeration") is not None
    size = body.find(f"{{{WSMAN}}}MaxElements")
    if size is not None and not optimised:
        raise _invalid("MaxElements needs OptimizeEnumeration beside it.")
    return Enumerate(_count(size) if optimised else 0, body.find(f"{{{WSMAN}}}Filter"))


class Contexts:
    """The enumerations of one host that are not at their end."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[str, list[str]]] = {}
        self._lock = threading.Lock()

    def open(self, request: Request, instances: Sequence[str], max_elements: int) -> str:
        """Answer an Enumerate."""
        first, rest = instances[:max_elements], list(instances[max_elements:])
        context = self._keep(request.resource_uri, rest) if rest or not max_elements else ""
        items = f"<w:Items>{''.join(first)}</w:Items>" if max_elements else ""
        end = "" if context else "<w:EndOfSequence/>"
        return (
            f"<n:EnumerateResponse><n:EnumerationContext>{context}"
            f"</n:EnumerationContext>{items}{end}</n:EnumerateResponse>"
        )

    def pull(self, request: Request) -> str:
        """Answer a Pull with the next instances."""
        body = _body(request, "Pull", _PULL_CHILDREN)
        count = _count(body.find(f"{{{ENUMERATION}}}MaxElements"))
        instances = self._take(request, body)
        rest = instances[count:]
        context = self._keep(request.resource_uri, rest) if rest else ""
        tail = f"<n:EnumerationContext>{context}</n:EnumerationContext>" if context else ""
        end = "" if context else "<n:EndOfSequence/>"
        return f"<n:PullResponse>{tail}<n:Items>{''.join(instances[:count])}</n:Items>{end}</n:PullResponse>"

    def release(self, request: Request) -> str:
        """Answer a Release: the rest is not wanted."""
        self._take(request, _body(request, "Release", _PULL_CHILDREN))
        return ""

    def _keep(self, resource_uri: str, instances: list[str]) -> str:
        context = f"uuid:{str(uuid.uuid4()).upper()}"
        with self._lock:
            self._waiting[context] = (resource_uri.lower(), instances)
            while len(self._waiting) > MAX_CONTEXTS:
                del self._waiting[next(iter(self._waiting))]
        return context

    def _take(self, request: Request, body: ElementTree.Element) -> list[str]:
        # A context is good for one Pull: the reply may name another, and the lab's always does.
        context = (body.findtext(f"{{{ENUMERATION}}}EnumerationContext") or "").strip()
        with self._lock:
            resource_uri, instances = self._waiting.pop(context, ("", []))
        if resource_uri != request.resource_uri.lower():
            reason = "The enumeration context is unknown, used up, or another resource's."
            raise Fault(INVALID_ENUMERATION_CONTEXT, "n:InvalidEnumerationContext", reason)
        return instances


def _body(request: Request, name: str, children: frozenset[str]) -> ElementTree.Element:
    body = request.body
    if body is None or body.tag != f"{{{ENUMERATION}}}{name}":
        raise _invalid(f"The Body is no {name}.")
    tags = [child.tag for child in body]
    if not children.issuperset(tags) or len(set(tags)) < len(tags):
        raise _invalid(f"{name} has elements that the lab does not know, or some twice.")
    return body


def _count(element: ElementTree.Element | None) -> int:
    # DSP0226 8.2.3 and 8.4: one, where nothing is said.
    text = "1" if element is None else (element.text or "").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_ELEMENTS):
        raise _invalid(f"MaxElements must be a number from 1 to {MAX_ELEMENTS}.")
    return int(text)


def _invalid(reason: str) -> Fault:
    return Fault(SCHEMA_VALIDATION_ERROR, "w:SchemaValidationError", reason)
