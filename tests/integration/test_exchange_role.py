# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role exchange_tarpit and its place in the playbook site, against two servers of the lab's organisation.

The proxy, edge, is this machine by another name, so the servers see it at 127.0.0.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller as SmtpController
from lab.hosts import Lab
from lab.ports import free_port, release_port
from tools.ansible_runs import PASSWORD_VARIABLE, Controller, Run
from tools.refusal_delay import measure

ROLE = {"hosts": "exchange", "gather_facts": False, "roles": ["mailops.tarpit.exchange_tarpit"]}
# What site.yml does to the proxies, without doing it to this machine.
OPENED = {"hosts": "greylist_proxies", "gather_facts": False, "tasks": [{"ansible.builtin.ping": {}}]}
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
FRONTS = {"ex01": r"EX01\Default Frontend EX01", "ex02": r"EX02\Default Frontend EX02"}


@pytest.fixture(scope="module")
def exchange_lab() -> Iterator[Lab]:
    with Lab.start(smtpsvc=False, hosts=2, exchange=("EX01", "EX02")) as running:
        yield running


class Site:
    """A controller, an inventory of two Exchange servers and a proxy, and what is on the servers."""

    def __init__(self, controller: Controller, lab: Lab, folder: Path) -> None:
        self.controller, self.lab, self.folder = controller, lab, folder
        for host in lab.hosts:
            host.reset()
        self.exchange = lab.hosts[0].exchange
        self.servers = {
            f"ex0{number}": {
                "ansible_host": host.address,
                "exchange_tarpit_endpoint": f"http://{host.address}:{host.winrm_port}/PowerShell/",
                "exchange_tarpit_smtp_port": host.exchange.smtp_port,
            }
            for number, host in enumerate(lab.hosts, 1)
        }
        self.proxies: dict[str, dict[str, object]] = {"edge": dict(LOCAL)}
        self.variables: dict[str, object] = {
            "ansible_user": lab.username,
            "ansible_password": f"{{{{ lookup('ansible.builtin.env', '{PASSWORD_VARIABLE}') }}}}",
            "exchange_tarpit_auth": "ntlm",
            "exchange_tarpit_seconds": 1,
        }

    def run(self, *arguments: str, playbook: str = "", **variables: object) -> Run:
        """Run the role and then the proxies' play, or another playbook."""
        inventory = self.folder / "inventory.json"
        groups: dict[str, Any] = {"exchange": {"hosts": self.servers, "vars": self.variables | variables}}
        if self.proxies:
            groups["greylist_proxies"] = {"hosts": self.proxies}
        inventory.write_text(json.dumps(groups))
        if not playbook:
            playbook = str(self.folder / "play.json")
            Path(playbook).write_text(json.dumps([ROLE, OPENED]))
        return self.controller.playbook(playbook, inventory, self.lab.password, *arguments)

    def tarpit(self, host: str) -> float:
        return float(self.exchange.connector(FRONTS[host]).tarpit_seconds)

    def relay(self, server: str = "EX01", **options: object) -> None:
        self.exchange.add_relay_connector("Printers", server=server, **options)


@pytest.fixture
def site(controller: Controller, exchange_lab: Lab, tmp_path: Path) -> Site:
    return Site(controller, exchange_lab, tmp_path)


def opened(run: Run) -> bool:
    """Did the play on the proxies begin?"""
    return any(entry["host"] == "edge" for entry in run.results)


def said(run: Run) -> str:
    """All that was printed, in one line."""
    return " ".join(run.printed.split())


def verified(run: Run, host: str) -> bool:
    return bool(run.last(host, "set_fact")["ansible_facts"]["exchange_tarpit_verified"])


@contextmanager
def busy_server() -> Iterator[int]:
    """A server that has no time for anyone's mail; its port."""

    class Busy:
        async def handle_RCPT(self, *_arguments: object) -> str:
            return "452 4.3.1 Insufficient system resources"

    controller = SmtpController(Busy(), hostname="127.0.0.1", port=free_port())
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()
        release_port(controller.port)


# -- the tarpit --


def test_it_is_set_and_measured_and_then_nothing_changes(site: Site) -> None:
    first = site.run()
    assert first.status == 0, first.printed
    for number, host in enumerate(FRONTS):
        assert first.last(host, "exchange_tarpit")["changed"] is True
        assert verified(first, host)
        assert site.tarpit(host) == 1
        assert 1 <= measure("127.0.0.1", site.lab.hosts[number].exchange.smtp_port)["seconds"] < 4
    assert opened(first)

    second = site.run()
    assert second.status == 0, second.printed
    assert not any(entry["result"].get("changed") for entry in second.results)
    assert all(host.exchange.sessions == 0 for host in site.lab.hosts)


