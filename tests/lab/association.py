# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which services depend on this one? The association filter of an Enumerate (DSP0227 7.2).

WMI knows dependencies as instances of Win32_DependentService, each with a reference to an Antecedent and
one to a Dependent. An Enumerate of `…/root/cimv2/*` with an AssociatedInstances filter asks for what is at
the other end: here for services that have the given one as their Antecedent. That one question is all that
the lab answers, and it wants each part of it spelled out.
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree

from lab.enumeration import CIM_BINDING
from lab.wsman import ADDRESSING, ANONYMOUS, WSMAN, Fault

DIALECT: Final = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter"

FILTER_DIALECT_UNAVAILABLE: Final = 2150858777
CANNOT_PROCESS_FILTER: Final = 2150858778
INVALID_FILTER_XML: Final = 2150859015

_ASKED: Final = {
    "AssociationClassName": "Win32_DependentService",
    "Role": "Antecedent",
    "ResultClassName": "Win32_Service",
    "ResultRole": "Dependent",
}


def read_antecedent(found: ElementTree.Element | None, service_uri: str) -> str:
    """The name of the service whose dependents the filter asks for."""
    if found is None:
        raise _invalid("The resource /* needs a filter.")
    # Microsoft's own documents write the dialect in two ways, and Windows compares it without case.
    if found.get("Dialect", "").lower() != DIALECT.lower():
        reason = "The filter dialect was not supported for this resource."
        raise Fault(FILTER_DIALECT_UNAVAILABLE, "n:FilterDialectRequestedUnavailable", reason)
    query = found.find(f"{{{CIM_BINDING}}}AssociatedInstances")
    if query is None or len(found) != 1:
        raise _invalid("The filter is no AssociatedInstances.")
    asked = {child.tag: (child.text or "").strip() for child in query}
    known = {f"{{{CIM_BINDING}}}{name}" for name in ("Object", *_ASKED)}
    if set(asked) != known or len(query) != len(known):
        raise _invalid("The lab needs Object, AssociationClassName, Role, ResultClassName and ResultRole, once each.")
    for name, value in _ASKED.items():
        if asked[f"{{{CIM_BINDING}}}{name}"].lower() != value.lower():
            reason = f"The lab knows one association: {name} must be {value}."
            raise Fault(CANNOT_PROCESS_FILTER, "n:CannotProcessFilter", reason)
    return _read_reference(query, service_uri)


def _read_reference(query: ElementTree.Element, service_uri: str) -> str:
    """The key in an endpoint reference to a service (DSP0226 5.1.2)."""
    place = f"{{{CIM_BINDING}}}Object"
    parameters = f"{place}/{{{ADDRESSING}}}ReferenceParameters"
    if (query.findtext(f"{place}/{{{ADDRESSING}}}Address") or "").strip() != ANONYMOUS:
        raise _invalid("The Object needs the anonymous address.")
    uri = (query.findtext(f"{parameters}/{{{WSMAN}}}ResourceURI") or "").strip()
    selectors = query.findall(f"{parameters}/{{{WSMAN}}}SelectorSet/{{{WSMAN}}}Selector")
    names = [selector.get("Name", "").lower() for selector in selectors]
    if uri.lower() != service_uri.lower() or names != ["name"]:
        raise _invalid("The Object must be a Win32_Service by its Name.")
    return selectors[0].text or ""


def _invalid(reason: str) -> Fault:
    return Fault(INVALID_FILTER_XML, "n:CannotProcessFilter", reason)
