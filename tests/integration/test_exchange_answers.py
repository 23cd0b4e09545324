# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user is told where Exchange refuses, breaks off or takes its time: word for word but for its own ids."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lab.exchange_host import ExchangeHost
from lab.hosts import Lab, LabHost
from lab.troubles import EMPTY_500, Cut
from tools.ansible_runs import Controller
from tools.exchange_site import FRONT, Site

RIGHTS = (
    "the account needs a management role with this cmdlet and its parameters (docs/exchange.md has one with just the"
    " cmdlets that this collection uses), and remote PowerShell (Set-User -RemotePowerShellEnabled $true)"
)
NO_CMDLET = (
    "is not recognized as the name of a cmdlet, function, script file, or operable program. Check the spelling of the"
    " name, or if a path was included, verify that the path is correct and try again"
)


def plain(message: str) -> str:
    """A message without the ids that Exchange puts before its own words."""
    return re.sub(r"\[[A-Za-z]+=[^\]]*\] ?", "", message).removeprefix("Task failed: ")


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        pytest.param(
            lambda exchange, user: None,
            {"server": "EX03"},
            "there is no Exchange server EX03: there are EX01, EX02",
            id="no such server",
        ),
        pytest.param(
            lambda exchange, user: exchange.denied.add("Get-ExchangeServer"),
            {"server": "EX03"},
            "there is no Exchange server EX03",
            id="no such server, and the others are not told",
        ),
        pytest.param(
            lambda exchange, user: exchange.denied.add("Get-ReceiveConnector"),
            {},
            f"Get-ReceiveConnector: The term 'Get-ReceiveConnector' {NO_CMDLET}: {RIGHTS}",
            id="no role with Get-ReceiveConnector",
        ),
        pytest.param(
            lambda exchange, user: exchange.denied.add("Set-ReceiveConnector"),
            {},
            f"the receive connector was not set as wanted: {FRONT}: Set-ReceiveConnector: The term"
            f" 'Set-ReceiveConnector' {NO_CMDLET}: {RIGHTS}",
            id="no role with Set-ReceiveConnector",
        ),
        pytest.param(
            lambda exchange, user: exchange.denied.add("Set-ReceiveConnector -TarpitInterval"),
            {},
            f"the receive connector was not set as wanted: {FRONT}: Set-ReceiveConnector: A parameter cannot be found"
            f" that matches parameter name 'TarpitInterval': {RIGHTS}",
            id="no role with the parameter",
        ),
        pytest.param(
            lambda exchange, user: exchange.without_roles.add(user),
            {},
            'Exchange does not let the account in (The user "{user}" isn\'t assigned to any management roles):'
            f" {RIGHTS}",
            id="no role at all",
        ),
        pytest.param(
            lambda exchange, user: exchange.out_of_scope.add("EX01"),
            {},
            f"the receive connector was not set as wanted: {FRONT}: Set-ReceiveConnector: The operation couldn't be"
            f" performed because '{FRONT}' isn't within a valid server write scope: {RIGHTS}",
            id="outside the role's write scope",
        ),
        pytest.param(
            lambda exchange, user: exchange.slow("Get-ReceiveConnector", 5),
            {"timeout": 1},
            "Get-ReceiveConnector did not end within 1 seconds: it may still take effect. Look at the server's load, or"
            " raise 'timeout'",
            id="too slow",
        ),
        pytest.param(
            lambda exchange, user: exchange.fail("Get-ReceiveConnector", message="Boom.", terminating=True),
            {},
            "Get-ReceiveConnector: Boom.",
            id="a pipeline that failed",
        ),
        pytest.param(
            lambda exchange, user: exchange.fail("Get-ReceiveConnector", message="Half of it.", after=1),
            {},
            "Get-ReceiveConnector: Half of it.",
            id="an error after half of the answer",
        ),
    ],
)
def test_refusals(
    site: Site, prepare: Callable[[ExchangeHost, str], None], options: dict[str, object], message: str
) -> None:
    prepare(site.host.exchange, site.lab.username)
    result = site.one("exchange_tarpit", seconds=7, **({"server": "EX01"} | options))
    assert (result["failed"], result["changed"]) == (True, False)
    assert plain(result["msg"]) == f"win01: {message.replace('{user}', site.lab.username)}"
    assert site.host.exchange.sessions == 0


def test_no_more_sessions(site: Site) -> None:
    site.host.exchange.max_shells = 0
    result = site.one("exchange_tarpit", seconds=7, server="EX01")
    said = plain(result["msg"])
    assert said.startswith(
        "win01: Exchange does not open another session (Fail to create a runspace because you have exceeded the maximum"
        " number of connections allowed : 0 for the policy party : MaxConcurrency. "
    )
    assert said.endswith(
        "): close other remote Exchange sessions of this account, or take fewer hosts at once (serial, forks)"
    )


def test_throttling_is_passed_on(site: Site) -> None:
    site.host.exchange.micro_delay("Get-ReceiveConnector", 100)
    result = site.one("exchange_tarpit", seconds=5, server="EX01")
    assert result["changed"] is False
    assert result["warnings"][0].startswith("Micro delay applied. Actual delayed: 100 msecs")


def test_slow_but_in_time(site: Site) -> None:
    site.host.exchange.slow("Get-ReceiveConnector", 2)
    assert site.one("exchange_tarpit", seconds=7, server="EX01")["changed"] is True


