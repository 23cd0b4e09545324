# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logins by Kerberos, from clients in processes of their own: theirs is another environment than the lab's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import lab as package
from lab.contract.client import Account, WinRM
from lab.hosts import Lab, LabHost
from lab.kdc import DOMAIN_USER, Kdc

TESTS = Path(package.__file__).parents[1]
USER, PASSWORD = DOMAIN_USER


@pytest.fixture
def domain_host(domain_lab: Lab) -> LabHost:
    (host,) = domain_lab.hosts
    host.reset()
    return host


Done = subprocess.CompletedProcess[str]


def run(code: str, host: LabHost, environment: Mapping[str, str], *arguments: object) -> Done:
    """Run a client whose first argument is the port; it prints what it learned."""
    # Without the lab's own variables: a client that used them would have a key that no client has.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KRB5")}
    return subprocess.run(
        [sys.executable, "-c", code, str(host.winrm_port), *map(str, arguments)],
        env={**clean, "PYTHONPATH": str(TESTS), **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


PYWINRM = """
import sys
from winrm.protocol import Protocol
port, scheme, ca_file = sys.argv[1:]
protocol = Protocol(
    f"{scheme}://localhost:{port}/wsman", transport="kerberos", username="alice@LAB.TEST", proxy=None,
    message_encryption="always" if scheme == "http" else "auto", ca_trust_path=ca_file or None,
)
shell = protocol.open_shell()
protocol.close_shell(shell)
print("opened", shell)
"""

PYPSRP = """
import sys
from pypsrp.wsman import WSMan
port, scheme, ca_file, auth, service, password = sys.argv[1:]
with WSMan(
    "localhost", port=int(port), ssl=scheme == "https", auth=auth, negotiate_service=service, no_proxy=True,
    encryption="always" if scheme == "http" else "auto", cert_validation=ca_file or True,
    username="alice@LAB.TEST", password=password or None,
) as client:
    uri = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/Win32_OperatingSystem"
    print("found", client.get(uri).findtext(".//{*}Caption"))
"""

ANSIBLE = """
import sys
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader
port, password = sys.argv[1:]
connection = connection_loader.get("winrm", PlayContext())
options = {
    "remote_addr": "localhost", "remote_user": "alice@LAB.TEST", "remote_password": password, "port": int(port),
    "scheme": "http", "transport": ["kerberos"], "kinit_env_vars": ["KRB5_CONFIG"], "kerberos_mode": "managed",
}
connection.set_options(var_options={"_extras": {}}, direct=options)
connection._connect()
connection.close()
print("connected")
"""


def test_pywinrm_logs_in_by_a_ticket_and_encrypts(realm: Kdc, domain_host: LabHost, tmp_path: Path) -> None:
    done = run(PYWINRM, domain_host, realm.kinit(USER, tmp_path / "tickets"), "http", "")
    assert "opened" in done.stdout, done.stderr
    assert domain_host.traffic.journal == ["Shell Create", "Shell Delete"]


@pytest.mark.parametrize("auth", ["kerberos", "negotiate"])
@pytest.mark.parametrize("service", ["host", "HTTP", "WSMAN"])
def test_pypsrp_logs_in_to_any_service(
    realm: Kdc, domain_host: LabHost, tmp_path: Path, auth: str, service: str
) -> None:
    environment = realm.kinit(USER, tmp_path / "tickets")
    done = run(PYPSRP, domain_host, environment, "http", "", auth, service, "")
    assert "found Microsoft Windows" in done.stdout, done.stderr


def test_pypsrp_gets_its_own_ticket(realm: Kdc, domain_host: LabHost, tmp_path: Path) -> None:
    environment = realm.client_environment(tmp_path / "tickets")
    done = run(PYPSRP, domain_host, environment, "http", "", "kerberos", "host", PASSWORD)
    assert "found Microsoft Windows" in done.stdout, done.stderr


def test_ansible_gets_its_own_ticket(realm: Kdc, domain_host: LabHost, tmp_path: Path) -> None:
    done = run(ANSIBLE, domain_host, realm.client_environment(tmp_path / "tickets"), PASSWORD)
    assert "connected" in done.stdout, done.stderr
    assert domain_host.traffic.journal == ["Shell Create", "Shell Delete"]


@pytest.mark.parametrize(
    ("code", "arguments"), [(PYPSRP, ("http", "", "kerberos", "host", "wrong")), (ANSIBLE, ("wrong",))]
)
def test_a_wrong_password_does_not_reach_the_host(
    realm: Kdc, domain_host: LabHost, tmp_path: Path, code: str, arguments: tuple[str, ...]
) -> None:
    done = run(code, domain_host, realm.client_environment(tmp_path / "tickets"), *arguments)
    assert done.returncode != 0
    assert domain_host.traffic.journal == []


def test_without_a_ticket_there_is_no_login(realm: Kdc, domain_host: LabHost, tmp_path: Path) -> None:
    environment = realm.client_environment(tmp_path / "none")
    for code, arguments in ((PYWINRM, ("http", "")), (PYPSRP, ("http", "", "kerberos", "host", ""))):
        assert run(code, domain_host, environment, *arguments).returncode != 0
    assert domain_host.traffic.journal == []


def test_the_realm_knows_more_than_the_host_lets_in(realm: Kdc, tmp_path: Path) -> None:
    environment = realm.kinit(USER, tmp_path / "tickets")
    with Lab.start(smtpsvc=False) as workgroup:
        (host,) = workgroup.hosts
        assert run(PYWINRM, host, environment, "http", "").returncode != 0
        assert host.traffic.journal == []


def test_a_local_account_still_logs_in(domain_lab: Lab, domain_host: LabHost) -> None:
    client = WinRM(domain_host, Account(domain_lab.username, domain_lab.password))
    assert client.registry("GetDWORDValue")["ReturnValue"] == "1"


def test_kerberos_over_tls_is_bound_to_the_channel(realm: Kdc, tmp_path: Path) -> None:
    environment = realm.kinit(USER, tmp_path / "tickets")
    with Lab.start(kerberos=realm, https=True, smtpsvc=False) as secure:
        (host,) = secure.hosts
        for code, words, rest in (
            (PYWINRM, "opened", ()),
            (PYPSRP, "found", ("kerberos", "HTTP", "")),
        ):
            done = run(code, host, environment, "https", secure.ca_file, *rest)
            assert words in done.stdout, done.stderr


def test_a_process_has_one_realm(realm: Kdc, tmp_path: Path) -> None:
    keytab = os.environ["KRB5_KTNAME"]
    with pytest.raises(OSError, match="a realm already"):
        Kdc.start(tmp_path)
    assert os.environ["KRB5_KTNAME"] == keytab
    assert "KRB5_CONFIG" not in os.environ or os.environ["KRB5_CONFIG"] != str(realm.folder / "krb5.conf")
