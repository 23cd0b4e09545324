# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventories of `docs/in-front-of.md`, with the lab's Exchange and Windows SMTP service in their hosts' place.

The proxy's hosts are this machine. What the page has for Postfix and HAProxy: `proxy/tests/test_in_front_of.py`.
"""

from __future__ import annotations

import json
import os
import smtplib
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab.hosts import Lab, LabHost
from smtp_servers import proxy
from tools.ansible_runs import PASSWORD_VARIABLE, ROOT, Controller, Run
from tools.documented import block, variables

PAGE = "in-front-of.md"
LOCAL = {
    "ansible_connection": "local",
    "ansible_become": False,
    "ansible_python_interpreter": "{{ ansible_playbook_python }}",
    "greylist_proxy_acme_folders": [],
}
PASSWORD = {"ansible_password": f"{{{{ lookup('ansible.builtin.env', '{PASSWORD_VARIABLE}') }}}}"}
REFUSED = "refused.test"  # a domain that the proxy passes on and the lab's servers refuse


class Place:
    """An inventory of the documentation: its mail server is the lab's, its proxies are this machine."""

    def __init__(self, controller: Controller, lab: Lab, folder: Path, title: str) -> None:
        self._controller, self._lab, self._folder = controller, lab, folder
        self.inventory: dict[str, Any] = variables(PAGE, title)
        self.proxies: dict[str, Any] = self.inventory["greylist_proxies"]

    def put(self, group: str, smtp_port: int, **here: Any) -> None:
        """Say where the one host of a group is."""
        (name,) = self.inventory[group]["hosts"]
        self.inventory[group]["hosts"] = {
            name: {"ansible_host": "127.0.0.1", "ansible_user": self._lab.username, **here}
        }
        self.inventory[group]["vars"] |= PASSWORD
        assert self.proxies["vars"]["greylist_proxy_backend_hosts"] == [f"{name}:25"]
        self.proxies["vars"] |= LOCAL | {
            "greylist_proxy_backend_hosts": [f"127.0.0.1:{smtp_port}"],
            "greylist_proxy_domains": ["lab.test"],
        }

    def run(self, playbook: str, *arguments: str) -> Run:
        path = self._folder / "inventory.yml"
        path.write_text(yaml.safe_dump(self.inventory))
        return self._controller.playbook(f"mailops.tarpit.{playbook}", path, self._lab.password, *arguments)


