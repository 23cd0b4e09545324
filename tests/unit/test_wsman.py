# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes out to a host, and what is made of every kind of answer."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from ansible_collections.mailops.tarpit.plugins.plugin_utils._wsman import (
    MAX_REPLY_SIZE,
    CimClass,
    CimError,
    CimFault,
    CimSession,
)
from unit.fake_host import STD_REG_PROV, ScriptedTransport, envelope, fault, output

PROV = CimClass("root/default", "StdRegProv")


def call(*script: tuple[int, str]) -> dict[str, str | None]:
    return CimSession(ScriptedTransport(script)).invoke(PROV, "GetDWORDValue", {"sValueName": "TarpitTime"})


def test_the_request_is_what_ms_wsmv_asks_for() -> None:
    transport = ScriptedTransport([output("GetDWORDValue", ReturnValue=0, uValue=30)])
    CimSession(transport).invoke(
        PROV, "GetDWORDValue", {"hDefKey": 0x80000002, "sSubKeyName": "A&B<C>", "sValueName": "x"}, {"Name": 'a"<'}
    )
    root = ET.fromstring(transport.requests[0])
    text = {element.tag.rpartition("}")[2]: element.text for element in root.iter()}
    assert text["ResourceURI"] == STD_REG_PROV
    assert text["Action"] == f"{STD_REG_PROV}/GetDWORDValue"
    assert text["hDefKey"] == "2147483650"
    assert text["sSubKeyName"] == "A&B<C>"
    assert text["Selector"] == 'a"<'
    assert text["OperationTimeout"] == "PT20S"
    (sent,) = root.iter(f"{{{STD_REG_PROV}}}GetDWORDValue_INPUT")
    assert [child.tag.rpartition("}")[2] for child in sent] == ["hDefKey", "sSubKeyName", "sValueName"]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ('<p:X_OUTPUT xmlns:p="a"><p:ReturnValue>0</p:ReturnValue><p:u>30</p:u></p:X_OUTPUT>', {"u": "30"}),
        ('<X xmlns="b"><ReturnValue>0</ReturnValue><u> 30 </u></X>', {"u": "30"}),
        ('<X><ReturnValue>0</ReturnValue><u xsi:nil="true"/></X>', {"u": None}),
        ('<X><ReturnValue>0</ReturnValue><u xsi:nil="TRUE"/></X>', {"u": None}),
        ("<X><ReturnValue>0</ReturnValue><u/></X>", {"u": ""}),
    ],
    ids=["prefixed", "another name and namespace", "null", "NULL", "empty"],
)
def test_replies_are_read_by_local_name(body: str, fields: dict[str, str | None]) -> None:
    assert call((200, envelope(body))) == {"ReturnValue": "0", **fields}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, ""), "HTTP status 200 and nothing"),
        ((500, ""), "HTTP status 500 and nothing"),
        ((200, "<html>"), "not XML"),
        ((404, "<html/>"), "HTTP status 404 and no WS-Management reply"),
        ((200, envelope("")), "no WS-Management reply"),
        ((200, envelope("<X/>")), "no ReturnValue"),
        ((200, envelope("<X><ReturnValue>-1</ReturnValue></X>")), "no ReturnValue"),
        (
            (200, envelope("<X><ReturnValue>0</ReturnValue></X>", "<a:RelatesTo>other</a:RelatesTo>")),
            "another request",
        ),
        ((200, '<!DOCTYPE x [<!ENTITY a "b">]>' + envelope("<X/>")), "document type"),
        ((200, " " * (MAX_REPLY_SIZE + 1)), "bytes"),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(reply: tuple[int, str], message: str) -> None:
    with pytest.raises(CimError, match=message):
        call(reply)


def test_a_fault_keeps_what_windows_said() -> None:
    with pytest.raises(CimFault) as caught:
        call(fault(2150858752, extended='Win32_Service.Name="X"', subcode="anything:DestinationUnreachable"))
    assert caught.value.code == 2150858752
    assert caught.value.subcode == "DestinationUnreachable"
    assert 'Name="X"' in caught.value.extended_status
    assert str(caught.value) == "It did not work. (Windows error 2150858752, 0x80338000)"


@pytest.mark.parametrize(
    "body",
    [
        "<s:Fault/>",
        "<s:Fault><s:Code/></s:Fault>",
        "<s:Fault><s:Reason><s:Text>why</s:Text></s:Reason></s:Fault>",
        '<s:Fault><s:Detail><x Code="soon"/></s:Detail></s:Fault>',
    ],
)
def test_a_fault_may_lack_anything(body: str) -> None:
    with pytest.raises(CimFault) as caught:
        call((500, envelope(body, header="")))
    assert caught.value.code is None
