# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""WMI through WS-Management: which class, which method, which instance?

`Cim` takes the requests below `…/wsman/1/wmi/`: a method call has the action `<ResourceURI>/<Method>` and
its parameters in a `<Method>_INPUT` ([MS-WSMV] 3.1.4.1.32), Get reads an instance by the selectors of its
keys, Enumerate all instances of a class (enumeration.py) or, of `…/root/cimv2/*`, those at the other end of
an association (association.py). Namespaces, classes, methods and parameters ignore case, as all names in
WMI.

Two kinds of "no" leave this room. What a class answers by design is a ReturnValue, made in the class's own
file. What has no instance or no sense is a Fault, with the code that wsmerror.h has for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from lab.association import read_antecedent
from lab.backend import (
    ERROR_ACCESS_DENIED,
    ERROR_SERVICE_DOES_NOT_EXIST,
    HKEY_LOCAL_MACHINE,
    Backend,
    Win32Error,
)
from lab.cim_class import CimClass, Parameters, Value
from lab.enumeration import Contexts, read_enumerate
from lab.machine import Machine
from lab.operating_system import WIN32_OPERATING_SYSTEM
from lab.std_reg_prov import STD_REG_PROV
from lab.win32_service import WIN32_SERVICE
from lab.wsman import (
    ACTION_NOT_SUPPORTED,
    ENUMERATION,
    INVALID_SELECTORS,
    RESOURCE_NOT_FOUND,
    SCHEMA_INSTANCE,
    SCHEMA_VALIDATION_ERROR,
    TRANSFER,
    WSMAN,
    Fault,
    Request,
    clean,
)

WMI: Final = "http://schemas.microsoft.com/wbem/wsman/1/wmi/"

PARAMETER_TYPE_MISMATCH: Final = 2150858836
INVALID_PARAMETER_NAME: Final = 2150858837
INVALID_XML_MISSING_VALUES: Final = 2150858839
KEYS_REQUIRED: Final = 2150859002
FILTERING_NOT_SUPPORTED: Final = 2150858776
ENUMERATE_WITH_KEYS: Final = 2150859016
PROVIDER_ACCESS_DENIED: Final = 2150859013
HRESULT_FROM_WIN32: Final = 0x80070000

_CLASSES: Final[Mapping[str, CimClass]] = {
    "root/default/stdregprov": STD_REG_PROV,
    "root/cimv2/stdregprov": STD_REG_PROV,
    "root/cimv2/win32_service": WIN32_SERVICE,
    "root/cimv2/win32_operatingsystem": WIN32_OPERATING_SYSTEM,
}
_SERVICES_URI: Final = f"{WMI}root/cimv2/Win32_Service"
_ANY_CLASS: Final = "root/cimv2/*"
_UINT32_MAX: Final = 0xFFFFFFFF