@pytest.mark.parametrize(
    ("request_name", "nth", "trouble", "cause"),
    [
        ("Exchange Create", 1, EMPTY_500, "HTTP status 500"),
        ("Exchange Command", 1, EMPTY_500, "HTTP status 500"),
        (
            "Exchange Receive",
            2,
            Cut(),
            "ntlm: no connection (('Connection aborted.', RemoteDisconnected('Remote end closed connection without"
            " response'))): check 'endpoint' and that Exchange's PowerShell is up there",
        ),
    ],
)
def test_a_connection_that_breaks_before_anything_is_set(
    site: Site, request_name: str, nth: int, trouble: object, cause: str
) -> None:
    site.host.faults.on(request_name, trouble, nth=nth)
    result = site.one("exchange_tarpit", seconds=7, server="EX01")
    assert result["unreachable"] is True
    endpoint = f"http://127.0.0.1:{site.host.winrm_port}/PowerShell/"
    assert plain(result["msg"]) == f"win01: cannot reach Exchange at {endpoint} ({cause})"


def test_a_connection_that_breaks_while_a_connector_is_set(site: Site) -> None:
    site.host.faults.on("Exchange Command Set-ReceiveConnector", Cut(), nth=2)
    three = [rf"EX01\{name} EX01" for name in ("Default Frontend", "Outbound Proxy Frontend", "Client Frontend")]
    result = site.one("exchange_tarpit", seconds=7, connectors=three)
    assert (result["failed"], result["changed"]) == (True, True)
    said = result["msg"]
    assert said.startswith(
        f"win01: 2 of 3 receive connectors were not set as wanted: {three[1]}: the connection broke while it was being"
        f" set: whether it is, the next run will see; {three[2]}: not tried, since the connection broke before. The"
        " connection: http://127.0.0.1:"
    )
    assert said.endswith(f". This run did set {three[0]}. The next run goes on from there")
    # Never called unchanged: it may have been set.
    assert [one["changed"] for one in result["connectors"]] == [True, True, False]
    again = site.one("exchange_tarpit", seconds=7, connectors=three)
    assert {one["after"] for one in again["connectors"]} == {7}


def test_an_answer_that_cannot_be_read_back(site: Site) -> None:
    site.host.faults.on("Exchange Command Get-ReceiveConnector", EMPTY_500, nth=2)
    result = site.one("exchange_tarpit", seconds=7, server="EX01")
    assert (result["failed"], result["changed"]) == (True, True)
    assert result["msg"].startswith(
        f"win01: the receive connector was not set as wanted: {FRONT}: it was set, and reading it back failed: http://"
    )


def test_the_transport_configuration_is_read_back(site: Site) -> None:
    site.host.exchange.ignore_set = True
    result = site.one("exchange_transport", internal_smtp_servers=["192.0.2.25"])
    assert (result["failed"], result["changed"]) == (True, False)
    assert result["msg"] == (
        "win01: Exchange took the change, and InternalSMTPServers lacks 192.0.2.25: read it again later, another domain"
        " controller may not have the change yet"
    )


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (
            "exchange_transport",
            {"internal_smtp_servers": ["mx1"]},
            "'internal_smtp_servers' takes addresses, networks and ranges (192.0.2.1, 192.0.2.0/24,"
            " 192.0.2.1-192.0.2.9), not 'mx1'",
        ),
        (
            "exchange_relay_info",
            {"server": "EX01", "client": "mx1"},
            "'client' must be an IP address, not 'mx1'",
        ),
        (
            "exchange_relay_info",
            {"server": "EX01", "client": "192.0.2.1", "port": 0},
            "'port' must be 1 to 65535, not 0",
        ),
    ],
)
def test_options_out_of_range(site: Site, module: str, options: dict[str, object], message: str) -> None:
    assert site.one(module, **options)["msg"] == f"win01: {message}"


@pytest.mark.parametrize("nested", ["objects", "strings"])
def test_either_way_of_serialising_what_is_nested(site: Site, nested: str) -> None:
    exchange = site.host.exchange
    exchange.nested = nested
    exchange.transport.internal_smtp_servers = ["192.0.2.1"]
    exchange.add_relay_connector("Relay", remote=["127.0.0.1"])
    assert site.one("exchange_tarpit", seconds=7, server="EX01", connectors=None)["changed"] is True
    relay = site.one("exchange_relay_info", server="EX01", client="127.0.0.1")
    assert (relay["connector"], relay["relays"]) == (r"EX01\Relay", True)
    assert site.one("exchange_relay_info", server="EX01", client="192.0.2.1")["relays"] is False
    assert site.one("exchange_transport", internal_smtp_servers=["192.0.2.1"])["changed"] is False


def test_externally_secured(site: Site) -> None:
    site.host.exchange.add_relay_connector("Trusted", remote=["127.0.0.1"], external=True)
    result = site.one("exchange_relay_info", server="EX01", client="127.0.0.1")
    assert result["causes"] == [
        r"EX01\Trusted has AuthMechanism ExternalAuthoritative: it trusts every client in its RemoteIPRanges"
    ]


def test_pypsrp_is_missing(controller: Controller, exchange_lab: Lab, exchange_host: LabHost, tmp_path: Path) -> None:
    (tmp_path / "pypsrp").mkdir()
    (tmp_path / "pypsrp/__init__.py").write_text("raise ImportError('no pypsrp here')\n")
    without = Controller(tmp_path, more={"PYTHONPATH": str(tmp_path)})
    site = Site(without, exchange_lab, exchange_host, tmp_path)
    assert site.one("exchange_tarpit", seconds=5, server="EX01")["msg"] == (
        "win01: the Python package pypsrp is missing on the controller (no pypsrp here): install it"
    )
