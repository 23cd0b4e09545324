# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both connections with each way to log in that the lab speaks, as an inventory asks for them.

Each case sets the tarpit, and the host must have seen nothing but WMI: no shell, no runspace.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.backend import HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS
from lab.hosts import Lab, LabHost
from lab.kdc import DOMAIN_USER, Kdc
from tools.ansible_runs import Controller, Run, play, windows_inventory

SET = {"mailops.tarpit.win_smtp_tarpit": {"seconds": 7}}
USER, PASSWORD = DOMAIN_USER


def run(
    lab: Lab, controller: Controller, folder: Path, connection: str, password: str = "", **variables: object
) -> Run:
    (host,) = lab.hosts
    host.reset()
    where = {"ansible_host": "localhost", "ansible_port": host.winrm_port, **variables}
    inventory = windows_inventory(folder, {"win01": where}, lab.username, connection)
    return controller.playbook(play(folder / "play.json", SET), inventory, password or lab.password)


def is_set_by_wmi_alone(host: LabHost) -> bool:
    value = host.backend.read_value(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS, "TarpitTime").data
    return value == 7 and not [line for line in host.traffic.journal if line.startswith(("Shell", "Command"))]


# -- HTTPS --


@pytest.fixture(scope="module")
def secure() -> Iterator[Lab]:
    with Lab.start(https=True) as running:
        yield running


TLS = {
    "winrm": {"ansible_winrm_scheme": "https", "ansible_winrm_ca_trust_path": "{ca}"},
    "psrp": {"ansible_psrp_protocol": "https", "ansible_psrp_ca_cert": "{ca}"},
}
UNCHECKED = {
    "winrm": {"ansible_winrm_scheme": "https", "ansible_winrm_server_cert_validation": "ignore"},
    "psrp": {"ansible_psrp_protocol": "https", "ansible_psrp_cert_validation": "ignore"},
}


@pytest.mark.parametrize("auth", ["ntlm", "basic"])
@pytest.mark.parametrize("connection", ["winrm", "psrp"])
def test_https(secure: Lab, controller: Controller, tmp_path: Path, connection: str, auth: str) -> None:
    trust = {name: value.format(ca=secure.ca_file) for name, value in TLS[connection].items()}
    login = {"ansible_winrm_transport": auth, "ansible_psrp_auth": auth}
    done = run(secure, controller, tmp_path, connection, **trust, **login)
    assert done.status == 0, done.printed
    assert is_set_by_wmi_alone(secure.hosts[0])


@pytest.mark.parametrize("connection", ["winrm", "psrp"])
def test_https_without_a_check(secure: Lab, controller: Controller, tmp_path: Path, connection: str) -> None:
    done = run(secure, controller, tmp_path, connection, **UNCHECKED[connection])
    assert done.status == 0, done.printed
    assert is_set_by_wmi_alone(secure.hosts[0])


@pytest.mark.parametrize("connection", ["winrm", "psrp"])
def test_https_with_an_authority_that_nobody_trusts(
    secure: Lab, controller: Controller, tmp_path: Path, connection: str
) -> None:
    checked = {"ansible_winrm_scheme": "https", "ansible_psrp_protocol": "https"}
    done = run(secure, controller, tmp_path, connection, **checked)
    said = done.last("win01")["msg"]
    assert done.last("win01")["unreachable"] is True
    assert "win01: cannot reach WinRM at https://localhost:" in said
    assert "the TLS certificate or handshake is not acceptable" in said
    assert "ansible_winrm_ca_trust_path" in said


@pytest.mark.parametrize("connection", ["winrm", "psrp"])
def test_client_certificate(secure: Lab, controller: Controller, tmp_path: Path, connection: str) -> None:
    pair = secure.client_certificate()
    trust = {name: value.format(ca=secure.ca_file) for name, value in TLS[connection].items()}
    login = {
        "ansible_winrm_transport": "certificate",
        "ansible_winrm_cert_pem": str(pair.certificate),
        "ansible_winrm_cert_key_pem": str(pair.key),
        "ansible_psrp_auth": "certificate",
        "ansible_psrp_certificate_pem": str(pair.certificate),
        "ansible_psrp_certificate_key_pem": str(pair.key),
    }
    done = run(secure, controller, tmp_path, connection, **trust, **login)
    assert done.status == 0, done.printed
    assert is_set_by_wmi_alone(secure.hosts[0])


