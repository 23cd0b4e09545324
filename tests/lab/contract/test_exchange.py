# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cmdlets of the lab's Exchange, as pypsrp sees them."""

from __future__ import annotations

from typing import Any

import pytest
from pypsrp.serializer import TaggedValue

from lab.contract.exchange_client import COMPLETED, FAILED, Remote, strings
from lab.exchange_host import ExchangeHost
from lab.exchange_organisation import Organisation

FRONT = r"EX01\Default Frontend EX01"
FIVE = [
    rf"EX01\{name}"
    for name in (
        "Default EX01",
        "Client Proxy EX01",
        "Default Frontend EX01",
        "Outbound Proxy Frontend EX01",
        "Client Frontend EX01",
    )
]


def test_the_connectors_of_a_server(remote: Remote) -> None:
    found = remote.run("Get-ReceiveConnector", Server="EX01")
    assert (found.state, found.errors, found.warnings) == (COMPLETED, [], [])
    assert found.identities == FIVE
    assert [str(role) for role in found.values("TransportRole")] == ["HubTransport"] * 2 + ["FrontendTransport"] * 3
    assert [strings(bindings)[0] for bindings in found.values("Bindings")] == [
        f"[::]:{port}" for port in (2525, 465, 25, 717, 587)
    ]
    assert str(found.values("PermissionGroups")[2]) == "AnonymousUsers, ExchangeServers, ExchangeLegacyServers"
    assert found.output[0].types[0].endswith("SystemConfiguration.ReceiveConnector")


@pytest.mark.parametrize(
    ("parameters", "count"),
    [
        ({}, 10),
        ({"Server": "ex02.lab.test"}, 5),
        ({"Identity": FRONT.lower()}, 1),
        ({"Identity": "Default Frontend EX01"}, 1),
        ({"Identity": r"EX02\*"}, 5),
        ({"IDENTITY": FRONT, "DomainController": "dc01.lab.test"}, 1),
    ],
)
def test_connectors_by(remote: Remote, parameters: dict[str, str], count: int) -> None:
    assert len(remote.run("get-receiveconnector", **parameters).output) == count


def test_a_connector_by_position_and_by_its_other_names(remote: Remote) -> None:
    (one,) = remote.run("Get-ReceiveConnector", FRONT).output
    for name in ("Guid", "DistinguishedName"):
        assert remote.run("Get-ReceiveConnector", one.adapted_properties[name]).identities == [FRONT]


@pytest.mark.parametrize("parameters", [{"Identity": r"EX01\Nothing"}, {"Server": "EX09"}, {"Identity": r"EX09\x"}])
def test_what_is_not_there(remote: Remote, parameters: dict[str, str]) -> None:
    found = remote.run("Get-ReceiveConnector", **parameters)
    ((message, error_id),) = found.errors
    (name,) = parameters.values()
    assert found.state == COMPLETED, "an error record, and the pipeline completes"
    assert message == (
        f"The operation couldn't be performed because object '{name}' couldn't be found on 'dc01.lab.test'."
    )
    assert "[FailureCategory=Cmdlet-ManagementObjectNotFoundException]" in error_id
    assert error_id.endswith(",Microsoft.Exchange.Management.SystemConfigurationTasks.GetReceiveConnector")


def span(value: Any) -> Any:
    """A span in the form in which it came."""
    if isinstance(value, str):
        return value
    return value.to_string, value.adapted_properties["TotalSeconds"], value.adapted_properties.get("Ticks")


# pypsrp leaves a duration as the string that it is.
FORMS = {
    "enhanced": [("00:00:00", 0, 0), ("00:00:30", 30, 300000000), ("00:10:00", 600, 6000000000)],
    "timespan": ["PT0S", "PT30S", "PT10M"],
    "string": ["00:00:00", "00:00:30", "00:10:00"],
    "seconds-property-only": [(None, 0, None), (None, 30, None), (None, 600, None)],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_span(remote: Remote, exchange: ExchangeHost, form: Any) -> None:
    exchange.span_form = form
    seen = []
    for text in ("00:00:00", "0.00:00:30", "00:10"):
        assert remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval=text).errors == []
        seen += [span(one) for one in remote.run("Get-ReceiveConnector", FRONT).values("TarpitInterval")]
    assert seen == FORMS[form]


