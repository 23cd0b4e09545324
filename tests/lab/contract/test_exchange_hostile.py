# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client may send to the lab's Exchange that makes no sense: each gets a fault, and nothing else happens."""

from __future__ import annotations

import base64
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Final
from xml.etree import ElementTree

import pytest
from pypsrp.exceptions import WSManFaultError
from pypsrp.wsman import OptionSet, SelectorSet, WSMan

from lab.contract.client import Account
from lab.contract.exchange_client import Remote, connected, wsman
from lab.exchange import EXCHANGE
from lab.exchange_host import ExchangeHost
from lab.hosts import LabHost

RSP: Final = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
INVALID: Final = 87
UNEXPECTED_SELECTORS: Final = 2150858843
CREATE_PIPELINE: Final = 0x00021006
SESSION_CAPABILITY: Final = 0x00010002


def fragment(data: bytes, *, number: int = 1, part: int = 0, flags: int = 3, length: int | None = None) -> bytes:
    return struct.pack(">QQBI", number, part, flags, len(data) if length is None else length) + data


def message(kind: int, content: str, pool: str, pipeline: str | None = None) -> bytes:
    ids = uuid.UUID(pool).bytes_le + (uuid.UUID(pipeline).bytes_le if pipeline else bytes(16))
    return struct.pack("<II", 2, kind) + ids + content.encode()


