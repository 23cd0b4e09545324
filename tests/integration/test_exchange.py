# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exchange_ modules, run by ansible-playbook against the lab's Exchange: what they do, and what it costs."""

from __future__ import annotations

import pytest
from tools.exchange_site import FRONT, Site

FRONTS = [FRONT, r"EX02\Default Frontend EX02"]
EX01 = [
    r"EX01\Default EX01",
    r"EX01\Client Proxy EX01",
    FRONT,
    r"EX01\Outbound Proxy Frontend EX01",
    r"EX01\Client Frontend EX01",
]


# -- exchange_tarpit --


def test_a_change_and_none(site: Site) -> None:
    before = site.tarpits()
    run = site.run(site.task("exchange_tarpit", seconds=7, server="EX01"))
    assert run.status == 0, run.printed
    first = run.last("win01")
    assert first["changed"] is True
    assert first["connectors"] == [
        {
            "identity": FRONT,
            "server": "EX01",
            "before": 5,
            "after": 7,
            "changed": True,
            "failed": False,
            "msg": "",
            "warnings": [],
        }
    ]
    assert site.tarpits() == before | {FRONT: 7}
    assert site.one("exchange_tarpit", seconds=7, server="EX01")["changed"] is False
    assert site.host.exchange.sessions == 0


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        pytest.param({"server": ["EX01", "EX02"]}, FRONTS, id="several servers"),
        pytest.param({"server": "ex02"}, FRONTS[1:], id="in any letter case"),
        pytest.param({"server": "EX01", "port": 587}, [EX01[4]], id="another port"),
        pytest.param({"server": "EX01", "transport_role": "all", "port": 0}, EX01, id="all of a server"),
        pytest.param({"server": "EX01", "transport_role": "HubTransport", "port": 0}, EX01[:2], id="a role"),
        pytest.param({"connectors": [EX01[0], FRONTS[1]]}, [EX01[0], FRONTS[1]], id="identities on two servers"),
        pytest.param({"connectors": "Default Frontend EX02"}, FRONTS[1:], id="a bare name"),
    ],
)
def test_selections(site: Site, options: dict[str, object], chosen: list[str]) -> None:
    before = site.tarpits()
    result = site.one("exchange_tarpit", seconds=9, **options)
    assert not result.get("failed"), result
    assert {one["identity"] for one in result["connectors"]} == set(chosen)
    assert site.tarpits() == before | dict.fromkeys(chosen, 9)


def test_check_mode_and_diff(site: Site) -> None:
    before = site.tarpits()
    result = site.one("exchange_tarpit", "--check", "--diff", seconds=0, server="EX01")
    assert result["changed"] is True
    assert result["diff"] == {"before": {FRONT: 5}, "after": {FRONT: 0}}
    assert result["connectors"][0]["after"] == 0
    assert site.tarpits() == before
    assert not [line for line in site.host.traffic.journal if "Set-ReceiveConnector" in line]


@pytest.mark.parametrize("form", ["enhanced", "timespan", "string", "seconds-property-only"])
def test_every_form_of_a_duration(site: Site, form: str) -> None:
    site.host.exchange.span_form = form
    assert site.one("exchange_tarpit", seconds=5, server="EX01")["changed"] is False
    result = site.one("exchange_tarpit", seconds=600, server="EX01")
    assert (result["changed"], result["connectors"][0]["after"]) == (True, 600)


def test_only_those_that_differ_are_set(site: Site) -> None:
    site.host.exchange.connector(FRONT).tarpit_seconds = 8
    result = site.one("exchange_tarpit", seconds=8, server=["EX01", "EX02"])
    assert [one["changed"] for one in result["connectors"]] == [False, True]
    assert len([line for line in site.host.traffic.journal if "Set-ReceiveConnector" in line]) == 1


def test_more_than_ten_seconds_are_warned_of(site: Site) -> None:
    assert "warnings" not in site.one("exchange_tarpit", seconds=10, server="EX01")
    assert site.one("exchange_tarpit", seconds=11, server="EX01")["warnings"] == [
        "a tarpit of 11 seconds: Microsoft's page on Set-ReceiveConnector warns that more than a few seconds can cause"
        " time-outs in mail flow"
    ]


