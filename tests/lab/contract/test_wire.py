# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP, the login and the encryption: what stands before any envelope is read."""

from __future__ import annotations

import base64
import http.client
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests
from pypsrp.wsman import NAMESPACES, WSMan
from winrm.exceptions import InvalidCredentialsError, WinRMTransportError, WSManFaultError

from lab.contract.client import PARAMETERS, REGISTRY, Account, Encryption, Transport, WinRM, read_xml
from lab.hosts import Lab, LabHost

SEALED = "multipart/encrypted"


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def post(
    host: LabHost,
    body: bytes,
    account: Account | None = None,
    *,
    path: str = "/wsman",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request as it is given, with Basic where there is an account."""
    connection = http.client.HTTPConnection(host.address, host.winrm_port, timeout=30)
    try:
        sent = {"Content-Type": "application/soap+xml;charset=UTF-8", **(headers or {})}
        if account is not None:
            sent["Authorization"] = f"Basic {b64(f'{account.name}:{account.password}'.encode())}"
        connection.request("POST", path, body, sent)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


# -- the login --


@pytest.mark.parametrize(
    ("transport", "encryption"),
    [("basic", "auto"), ("basic", "never"), ("ntlm", "auto"), ("ntlm", "always")],
)
def test_both_ways_of_logging_in(
    lab_host: LabHost, account: Account, transport: Transport, encryption: Encryption
) -> None:
    client = WinRM(lab_host, account, transport, encryption)
    assert client.registry("SetDWORDValue", uValue=3)["ReturnValue"] == "0"
    assert client.registry("GetDWORDValue")["uValue"] == "3"


@pytest.mark.parametrize("transport", ["basic", "ntlm"])
@pytest.mark.parametrize("change", [{"password": "wrong"}, {"name": "nobody"}], ids=["password", "name"])
def test_a_wrong_password_or_name_is_refused(
    lab_host: LabHost, account: Account, transport: Transport, change: Mapping[str, str]
) -> None:
    client = WinRM(lab_host, Account(**{"name": account.name, "password": account.password, **change}), transport)
    with pytest.raises(InvalidCredentialsError):
        client.registry("GetDWORDValue")
    assert lab_host.traffic.journal == []


def test_the_name_of_an_account_ignores_case(lab_host: LabHost, account: Account) -> None:
    shouting = Account(account.name.upper(), account.password)
    for transport in ("basic", "ntlm"):
        assert WinRM(lab_host, shouting, transport).registry("GetDWORDValue")["ReturnValue"] == "1"


def b64(token: bytes) -> str:
    return base64.b64encode(token).decode()


TOKENS = (b"NTLMSSP\0", b"NTLMSSP\0\1\0\0\0", b"NTLMSSP\0\3\0\0\0" + bytes(80), b"\x60\x03abc", b"x")
NO_LOGINS = [
    None,
    "Basic !!!",
    f"Basic {b64(b'no colon')}",
    f"Basic {b64(bytes([255, 255]))}",
    "Bearer YQ==",
    "Negotiate",
    *(f"{scheme} {b64(token)}" for scheme in ("Negotiate", "NTLM") for token in TOKENS),
]


@pytest.mark.parametrize("authorization", NO_LOGINS)
def test_without_a_valid_login_there_is_only_a_challenge(lab_host: LabHost, authorization: str | None) -> None:
    answer = post(lab_host, b"<x/>", headers={"Authorization": authorization} if authorization else None)
    assert (answer.status, answer.body) == (401, b"")
    offers = answer.headers.get_all("WWW-Authenticate")
    assert offers == ["Negotiate", 'Basic realm="WSMAN"']
    assert lab_host.traffic.journal == []


def test_a_login_belongs_to_its_connection(lab_host: LabHost, account: Account) -> None:
    client = WinRM(lab_host, account)
    client.registry("GetDWORDValue")
    # The session's connection has proved who it is; a new one has proved nothing.
    assert client.protocol.transport.session is not None
    client.protocol.transport.session.get_adapter(lab_host.endpoint).close()
    before = lab_host.traffic.requests
    assert post(lab_host, b"<x/>").status == 401
    assert lab_host.traffic.requests == before + 1


def test_a_login_costs_three_requests_and_then_one_each(lab_host: LabHost, account: Account) -> None:
    client = WinRM(lab_host, account)
    for expected in (4, 5, 6):
        client.registry("GetDWORDValue")
        assert lab_host.traffic.requests == expected
    assert lab_host.traffic.bytes_in > 1000
    assert lab_host.traffic.bytes_out > 1000


# -- encryption --


def watch(client: WinRM) -> list[requests.Response]:
    """Collect every HTTP reply that the client gets."""
    seen: list[requests.Response] = []
    session = client.protocol.transport.build_session()
    session.hooks["response"].append(lambda response, **_: seen.append(response))
    return seen


def test_ntlm_encrypts_both_ways(lab_host: LabHost, account: Account) -> None:
    client = WinRM(lab_host, account, "ntlm", "always")
    seen = watch(client)
    client.registry("SetDWORDValue", uValue=3)
    (reply,) = (response for response in seen if response.request.body)
    assert reply.headers["Content-Type"].startswith(SEALED)
    assert str(reply.request.headers["Content-Type"]).startswith(SEALED)
    assert isinstance(reply.request.body, bytes)
    assert b"SetDWORDValue" not in reply.request.body + reply.content


def test_faults_are_encrypted_too(lab_host: LabHost, account: Account) -> None:
    client = WinRM(lab_host, account, "ntlm", "always")
    seen = watch(client)
    with pytest.raises(WSManFaultError, match="2150858752"):
        client.get_service("NoSuchSvc")
    (reply,) = (response for response in seen if response.request.body)
    assert reply.status_code == 500
    assert b"NoSuchSvc" not in reply.content


def test_basic_is_readable(lab_host: LabHost, account: Account) -> None:
    client = WinRM(lab_host, account, "basic")
    seen = watch(client)
    client.registry("SetDWORDValue", uValue=3)
    assert seen[-1].headers["Content-Type"] == "application/soap+xml;charset=UTF-8"
    assert b"SetDWORDValue_OUTPUT" in seen[-1].content


def test_a_clear_message_over_ntlm_is_refused_and_not_acted_upon(lab_host: LabHost, account: Account) -> None:
    client = WinRM(lab_host, account, "ntlm", "never")
    with pytest.raises(WinRMTransportError) as raised:
        client.registry("SetDWORDValue", uValue=3)
    assert raised.value.code == 500
    assert lab_host.traffic.journal == []


def test_a_clear_message_over_ntlm_may_be_allowed() -> None:
    with Lab.start(allow_unencrypted=True, smtpsvc=False) as lab:
        client = WinRM(lab.hosts[0], Account(lab.username, lab.password), "ntlm", "never")
        assert client.registry("GetDWORDValue")["ReturnValue"] == "2"


def test_a_tampered_message_is_refused(lab_host: LabHost, account: Account) -> None:
    client = WinRM(lab_host, account, "ntlm", "always")
    client.registry("GetDWORDValue")
    transport = client.protocol.transport
    assert transport.session is not None
    assert transport.encryption is not None
    request = transport.encryption.prepare_encrypted_request(transport.session, lab_host.endpoint, b"<x/>")
    assert isinstance(request.body, bytes)
    middle = request.body.index(b"octet-stream") + 40
    request.body = request.body[:middle] + bytes([request.body[middle] ^ 1]) + request.body[middle + 1 :]
    assert transport.session.send(request).status_code == 400


def test_an_encrypted_message_needs_a_login_with_keys(lab_host: LabHost, account: Account) -> None:
    assert post(lab_host, b"--Encrypted Boundary", account, headers={"Content-Type": SEALED}).status == 400


# -- pypsrp: SPNEGO around NTLM, and another reader of the same rules --


@pytest.mark.parametrize("auth", ["negotiate", "ntlm", "basic"])
def test_pypsrp_calls_a_method(lab_host: LabHost, account: Account, auth: str) -> None:
    with WSMan(
        lab_host.address,
        port=lab_host.winrm_port,
        ssl=False,
        auth=auth,
        username=account.name,
        password=account.password,
        encryption="never" if auth == "basic" else "always",
        no_proxy=True,
    ) as client:
        given = ElementTree.Element(f"{{{REGISTRY}}}GetDWORDValue_INPUT")
        for name, text in {"sSubKeyName": PARAMETERS, "sValueName": "TarpitTime"}.items():
            ElementTree.SubElement(given, f"{{{REGISTRY}}}{name}").text = text
        output = client.invoke(f"{REGISTRY}/GetDWORDValue", REGISTRY, given)
    assert output.findtext(".//{*}ReturnValue") == "1"
    assert lab_host.traffic.journal == ["GetDWORDValue TarpitTime"]
    assert NAMESPACES["s"] in output.tag


# -- HTTP --


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<s:Envelope", "not well-formed"),
        (b"\xff\xfe\x00", "not well-formed"),
        (b"no xml at all", "not well-formed"),
        (b'<!DOCTYPE x [<!ENTITY e "boom">]><x>&e;</x>', "document type"),
        (b"<x/>", "not a SOAP 1.2 Envelope"),
    ],
)
def test_what_is_no_envelope_is_a_bad_request(lab_host: LabHost, account: Account, body: bytes, words: str) -> None:
    answer = post(lab_host, body, account)
    assert answer.status == 400
    assert words in (read_xml(answer.body).findtext(".//{*}Reason/{*}Text") or "")


@pytest.mark.parametrize("size", [600_000, 4_000_000])
def test_a_body_that_is_too_large_is_read_and_refused(lab_host: LabHost, account: Account, size: int) -> None:
    answer = post(lab_host, b" " * size, account)
    assert (answer.status, answer.headers["Connection"]) == (413, "close")


def test_a_body_that_is_far_too_large_is_refused_unread(lab_host: LabHost, account: Account) -> None:
    answer = post(lab_host, b"", account, headers={"Content-Length": "9" * 5000})
    assert (answer.status, answer.headers["Connection"]) == (413, "close")


@pytest.mark.parametrize("length", ["-1", "abc", "1 2", ""])
def test_a_length_that_is_no_number_is_refused(lab_host: LabHost, account: Account, length: str) -> None:
    assert post(lab_host, b"", account, headers={"Content-Length": length}).status == 400


def test_a_body_without_a_length_is_refused(lab_host: LabHost, account: Account) -> None:
    assert post(lab_host, b"", account, headers={"Transfer-Encoding": "chunked"}).status == 411


@pytest.mark.parametrize("path", ["/", "/wsmanx", "/PowerShell/"])
def test_there_is_nothing_elsewhere(lab_host: LabHost, account: Account, path: str) -> None:
    assert post(lab_host, b"<x/>", account, path=path).status == 404


def test_get_is_not_allowed(lab_host: LabHost) -> None:
    reply = requests.get(lab_host.endpoint, timeout=30)
    assert reply.status_code == 405


def test_two_hosts_are_two_machines(account: Account) -> None:
    with Lab.start(hosts=2) as lab:
        one, two = (WinRM(host, Account(lab.username, lab.password)) for host in lab.hosts)
        one.registry("SetDWORDValue", uValue=11)
        assert two.registry("GetDWORDValue")["ReturnValue"] == "1"
        two.service("StopService")
        two.wait_for_state("Stopped")
        assert one.get_service()["State"] == "Running"
        assert lab.hosts[0].smtp_port != lab.hosts[1].smtp_port
        assert lab.hosts[1].traffic.journal[0] == "GetDWORDValue TarpitTime"


def test_a_host_that_does_not_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no port")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("lab.hosts.WinRMServer", fail)
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="no port"):
        Lab.start(hosts=3)
    assert set(threading.enumerate()) <= before
    assert list(tmp_path.iterdir()) == []


def test_closing_ends_connections_that_are_open() -> None:
    with Lab.start() as lab:
        host = lab.hosts[0]
        client = WinRM(host, Account(lab.username, lab.password), "basic")
        client.registry("GetDWORDValue")
    with pytest.raises(requests.ConnectionError):
        client.registry("GetDWORDValue")