def test_values_without_their_types(remote: Remote, exchange: ExchangeHost) -> None:
    exchange.nested = "strings"
    (one,) = remote.run("Get-ReceiveConnector", FRONT).output
    properties = one.adapted_properties
    assert properties["Identity"] == FRONT
    assert properties["Server"] == "EX01"
    assert properties["Bindings"] == ["[::]:25", "0.0.0.0:25"]
    assert properties["TransportRole"] == "FrontendTransport"
    assert str(remote.run("Get-ADPermission", FRONT).values("Deny")[0]) == "False"


def test_a_change_is_made_and_read_back(remote: Remote, exchange: ExchangeHost) -> None:
    changed = remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:30", Confirm=False)
    assert (changed.state, changed.output, changed.errors, changed.warnings) == (COMPLETED, [], [], [])
    assert exchange.connector(FRONT).tarpit_seconds == 30
    again = remote.run("Set-ReceiveConnector", FRONT, TarpitInterval=TaggedValue("TS", "PT30S"))
    assert again.warnings == [f"The command completed successfully but no settings of '{FRONT}' have been modified."]
    foretold = remote.run("Set-ReceiveConnector", FRONT, TarpitInterval="00:00:31", WhatIf=True)
    assert (foretold.state, foretold.warnings, exchange.connector(FRONT).tarpit_seconds) == (COMPLETED, [], 30)
    assert [one.tarpit_seconds for one in exchange.connectors].count(5) == 9


@pytest.mark.parametrize(
    ("parameters", "state", "expected"),
    [
        ({"Identity": r"EX01\x", "TarpitInterval": "00:00:01"}, COMPLETED, "ManagementObjectNotFoundException"),
        ({"Identity": FRONT, "TarpitInterval": "00:10:01"}, COMPLETED, "DataValidationException"),
        # .NET reads a single number as days.
        ({"Identity": FRONT, "TarpitInterval": "30"}, COMPLETED, "DataValidationException"),
        ({"Identity": FRONT, "TarpitInterval": "soon"}, FAILED, "ParameterArgumentTransformationError"),
        ({"Identity": FRONT, "TarpitInterval": "-00:00:01"}, FAILED, "ParameterArgumentTransformationError"),
        ({"Identity": FRONT, "TarpitInterval": "00:00:61"}, FAILED, "ParameterArgumentTransformationError"),
        ({"Identity": FRONT, "TarpitInterval": None}, FAILED, "ParameterArgumentTransformationError"),
        ({"TarpitInterval": "00:00:01"}, FAILED, "MissingMandatoryParameter"),
        ({"Identity": FRONT, "Confirm": True}, FAILED, "Set-ReceiveConnector"),
        ({"Identity": FRONT, "Banner": "x"}, FAILED, "NamedParameterNotFound,Set-ReceiveConnector"),
        ({"Identity": r"EX01\x", "ErrorAction": "Stop"}, FAILED, "ManagementObjectNotFoundException"),
    ],
)
def test_changes_that_are_refused(
    remote: Remote, exchange: ExchangeHost, parameters: dict[str, object], state: int, expected: str
) -> None:
    result = remote.run("Set-ReceiveConnector", **parameters)
    ((_message, error_id),) = result.errors
    assert result.state == state
    assert expected in error_id
    assert {one.tarpit_seconds for one in exchange.connectors} == {5}


@pytest.mark.parametrize(
    ("cmdlet", "arguments", "parameters", "expected"),
    [
        ("Get-Mailbox", (), {}, "CommandNotFoundException"),
        ("Get-ReceiveConnector", ("a", "b"), {}, "PositionalParameterNotFound,Get-ReceiveConnector"),
        ("Get-ReceiveConnector", (), {"Iden": "x"}, "NamedParameterNotFound,Get-ReceiveConnector"),
        ("Get-ReceiveConnector", (), {"Identity": "x", "Server": "EX01"}, "AmbiguousParameterSet,Get-ReceiveConnector"),
        ("Get-ReceiveConnector", ("x",), {"Identity": "x"}, "ParameterAlreadyBound,Get-ReceiveConnector"),
    ],
)
def test_what_does_not_bind(
    remote: Remote, cmdlet: str, arguments: tuple[str, ...], parameters: dict[str, str], expected: str
) -> None:
    result = remote.run(cmdlet, *arguments, **parameters)
    assert (result.state, [error_id for _message, error_id in result.errors]) == (FAILED, [expected])


