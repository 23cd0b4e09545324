# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Win32_Service's return codes and states, and how long they are waited for."""

from __future__ import annotations

import pytest
from ansible_collections.mailops.tarpit.plugins.plugin_utils._service import (
    ServiceControl,
    ServiceError,
    ServiceState,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._wsman import CimFault, CimSession
from unit.fake_host import ScriptedTransport, fault, output, service

STOP, START = "StopService", "StartService"


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def control(*script: tuple[int, str]) -> ServiceControl:
    time = Time()
    return ServiceControl(CimSession(ScriptedTransport(script)), clock=time, sleep=time.sleep)


def test_query() -> None:
    assert control(service("Running", 12)).query("SMTPSVC") == ServiceState("SMTPSVC", "Running", "Auto", 12)


def test_only_wmis_own_word_means_that_the_service_is_missing() -> None:
    assert control(fault(2150858752, 'Win32_Service.Name="SMTPSVC"')).query("smtpsvc") is None
    for other in (fault(2150858752), fault(2150858752, "Win32_Nothing"), fault(2150859012, "SMTPSVC")):
        with pytest.raises(CimFault):
            control(other).query("SMTPSVC")


@pytest.mark.parametrize("code", [0, 5, 6, 7])
def test_stop_waits_until_it_has_stopped(code: int) -> None:
    control(output(STOP, ReturnValue=code), service("Running"), service("Stop Pending"), service("Stopped", 0)).stop(
        "SMTPSVC", 60
    )


@pytest.mark.parametrize("code", [0, 7, 10])
def test_start_waits_until_it_runs(code: int) -> None:
    control(output(START, ReturnValue=code), service("Start Pending"), service("Running")).start("SMTPSVC", 60)


@pytest.mark.parametrize(
    ("code", "words"),
    [(2, "access denied"), (3, "depend"), (14, "disabled"), (24, "paused"), (77, "not document")],
)
def test_a_refusal_has_its_number_and_meaning(code: int, words: str) -> None:
    with pytest.raises(ServiceError, match=rf"refused to start .*{words}.*\(Win32_Service returned {code}\)") as caught:
        control(output(START, ReturnValue=code)).start("SMTPSVC", 60)
    assert caught.value.code == code


def test_a_stop_that_hangs_ends_with_the_timeout() -> None:
    script = [output(STOP, ReturnValue=0)] + [service("Stop Pending")] * 50
    with pytest.raises(ServiceError, match="Stop Pending and not Stopped after 10 seconds"):
        control(*script).stop("SMTPSVC", 10)


def test_a_service_that_dies_at_its_start_is_not_waited_for() -> None:
    with pytest.raises(ServiceError, match="stopped again"):
        control(output(START, ReturnValue=0), service("Start Pending"), service("Stopped")).start("SMTPSVC", 60)


def test_a_pending_state_is_waited_for() -> None:
    found = ServiceState("SMTPSVC", "Start Pending", "Auto", 0)
    assert control(service("Start Pending"), service("Running")).settle(found, 60).state == "Running"
    running = ServiceState("SMTPSVC", "Running", "Auto", 1)
    assert control().settle(running, 60) is running
