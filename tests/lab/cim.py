# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""WMI through WS-Management: which class, which method, which instance?

`Cim` takes the requests below `…/wsman/1/wmi/`: a method call has the action `<ResourceURI>/<Method>` and
its parameters in a `<Method>_INPUT` ([MS-WSMV] 3.1.4.1.32), Get reads an instance by the selectors of its
keys. Namespaces, classes, methods and parameters ignore case, as all names in WMI.

Two kinds of "no" leave this room. What a class answers by design is a ReturnValue, made in the class's own
file. What has no instance or no sense is a Fault, with the code that wsmerror.h has for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from lab.backend import ERROR_ACCESS_DENIED, HKEY_LOCAL_MACHINE, Backend, Win32Error
from lab.cim_class import CimClass, Parameters, Value
from lab.std_reg_prov import STD_REG_PROV
from lab.win32_service import WIN32_SERVICE
from lab.wsman import (
    ACTION_NOT_SUPPORTED,
    INVALID_SELECTORS,
    RESOURCE_NOT_FOUND,
    SCHEMA_INSTANCE,
    SCHEMA_VALIDATION_ERROR,
    TRANSFER,
    Fault,
    Request,
    clean,
)

WMI: Final = "http://schemas.microsoft.com/wbem/wsman/1/wmi/"

PARAMETER_TYPE_MISMATCH: Final = 2150858836
INVALID_PARAMETER_NAME: Final = 2150858837
INVALID_XML_MISSING_VALUES: Final = 2150858839
KEYS_REQUIRED: Final = 2150859002
PROVIDER_ACCESS_DENIED: Final = 2150859013
HRESULT_FROM_WIN32: Final = 0x80070000

_CLASSES: Final[Mapping[str, CimClass]] = {
    "root/default/stdregprov": STD_REG_PROV,
    "root/cimv2/stdregprov": STD_REG_PROV,
    "root/cimv2/win32_service": WIN32_SERVICE,
}
_UINT32_MAX: Final = 0xFFFFFFFF


class Cim:
    """The WMI of one host."""

    def __init__(self, backend: Backend, *, machine: str) -> None:
        self._backend = backend
        self._machine = machine

    def describe(self, request: Request) -> str:
        """Name the operation and its subject: `GetDWORDValue TarpitTime`, `Get Win32_Service SMTPSVC`."""
        words = [request.action.rpartition("/")[2]]
        if request.action.startswith(TRANSFER):
            words.append(request.resource_uri.rpartition("/")[2])
        given = {_local(element): element.text for element in (() if request.body is None else request.body)}
        subject = given.get("sValueName") or given.get("sSubKeyName") or request.selectors.get("name")
        return " ".join([*words, subject] if subject else words)

    def answer(self, request: Request) -> str:
        """Call the method, or get the instance."""
        uri = request.resource_uri
        cim_class = _CLASSES.get(uri[len(WMI) :].lower())
        if cim_class is None:
            reason = f"The class or namespace of {uri} does not exist."
            detail = "InvalidResourceURI"
            raise Fault(RESOURCE_NOT_FOUND, "a:DestinationUnreachable", reason, detail=detail, provider=True)
        try:
            if request.action == f"{TRANSFER}/Get":
                return self._get(cim_class, request)
            return self._call(cim_class, request)
        except Win32Error as error:
            denied = error.code == ERROR_ACCESS_DENIED
            code = PROVIDER_ACCESS_DENIED if denied else HRESULT_FROM_WIN32 | error.code
            subcode = "w:AccessDenied" if denied else "w:InternalError"
            raise Fault(code, subcode, str(error), provider=True) from error

    def _get(self, cim_class: CimClass, request: Request) -> str:
        if cim_class.properties is None:
            raise _keys_required()
        properties = cim_class.properties(self._backend, _key(cim_class, request), self._machine)
        name = cim_class.name
        return (
            f'<p:{name} xmlns:xsi="{SCHEMA_INSTANCE}" xmlns:p="{escape(request.resource_uri)}" '
            f'xsi:type="p:{name}_Type">{_elements(properties)}</p:{name}>'
        )

    def _call(self, cim_class: CimClass, request: Request) -> str:
        uri, _, name = request.action.rpartition("/")
        method = cim_class.methods.get(name.lower())
        if method is None or uri.lower() != request.resource_uri.lower():
            reason = f"The action {request.action} is not supported by {cim_class.name}."
            raise Fault(ACTION_NOT_SUPPORTED, "a:ActionNotSupported", reason)
        key = _key(cim_class, request)
        given = _arguments(request, name, method.parameters)
        code, output = method.call(self._backend, key, given)
        values = _elements({"ReturnValue": code, **output})
        return (
            f'<p:{name}_OUTPUT xmlns:xsi="{SCHEMA_INSTANCE}" xmlns:p="{escape(request.resource_uri)}">'
            f"{values}</p:{name}_OUTPUT>"
        )


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
