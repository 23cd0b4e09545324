# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's preflight, by ansible-playbook, before a real Postfix: what it lets pass, and what it says.

The host, edge01, is this machine; how each finding is judged is in `tests/unit/test_preflight.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tools.ansible_runs import LOCAL, Controller, Run
from tools.documented import block

from .peers import free_port
from .postfix_server import PostfixServer
from .valkey_servers import make_certificate

PASSWORD = "no-password-is-asked-for"
PAGE = "in-front-of.md"
FOR_BOTH = block(PAGE, "main.cf: for both")


class Edge:
    """A proxy's host before the preflight."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.hosts: dict[str, dict[str, Any]] = {"edge01": {}}

    def preflight(self, *backends: str, arguments: tuple[str, ...] = (), **variables: Any) -> Run:
        """Run it with these variables of the group."""
        common = {
            "greylist_proxy_backend_hosts": list(backends),
            "greylist_proxy_domains": ["here.test"],
            "greylist_proxy_hostname": "mx.here.test",
            "greylist_proxy_acme_folders": [],
        }
        inventory = self._folder / "inventory.json"
        group = {"hosts": self.hosts, "vars": {**LOCAL, "ansible_become": False, **common, **variables}}
        inventory.write_text(json.dumps({"greylist_proxies": group}))
        return Controller(self._folder).playbook("mailops.tarpit.preflight", inventory, PASSWORD, *arguments)


@pytest.fixture
def edge(tmp_path: Path) -> Edge:
    return Edge(tmp_path)


def troubles(run: Run, host: str = "edge01") -> list[str]:
    """What it said, without the last sentence, which is always the same."""
    assert run.status != 0, run.printed
    *found, last = run.last(host, "assert")["msg"]
    assert last.startswith("Nothing was changed.")
    assert all(each.startswith(f"{host}: ") for each in found)
    return [each.removeprefix(f"{host}: ") for each in found]


@pytest.mark.parametrize(
    ("arguments", "main"),
    [
        pytest.param((), FOR_BOTH, id="run"),
        pytest.param(("--check",), FOR_BOTH, id="check mode"),
        # As Postfix comes: a 454.
        pytest.param((), FOR_BOTH.replace("reject_unauth", "defer_unauth"), id="default restrictions"),
    ],
)
def test_all_is_well(
    edge: Edge, start_postfix: Callable[..., PostfixServer], arguments: tuple[str, ...], main: str
) -> None:
    postfix = start_postfix(main)
    run = edge.preflight(f"127.0.0.1:{postfix.port}", arguments=arguments)
    assert run.status == 0, run.printed
    assert not any(entry["result"].get("changed") for entry in run.results)
    assert "NOQUEUE: reject: RCPT from unknown[127.0.0.1]" in postfix.log.read_text()
    assert "message-id=" not in postfix.log.read_text()  # no message came into being


def test_a_server_that_trusts_too_much_and_takes_too_little(
    edge: Edge, start_postfix: Callable[..., PostfixServer]
) -> None:
    """All of it at once, of two servers, of which one is down."""
    postfix = start_postfix(FOR_BOTH.replace("10.1.0.0/24", "127.0.0.0/8"), relay_domains="")
    server, gone = f"127.0.0.1:{postfix.port}", f"127.0.0.1:{free_port()}"
    run = edge.preflight(server, gone, greylist_proxy_settings={"backend": {"send_client_address": "xclient"}})
    trust, relay, nobody = troubles(run)
    assert trust.startswith(f"{server} offers no XCLIENT to this proxy")
    assert relay.startswith(f"{server} accepted the foreign recipient postmaster@relay-probe.invalid")
    assert nobody.startswith(f"{gone} cannot be asked from here: 127.0.0.1 port ")
    assert "Connection refused" in nobody


def test_domains_and_a_server_that_refuses_them(edge: Edge, start_postfix: Callable[..., PostfixServer]) -> None:
    postfix = start_postfix(FOR_BOTH)
    server = f"127.0.0.1:{postfix.port}"
    run = edge.preflight(server, greylist_proxy_domains=["here.test", "there.test", "büro.test"])
    foreign, unicode = troubles(run)
    assert foreign.startswith(f"{server} refuses postmaster@there.test (554 5.7.1 ")
    assert unicode.startswith(f"{server} refuses postmaster@büro.test (554 5.7.1 <postmaster@xn--bro-hoa.test>")


@pytest.mark.parametrize("way", ["xclient", "proxy-v1", "proxy-v2"])
def test_trust_as_wanted(edge: Edge, start_postfix: Callable[..., PostfixServer], way: str) -> None:
    """With what the documentation tells Postfix it is there; without it, it is missing."""
    port = free_port()
    master = block(PAGE, "master.cf: PROXY", {"192.0.2.10:2525": f"127.0.0.1:{port}"})
    main = FOR_BOTH + block(PAGE, "main.cf: XCLIENT", {"192.0.2.25, 192.0.2.26": "127.0.0.1"})
    postfix = start_postfix(main, master)
    good = postfix.port if way == "xclient" else port
    settings = {"backend": {"send_client_address": way}}
    run = edge.preflight(f"127.0.0.1:{good}", greylist_proxy_settings=settings)
    assert run.status == 0, run.printed
    if way != "xclient":
        (missing,) = troubles(edge.preflight(f"127.0.0.1:{postfix.port}", greylist_proxy_settings=settings))
        assert missing.startswith(f"127.0.0.1:{postfix.port} does not take the PROXY header that {way} sends")


def test_a_certificate(edge: Edge, start_postfix: Callable[..., PostfixServer], tmp_path: Path) -> None:
    server = f"127.0.0.1:{start_postfix(FOR_BOTH).port}"
    files = make_certificate(tmp_path, "mx", "127.0.0.1")
    given = {"greylist_proxy_tls_certificate": str(files.certificate), "greylist_proxy_tls_key": str(files.key)}
    names = {"greylist_proxy_preflight_mx_names": ["mx9.here.test"], "greylist_proxy_preflight_certificate_days": 0}
    (other,) = troubles(edge.preflight(server, **names, **given))
    assert "and not for mx9.here.test, by which senders come" in other
    given["greylist_proxy_tls_certificate"] = str(tmp_path / "nowhere.pem")
    (missing,) = troubles(edge.preflight(server, **given))
    assert missing.startswith(f"The certificate {tmp_path}/nowhere.pem cannot be read on the host (")


def test_proxies_that_do_not_share(edge: Edge, start_postfix: Callable[..., PostfixServer]) -> None:
    """The default store is a file; hosts are compared by the inventory, whatever the batches of the play."""
    server = f"127.0.0.1:{start_postfix(FOR_BOTH).port}"
    edge.hosts["edge02"] = {"greylist_proxy_mode": "observe", "greylist_proxy_note": "{{ ansible_facts['nothing'] }}"}
    run = edge.preflight(server, arguments=("--limit=edge01",))
    alone, different = troubles(run)
    assert alone.startswith(
        "edge02 and edge01 take mail for the same domains, and the store of edge01 is an SQLite file"
    )
    assert different.startswith("edge02 and edge01 take mail for the same domains, and differ in greylist_proxy_mode: ")
    edge.hosts["edge02"] = {"greylist_proxy_domains": ["elsewhere.test"]}
    run = edge.preflight(server, arguments=("--limit=edge01",))
    assert run.status == 0, run.printed


def test_proxies_whose_store_is_made_of_other_hosts_variables(
    edge: Edge, start_postfix: Callable[..., PostfixServer]
) -> None:
    """For another host Ansible can't tell such a value; it is not compared."""
    server = f"127.0.0.1:{start_postfix(FOR_BOTH).port}"
    store = {"greylist_proxy_store_url": "valkey://{{ hostvars['edge02'].inventory_hostname }}.here.test:6379/0"}
    edge.hosts = {"edge01": store, "edge02": {**store, "greylist_proxy_mode": "observe"}}
    (different,) = troubles(edge.preflight(server, arguments=("--limit=edge01",)))
    assert "differ in greylist_proxy_mode: " in different