def test_servers(remote: Remote) -> None:
    assert remote.run("Get-ExchangeServer").identities == ["EX01", "EX02"]
    (one,) = remote.run("Get-ExchangeServer", "ex02").output
    assert one.adapted_properties["Fqdn"] == "EX02.lab.test"
    assert len(remote.run("Get-ExchangeServer", "EX03").errors) == 1


def test_internal_smtp_servers(remote: Remote, exchange: ExchangeHost) -> None:
    def change(value: object) -> list[str]:
        result = remote.run("Set-TransportConfig", InternalSMTPServers=value)
        assert (result.state, result.errors) == (COMPLETED, [])
        (one,) = remote.run("Get-TransportConfig").output
        assert strings(one.adapted_properties["InternalSMTPServers"]) == exchange.transport.internal_smtp_servers
        return result.warnings

    assert change(["10.0.0.1", "10.1.0.0/16"]) == []
    assert change({"Add": ["10.0.0.9-10.0.0.12"], "Remove": "10.0.0.1"}) == []
    assert exchange.transport.internal_smtp_servers == ["10.1.0.0/16", "10.0.0.9-10.0.0.12"]
    unchanged = ["The command completed successfully but no settings of 'Transport Settings' have been modified."]
    assert change({"add": "10.1.0.0/16", "remove": ["10.9.9.9"]}) == unchanged
    assert change("2001:db8::1") == []
    assert exchange.transport.internal_smtp_servers == ["2001:db8::1"]
    assert change(None) == []
    for wrong in ("mail.lab.test", ["10.0.0.9-10.0.0.1"], {"Replace": "10.0.0.1"}):
        result = remote.run("Set-TransportConfig", InternalSMTPServers=wrong)
        assert result.errors[0][1] == "ParameterArgumentTransformationError,Set-TransportConfig"
    assert exchange.transport.internal_smtp_servers == []


def test_who_may_relay(remote: Remote, exchange: ExchangeHost) -> None:
    def entries(**parameters: object) -> list[tuple[str, list[str], str]]:
        result = remote.run("Get-ADPermission", **parameters)
        assert result.errors == []
        return [
            (str(user), strings(rights or []), str(deny))
            for user, rights, deny in zip(
                result.values("User"), result.values("ExtendedRights"), result.values("Deny"), strict=True
            )
        ]

    anonymous = r"NT AUTHORITY\ANONYMOUS LOGON"
    usual = ["Submit", "Accept-Any-Sender", "Accept-Authoritative-Domain-Sender"]
    expected = [(anonymous, [f"ms-Exch-SMTP-{right}"], "False") for right in usual]
    assert entries(Identity=FRONT, User=anonymous.lower()) == [
        *expected,
        (anonymous, ["ms-Exch-Accept-Headers-Routing"], "False"),
    ]
    assert (r"LAB\Organization Management", [], "False") in entries(Identity=FRONT)
    made = exchange.add_relay_connector("Relay")
    assert (anonymous, ["ms-Exch-SMTP-Accept-Any-Recipient"], "False") in entries(Identity=made.identity)
    assert len(remote.run("Get-ADPermission", "nothing").errors) == 1


def test_roles(remote: Remote, exchange: ExchangeHost) -> None:
    exchange.denied = {"set-receiveconnector", "Set-TransportConfig -InternalSMTPServers"}
    exchange.denied_to = {"lab-helper": {"Get-ReceiveConnector"}}
    result = remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:01")
    assert (result.state, result.errors[0][1]) == (FAILED, "CommandNotFoundException")
    assert result.errors[0][0].startswith("The term 'Set-ReceiveConnector' is not recognized as the name of a cmdlet,")
    result = remote.run("Set-TransportConfig", InternalSMTPServers="10.0.0.1")
    assert result.errors[0][1] == "NamedParameterNotFound,Set-TransportConfig"
    assert len(remote.run("Get-ReceiveConnector").output) == 10