def test_the_policy_for_all_servers_counts(site: Site) -> None:
    del site.variables["exchange_tarpit_seconds"]
    assert site.run(mailops_tarpit_seconds=2).status == 0
    assert site.tarpit("ex01") == 2


def test_chosen_connectors(site: Site) -> None:
    chosen = r"EX01\Client Frontend EX01"
    run = site.run("--limit=ex01", exchange_tarpit_connectors=[chosen], exchange_tarpit_verify=False)
    assert run.status == 0, run.printed
    assert [one["identity"] for one in run.last("ex01", "exchange_tarpit")["connectors"]] == [chosen]


def test_check_mode_changes_nothing(site: Site) -> None:
    run = site.run("--check", exchange_tarpit_proxies=["192.0.2.25"])
    assert run.status == 0, run.printed
    assert run.last("ex01", "exchange_tarpit")["changed"] is True
    assert (site.tarpit("ex01"), site.exchange.transport.internal_smtp_servers) == (5, [])


def test_a_delay_that_is_not_there_fails(site: Site) -> None:
    # Another connector than the one that was set serves this machine.
    site.exchange.connector(FRONTS["ex01"]).tarpit_seconds = 0
    run = site.run("--limit=ex01", exchange_tarpit_connectors=[r"EX01\Default EX01"], exchange_tarpit_seconds=5)
    assert run.status != 0
    assert "and at least 5 were expected" in said(run)


def test_a_delay_that_cannot_be_measured_is_a_warning(site: Site) -> None:
    site.proxies = {}
    site.relay()
    run = site.run("--limit=ex01")
    assert run.status == 0, run.printed
    assert not verified(run, "ex01")
    assert "WARNING: ex01: the tarpit is not verified: localhost may relay there" in said(run)


def test_the_session_options_arrive(site: Site) -> None:
    run = site.run("--limit=ex01", exchange_tarpit_auth="basic")
    assert run.status != 0
    assert "'auth' is basic" in said(run)
    run = site.run("--limit=ex01", exchange_tarpit_username="nobody", exchange_tarpit_password="wrong")
    assert run.status != 0
    assert "Exchange refused the user name or password" in said(run)


@pytest.mark.parametrize(
    "variables", [{"exchange_tarpit_seconds": "soon"}, {"exchange_tarpit_proxies_state": "here"}], ids=str
)
def test_wrong_variables_are_named(site: Site, variables: dict[str, object]) -> None:
    run = site.run(**variables)
    assert run.status != 0
    assert next(iter(variables)) in said(run)


# -- the proxies --


def test_proxies_are_added_and_never_taken_out_unasked(site: Site) -> None:
    site.exchange.transport.internal_smtp_servers = ["10.0.0.1"]
    run = site.run(exchange_tarpit_proxies=["192.0.2.25", "192.0.2.26"])
    assert run.status == 0, run.printed
    assert site.exchange.transport.internal_smtp_servers == ["10.0.0.1", "192.0.2.25", "192.0.2.26"]
    assert sorted(run.last(host, "exchange_transport")["changed"] for host in FRONTS) == [False, True]
    assert site.run(exchange_tarpit_proxies=["192.0.2.26"]).status == 0
    assert site.run().status == 0
    assert len(site.exchange.transport.internal_smtp_servers) == 3
    assert site.run(exchange_tarpit_proxies=["192.0.2.26"], exchange_tarpit_proxies_state="absent").status == 0
    assert site.exchange.transport.internal_smtp_servers == ["10.0.0.1", "192.0.2.25"]


# -- the relay check --


@pytest.mark.parametrize("external", [False, True], ids=["by a right", "externally secured"])
def test_a_relay_ends_the_run_for_all_and_no_proxy_is_opened(site: Site, external: bool) -> None:
    site.relay(external=external)
    run = site.run()
    assert run.status != 0
    assert not opened(run)
    assert {site.tarpit(host) for host in FRONTS} == {5}
    told = run.last("ex01", "fail")["msg"]
    port = site.servers["ex01"]["exchange_tarpit_smtp_port"]
    assert told.startswith(f"ex01 (127.0.0.1 port {port}), asked from edge (127.0.0.1), accepted the foreign recipient")
    assert r"The receive connector for that address is EX01\Printers." in told
    assert ("has AuthMechanism ExternalAut" if external else r"ANONYMOUS LOGON has Ms-Exch-SMTP-Accept-Any") in told
    assert ("out of the AuthMechanism" if external else r'Remove-ADPermission "EX01\Printers" -User') in told
    assert "or the proxy's address out of the connector's RemoteIPRanges" in told


