# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's Exchange on the wire: sessions, long polls, fragments both ways, logins, and what goes wrong there."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pypsrp.complex_objects import PSInvocationState
from pypsrp.exceptions import WinRMError, WinRMTransportError, WSManFaultError
from pypsrp.powershell import RunspacePool
from requests import RequestException

from lab.contract.client import Account
from lab.contract.exchange_client import CONFIGURATION, FAILED, STOPPED, Remote, beside, connected, ran, strings, wsman
from lab.exchange_host import ExchangeHost
from lab.exchange_organisation import FRONTEND, Connector
from lab.faults import RequestSeen
from lab.hosts import Lab, LabHost
from lab.troubles import Cut, Hang, Refused

FRONT = r"EX01\Default Frontend EX01"
# The login over NTLM (3), Create with its Receive, Command, Delete. Then one Receive for each 32 kB.
BESIDE_OUTPUT = 7


@pytest.mark.parametrize(("connectors", "receives"), [(1, 1), (5, 2), (50, 18)])
def test_what_a_question_costs(
    exchange_host: LabHost, exchange: ExchangeHost, admin: Account, connectors: int, receives: int
) -> None:
    made = exchange.organisation.connectors
    more = [Connector("EX01", f"Custom {n}", FRONTEND, [f"0.0.0.0:{3000 + n}"], "AnonymousUsers") for n in range(45)]
    made[:] = [one for one in made if one.server == "EX01"][:connectors] + more[: max(0, connectors - 5)]
    with connected(exchange_host, admin) as remote:
        assert len(remote.run("Get-ReceiveConnector", Server="EX01").output) == connectors
    assert exchange_host.traffic.requests == BESIDE_OUTPUT + receives
    assert exchange_host.traffic.journal.count("Exchange Receive") == 1 + receives
    # Some 10 kB an object, and Base64 and envelopes about it.
    assert 8_000 < exchange_host.traffic.bytes_out / connectors < 40_000
    assert exchange.sessions == 0


@pytest.mark.parametrize("size", [100, 2000, 500_000])
def test_packets_of_any_size(remote: Remote, exchange: ExchangeHost, size: int) -> None:
    exchange.packet_bytes = size
    assert remote.run("Get-ReceiveConnector", FRONT).identities == [FRONT]


def test_a_question_of_several_fragments(exchange_host: LabHost, exchange: ExchangeHost, admin: Account) -> None:
    servers = [f"10.{a}.{b}.{c}" for a in range(20) for b in range(20) for c in range(30)]
    with connected(exchange_host, admin, max_envelope_size=64 * 1024) as remote:
        assert remote.run("Set-TransportConfig", InternalSMTPServers=servers).errors == []
        assert exchange.transport.internal_smtp_servers == servers
        (one,) = remote.run("Get-TransportConfig").output
        assert strings(one.adapted_properties["InternalSMTPServers"]) == servers
    journal = exchange_host.traffic.journal
    assert journal[2:4] == ["Exchange Command Set-TransportConfig", "Exchange Send"]
    assert journal.count("Exchange Send") >= 4


def test_a_slow_cmdlet_is_waited_for(exchange_host: LabHost, exchange: ExchangeHost, admin: Account) -> None:
    slow = 2.5
    exchange.slow("Set-ReceiveConnector", slow)
    with connected(exchange_host, admin, operation_timeout=1) as remote:
        started = time.monotonic()
        pipeline = remote.pipeline("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:09")
        pipeline.begin_invoke()
        assert time.monotonic() - started < slow, "Command does not wait"
        with pytest.raises(WSManFaultError) as raised:
            remote.pool._receive(pipeline.id)
        assert raised.value.code == 2150858793
        assert 0.9 < time.monotonic() - started < slow
        assert exchange.connector(FRONT).tarpit_seconds == 5
        pipeline.end_invoke()
        assert time.monotonic() - started > 0.95 * slow
        assert (ran(pipeline).errors, exchange.connector(FRONT).tarpit_seconds) == ([], 9)
        exchange.micro_delay("Get-TransportConfig", 100)
        assert (
            remote.run("Get-TransportConfig").warnings[0].startswith("Micro delay applied. Actual delayed: 100 msecs")
        )


def test_a_slow_cmdlet_can_be_stopped(
    remote: Remote, exchange_host: LabHost, exchange: ExchangeHost, admin: Account
) -> None:
    exchange.slow("Set-ReceiveConnector", 1)
    pipeline = remote.pipeline("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:09")
    pipeline.begin_invoke()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(pipeline.runspace_pool._receive, pipeline.id)
        time.sleep(0.2)
        with beside(remote, exchange_host, admin) as other:
            other.shell.signal("powershell/signal/ctrl_c", pipeline.id)
        waiting.result(timeout=10)
    assert pipeline.state == STOPPED
    time.sleep(1.1)
    assert exchange.connector(FRONT).tarpit_seconds == 5


