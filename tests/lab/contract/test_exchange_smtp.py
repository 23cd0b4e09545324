# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The SMTP side of the lab's Exchange: what it is told by PowerShell counts at the next reply."""

from __future__ import annotations

import socket

import pytest

from lab.contract.client import Smtp
from lab.contract.exchange_client import Remote
from lab.exchange_host import ExchangeHost
from lab.exchange_organisation import Permission, read_range
from lab.hosts import Lab

FRONT = r"EX01\Default Frontend EX01"


def test_the_tarpit_counts_at_once(remote: Remote, exchange: ExchangeHost) -> None:
    remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:00")
    with Smtp(exchange.smtp_port) as session:
        assert session.ask_to_relay().code == 550
        before = session.say("NONSENSE")
        remote.run("Set-ReceiveConnector", Identity=FRONT, TarpitInterval="00:00:02")
        # Another connector's does not.
        remote.run("Set-ReceiveConnector", Identity=r"EX01\Client Frontend EX01", TarpitInterval="00:01:00")
        refusal = session.say("RCPT TO:<a@relay-probe.invalid>")
        assert refusal.code == 550
        assert 1.9 < refusal.seconds < 30
        for prompt in (before, session.say("NOOP")):
            assert prompt.seconds < refusal.seconds / 2
        assert session.say("RCPT TO:<a@lab.test>").code == 250


@pytest.mark.parametrize("external", [False, True])
def test_a_relay_connector_relays(exchange: ExchangeHost, external: bool) -> None:
    exchange.connector(FRONT).tarpit_seconds = 0
    with Smtp(exchange.smtp_port) as session:
        assert session.ask_to_relay().code == 550
        made = exchange.add_relay_connector("Relay", ["127.0.0.0-127.0.0.1"], external=external, tarpit_seconds=0)
        assert session.say("RCPT TO:<a@relay-probe.invalid>").code == 250, "the same session"
        made.enabled = False
        assert session.say("RCPT TO:<b@relay-probe.invalid>").code == 550
        made.enabled = True
        # The narrowest range about a client decides, whichever connector was made first.
        exchange.add_relay_connector("Elsewhere", ["127.0.0.2", "192.0.2.0/24"], tarpit_seconds=0)
        made.remote = ["0.0.0.0-255.255.255.255"]
        assert session.say("RCPT TO:<c@relay-probe.invalid>").code == 550
        exchange.connector(FRONT).remote = ["0.0.0.0/0"]
        assert exchange.organisation.serving("EX01", "127.0.0.2") is exchange.connector(r"EX01\Elsewhere")
    with socket.create_connection(("127.0.0.1", exchange.smtp_port), 30, source_address=("127.0.0.2", 0)) as other:
        lines = other.makefile("rwb")
        for said in (b"", b"HELO x", b"MAIL FROM:<>", b"RCPT TO:<d@relay-probe.invalid>"):
            if said:
                lines.write(said + b"\r\n")
                lines.flush()
            reply = lines.readline()
        assert reply.startswith(b"250")


def test_a_right_that_is_denied_is_none(exchange: ExchangeHost) -> None:
    made = exchange.add_relay_connector("Relay")
    assert made.relays
    made.permissions.append(Permission(r"NT AUTHORITY\ANONYMOUS LOGON", "ms-Exch-SMTP-Accept-Any-Recipient", deny=True))
    assert not made.relays
    assert not exchange.connector(FRONT).relays
    assert exchange.organisation.serving("EX01", "::1") is exchange.connector(FRONT)


@pytest.mark.parametrize("text", ["10.0.0.0/24", "10.0.0.0-10.0.0.255", "10.0.0.0(255.255.255.0)", "10.0.0.7/24"])
def test_ranges(text: str) -> None:
    assert [str(one) for one in read_range(text)] == ["10.0.0.0", "10.0.0.255"]


@pytest.mark.parametrize("text", ["", "x", "10.0.0.0/33", "10.0.0.2-10.0.0.1", "10.0.0.1-::2", "1-", "10.0.0.0("])
def test_no_ranges(text: str) -> None:
    with pytest.raises(ValueError):
        read_range(text)


def test_each_server_of_an_organisation_has_a_listener() -> None:
    with Lab.start(hosts=2, smtpsvc=False, exchange=("EX01", "EX02", "EX03")) as lab:
        first, second = (host.exchange for host in lab.hosts)
        assert first is not None
        assert second is not None
        assert (first.server, second.server, first.organisation) == ("EX01", "EX02", second.organisation)
        # Each asks for its own connectors, in an organisation that both share.
        second.connector("Default Frontend EX02").tarpit_seconds = 0
        second.add_relay_connector("Relay")
        with Smtp(second.smtp_port) as session:
            assert session.ask_to_relay().code == 250
        first.connector(FRONT).tarpit_seconds = 0
        with Smtp(first.smtp_port) as session:
            assert session.ask_to_relay().code == 550
        ports = first.smtp_port, second.smtp_port
    for port in ports:
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_more_hosts_than_servers() -> None:
    with pytest.raises(ValueError, match="as many names"):
        Lab.start(hosts=2, exchange=("EX01",))