def element(name: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
    made = ElementTree.Element(f"{{{RSP}}}{name}", attributes)
    made.text = text
    return made


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Raw:
    """Requests about a session as nobody else would make them."""

    def __init__(self, connection: WSMan, shell_id: str) -> None:
        self.connection = connection
        self.shell_id = shell_id
        self.selectors = SelectorSet()
        self.selectors.add_option("ShellId", shell_id)

    def create(self, shell_id: str | None, content: str | None) -> None:
        body = element("Shell", **({"ShellId": shell_id} if shell_id else {}))
        if content is not None:
            ElementTree.SubElement(body, "{http://schemas.microsoft.com/powershell}creationXml").text = content
        self.connection.create(EXCHANGE, body, option_set=OptionSet())

    def command(self, text: str, command_id: str | None) -> None:
        body = element("CommandLine", **({"CommandId": command_id} if command_id else {}))
        body.append(element("Command", ""))
        body.append(element("Arguments", text))
        self.connection.command(EXCHANGE, body, selector_set=self.selectors)

    def send(self, text: str, *, name: str = "stdin", **attributes: str) -> None:
        body = element("Send")
        body.append(element("Stream", text, Name=name, **attributes))
        self.connection.send(EXCHANGE, body, selector_set=self.selectors)

    def receive(self, stream: str = "stdout", **attributes: str) -> None:
        body = element("Receive")
        body.append(element("DesiredStream", stream, **attributes))
        self.connection.receive(EXCHANGE, body, selector_set=self.selectors)

    def signal(self, code: str, command_id: str) -> None:
        body = element("Signal", CommandId=command_id)
        body.append(element("Code", code))
        self.connection.signal(EXCHANGE, body, selector_set=self.selectors)


@pytest.fixture
def raw(remote: Remote, exchange_host: LabHost, admin: Account) -> Iterator[Raw]:
    with wsman(exchange_host, admin) as connection:
        yield Raw(connection, remote.pool.id)


ID: Final = str(uuid.uuid4()).upper()

# What is sent, and the code of the fault. The session is as it was.
REFUSED: dict[str, tuple[Callable[[Raw], None], int]] = {
    "create without content": (lambda raw: raw.create(ID, None), 2150858817),
    "create without an id": (lambda raw: raw.create(None, coded(b"x")), INVALID),
    "create with an odd id": (lambda raw: raw.create("shell", coded(b"x")), INVALID),
    "create with garbage": (lambda raw: raw.create(ID, coded(b"x" * 100)), INVALID),
    "create for another pool": (
        lambda raw: raw.create(ID, coded(fragment(message(SESSION_CAPABILITY, "<Obj RefId='0'/>", str(uuid.uuid4()))))),
        INVALID,
    ),
    "command without an id": (lambda raw: raw.command("", None), INVALID),
    "command in no Base64": (lambda raw: raw.command("%%%", ID), INVALID),
    "send in no Base64": (lambda raw: raw.send("A"), INVALID),
    "send to no stream": (lambda raw: raw.send("", name="stderr"), INVALID),
    "send to no command": (lambda raw: raw.send("", CommandId=ID), INVALID),
    "receive from no stream": (lambda raw: raw.receive("stderr"), 2150858817),
    "receive from no command": (lambda raw: raw.receive(CommandId=ID), INVALID),
    "signal to no command": (lambda raw: raw.signal(f"{RSP}/signal/Terminate", ID), INVALID),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(raw: Raw, remote: Remote, exchange: ExchangeHost, case: tuple[Callable[[Raw], None], int]) -> None:
    ask, code = case
    with pytest.raises(WSManFaultError) as raised:
        ask(raw)
    assert raised.value.code == code
    assert [one.id for one in exchange.open_shells] == [remote.pool.id]
    assert len(remote.run("Get-ReceiveConnector").output) == 10


PIPELINE: Final = "<Obj RefId='0'><MS/></Obj>"

# What ends the session, as a broken runspace.
GARBAGE: dict[str, Callable[[str], bytes]] = {
    "not a header": lambda _pool: b"garbage",
    "less than it says": lambda _pool: fragment(b"abc", length=1000),
    "more than it says": lambda _pool: fragment(b"abc", length=1),
    "a length beyond all": lambda _pool: fragment(b"", length=0xFFFFFFFF),
    "a message without a head": lambda _pool: fragment(b"abc"),
    "a message of no kind": lambda pool: fragment(message(0x99999999, "", pool)),
    "no XML": lambda pool: fragment(message(CREATE_PIPELINE, "<Obj", pool, ID)),
    "not UTF-8": lambda pool: fragment(message(CREATE_PIPELINE, "", pool, ID) + b"\xff\xfe"),
    "an XML of no object": lambda pool: fragment(message(CREATE_PIPELINE, "<html/>", pool, ID)),
    "a pipeline of nothing": lambda pool: fragment(message(CREATE_PIPELINE, PIPELINE, pool, ID)),
    "a reference to nothing": lambda pool: fragment(message(CREATE_PIPELINE, "<Ref RefId='7'/>", pool, ID)),
    "a pipeline for nobody": lambda pool: fragment(message(CREATE_PIPELINE, PIPELINE, pool)),
    "the second fragment first": lambda pool: fragment(message(CREATE_PIPELINE, PIPELINE, pool, ID), part=1),
    "another pool": lambda _pool: fragment(message(SESSION_CAPABILITY, "<Obj RefId='0'/>", ID)),
    "deep XML": lambda pool: fragment(
        message(CREATE_PIPELINE, '<Obj RefId="0"><MS>' * 3000 + "</MS></Obj>" * 3000, pool, ID)
    ),
    "an entity": lambda pool: fragment(
        message(CREATE_PIPELINE, '<!DOCTYPE x [<!ENTITY a "aaaa">]><S>&a;</S>', pool, ID)
    ),
}


@pytest.mark.parametrize("way", ["command", "send"])
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_breaks_the_session_and_no_other(
    raw: Raw,
    remote: Remote,
    exchange_host: LabHost,
    exchange: ExchangeHost,
    admin: Account,
    garbage: Callable[[str], bytes],
    way: str,
) -> None:
    with connected(exchange_host, admin) as other:
        text = coded(garbage(raw.shell_id))
        with pytest.raises(WSManFaultError) as raised:
            raw.command(text, ID) if way == "command" else raw.send(text)
        assert raised.value.code == INVALID
        assert [one.id for one in exchange.open_shells] == [other.pool.id]
        assert len(other.run("Get-ReceiveConnector").output) == 10
    remote.gone()


def test_a_message_without_end(raw: Raw, remote: Remote, exchange: ExchangeHost) -> None:
    # 4 MB of it are kept.
    for part in range(41):
        raw.send(coded(fragment(b"x" * 100_000, part=part, flags=1 if part == 0 else 0)))
    assert exchange.sessions == 1
    with pytest.raises(WSManFaultError) as raised:
        raw.send(coded(fragment(b"x" * 100_000, part=41, flags=0)))
    assert raised.value.code == INVALID
    assert exchange.sessions == 0
    remote.gone()


def test_a_session_that_is_not_there(remote: Remote, exchange_host: LabHost, admin: Account) -> None:
    assert remote.pool.id
    with wsman(exchange_host, admin) as connection:
        for shell_id in (str(uuid.uuid4()), "", "x" * 1000):
            raw = Raw(connection, shell_id)
            for ask in (raw.receive, lambda raw=raw: raw.send(""), lambda raw=raw: raw.command("", ID)):
                with pytest.raises(WSManFaultError) as raised:
                    ask()
                assert raised.value.code == UNEXPECTED_SELECTORS


def test_what_is_there_twice(raw: Raw, remote: Remote, exchange: ExchangeHost) -> None:
    raw.command("", ID)
    with pytest.raises(WSManFaultError) as raised:
        raw.command("", ID)
    assert raised.value.code == INVALID
    with pytest.raises(WSManFaultError) as raised:
        raw.signal("no signal", ID)
    assert raised.value.code == INVALID
    # One that never began can be stopped and ended.
    raw.signal("powershell/signal/ctrl_c", ID)
    raw.signal(f"{RSP}/signal/Terminate", ID)
    assert exchange.open_shells[0].commands == {}
    assert remote.run("Get-ReceiveConnector", "x").errors


def test_an_action_that_is_not_there(raw: Raw) -> None:
    with pytest.raises(WSManFaultError) as raised:
        raw.connection.disconnect(EXCHANGE, element("Disconnect"), selector_set=raw.selectors)
    assert raised.value.code == 2150858771
