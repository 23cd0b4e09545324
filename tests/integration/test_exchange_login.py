# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exchange_ modules with each way to log on, as options and as the host's connection variables ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.hosts import Lab
from lab.kdc import DOMAIN_USER, Kdc
from tools.ansible_runs import Controller, Run, play, windows_inventory

USER, PASSWORD = DOMAIN_USER
FRONT = r"EX01\Default Frontend EX01"


@pytest.fixture(scope="module")
def secure() -> Iterator[Lab]:
    with Lab.start(smtpsvc=False, https=True, exchange=("EX01",)) as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[Lab]:
    with Lab.start(smtpsvc=False, allow_unencrypted=True, exchange=("EX01",)) as running:
        yield running


@pytest.fixture(scope="module")
def domain(realm: Kdc) -> Iterator[Lab]:
    with Lab.start(smtpsvc=False, kerberos=realm, exchange=("EX01",)) as running:
        yield running


def run(
    lab: Lab,
    controller: Controller,
    folder: Path,
    options: dict[str, object],
    password: str = "",
    **variables: object,
) -> Run:
    (host,) = lab.hosts
    host.reset()
    inventory = windows_inventory(folder, {"win01": {"ansible_host": "localhost", **variables}}, lab.username)
    endpoint = f"{host.scheme}://localhost:{host.winrm_port}/PowerShell/"
    task = {"mailops.tarpit.exchange_tarpit": {"seconds": 7, "server": "EX01", "endpoint": endpoint, **options}}
    return controller.playbook(play(folder / "play.json", task), inventory, password or lab.password)


def is_set(lab: Lab) -> bool:
    (host,) = lab.hosts
    return bool(host.exchange.connector(FRONT).tarpit_seconds == 7 and host.exchange.sessions == 0)


@pytest.mark.parametrize("auth", ["ntlm", "negotiate"])
def test_http(plain: Lab, controller: Controller, tmp_path: Path, auth: str) -> None:
    done = run(plain, controller, tmp_path, {"auth": auth})
    assert done.status == 0, done.printed
    assert is_set(plain)


@pytest.mark.parametrize("auth", ["ntlm", "negotiate", "basic"])
def test_https(secure: Lab, controller: Controller, tmp_path: Path, auth: str) -> None:
    done = run(secure, controller, tmp_path, {"auth": auth, "ca_cert": str(secure.ca_file)})
    assert done.status == 0, done.printed
    assert is_set(secure)


def test_basic_over_http_asked_for_twice(plain: Lab, controller: Controller, tmp_path: Path) -> None:
    done = run(plain, controller, tmp_path, {"auth": "basic", "allow_insecure_basic": True})
    assert done.status == 0, done.printed
    assert is_set(plain)


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        pytest.param({"validate_certs": False}, {}, id="by option"),
        pytest.param({}, {"ansible_psrp_cert_validation": "ignore"}, id="by the variable for psrp"),
        pytest.param({}, {"ansible_winrm_server_cert_validation": "ignore"}, id="by the variable for winrm"),
        pytest.param({}, {"ansible_psrp_ca_cert": "{ca}"}, id="authority by the variable for psrp"),
        pytest.param({}, {"ansible_winrm_ca_trust_path": "{ca}"}, id="authority by the variable for winrm"),
    ],
)
def test_trust(
    secure: Lab, controller: Controller, tmp_path: Path, options: dict[str, object], variables: dict[str, str]
) -> None:
    given = {name: value.format(ca=secure.ca_file) for name, value in variables.items()}
    done = run(secure, controller, tmp_path, {"auth": "ntlm", **options}, **given)
    assert done.status == 0, done.printed
    assert is_set(secure)


def test_an_authority_that_nobody_trusts(secure: Lab, controller: Controller, tmp_path: Path) -> None:
    result = run(secure, controller, tmp_path, {"auth": "ntlm"}).last("win01")
    assert result["unreachable"] is True
    assert "win01: cannot reach Exchange at https://localhost:" in result["msg"]
    assert "the TLS certificate or handshake is not acceptable" in result["msg"]
    assert result["msg"].endswith("give the authority's certificate with 'ca_cert')")


def test_client_certificate(secure: Lab, controller: Controller, tmp_path: Path) -> None:
    pair = secure.client_certificate()
    options = {
        "auth": "certificate",
        "ca_cert": str(secure.ca_file),
        "certificate_pem": str(pair.certificate),
        "certificate_key_pem": str(pair.key),
    }
    done = run(secure, controller, tmp_path, options)
    assert done.status == 0, done.printed
    assert is_set(secure)


def test_options_go_before_variables(plain: Lab, controller: Controller, tmp_path: Path) -> None:
    done = run(
        plain,
        controller,
        tmp_path,
        {"auth": "ntlm", "username": plain.username},
        ansible_user="somebody-else",
        ansible_psrp_user="a-third",
    )
    assert done.status == 0, done.printed
    assert is_set(plain)


def test_the_endpoint_is_the_host_by_default(plain: Lab, controller: Controller, tmp_path: Path) -> None:
    # Port 80 is nobody's here, and the message shows where it went.
    result = run(plain, controller, tmp_path, {"auth": "ntlm", "endpoint": None}).last("win01")
    assert "win01: cannot reach Exchange at http://localhost/PowerShell/ (ntlm: " in result["msg"]


def test_kerberos_with_a_password(realm: Kdc, domain: Lab, tmp_path: Path) -> None:
    controller = Controller(tmp_path, more=realm.client_environment(tmp_path / "tickets"))
    done = run(domain, controller, tmp_path, {"username": f"{USER}@LAB.TEST"}, PASSWORD)
    assert done.status == 0, done.printed
    assert is_set(domain)


def test_kerberos_with_a_ticket(realm: Kdc, domain: Lab, tmp_path: Path) -> None:
    controller = Controller(tmp_path, more=realm.kinit(USER, tmp_path / "tickets"))
    done = run(domain, controller, tmp_path, {}, PASSWORD, ansible_user=None, ansible_password=None)
    assert done.status == 0, done.printed
    assert is_set(domain)


def test_kerberos_with_a_wrong_password(realm: Kdc, domain: Lab, tmp_path: Path) -> None:
    controller = Controller(tmp_path, more=realm.client_environment(tmp_path / "tickets"))
    result = run(domain, controller, tmp_path, {"username": f"{USER}@LAB.TEST"}, "wrong-Password-2").last("win01")
    assert result["unreachable"] is True
    assert "(kerberos: Kerberos or NTLM did not let the account in (" in result["msg"]


@pytest.mark.parametrize("auth", ["ntlm", "basic"])
def test_no_password(secure: Lab, controller: Controller, tmp_path: Path, auth: str) -> None:
    result = run(secure, controller, tmp_path, {"auth": auth}, ansible_password=None).last("win01")
    assert result["msg"] == (
        f"win01: 'auth' is {auth}, which needs 'username' and 'password', or the host's ansible_user and"
        " ansible_password"
    )