@pytest.mark.parametrize("serial", [1, "100%"])
def test_site_ends_as_well_whatever_the_batches(site: Site, serial: int | str) -> None:
    site.relay("EX02")
    run = site.run(
        "--check", "--extra-vars", json.dumps({"mailops_tarpit_serial": serial}), playbook="mailops.tarpit.site"
    )
    assert run.status != 0
    assert not opened(run)
    assert r"EX02\Printers" in run.last("ex02", "fail")["msg"]


def test_in_site_a_server_that_was_not_checked_ends_the_run(site: Site) -> None:
    site.servers["ex02"]["exchange_tarpit_seconds"] = "soon"
    run = site.run("--check", "--extra-vars", '{"mailops_tarpit_serial": 2}', playbook="mailops.tarpit.site")
    assert run.status != 0
    assert not opened(run)


def test_a_relay_accepted_by_name_is_a_warning(site: Site) -> None:
    site.relay()
    run = site.run(exchange_tarpit_relay_accepted_from=["edge"])
    assert run.status == 0, run.printed
    assert opened(run)
    assert "WARNING: ex01 (127.0.0.1 port" in said(run)
    assert "Accepted, since exchange_tarpit_relay_accepted_from names it" in said(run)
    assert site.run(exchange_tarpit_relay_accepted_from=["other"]).status != 0


def test_the_check_can_be_left_out(site: Site) -> None:
    site.relay()
    run = site.run(exchange_tarpit_check_relay=False)
    assert run.status == 0, run.printed
    assert opened(run)


def test_a_relay_is_one_even_where_its_cause_cannot_be_read(site: Site) -> None:
    site.relay()
    for host in site.lab.hosts:
        host.exchange.denied = {"Get-ADPermission"}
    told = site.run().last("ex01", "fail")["msg"]
    assert "it relays for that proxy. The cause could not be read: ex01: Get-ADPermission" in told
    for server in site.servers.values():
        server["exchange_tarpit_endpoint"] = "http://127.0.0.1:1/PowerShell/"
    told = site.run().last("ex01", "fail")["msg"]
    assert "it relays for that proxy. The cause could not be read: " in told
    assert "cannot reach Exchange" in told


def test_a_proxy_that_cannot_reach_the_server_ends_the_run(site: Site) -> None:
    run = site.run(exchange_tarpit_smtp_host="127.0.0.1", exchange_tarpit_check_relay_from=["edge"])
    assert run.status == 0, run.printed
    site.servers["ex02"]["exchange_tarpit_smtp_port"] = 1
    run = site.run()
    assert run.status != 0
    assert not opened(run)
    assert "ex02 (127.0.0.1 port 1), asked from edge, gave no answer" in run.last("ex02", "fail")["msg"]


def test_a_temporary_refusal_is_no_answer(site: Site) -> None:
    with busy_server() as port:
        site.servers["ex01"]["exchange_tarpit_smtp_port"] = port
        run = site.run()
    assert run.status != 0
    assert not opened(run)
    assert "answered 452 (4.3.1 Insufficient system resources), which is neither" in run.last("ex01", "fail")["msg"]


@pytest.mark.parametrize("playbook", ["", "mailops.tarpit.site"], ids=["role", "site"])
@pytest.mark.parametrize(
    "proxy",
    [
        pytest.param({"ansible_host": "127.0.0.1", "ansible_port": 1}, id="no connection"),
        pytest.param(
            LOCAL
            | {"ansible_become": True, "ansible_become_user": "nobody", "ansible_become_method": "su"}
            | {"ansible_become_exe": "/bin/false"},
            id="no become",
        ),
    ],
)
def test_a_proxy_that_cannot_be_logged_in_to_ends_the_run(site: Site, proxy: dict[str, object], playbook: str) -> None:
    site.proxies = {"edge": proxy}
    run = site.run("--check", playbook=playbook)
    assert run.status != 0
    assert not opened(run)
    assert "edge could not ask ex01: " in run.last("ex01", "fail")["msg"]


def test_one_server_that_a_proxy_cannot_be_asked_about_ends_the_run(site: Site) -> None:
    site.servers["ex02"]["exchange_tarpit_check_relay_from"] = ["nowhere.invalid"]
    run = site.run()
    assert run.status != 0
    assert not opened(run)
    assert site.tarpit("ex01") == 5
    assert "nowhere.invalid could not ask ex02: " in run.last("ex02", "fail")["msg"]


def test_the_play_of_the_servers_does_not_say_how_proxies_are_reached(site: Site) -> None:
    site.proxies = {"edge": {"ansible_host": "127.0.0.1", "ansible_port": 1}}
    playbook = site.folder / "local.json"
    playbook.write_text(json.dumps([ROLE | {"connection": "local"}, OPENED]))
    run = site.run(playbook=str(playbook))
    assert run.status != 0
    assert "edge could not ask ex01: " in run.last("ex01", "fail")["msg"]
