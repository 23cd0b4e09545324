# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role greylist_proxy on each distribution: what it would install, and what it says where it knows none.

Hosts are given facts as `setup` would find them there; the role's own tasks run on them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tools.ansible_runs import ROOT, Controller, Run, local_play

DEBIAN = {"python": "python3", "packages": ["python3", "python3-venv"]}
EL9 = {"python": "python3.12", "packages": ["python3.12"]}
EL10 = {"python": "python3", "packages": ["python3"]}
KNOWN = {
    ("Debian", "12.11"): DEBIAN,
    ("Debian", "13.1"): DEBIAN,
    ("Ubuntu", "24.04"): DEBIAN,
    ("Ubuntu", "26.04"): DEBIAN,
    ("RedHat", "9.6"): EL9,
    ("RedHat", "10.0"): EL10,
    ("AlmaLinux", "9.6"): EL9,
    ("AlmaLinux", "10.0"): EL10,
    ("CentOS", "9"): EL9,
    ("CentOS", "10"): EL10,
    ("OracleLinux", "9.6"): EL9,
    ("Rocky", "10.0"): EL10,
}
UNKNOWN = [
    ("Debian", "11.9"),  # Python 3.9
    ("Ubuntu", "22.04"),  # Python 3.10
    ("Ubuntu", "24.10"),
    ("RedHat", "8.10"),
    ("Fedora", "43"),
    ("Amazon", "2023"),
    ("SLES", "15.6"),
    ("Linux Mint", "22"),
]


def facts(distribution: str, version: str, manager: str = "systemd") -> dict[str, str]:
    return {
        "distribution": distribution,
        "distribution_version": version,
        "distribution_major_version": version.partition(".")[0],
        "service_mgr": manager,
    }


def look(folder: Path, hosts: dict[str, dict[str, str]]) -> Run:
    """Run the part of the role that finds the distribution, on hosts with these facts."""
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": {name: {"facts": each} for name, each in hosts.items()}}}))
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.set_fact": {**{key: f"{{{{ facts.{key} }}}}" for key in facts("", "")}, "cacheable": True}},
        {"ansible.builtin.include_role": {"name": "mailops.tarpit.greylist_proxy", "tasks_from": "platform"}},
        {"ansible.builtin.debug": {"var": "_greylist_proxy_platform"}},
    ]
    playbook = folder / "play.json"
    playbook.write_text(local_play(tasks))
    return Controller(folder / "home").playbook(str(playbook), inventory, "no password is printed", "--forks=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("platforms")
    (folder / "home").mkdir()
    hosts = {f"{name}-{version}": facts(name, version) for name, version in [*KNOWN, *UNKNOWN]}
    return look(folder, {**hosts, "container": facts("Debian", "12.11", "tini")})


@pytest.mark.parametrize(("name", "version"), list(KNOWN))
def test_a_known_distribution(run: Run, name: str, version: str) -> None:
    assert run.last(f"{name}-{version}", "debug")["_greylist_proxy_platform"] == KNOWN[name, version]


@pytest.mark.parametrize(("name", "version"), UNKNOWN)
def test_one_that_is_not(run: Run, name: str, version: str) -> None:
    result = run.last(f"{name}-{version}")
    assert result["msg"] == (
        f"{name}-{version}: greylist_proxy knows Debian 12 and 13, Ubuntu 24.04 and 26.04, RedHat 9 and 10, "
        "AlmaLinux 9 and 10, CentOS 9 and 10, OracleLinux 9 and 10, Rocky 9 and 10, with systemd; this host runs "
        f"{name} {version} with systemd. Nothing was changed: take the host out of the group greylist_proxies."
    )


def test_no_systemd(run: Run) -> None:
    assert "this host runs Debian 12.11 with tini. Nothing was changed" in run.last("container")["msg"]


def test_nothing_comes_before_the_look_at_the_host() -> None:
    tasks = (ROOT / "roles/greylist_proxy/tasks/present.yml").read_text()
    assert tasks.index("include_tasks: platform.yml") < tasks.index("ansible.builtin.stat")