class Cim:
    """The WMI of one host."""

    def __init__(self, backend: Backend, machine: Machine) -> None:
        self._backend = backend
        self._machine = machine
        self._contexts = Contexts()

    def describe(self, request: Request) -> str:
        """Name the operation and its subject.

        `GetDWORDValue TarpitTime`, `Get Win32_Service SMTPSVC`, `Enumerate * SMTPSVC`.
        """
        words = [request.action.rpartition("/")[2]]
        if request.action.startswith((TRANSFER, ENUMERATION)):
            words.append(request.resource_uri.rpartition("/")[2])
        body = ElementTree.Element("none") if request.body is None else request.body
        given = {_local(element): element.text for element in body}
        subject = given.get("sValueName") or given.get("sSubKeyName") or request.selectors.get("name")
        # The object of an association, inside the filter.
        subject = subject or body.findtext(f".//{{{WSMAN}}}Selector")
        return " ".join([*words, subject] if subject else words)

    def answer(self, request: Request) -> str:
        """Call the method, get the instance or enumerate instances."""
        try:
            match request.action.rpartition("/"):
                case (namespace, _slash, "Get") if namespace == TRANSFER:
                    return self._get(_class_of(request), request)
                case (namespace, _slash, "Enumerate") if namespace == ENUMERATION:
                    return self._enumerate(request)
                case (namespace, _slash, "Pull") if namespace == ENUMERATION:
                    return self._contexts.pull(request)
                case (namespace, _slash, "Release") if namespace == ENUMERATION:
                    return self._contexts.release(request)
                case _:
                    return self._call(_class_of(request), request)
        except Win32Error as error:
            denied = error.code == ERROR_ACCESS_DENIED
            code = PROVIDER_ACCESS_DENIED if denied else HRESULT_FROM_WIN32 | error.code
            subcode = "w:AccessDenied" if denied else "w:InternalError"
            raise Fault(code, subcode, str(error), provider=True) from error

    def _get(self, cim_class: CimClass, request: Request) -> str:
        if cim_class.properties is None:
            raise _keys_required()
        singleton = cim_class.singleton and not request.selectors
        return self._instance(cim_class, request.resource_uri, "" if singleton else _key(cim_class, request))

    def _enumerate(self, request: Request) -> str:
        if request.resource_uri[len(WMI) :].lower() == _ANY_CLASS:
            asked, cim_class, uri = read_enumerate(request), WIN32_SERVICE, _SERVICES_URI
            keys = self._dependents(read_antecedent(asked.filter, uri))
        else:
            cim_class, uri = _class_of(request), request.resource_uri
            if cim_class.keys is None:
                reason = f"The lab cannot enumerate {cim_class.name}."
                raise Fault(ACTION_NOT_SUPPORTED, "a:ActionNotSupported", reason)
            asked = read_enumerate(request)
            if asked.filter is not None:
                reason = "The data source does not support filtering."
                raise Fault(FILTERING_NOT_SUPPORTED, "n:FilteringNotSupported", reason)
            keys = cim_class.keys(self._backend, self._machine)
        if request.selectors:
            reason = "The resource URI for an Enumerate operation must not contain keys."
            raise Fault(ENUMERATE_WITH_KEYS, "w:InvalidSelectors", reason, provider=True)
        instances = [self._instance(cim_class, uri, key) for key in keys]
        return self._contexts.open(request, instances, asked.max_elements)

    def _dependents(self, name: str) -> Sequence[str]:
        try:
            return self._backend.dependents(name)
        except Win32Error as error:
            if error.code != ERROR_SERVICE_DOES_NOT_EXIST:
                raise
            # What WMI says here nobody has seen: without the __ExtendedStatus no client may build on it.
            reason = "The object of the association does not exist."
            raise Fault(RESOURCE_NOT_FOUND, "a:DestinationUnreachable", reason, provider=True) from error

    def _instance(self, cim_class: CimClass, uri: str, key: str) -> str:
        assert cim_class.properties is not None
        properties = cim_class.properties(self._backend, key, self._machine)
        name = cim_class.name
        return (
            f'<p:{name} xmlns:xsi="{SCHEMA_INSTANCE}" xmlns:p="{escape(uri)}" '
            f'xsi:type="p:{name}_Type">{_elements(properties)}</p:{name}>'
        )

    def _call(self, cim_class: CimClass, request: Request) -> str:
        uri, _ignored, name = request.action.rpartition("/")
        method = cim_class.methods.get(name.lower())
        if method is None or uri.lower() != request.resource_uri.lower():
            reason = f"The action {request.action} is not supported by {cim_class.name}."
            raise Fault(ACTION_NOT_SUPPORTED, "a:ActionNotSupported", reason)
        key = _key(cim_class, request)
        given = _arguments(request, name, method.parameters)
        code, output = method.call(self._backend, key, given)
        return output_of(request.resource_uri, name, {"ReturnValue": code, **output})