def test_the_write_scope(remote: Remote, exchange: ExchangeHost) -> None:
    exchange.out_of_scope.add("EX01")
    result = remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:01")
    expected = f"The operation couldn't be performed because '{FRONT}' isn't within a valid server write scope."
    assert (result.state, result.errors[0][0]) == (COMPLETED, expected)
    assert remote.run("Set-ReceiveConnector", Identity=r"EX02\Default EX02", TarpitInterval="00:00:01").errors == []


def test_errors_on_a_tests_behalf(remote: Remote, exchange: ExchangeHost) -> None:
    exchange.fail(
        "Set-ReceiveConnector", FRONT, message="The database is on fire.", category="WriteError", error_id="F1"
    )
    exchange.fail("Set-ReceiveConnector", FIVE[0], message="Partly.", carried_out=True, terminating=False)
    exchange.fail("Set-ReceiveConnector", FIVE[1], message="No.", terminating=True)
    results = [remote.run("Set-ReceiveConnector", Identity=one, TarpitInterval="00:00:09") for one in FIVE]
    assert [one.state for one in results] == [COMPLETED, FAILED, COMPLETED, COMPLETED, COMPLETED]
    assert [one.errors and one.errors[0][0] for one in results] == [
        "Partly.",
        "No.",
        "The database is on fire.",
        [],
        [],
    ]
    assert results[2].errors[0][1] == "F1"
    assert [exchange.connector(one).tarpit_seconds for one in FIVE] == [9, 5, 5, 9, 9]
    assert remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:09").errors == [], "once"


@pytest.mark.parametrize(
    ("options", "state", "objects"),
    [
        ({"after": 2}, COMPLETED, 2),
        ({"after": 2, "carried_out": True}, COMPLETED, 5),
        ({"after": 3, "terminating": True}, FAILED, 3),
        ({}, COMPLETED, 0),
    ],
)
def test_an_error_in_the_middle_of_the_output(
    remote: Remote, exchange: ExchangeHost, options: dict[str, Any], state: int, objects: int
) -> None:
    exchange.fail("Get-ReceiveConnector", message="Half way.", **options)
    result = remote.run("Get-ReceiveConnector", Server="EX01")
    assert (result.state, len(result.output), result.errors[0][0]) == (state, objects, "Half way.")


def test_warnings_and_a_change_that_is_not_made(remote: Remote, exchange: ExchangeHost) -> None:
    exchange.warn("Set-ReceiveConnector", "Not on a Friday.")
    exchange.ignore_set = True
    result = remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:09")
    assert (result.warnings, result.errors) == (["Not on a Friday."], [])
    assert exchange.connector(FRONT).tarpit_seconds == 5
    exchange.warn("Get-TransportConfig", "Hidden.")
    assert remote.run("Get-TransportConfig", WarningAction="SilentlyContinue").warnings == []


def test_a_trouble_that_does_not_exist(exchange: ExchangeHost) -> None:
    with pytest.raises(ValueError, match="no error category"):
        exchange.fail("Get-ReceiveConnector", category="Bad luck")
    with pytest.raises(KeyError):
        exchange.connector("nothing")
    for servers in ((), ("EX01", "ex01")):
        with pytest.raises(ValueError, match="servers"):
            Organisation(servers)


def test_all_is_as_new_after_a_reset(remote: Remote, exchange: ExchangeHost) -> None:
    guid = exchange.connector(FRONT).guid
    remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:09")
    exchange.add_relay_connector("Relay")
    exchange.fail("Get-ReceiveConnector", times=None)
    exchange.span_form, exchange.denied = "string", {"Get-TransportConfig"}
    exchange.reset()
    assert exchange.sessions == 0
    remote.gone()
    assert [one.tarpit_seconds for one in exchange.connectors] == [5] * 10
    assert (exchange.span_form, exchange.denied, exchange.connector(FRONT).guid) == ("enhanced", set(), guid)
