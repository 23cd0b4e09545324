# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SMTPSVC obeys the TarpitTime that it found when it started. Times are lower bounds, or compared."""

from __future__ import annotations

import time

import pytest

from lab.backend import HKEY_LOCAL_MACHINE, REG_SZ, RegistryValue
from lab.contract.client import PARAMETERS, Smtp, WinRM
from lab.hosts import LabHost


def test_it_refuses_to_relay_and_speaks_smtp(lab_host: LabHost) -> None:
    with Smtp(lab_host.smtp_port) as session:
        assert session.banner.code == 220
        assert "Microsoft ESMTP MAIL Service" in session.banner.text
        refused = session.ask_to_relay()
        assert (refused.code, refused.text[:9]) == (550, "550 5.7.1")
        assert session.say("RCPT TO:<anyone@lab.test>").code == 250
        assert session.say("NONSENSE").code == 500
        assert session.say("QUIT").code == 221


def test_a_tarpit_counts_only_after_a_restart(lab_host: LabHost, client: WinRM) -> None:
    with Smtp(lab_host.smtp_port) as session:
        before = session.ask_to_relay()
    client.registry("SetDWORDValue", uValue=1)
    with Smtp(lab_host.smtp_port) as session:
        written = session.ask_to_relay()
    client.restart()
    with Smtp(lab_host.smtp_port) as session:
        restarted = session.ask_to_relay()
        accepted = session.say("RCPT TO:<anyone@lab.test>")
        unknown = session.say("NONSENSE")
    assert restarted.seconds >= 1.0
    assert unknown.seconds >= 1.0, "every 5xx waits"
    for prompt in (before, written, accepted, session.banner):
        assert prompt.seconds < restarted.seconds / 2

    client.registry("DeleteValue")
    client.restart()
    with Smtp(lab_host.smtp_port) as session:
        assert session.ask_to_relay().seconds < restarted.seconds / 2


def test_a_string_is_no_tarpit(lab_host: LabHost, client: WinRM) -> None:
    text = RegistryValue(REG_SZ, "20")
    lab_host.backend.write_value(HKEY_LOCAL_MACHINE, PARAMETERS, "TarpitTime", text)
    client.restart()
    with Smtp(lab_host.smtp_port) as session:
        assert session.ask_to_relay().seconds < 10


def test_stopping_does_not_wait_for_a_tarpit(lab_host: LabHost, client: WinRM) -> None:
    client.registry("SetDWORDValue", uValue=3600)
    client.restart()
    with Smtp(lab_host.smtp_port) as session:
        for line in ("EHLO probe.test", "MAIL FROM:<a@probe.test>"):
            assert session.say(line).code == 250
        session.socket.sendall(b"RCPT TO:<postmaster@relay-probe.invalid>\r\n")
        client.service("StopService")
        client.wait_for_state("Stopped")
        with pytest.raises(ConnectionError):
            session.say("NOOP")
    with pytest.raises(ConnectionRefusedError):
        Smtp(lab_host.smtp_port)


def test_the_port_survives_a_restart(lab_host: LabHost, client: WinRM) -> None:
    port = lab_host.smtp_port
    client.restart()
    assert lab_host.smtp_port == port
    with Smtp(port) as session:
        assert session.say("NOOP").code == 250


def test_reading_the_value_takes_no_time_while_a_client_waits(lab_host: LabHost, client: WinRM) -> None:
    client.registry("SetDWORDValue", uValue=20)
    client.restart()
    with Smtp(lab_host.smtp_port) as session:
        session.socket.sendall(b"NONSENSE\r\n")
        started = time.monotonic()
        assert client.registry("GetDWORDValue")["uValue"] == "20"
        assert time.monotonic() - started < 10
