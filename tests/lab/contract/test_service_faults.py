# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that accept a control and do not do it."""

from __future__ import annotations

import time

from lab.contract.client import WinRM
from lab.hosts import LabHost


def test_a_stop_that_never_ends(lab_host: LabHost, client: WinRM) -> None:
    before = client.get_service()["ProcessId"]
    lab_host.services.hang_stop("SMTPSVC")
    assert client.service("StopService") == {"ReturnValue": "0"}
    found = client.get_service()
    assert (found["State"], found["ProcessId"]) == ("Stop Pending", before)
    assert client.service("StopService") == {"ReturnValue": "5"}
    assert client.service("StartService") == {"ReturnValue": "10"}
    lab_host.services.finish("SMTPSVC")
    client.wait_for_state("Stopped")
    assert client.service("StartService") == {"ReturnValue": "0"}
    client.wait_for_state("Running")


def test_a_stop_that_takes_its_time(lab_host: LabHost, client: WinRM) -> None:
    lab_host.services.hang_stop("smtpsvc", seconds=0.3)
    started = time.monotonic()
    client.service("StopService")
    assert client.get_service()["State"] == "Stop Pending"
    client.wait_for_state("Stopped")
    assert time.monotonic() - started >= 0.3


def test_a_start_that_fails(lab_host: LabHost, client: WinRM) -> None:
    lab_host.services.fail_start("SMTPSVC", times=2)
    client.service("StopService")
    client.wait_for_state("Stopped")
    for _attempt in range(2):
        assert client.service("StartService") == {"ReturnValue": "0"}
        found = client.wait_for_state("Stopped")
        assert (found["ExitCode"], found["ProcessId"]) == ("1067", "0")
    assert client.service("StartService") == {"ReturnValue": "0"}
    assert client.wait_for_state("Running")["ExitCode"] == "0"


def test_a_start_that_fails_late(lab_host: LabHost, client: WinRM) -> None:
    lab_host.services.fail_start("SMTPSVC", seconds=0.3)
    client.service("StopService")
    client.wait_for_state("Stopped")
    client.service("StartService")
    assert client.get_service()["State"] == "Start Pending"
    assert client.wait_for_state("Stopped")["ExitCode"] == "1067"


def test_a_disabled_service_is_not_even_tried(lab_host: LabHost, client: WinRM) -> None:
    lab_host.services.fail_start("SMTPSVC")
    client.service("ChangeStartMode", StartMode="Disabled")
    client.service("StopService")
    client.wait_for_state("Stopped")
    assert client.service("StartService") == {"ReturnValue": "14"}
