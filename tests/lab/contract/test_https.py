# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""WinRM over HTTPS: certificates both ways, and logins that are bound to the channel."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator

import pytest
import requests
import spnego
from pypsrp.wsman import WSMan
from spnego.channel_bindings import GssChannelBindings
from winrm.exceptions import InvalidCredentialsError
from winrm.protocol import Protocol

from lab.auth import Admission, Authenticator
from lab.contract.client import Account, WinRM
from lab.faults import ALL
from lab.hosts import Lab, LabHost
from lab.tls import Certificate
from lab.troubles import Cut
from lab.users import Users


@pytest.fixture(scope="module")
def secure_lab() -> Iterator[Lab]:
    with Lab.start(https=True) as running:
        yield running


@pytest.fixture
def secure_host(secure_lab: Lab) -> LabHost:
    (host,) = secure_lab.hosts
    host.reset()
    return host


def client_of(lab: Lab, *, certificate: Certificate | None = None, **options: object) -> WinRM:
    """A client that trusts the lab's authority and nobody else."""
    (host,) = lab.hosts
    client = WinRM(host, Account(lab.username, lab.password))
    pair = {"cert_pem": str(certificate.certificate), "cert_key_pem": str(certificate.key)} if certificate else {}
    given = {
        "endpoint": host.endpoint,
        "username": lab.username,
        "password": lab.password,
        "ca_trust_path": str(lab.ca_file),
        "proxy": None,
        **pair,
        **options,
    }
    client.protocol = Protocol(**given)  # type: ignore[arg-type]
    return client


@pytest.mark.parametrize("transport", ["basic", "ntlm"])
def test_a_login_over_tls(secure_lab: Lab, secure_host: LabHost, transport: str) -> None:
    client = client_of(secure_lab, transport=transport)
    assert client.registry("SetDWORDValue", uValue=3)["ReturnValue"] == "0"
    assert client.registry("GetDWORDValue")["uValue"] == "3"
    assert secure_host.endpoint.startswith("https://127.0.0.1:")


@pytest.mark.parametrize("auth", ["negotiate", "ntlm", "basic"])
def test_pypsrp_over_tls(secure_lab: Lab, secure_host: LabHost, auth: str) -> None:
    with WSMan(
        "localhost",
        port=secure_host.winrm_port,
        auth=auth,
        username=secure_lab.username,
        password=secure_lab.password,
        cert_validation=str(secure_lab.ca_file),  # type: ignore[arg-type]
        no_proxy=True,
    ) as client:
        uri = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/Win32_OperatingSystem"
        assert client.get(uri).findtext(".//{*}BuildNumber") == "17763"


def test_who_does_not_trust_the_lab_says_nothing(secure_lab: Lab, secure_host: LabHost) -> None:
    assert secure_lab.ca_file is not None
    with pytest.raises(requests.exceptions.SSLError):
        requests.post(secure_host.endpoint, data="<x/>", timeout=30, verify=True)
    assert secure_host.traffic.requests == 0
    assert requests.get(secure_host.endpoint, timeout=30, verify=str(secure_lab.ca_file)).status_code == 405


def test_plain_http_is_not_understood(secure_lab: Lab, secure_host: LabHost) -> None:
    with pytest.raises(requests.ConnectionError):
        requests.get(secure_host.endpoint.replace("https", "http"), timeout=30)
    with socket.create_connection((secure_host.address, secure_host.winrm_port), timeout=30):
        # One that says nothing holds up nobody.
        assert client_of(secure_lab).registry("GetDWORDValue")["ReturnValue"] == "1"


def test_a_certificate_logs_in(secure_lab: Lab, secure_host: LabHost) -> None:
    certificate = secure_lab.client_certificate()
    client = client_of(secure_lab, transport="certificate", certificate=certificate)
    assert client.registry("GetDWORDValue")["ReturnValue"] == "1"
    assert secure_host.traffic.requests == 1, "no handshake but that of TLS"


def test_a_certificate_of_another_lab_does_not(secure_lab: Lab, secure_host: LabHost) -> None:
    with Lab.start(https=True, smtpsvc=False) as other:
        foreign = other.client_certificate()
        client = client_of(secure_lab, transport="certificate", certificate=foreign)
        with pytest.raises((requests.ConnectionError, InvalidCredentialsError)):
            client.registry("GetDWORDValue")
    assert secure_host.traffic.journal == []


def test_a_certificate_must_be_there(secure_lab: Lab, secure_host: LabHost) -> None:
    scheme = "http://schemas.dmtf.org/wbem/wsman/1/wsman/secprofile/https/mutual"
    reply = requests.post(
        secure_host.endpoint,
        data="<x/>",
        headers={"Authorization": scheme},
        timeout=30,
        verify=str(secure_lab.ca_file),
    )
    assert reply.status_code == 401


def test_a_connection_is_cut_under_tls(secure_lab: Lab, secure_host: LabHost) -> None:
    client = client_of(secure_lab)
    client.registry("GetDWORDValue")
    secure_host.faults.on(ALL, Cut(part=0.5))
    with pytest.raises(requests.RequestException):
        client.registry("SetDWORDValue", uValue=1)
    assert client_of(secure_lab).registry("GetDWORDValue")["uValue"] == "1"


def test_closing_ends_connections_that_are_open() -> None:
    with Lab.start(https=True, smtpsvc=False) as lab:
        client = client_of(lab)
        client.registry("GetDWORDValue")
        folder = lab.ca_file
    # requests looks for the authority's file first, which is gone too.
    with pytest.raises(OSError, match="TLS CA"):
        client.registry("GetDWORDValue")
    assert folder is not None
    assert not folder.exists()


@pytest.mark.parametrize(("seen", "welcome"), [(b"tls-server-end-point:x", True), (b"tls-server-end-point:y", False)])
def test_a_login_is_bound_to_the_channel(seen: bytes, welcome: bool) -> None:
    users = Users({"lab-channel": "secret-Word-1"})
    users.open()
    try:
        bindings = GssChannelBindings(application_data=b"tls-server-end-point:x")
        authenticator = Authenticator(Admission(users, bindings=bindings))
        client = spnego.client(
            "lab-channel",
            "secret-Word-1",
            protocol="ntlm",
            options=spnego.NegotiateOptions.use_ntlm,
            channel_bindings=GssChannelBindings(application_data=seen),
        )
        user, token = None, client.step()
        while token:
            verdict = authenticator.authenticate(f"Negotiate {base64.b64encode(token).decode()}")
            user = verdict.user
            challenge = verdict.headers[0].partition(" ")[2] if verdict.headers else ""
            token = client.step(base64.b64decode(challenge)) if challenge and not client.complete else None
        assert user == ("lab-channel" if welcome else None)
    finally:
        users.close()
