# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that logs in to the lab's host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.contract.client import Account, WinRM
from lab.contract.exchange_client import Remote, connected
from lab.exchange_host import ExchangeHost
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


@pytest.fixture(scope="session")
def exchange_lab() -> Iterator[Lab]:
    """Two Exchange servers of one organisation, the first one on the lab's only host, and two accounts."""
    users = {"lab-admin": "Sesame-open-1", "lab-helper": "Sesame-open-2"}
    with Lab.start(smtpsvc=False, exchange=("EX01", "EX02"), users=users) as running:
        yield running


@pytest.fixture
def exchange_host(exchange_lab: Lab) -> LabHost:
    """The host: the organisation is as new, and the counters are at 0."""
    (host,) = exchange_lab.hosts
    host.reset()
    return host


@pytest.fixture
def exchange(exchange_host: LabHost) -> ExchangeHost:
    """Its Exchange."""
    assert exchange_host.exchange is not None
    return exchange_host.exchange


@pytest.fixture
def admin(exchange_lab: Lab) -> Account:
    """The account that may log in to it."""
    return Account(exchange_lab.username, exchange_lab.password)


@pytest.fixture
def remote(exchange_host: LabHost, admin: Account) -> Iterator[Remote]:
    """An open session over NTLM with encryption."""
    with connected(exchange_host, admin) as session:
        yield session