def test_a_run_without_a_change_makes_at_most_nine_requests(site: Site) -> None:
    result = site.one("exchange_tarpit", seconds=5, connectors=[FRONT])
    assert result["changed"] is False
    few = site.host.traffic.requests
    site.host.traffic.clear()
    everything = site.one("exchange_tarpit", seconds=5, connectors=EX01)
    assert len(everything["connectors"]) == 5
    # Both ask for all connectors of the server.
    assert site.host.traffic.requests == few
    kilobytes = site.host.traffic.bytes_out / 1024
    assert few <= 9 + kilobytes / 32


def test_the_second_of_three_fails(site: Site) -> None:
    three = EX01[2:]
    site.host.exchange.fail("Set-ReceiveConnector", identity=three[1], message="The database is on fire.")
    result = site.one("exchange_tarpit", seconds=6, connectors=three)
    assert result["failed"] is True
    assert result["changed"] is True
    assert [(one["changed"], one["failed"], one["after"]) for one in result["connectors"]] == [
        (True, False, 6),
        (False, True, 5),
        (True, False, 6),
    ]
    assert result["msg"] == (
        "win01: 1 of 3 receive connectors was not set as wanted: EX01\\Outbound Proxy Frontend EX01:"
        " Set-ReceiveConnector: The database is on fire. This run did set EX01\\Default Frontend EX01, EX01\\Client"
        " Frontend EX01. The next run goes on from there"
    )
    again = site.one("exchange_tarpit", seconds=6, connectors=three)
    assert [one["changed"] for one in again["connectors"]] == [False, True, False]


def test_warnings_belong_to_their_connector(site: Site) -> None:
    site.host.exchange.warn("Set-ReceiveConnector", "Do not do this on a Friday.")
    result = site.one("exchange_tarpit", seconds=6, server="EX01")
    assert result["connectors"][0]["warnings"] == ["Do not do this on a Friday."]
    assert result["warnings"] == [f"{FRONT}: Do not do this on a Friday."]


def test_a_value_that_is_not_there_when_it_is_read_back(site: Site) -> None:
    site.host.exchange.ignore_set = True
    result = site.one("exchange_tarpit", seconds=6, server="EX01")
    assert result["changed"] is False
    assert result["msg"] == (
        "win01: the receive connector was not set as wanted: EX01\\Default Frontend EX01: Exchange took the 6 seconds"
        " and still has 5: read it again later, another domain controller may not have the change yet"
    )


# -- exchange_tarpit_info --


def test_info(site: Site) -> None:
    result = site.one("exchange_tarpit_info")
    assert len(result["connectors"]) == 10
    assert next(one for one in result["connectors"] if one["identity"] == FRONT) == {
        "identity": FRONT,
        "server": "EX01",
        "transport_role": "FrontendTransport",
        "bindings": ["[::]:25", "0.0.0.0:25"],
        "tarpit_seconds": 5,
        "anonymous": True,
        "enabled": True,
    }
    assert [one["identity"] for one in site.one("exchange_tarpit_info", server="EX01")["connectors"]] == [FRONT]


# -- exchange_transport --


def test_internal_smtp_servers(site: Site) -> None:
    site.host.exchange.transport.internal_smtp_servers = ["10.9.9.9"]
    first = site.one("exchange_transport", internal_smtp_servers=["192.0.2.25", "192.0.2.26"])
    assert (first["changed"], first["after"]) == (True, ["10.9.9.9", "192.0.2.25", "192.0.2.26"])
    assert site.one("exchange_transport", internal_smtp_servers=["192.0.2.26"])["changed"] is False
    foretold = site.one("exchange_transport", "--check", internal_smtp_servers=["192.0.2.25"], state="absent")
    assert (foretold["changed"], foretold["after"]) == (True, ["10.9.9.9", "192.0.2.26"])
    gone = site.one("exchange_transport", internal_smtp_servers=["192.0.2.25"], state="absent")
    assert gone["after"] == ["10.9.9.9", "192.0.2.26"]
    assert list(site.host.exchange.transport.internal_smtp_servers) == ["10.9.9.9", "192.0.2.26"]


# -- exchange_relay_info --


def test_nobody_relays_as_installed(site: Site) -> None:
    result = site.one("exchange_relay_info", server="EX01", client="127.0.0.1")
    assert (result["connector"], result["relays"], result["causes"]) == (FRONT, False, [])


def test_a_relay_connector_is_the_cause(site: Site) -> None:
    site.host.exchange.add_relay_connector("Relay", remote=["127.0.0.1"])
    result = site.one("exchange_relay_info", server="EX01", client="127.0.0.1")
    assert (result["connector"], result["relays"]) == (r"EX01\Relay", True)
    assert result["causes"] == [
        "NT AUTHORITY\\ANONYMOUS LOGON has Ms-Exch-SMTP-Accept-Any-Recipient on EX01\\Relay (Get-ADPermission)"
    ]
    assert site.one("exchange_relay_info", server="EX01", client="192.0.2.1")["relays"] is False


