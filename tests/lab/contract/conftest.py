# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that logs in to the lab's host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.contract.client import Account, WinRM
from lab.hosts import BackendName, Lab, LabHost


@pytest.fixture
def account(lab: Lab) -> Account:
    """The account that may log in."""
    return Account(lab.username, lab.password)


@pytest.fixture
def client(lab_host: LabHost, account: Account) -> WinRM:
    """A client over NTLM with encryption, the collection's usual way."""
    return WinRM(lab_host, account)


@pytest.fixture(scope="session")
def crowded_lab(backend_name: BackendName) -> Iterator[Lab]:
    """A lab of one host on which two services depend on SMTPSVC."""
    with Lab.start(backend=backend_name, dependents=2) as running:
        yield running


@pytest.fixture
def crowded_host(crowded_lab: Lab) -> LabHost:
    """The host: all three run, and the counters are at 0."""
    (host,) = crowded_lab.hosts
    host.reset()
    return host


@pytest.fixture
def crowded_client(crowded_lab: Lab, crowded_host: LabHost) -> WinRM:
    """A client of it."""
    return WinRM(crowded_host, Account(crowded_lab.username, crowded_lab.password))
