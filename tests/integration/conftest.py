# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller for each test, and the inventory of the lab's host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.hosts import Lab, LabHost
from tools.ansible_runs import Controller, one_windows_host
from tools.exchange_site import Site


@pytest.fixture(scope="session")
def memory_lab() -> Iterator[Lab]:
    with Lab.start(backend="memory") as running:
        yield running


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


@pytest.fixture
def win01(lab_host: LabHost) -> LabHost:
    """The lab's host, by the name that the inventory gives it."""
    return lab_host


@pytest.fixture(params=["winrm", "psrp"])
def inventory(request: pytest.FixtureRequest, lab: Lab, win01: LabHost, tmp_path: Path) -> Path:
    """The inventory of the lab's host, by the name win01 and each of the two connections."""
    return one_windows_host(tmp_path, win01, lab.username, request.param)


@pytest.fixture(scope="session")
def exchange_lab() -> Iterator[Lab]:
    """The Exchange server EX01, which speaks for EX02 of its organisation too."""
    with Lab.start(smtpsvc=False, exchange=("EX01", "EX02")) as running:
        yield running


@pytest.fixture
def exchange_host(exchange_lab: Lab) -> LabHost:
    """That host, as if it had just been set up."""
    (only,) = exchange_lab.hosts
    only.reset()
    return only


@pytest.fixture
def site(controller: Controller, exchange_lab: Lab, exchange_host: LabHost, tmp_path: Path) -> Site:
    return Site(controller, exchange_lab, exchange_host, tmp_path)
