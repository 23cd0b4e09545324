# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Around the tarpit: services that depend on SMTPSVC, what the _info module tells, the probe, the role's options."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP
from lab.backend import HKEY_LOCAL_MACHINE, REG_DWORD, SMTPSVC_PARAMETERS, RegistryValue
from lab.hosts import Lab, LabHost
from lab.machine import SYSTEMS
from lab.tls import Authority
from lab.troubles import Answer, Refused
from tools.ansible_runs import Controller, Run, play, windows_inventory

SET = {"mailops.tarpit.win_smtp_tarpit": {"seconds": 1}}
INFO: dict[str, Any] = {"mailops.tarpit.win_smtp_tarpit_info": {}}


class Site:
    """A lab host with an inventory of its own, and what runs on it."""

    def __init__(self, lab: Lab, controller: Controller, folder: Path, **variables: object) -> None:
        (self.host,) = lab.hosts
        self._lab, self._controller, self._folder = lab, controller, folder
        connection = {"ansible_host": self.host.address, "ansible_port": self.host.winrm_port}
        self._inventory = windows_inventory(folder, {"win01": {**connection, **variables}}, lab.username)

    def run(self, *tasks: dict[str, Any], arguments: tuple[str, ...] = (), **variables: object) -> Run:
        return self._controller.playbook(
            play(self._folder / "play.json", *tasks), self._inventory, self._lab.password, *arguments, **variables
        )

    def role(self, *arguments: str, **variables: object) -> Run:
        usual = {"windows_tarpit_seconds": 1, "windows_tarpit_verify_port": self.host.smtp_port}
        task = {"ansible.builtin.include_role": {"name": "mailops.tarpit.windows_tarpit"}}
        return self.run(task, arguments=arguments, **(usual | variables))


@pytest.fixture
def site(memory_lab: Lab, controller: Controller, tmp_path: Path) -> Site:
    memory_lab.hosts[0].reset()
    return Site(memory_lab, controller, tmp_path)


# -- services that depend on SMTPSVC --


@pytest.fixture(scope="module")
def lab_with_dependents(backend_name: str) -> Iterator[Lab]:
    with Lab.start(backend=backend_name, dependents=2) as running:
        yield running


@pytest.fixture
def crowd(lab_with_dependents: Lab, controller: Controller, tmp_path: Path) -> Site:
    lab_with_dependents.hosts[0].reset()
    return Site(lab_with_dependents, controller, tmp_path)


def states(host: LabHost) -> dict[str, str]:
    names = ("SMTPSVC", "LabDependent1", "LabDependent2")
    return {name: host.backend.service_status(name).state for name in names}


ALL_RUN = dict.fromkeys(("SMTPSVC", "LabDependent1", "LabDependent2"), "Running")


def test_dependents_are_stopped_and_started_with_it(crowd: Site) -> None:
    before = crowd.host.backend.service_status("LabDependent1").process_id
    told = crowd.run(SET, arguments=("--check",)).last("win01")
    done = crowd.run(SET).last("win01")
    assert told["steps"] == done["steps"]
    assert sorted(done["dependents"]) == sorted(told["dependents"]) == ["LabDependent1", "LabDependent2"]
    assert states(crowd.host) == ALL_RUN
    assert crowd.host.backend.service_status("LabDependent1").process_id != before
    assert crowd.run(SET).last("win01")["changed"] is False


def test_a_dependent_that_was_stopped_stays_stopped(crowd: Site) -> None:
    crowd.host.backend.stop_service("LabDependent2")
    done = crowd.run(SET).last("win01")
    assert done["dependents"] == ["LabDependent1"]
    assert states(crowd.host) == ALL_RUN | {"LabDependent2": "Stopped"}


@pytest.mark.parametrize("request_", ["StopService SMTPSVC", "StartService SMTPSVC", "StartService LabDependent"])
def test_dependents_are_not_forgotten_by_a_run_that_fails(crowd: Site, request_: str) -> None:
    crowd.host.faults.on(request_.removesuffix("LabDependent").strip(), Answer(8), nth=_nth(request_))
    assert crowd.run(SET).status != 0
    assert crowd.run(SET).status == 0
    assert states(crowd.host) == ALL_RUN
    assert crowd.run(SET).last("win01")["changed"] is False