def test_a_session_can_be_closed_under_a_slow_cmdlet(
    remote: Remote, exchange_host: LabHost, exchange: ExchangeHost, admin: Account
) -> None:
    exchange.slow("Set-ReceiveConnector", 1)
    pipeline = remote.pipeline("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:09")
    pipeline.begin_invoke()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(pipeline.end_invoke)
        time.sleep(0.2)
        with beside(remote, exchange_host, admin) as other:
            other.shell._selector_set, other.shell.opened = remote.pool.shell._selector_set, True
            other.shell.close()
        with pytest.raises(WSManFaultError) as raised:
            waiting.result(timeout=10)
    assert raised.value.code == 995
    time.sleep(1.1)
    assert (exchange.connector(FRONT).tarpit_seconds, exchange.sessions) == (5, 0)
    with pytest.raises(WSManFaultError) as raised:
        remote.run("Get-TransportConfig")
    assert raised.value.code == 2150858843
    remote.gone()


def test_there_is_no_language(remote: Remote) -> None:
    script = remote.pipeline("x")
    script.commands.clear()
    script.add_script("Get-ReceiveConnector | Select-Object Name")
    two = remote.pipeline("Get-ReceiveConnector")
    two.add_cmdlet("Get-TransportConfig")
    statements = remote.pipeline("Get-ReceiveConnector")
    statements.add_statement()
    statements.add_cmdlet("Get-TransportConfig")
    for pipeline in (script, two, statements):
        pipeline.invoke()
        result = ran(pipeline)
        text = "The syntax is not supported by this runspace. This can occur if the runspace is in no-language mode."
        assert (result.state, result.output, result.errors) == (FAILED, [], [(text, "ScriptsNotAllowed")])
    # pypsrp looks for the answer only.
    with pytest.raises(IndexError):
        remote.pool.get_command_metadata("*")


def test_keys_are_exchanged(remote: Remote) -> None:
    remote.pool.exchange_keys()
    assert remote.pool._key_exchanged
    assert remote.run("Get-ReceiveConnector", FRONT).identities == [FRONT]


# -- sessions --


def test_sessions_are_counted_for_each_account(
    exchange_host: LabHost, exchange: ExchangeHost, exchange_lab: Lab
) -> None:
    first, second = (Account(*one) for one in exchange_lab._users.accounts())
    exchange.max_shells = 2
    with connected(exchange_host, first), connected(exchange_host, first) as remote, connected(exchange_host, second):
        with pytest.raises(WSManFaultError) as raised, connected(exchange_host, first):
            pass
        assert "maximum number of connections allowed : 2 for the policy party : MaxConcurrency" in raised.value.reason
        assert exchange.sessions == 3
        assert [one.user for one in exchange.open_shells] == [first.name, first.name, second.name]
        with pytest.raises(WSManFaultError) as raised, beside(remote, exchange_host, second) as other:
            other._receive()
        assert raised.value.code == 5, "another account's"
    assert exchange.sessions == 0
    assert exchange.max_shells == 2
    exchange.reset()
    assert exchange.max_shells == 18


def test_an_account_without_roles(exchange_host: LabHost, exchange: ExchangeHost, admin: Account) -> None:
    exchange.without_roles.add(admin.name.upper())
    with pytest.raises(WSManFaultError) as raised, connected(exchange_host, admin):
        pass
    assert raised.value.code == 5
    assert f'The user "{admin.name}" isn\'t assigned to any management roles.' in raised.value.reason


def test_the_idle_timeout_is_known(exchange_host: LabHost, exchange: ExchangeHost, admin: Account) -> None:
    with (
        wsman(exchange_host, admin) as connection,
        RunspacePool(connection, configuration_name=CONFIGURATION, idle_timeout=90) as pool,
    ):
        (shell,) = exchange.open_shells
        assert (shell.idle_timeout, shell.id, shell.commands) == ("PT90S", pool.id, {})


def test_sessions_side_by_side(exchange_host: LabHost, exchange: ExchangeHost, admin: Account) -> None:
    def work(number: int) -> list[str]:
        identity = exchange.connectors[number].identity
        with connected(exchange_host, admin) as remote:
            remote.run("Set-ReceiveConnector", Identity=identity, TarpitInterval=f"00:00:{number + 10}")
            return remote.run("Get-ReceiveConnector", Identity=identity).identities

    with ThreadPoolExecutor(max_workers=8) as pool:
        assert list(pool.map(work, range(8))) == [[one.identity] for one in exchange.connectors[:8]]
    assert [one.tarpit_seconds for one in exchange.connectors[:8]] == list(range(10, 18))
    assert exchange.sessions == 0


# -- the way there --


@pytest.mark.parametrize("path", ["PowerShell/", "powershell", "POWERSHELL/?serializationLevel=Full"])
def test_paths(exchange_host: LabHost, admin: Account, path: str) -> None:
    with connected(exchange_host, admin, path=path) as remote:
        assert remote.run("Get-ReceiveConnector", FRONT).identities == [FRONT]