# -- what a user may be told --

ENDPOINT = "http://127.0.0.1:{port}/PowerShell/"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"seconds": 601, "server": "EX01"},
            "'seconds' must be 0 to 600, not 601: 5 is Exchange's default, 0 turns the tarpit off",
        ),
        (
            {"seconds": 5},
            "which receive connectors? Give 'connectors' (identities such as 'EX01\\Default Frontend EX01') or"
            " 'server'",
        ),
        (
            {"seconds": 5, "server": "EX01", "connectors": FRONT},
            "give 'connectors' or 'server', not both: an identity names its server",
        ),
        ({"seconds": 5, "server": "EX01", "port": 70000}, "'port' must be 0 (any) to 65535, not 70000"),
        ({"seconds": 5, "server": "EX01", "timeout": 0}, "'timeout' must be 1 second or more, not 0"),
        (
            {"seconds": 5, "server": "EX01", "endpoint": "ex01"},
            "'endpoint' must be a URL such as http://ex01.example.org/PowerShell/, not 'ex01'",
        ),
        (
            {"seconds": 5, "server": "EX01", "auth": "basic", "endpoint": "http://ex01/PowerShell/"},
            "'auth' is basic and http://ex01/PowerShell/ is not HTTPS: the password would cross the network in clear"
            " text. Take an endpoint with https, another 'auth', or set allow_insecure_basic: true as well",
        ),
        (
            {"seconds": 5, "server": "EX01", "auth": "certificate", "endpoint": "http://ex01/PowerShell/"},
            "'auth' is certificate, which needs an endpoint with https, not http://ex01/PowerShell/",
        ),
        (
            {"seconds": 5, "server": "EX01", "auth": "certificate", "endpoint": "https://ex01/PowerShell/"},
            "'auth' is certificate, which needs certificate_pem and certificate_key_pem",
        ),
        (
            {"seconds": 5, "connectors": r"EX02\Relay"},
            "there is no receive connector EX02\\Relay: there are EX02\\Default EX02 (HubTransport, [::]:2525,"
            " 0.0.0.0:2525); EX02\\Client Proxy EX02 (HubTransport, [::]:465, 0.0.0.0:465); EX02\\Default Frontend EX02"
            " (FrontendTransport, [::]:25, 0.0.0.0:25); EX02\\Outbound Proxy Frontend EX02 (FrontendTransport,"
            " [::]:717, 0.0.0.0:717); EX02\\Client Frontend EX02 (FrontendTransport, [::]:587, 0.0.0.0:587)",
        ),
    ],
)
def test_messages(site: Site, options: dict[str, object], message: str) -> None:
    result = site.one("exchange_tarpit", **options)
    assert result["failed"] is True
    assert result["changed"] is False
    assert result["msg"] == f"win01: {message}"
    assert site.host.exchange.sessions == 0


def test_a_wrong_password(site: Site) -> None:
    endpoint = ENDPOINT.format(port=site.host.winrm_port)
    result = site.one("exchange_tarpit", seconds=5, server="EX01", password="wrong-Password-2")
    assert result["unreachable"] is True
    assert result["msg"].removeprefix("Task failed: ") == (
        f"win01: cannot reach Exchange at {endpoint} (ntlm: Exchange refused the user name or password: check"
        " 'username' and 'password', and that the PowerShell virtual directory allows this 'auth'"
        " (Get-PowerShellVirtualDirectory))"
    )


def test_nothing_listens(site: Site) -> None:
    result = site.one("exchange_tarpit", seconds=5, server="EX01", endpoint="http://127.0.0.1:1/PowerShell/")
    assert result["unreachable"] is True
    assert result["msg"].removeprefix("Task failed: ") == (
        "win01: cannot reach Exchange at http://127.0.0.1:1/PowerShell/ (ntlm: no connection (Failed to establish a new"
        " connection: [Errno 111] Connection refused): check 'endpoint' and that Exchange's PowerShell is up there)"
    )


def test_become_is_refused(site: Site) -> None:
    run = site.run(site.task("exchange_tarpit", seconds=5, server="EX01") | {"become": True})
    assert run.last("win01")["msg"] == (
        "win01: become does not apply: Exchange works with the rights of the account that logs on. Set become: false,"
        " and name that account in 'username'"
    )