def _nth(request_: str) -> int:
    # "StartService" alone names all starts: the second is the first dependent's.
    return 2 if request_.endswith("LabDependent") else 1


@pytest.mark.parametrize("subcode", ["wsen:FilterDialectRequestedUnavailable", "x:CannotProcessFilter"])
def test_a_host_that_knows_no_association_filter(crowd: Site, subcode: str) -> None:
    # As WinRM before 2.0: Windows then says itself that there are dependents, and nothing is lost by that.
    crowd.host.faults.on("Enumerate", Refused(2150858804, subcode), times=None)
    said = crowd.run(SET).last("win01")["msg"]
    assert "refused to stop the service SMTPSVC: other services that depend on it are running" in said
    assert states(crowd.host) == ALL_RUN


# -- win_smtp_tarpit_info --


def test_info_of_a_host(site: Site) -> None:
    site.host.backend.write_value(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS, "TarpitTime", RegistryValue(REG_DWORD, 30))
    told = site.run(INFO).last("win01")
    assert {key: told[key] for key in ("changed", "installed", "tarpit_time", "service_state", "start_mode")} == {
        "changed": False,
        "installed": True,
        "tarpit_time": 30,
        "service_state": "Running",
        "start_mode": "Auto",
    }
    assert "Windows Server 2019" in told["os"]["caption"]
    assert told["os"]["version"] == "10.0.17763"
    assert told["restart_pending"] is False


def test_info_tells_a_restart_that_is_owed(site: Site) -> None:
    later = {"mailops.tarpit.win_smtp_tarpit": {"seconds": 1, "restart": "never"}}
    assert site.run(later, INFO).last("win01")["restart_pending"] is True
    assert site.run(SET, INFO).last("win01")["restart_pending"] is False


def test_info_of_a_disabled_service_that_is_owed_a_restart(site: Site) -> None:
    site.run({"mailops.tarpit.win_smtp_tarpit": {"seconds": 1, "restart": "never"}})
    site.host.backend.change_start_mode("SMTPSVC", "Disabled")
    told = site.run(INFO)
    assert told.status == 0, told.printed
    assert (told.last("win01")["start_mode"], told.last("win01")["restart_pending"]) == ("Disabled", True)


@pytest.mark.parametrize("system", ["2003 R2", "2008 R2", "2012", "2022"])
def test_info_names_the_system(site: Site, system: str) -> None:
    site.host.machine.system = SYSTEMS[system]
    told = site.run(INFO).last("win01")
    assert told["os"]["caption"] == SYSTEMS[system].caption.strip()
    assert told["installed"] is True


def test_info_of_a_host_without_the_service(controller: Controller, tmp_path: Path) -> None:
    with Lab.start(smtpsvc=False, system="2025") as lab:
        told = Site(lab, controller, tmp_path).run(INFO)
    assert told.status == 0
    assert told.last("win01")["installed"] is False
    assert "2025" in told.last("win01")["os"]["caption"]


# -- smtp_probe --


def probe(site: Site, **options: object) -> Run:
    where = {"host": site.host.address, "port": site.host.smtp_port, **options}
    return site.run({"mailops.tarpit.smtp_probe": where, "delegate_to": "localhost", "vars": LOCAL})


LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}


def test_probe_measures(site: Site) -> None:
    at_once = probe(site).last("win01")
    assert (at_once["code"], at_once["conclusive"], at_once["reachable"]) == (550, True, True)
    assert at_once["client_address"] == "127.0.0.1"
    assert "Microsoft ESMTP MAIL Service" in at_once["banner"]
    assert at_once["message"].startswith("5.7.1 ")
    site.run(SET)
    assert probe(site).last("win01")["delay_seconds"] >= max(1, 2 * at_once["delay_seconds"])


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        ({"code": 550}, None),
        ({"code": 5, "max_delay": 60}, None),
        ({"code": 250}, "where 250 was expected"),
        ({"min_delay": 30}, "at least 30 were expected"),
    ],
)
def test_probe_expects(site: Site, expect: dict[str, object], words: str | None) -> None:
    run = probe(site, expect=expect)
    assert (run.status == 0) is (words is None)
    if words:
        assert words in run.last("win01")["msg"]
        assert f"{site.host.address} port {site.host.smtp_port}" in run.last("win01")["msg"]