def output_of(uri: str, method: str, values: Mapping[str, Value]) -> str:
    """The XML of what a method gives."""
    return (
        f'<p:{method}_OUTPUT xmlns:xsi="{SCHEMA_INSTANCE}" xmlns:p="{escape(uri)}">'
        f"{_elements(values)}</p:{method}_OUTPUT>"
    )


def _class_of(request: Request) -> CimClass:
    cim_class = _CLASSES.get(request.resource_uri[len(WMI) :].lower())
    if cim_class is None:
        reason = f"The class or namespace of {request.resource_uri} does not exist."
        detail = "InvalidResourceURI"
        raise Fault(RESOURCE_NOT_FOUND, "a:DestinationUnreachable", reason, detail=detail, provider=True)
    return cim_class


def _key(cim_class: CimClass, request: Request) -> str:
    """Give the value of the instance's key; "" for a class whose methods are all static."""
    if cim_class.key is None:
        return ""
    # __cimnamespace may stand beside the keys and names the namespace, which the URI does already.
    selectors = {name: value for name, value in request.selectors.items() if name != "__cimnamespace"}
    if not selectors:
        raise _keys_required()
    if list(selectors) != [cim_class.key.lower()]:
        reason = f"The selectors are not the keys of {cim_class.name}."
        raise Fault(INVALID_SELECTORS, "w:InvalidSelectors", reason, detail="UnexpectedSelectors")
    return selectors[cim_class.key.lower()]


def _keys_required() -> Fault:
    reason = "The resource URI has no keys and the class is not a singleton. Provide the keys of an instance."
    detail = "InvalidResourceURI"
    return Fault(KEYS_REQUIRED, "a:DestinationUnreachable", reason, detail=detail, provider=True)


def _arguments(request: Request, method: str, parameters: Parameters) -> dict[str, str | int]:
    body = request.body
    namespace = f"{{{request.resource_uri}}}".lower()
    if body is None or body.tag.lower() != f"{namespace}{method}_INPUT".lower():
        reason = f"The Body is not a {method}_INPUT of the class."
        raise Fault(SCHEMA_VALIDATION_ERROR, "w:SchemaValidationError", reason)
    given: dict[str, str | int] = {}
    spelling = {name.lower(): name for name in parameters}
    for element in body:
        name = spelling.get(_local(element).lower())
        if name is None or name in given or not element.tag.lower().startswith(namespace):
            reason = f"{method} has no parameter {element.tag}, or has it twice."
            raise Fault(INVALID_PARAMETER_NAME, "w:InvalidParameter", reason)
        text = element.text or ""
        given[name] = _uint32(name, text) if parameters[name] is int else text
    if "hDefKey" in parameters:
        given.setdefault("hDefKey", HKEY_LOCAL_MACHINE)
    missing = [name for name in parameters if name not in given]
    if missing:
        # Windows' StdRegProv has a default for uValue, and it is 3. Nobody who leaves it out means that.
        reason = f"{method} needs {', '.join(missing)}."
        raise Fault(INVALID_XML_MISSING_VALUES, "w:InvalidParameter", reason)
    return given


def _uint32(name: str, text: str) -> int:
    """Read plain digits only: some servers take a sign or a blank for 0, and say nothing."""
    if text.isascii() and text.isdigit() and len(text) <= len(str(_UINT32_MAX)) and int(text) <= _UINT32_MAX:
        return int(text)
    reason = f"{name} must be a decimal number from 0 to {_UINT32_MAX}, not {text!r}."
    raise Fault(PARAMETER_TYPE_MISMATCH, "w:InvalidParameter", reason)


def _elements(values: Mapping[str, Value]) -> str:
    return "".join(_element(name, value) for name, value in values.items())


def _element(name: str, value: Value) -> str:
    if value is None:
        return f'<p:{name} xsi:nil="true"/>'
    text = str(value).lower() if isinstance(value, bool) else escape(clean(str(value)))
    return f"<p:{name}>{text}</p:{name}>"


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
