# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""StdRegProv's return codes, and what becomes of them."""

from __future__ import annotations

import pytest
from ansible_collections.mailops.tarpit.plugins.plugin_utils._registry import (
    Registry,
    RegistryError,
    WrongTypeError,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._wsman import CimError, CimSession
from unit.fake_host import ScriptedTransport, output


def registry(*script: tuple[int, str]) -> Registry:
    return Registry(CimSession(ScriptedTransport(script)))


def got(code: int, value: int | None = None) -> tuple[int, str]:
    return output("GetDWORDValue", ReturnValue=code, uValue=value)


@pytest.mark.parametrize(("code", "value", "read"), [(0, 30, 30), (0, 0, 0), (1, None, None), (2, None, None)])
def test_reading(code: int, value: int | None, read: int | None) -> None:
    assert registry(got(code, value)).read_dword("K", "V") == read


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (5, RegistryError, r"refused to read HKLM\\K\\V: access denied \(StdRegProv returned 5\)"),
        (6, RegistryError, "not valid"),
        (0x80041005, WrongTypeError, "has another type"),
        (99, RegistryError, r"does not document \(StdRegProv returned 99\)"),
        (0, CimError, "no number"),
    ],
)
def test_reading_fails(code: int, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        registry(got(code)).read_dword("K", "V")


def test_a_value_is_read_back() -> None:
    done = output("SetDWORDValue", ReturnValue=0)
    registry(done, got(0, 30)).write_dword("K", "V", 30)
    with pytest.raises(CimError, match="accepted 30 .* but has 0 there now"):
        registry(done, got(0, 0)).write_dword("K", "V", 30)


@pytest.mark.parametrize("value", [-1, 2**32])
def test_what_is_no_dword_is_not_sent(value: int) -> None:
    transport = ScriptedTransport([])
    with pytest.raises(ValueError, match="DWORD"):
        Registry(CimSession(transport)).write_dword("K", "V", value)
    assert transport.requests == []


def test_deleting_what_is_gone_is_done() -> None:
    for code in (0, 2):
        registry(output("DeleteValue", ReturnValue=code)).delete_value("K", "V")
    with pytest.raises(RegistryError, match="refused to delete"):
        registry(output("DeleteValue", ReturnValue=5)).delete_value("K", "V")


def test_creating_a_key() -> None:
    registry(output("CreateKey", ReturnValue=0)).create_key("K")
    with pytest.raises(RegistryError, match=r"refused to create HKLM\\K: access denied"):
        registry(output("CreateKey", ReturnValue=5)).create_key("K")