def test_probe_of_a_server_that_would_relay_is_inconclusive(site: Site) -> None:
    told = probe(site, recipient="anna@lab.test", expect={"min_delay": 30}).last("win01")
    assert (told["conclusive"], told["code"]) == (False, 250)
    assert "relays for this client" in told["warnings"][0]


def test_probe_of_a_closed_port(site: Site) -> None:
    assert "gave no answer to measure" in probe(site, port=1).last("win01")["msg"]
    told = probe(site, port=1, required=False)
    assert told.status == 0
    assert told.last("win01")["reachable"] is False
    assert told.last("win01")["warnings"]


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[int]:
    """A mail server that offers STARTTLS and takes no mail; its port."""
    context = Authority(tmp_path).host("mail").context

    class Refusing:
        async def handle_RCPT(self, *_arguments: object) -> str:
            return "550 5.7.1 No"

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        loop.create_server(lambda: SMTP(Refusing(), loop=loop, tls_context=context), "127.0.0.1", 0)
    )
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@pytest.mark.parametrize("starttls", ["never", "offered", "required"])
def test_probe_with_starttls(site: Site, tls_server: int, starttls: str) -> None:
    told = probe(site, port=tls_server, starttls=starttls)
    assert told.status == 0, told.printed
    # Inside TLS it is not offered again.
    assert ("STARTTLS" in told.last("win01")["extensions"]) is (starttls == "never")


def test_probe_with_starttls_that_is_not_offered(site: Site) -> None:
    assert probe(site, starttls="offered").status == 0
    assert "does not offer STARTTLS" in probe(site, starttls="required").last("win01")["msg"]


# -- the role --


def facts(run: Run) -> dict[str, Any]:
    return dict(run.last("win01", "set_fact")["ansible_facts"])


def test_the_role_verifies_from_outside(site: Site) -> None:
    run = site.role()
    assert run.status == 0, run.printed
    assert facts(run) == {"windows_tarpit_verified": True}
    assert "WARNING: win01" not in run.printed


def test_the_role_fails_where_the_delay_is_not_there(site: Site) -> None:
    # The value is there already and nothing is owed: only a look from outside shows that it is not in force.
    value = RegistryValue(REG_DWORD, 1)
    site.host.backend.write_value(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS, "TarpitTime", value)
    run = site.role()
    assert run.status != 0
    assert "at least 1 were expected" in run.last("win01")["msg"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"windows_tarpit_verify_port": 1}, "cannot be reached from localhost"),
        ({"windows_tarpit_verify_recipient": "anna@lab.test"}, "may relay there"),
        ({"windows_tarpit_restart": "never"}, "still owed"),
    ],
)
def test_what_cannot_be_verified_is_said(site: Site, variables: dict[str, object], words: str) -> None:
    run = site.role(**variables)
    assert run.status == 0, run.printed
    assert facts(run) == {"windows_tarpit_verified": False}
    said = run.last("win01", "debug")["msg"]
    assert said.startswith("WARNING: win01: the tarpit is not verified: ")
    assert words in " ".join(said.split())


def test_a_stopped_service_is_not_verified(site: Site) -> None:
    site.host.stop_smtpsvc()
    run = site.role()
    assert run.status == 0, run.printed
    assert "is not running" in run.last("win01", "debug")["msg"]


@pytest.mark.parametrize(("on_missing", "status"), [("skip", 0), ("fail", 2)])
def test_hosts_without_the_service(on_missing: str, status: int, controller: Controller, tmp_path: Path) -> None:
    with Lab.start(smtpsvc=False) as lab:
        run = Site(lab, controller, tmp_path).role(windows_tarpit_on_missing=on_missing, windows_tarpit_verify_port=25)
    assert run.status == status, run.printed
    assert "win01: the service SMTPSVC is not installed" in run.printed.replace("\n", " ")


# -- secrets --


def test_no_password_at_any_verbosity(site: Site) -> None:
    # Controller.playbook itself asserts that the password is in nothing that was printed.
    assert site.run(SET, arguments=("-vvvvvv",)).status == 0
    assert site.run(SET, arguments=("-vvvvvv",), ansible_port=1).status != 0