def mail_through_a_proxy(folder: Path, smtp_port: int) -> tuple[str, float]:
    """Send one message through the program: the server's reply, and the seconds that a refusal of the server takes."""
    settings: dict[str, dict[str, Any]] = {
        "backend": {"domains": ["lab.test", REFUSED]},
        "greylist": {"delay": 0, "client_key": "network"},
    }
    with (
        proxy("edge", folder, smtp_port, **settings) as running,
        smtplib.SMTP("127.0.0.1", running.port, local_hostname="client.test", timeout=60) as client,
    ):
        client.ehlo()
        client.mail("a@far.example")
        assert client.rcpt("u@lab.test")[0] == 250
        code, text = client.data(b"Subject: x\r\n\r\nx\r\n")
        client.mail("a@far.example")
        started = time.monotonic()
        refused, _text = client.rcpt(f"u@{REFUSED}")
        seconds = time.monotonic() - started
    assert (code, refused // 100) == (250, 5)
    return text.decode(), seconds


@pytest.fixture
def exchange(controller: Controller, exchange_lab: Lab, exchange_host: LabHost, tmp_path: Path) -> Place:
    place = Place(controller, exchange_lab, tmp_path, "inventory: Exchange")
    assert exchange_host.exchange is not None
    place.put(
        "exchange",
        exchange_host.exchange.smtp_port,
        exchange_tarpit_endpoint=f"http://127.0.0.1:{exchange_host.winrm_port}/PowerShell/",
        exchange_tarpit_auth="ntlm",
        exchange_tarpit_smtp_port=exchange_host.exchange.smtp_port,
    )
    return place


def test_exchange(exchange: Place, exchange_host: LabHost, tmp_path: Path) -> None:
    """Asked from each proxy, told of them, checked by the preflight; then mail."""
    organisation = exchange_host.exchange
    assert organisation is not None
    run = exchange.run("site", "--limit=exchange")
    assert run.status == 0, run.printed
    asked = [entry["result"] for entry in run.results if entry["action"] == "mailops.tarpit.smtp_probe"]
    assert len(asked) == 3  # from two proxies, and the verification from the controller
    assert organisation.transport.internal_smtp_servers == ["192.0.2.25", "192.0.2.26"]
    run = exchange.run("preflight")
    assert run.status == 0, run.printed
    reply, seconds = mail_through_a_proxy(tmp_path, organisation.smtp_port)
    assert "Queued mail for delivery" in reply
    assert 5 <= seconds < 10  # Exchange's delay, and no second one


def test_the_preflight_sees_exchange_relay(exchange: Place, exchange_host: LabHost) -> None:
    organisation = exchange_host.exchange
    assert organisation is not None
    organisation.add_relay_connector("Printers", tarpit_seconds=0)
    run = exchange.run("preflight")
    assert run.status != 0
    for edge in exchange.proxies["hosts"]:
        (relay, _afterwards) = run.last(edge, "assert")["msg"]
        assert relay.startswith(
            f"{edge}: 127.0.0.1:{organisation.smtp_port} accepted the foreign recipient postmaster@"
        )


def test_the_windows_smtp_service(controller: Controller, lab: Lab, win01: LabHost, tmp_path: Path) -> None:
    place = Place(controller, lab, tmp_path, "inventory: Windows SMTP service")
    assert win01.smtp_port is not None
    place.put(
        "windows_smtp",
        win01.smtp_port,
        ansible_port=win01.winrm_port,
        ansible_winrm_scheme="http",
        windows_tarpit_verify_port=win01.smtp_port,
    )
    run = place.run("site", "--limit=windows_smtp")
    assert run.status == 0, run.printed
    run = place.run("preflight", "--check")
    assert run.status == 0, run.printed
    _reply, seconds = mail_through_a_proxy(tmp_path, win01.smtp_port)
    assert 3 <= seconds < 7


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """What systemd would hand to the service."""
    for name in ("admin_token", "store_password"):
        file = tmp_path / name
        file.write_text("t" * 32)
        file.chmod(0o600)
    return tmp_path


def configure(controller: Controller, folder: Path, given: dict[str, Any]) -> Path:
    """Make a configuration of these variables, by the role's own template, and the lists that it names."""
    role = ROOT / "roles/greylist_proxy"
    template, made = role / "templates/greylist-proxy.toml.j2", folder / "greylist-proxy.toml"
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {
            "role_path": str(role),
            "ansible_facts": {"default_ipv4": {"address": "192.0.2.25"}, "fqdn": "edge01.example.org"},
            "_greylist_proxy_tls_certificate": "",
            "greylist_proxy_backend_hosts": ["192.0.2.10:25"],
            "greylist_proxy_domains": ["example.org"],
        },
        "vars_files": [str(role / "defaults/main.yml"), str(role / "vars/main.yml")],
        "tasks": [
            {"ansible.builtin.template": {"src": str(template), "dest": str(made)}},
            {
                "ansible.builtin.assert": {  # what a dry run compares with what lies on the host
                    "that": f"lookup('ansible.builtin.template', '{template}')"
                    f" == lookup('ansible.builtin.file', '{made}', rstrip=false)"
                }
            },
            {
                "ansible.builtin.copy": {"content": "{{ item.value.text }}", "dest": "{{ item.value.path }}"},
                "loop": "{{ _greylist_proxy_lists | dict2items }}",
            },
        ],
    }
    playbook = folder / "play.json"
    playbook.write_text(json.dumps([play]))
    (folder / "lists").mkdir()
    given |= {"_greylist_proxy_etc": str(folder)}
    run = controller.playbook(str(playbook), Path("localhost,"), "no password is printed", **given)
    assert run.status == 0, run.printed
    return made


@pytest.mark.parametrize(
    ("document", "title"),
    [
        (PAGE, "inventory: Exchange"),
        (PAGE, "inventory: Windows SMTP service"),
        (PAGE, "variables: XCLIENT"),
        (PAGE, "variables: PROXY"),
        (PAGE, "variables: behind HAProxy"),
        ("cutover.md", "variables: cutover"),
    ],
)
def test_variables_make_a_configuration(controller: Controller, credentials: Path, document: str, title: str) -> None:
    """The role's own template, and the program's own check."""
    given = yaml.safe_load(block(document, title))
    given = given["greylist_proxies"]["vars"] if "greylist_proxies" in given else given
    for secret in ("vault_greylist_admin_token", "vault_greylist_store_password"):
        given[secret] = "t" * 32
    made = configure(controller, credentials, given)
    checked = subprocess.run(
        [sys.executable, "-m", "greylist_proxy", "check-config", f"--config={made}"],
        env={**os.environ, "CREDENTIALS_DIRECTORY": str(credentials)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr + made.read_text()


def test_a_mode_without_quotes_is_one(controller: Controller, tmp_path: Path) -> None:
    made = configure(controller, tmp_path, yaml.safe_load("greylist_proxy_mode: off"))
    assert tomllib.loads(made.read_text())["greylist"]["mode"] == "off"