# -- several ways in one inventory, and what is between --


def test_the_first_transport_that_the_host_lets_in_stays(
    memory_lab: Lab, controller: Controller, tmp_path: Path
) -> None:
    done = run(memory_lab, controller, tmp_path, "winrm", ansible_winrm_transport=["certificate", "ntlm"])
    assert done.status == 0, done.printed
    assert is_set_by_wmi_alone(memory_lab.hosts[0])


@pytest.mark.parametrize(
    ("connection", "variables"),
    [
        ("winrm", {"ansible_winrm_proxy": "http://127.0.0.1:1"}),
        ("psrp", {"ansible_psrp_proxy": "http://127.0.0.1:1"}),
    ],
)
def test_a_proxy_is_used(
    memory_lab: Lab, controller: Controller, tmp_path: Path, connection: str, variables: dict[str, object]
) -> None:
    done = run(memory_lab, controller, tmp_path, connection, **variables)
    assert "no connection through the proxy" in done.last("win01")["msg"]


@pytest.mark.parametrize(
    ("connection", "variables"),
    [("winrm", {"ansible_winrm_path": "/elsewhere"}), ("psrp", {"ansible_psrp_path": "elsewhere"})],
)
def test_a_path_is_used(
    memory_lab: Lab, controller: Controller, tmp_path: Path, connection: str, variables: dict[str, object]
) -> None:
    done = run(memory_lab, controller, tmp_path, connection, **variables)
    assert "HTTP status 404" in done.last("win01")["msg"]


# -- Kerberos, with a real KDC --


KERBEROS = {
    "ansible_user": f"{USER}@LAB.TEST",
    "ansible_winrm_transport": "kerberos",
    "ansible_winrm_kinit_env_vars": ["KRB5_CONFIG"],
    "ansible_winrm_message_encryption": "always",
    "ansible_psrp_auth": "kerberos",
    "ansible_psrp_message_encryption": "always",
}


@pytest.mark.parametrize("connection", ["winrm", "psrp"])
def test_kerberos_with_a_password(
    realm: Kdc, domain_lab: Lab, controller: Controller, tmp_path: Path, connection: str
) -> None:
    controller = Controller(tmp_path, more=realm.client_environment(tmp_path / "tickets"))
    done = run(domain_lab, controller, tmp_path, connection, PASSWORD, **KERBEROS)
    assert done.status == 0, done.printed
    assert is_set_by_wmi_alone(domain_lab.hosts[0])


@pytest.mark.parametrize("connection", ["winrm", "psrp"])
def test_kerberos_with_a_ticket(realm: Kdc, domain_lab: Lab, tmp_path: Path, connection: str) -> None:
    controller = Controller(tmp_path, more=realm.kinit(USER, tmp_path / "tickets"))
    no_password = KERBEROS | {"ansible_password": None, "ansible_winrm_kinit_mode": "manual"}
    done = run(domain_lab, controller, tmp_path, connection, PASSWORD, **no_password)
    assert done.status == 0, done.printed
    assert is_set_by_wmi_alone(domain_lab.hosts[0])


@pytest.mark.parametrize("connection", ["winrm", "psrp"])
def test_kerberos_with_a_wrong_password(realm: Kdc, domain_lab: Lab, tmp_path: Path, connection: str) -> None:
    controller = Controller(tmp_path, more=realm.client_environment(tmp_path / "tickets"))
    done = run(domain_lab, controller, tmp_path, connection, "wrong-Password-2", **KERBEROS)
    result = done.last("win01")
    assert result["unreachable"] is True
    assert "win01: cannot reach WinRM at http://localhost:" in result["msg"]
    assert domain_lab.hosts[0].traffic.journal == []