@pytest.mark.parametrize("name", ["Microsoft.PowerShell", "Microsoft.ExchangeX"])
def test_another_configuration(exchange_host: LabHost, admin: Account, name: str) -> None:
    with (
        wsman(exchange_host, admin) as connection,
        pytest.raises(WSManFaultError) as raised,
        RunspacePool(connection, configuration_name=name),
    ):
        pass
    assert raised.value.code == 2150858811
    with pytest.raises(WSManFaultError), connected(exchange_host, admin, path="wsman"):
        pass


def test_a_host_without_exchange() -> None:
    with Lab.start(smtpsvc=False) as lab:
        (host,) = lab.hosts
        assert host.exchange is None
        with pytest.raises(WinRMTransportError) as raised, connected(host, Account(lab.username, lab.password)):
            pass
        assert raised.value.code == 404


def test_basic_and_a_wrong_password(exchange_host: LabHost, admin: Account) -> None:
    with connected(exchange_host, admin, auth="basic", encryption="never") as remote:
        assert remote.run("Get-ReceiveConnector", FRONT).identities == [FRONT]
    with pytest.raises(WinRMError), connected(exchange_host, Account(admin.name, "wrong")):
        pass


def test_https_and_a_certificate() -> None:
    with Lab.start(smtpsvc=False, https=True, exchange=("EX01",)) as lab:
        (host,) = lab.hosts
        certificate = lab.client_certificate()
        options = {"ssl": True, "cert_validation": str(lab.ca_file), "server": "localhost"}
        pair = {"certificate_pem": str(certificate.certificate), "certificate_key_pem": str(certificate.key)}
        for more in ({"auth": "ntlm"}, {"auth": "basic"}, {"auth": "certificate", **pair}):
            account = Account(lab.username, lab.password)
            with connected(host, account, **options, **more) as remote:
                assert remote.run("Get-ReceiveConnector", FRONT).identities == [FRONT]
                assert [one.user for one in host.exchange.open_shells] == [lab.username]  # type: ignore[union-attr]


# -- what goes wrong --


def test_requests_go_wrong_on_a_tests_behalf(
    remote: Remote, exchange_host: LabHost, exchange: ExchangeHost, admin: Account
) -> None:
    refused = Refused(2150859174, reason="Too many operations.", provider=False)
    exchange_host.faults.on("Exchange Command Set-ReceiveConnector", refused)
    with pytest.raises(WSManFaultError) as raised:
        remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:09")
    assert (raised.value.code, exchange.connector(FRONT).tarpit_seconds) == (2150859174, 5)
    exchange_host.faults.on("Exchange Receive", Cut())
    with pytest.raises(RequestException):
        remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:09")
    assert exchange.connector(FRONT).tarpit_seconds == 9
    with connected(exchange_host, admin) as another:
        assert another.run("Get-ReceiveConnector", FRONT).identities == [FRONT]
    # Its connection has been cut, and pypsrp does not log in again.
    remote.gone()


def test_requests_are_told(remote: Remote, exchange_host: LabHost, exchange: ExchangeHost) -> None:
    told: list[tuple[str, str, int]] = []

    def note(seen: RequestSeen) -> None:
        told.append((seen.note, seen.moment, exchange.connector(FRONT).tarpit_seconds))

    exchange_host.on_request(note)
    remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:09")
    assert told[:2] == [
        ("Exchange Command Set-ReceiveConnector", "received", 5),
        ("Exchange Command Set-ReceiveConnector", "answered", 9),
    ]


def test_closing_does_not_wait_for_a_long_poll() -> None:
    with Lab.start(smtpsvc=False, exchange=("EX01",)) as lab:
        (host,) = lab.hosts
        exchange = host.exchange
        assert exchange is not None
        exchange.slow("Get-TransportConfig", 60)
        errors: list[Exception] = []

        def ask() -> None:
            try:
                with connected(host, Account(lab.username, lab.password)) as remote:
                    remote.run("Get-TransportConfig")
            except Exception as error:  # noqa: BLE001 - whatever pypsrp makes of it
                errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        deadline = time.monotonic() + 10
        while host.traffic.journal.count("Exchange Receive") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        started = time.monotonic()
    asking.join(timeout=10)
    assert time.monotonic() - started < 5
    assert errors


def test_a_request_that_hangs(remote: Remote, exchange_host: LabHost) -> None:
    exchange_host.faults.on("Exchange Receive", Hang())
    pipeline = remote.pipeline("Get-ReceiveConnector", FRONT)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(pipeline.invoke)
        exchange_host.faults.wait_until_hanging()
        exchange_host.faults.release()
        assert len(waiting.result(timeout=10)) == 1
    assert pipeline.state == PSInvocationState.COMPLETED
