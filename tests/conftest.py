# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One lab per backend and test process; each test finds its host as if it had just been set up."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab import kdc, wine
from lab.hosts import BACKENDS, BackendName, Lab, LabHost
from lab.kdc import DOMAIN_USER, Kdc


@pytest.fixture(scope="session", params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> BackendName:
    """Each backend in turn. Without Wine its tests are skipped, but not in CI, where all must be shown."""
    name: BackendName = request.param
    if name == "wine":
        _need("the wine backend", wine.missing())
    return name


def _need(what: str, packages: list[str]) -> None:
    if packages:
        reason = f"{what} needs these packages: {', '.join(packages)}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; in CI nothing is left out")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kdc]:
    """A Kerberos realm with one user."""
    _need("Kerberos", kdc.missing())
    user, password = DOMAIN_USER
    with Kdc.start(tmp_path_factory.mktemp("realm"), users={user: password}) as running:
        yield running


@pytest.fixture(scope="session")
def domain_lab(realm: Kdc) -> Iterator[Lab]:
    """A lab of one host in that realm."""
    with Lab.start(kerberos=realm) as running:
        yield running


@pytest.fixture(scope="session")
def lab(backend_name: BackendName) -> Iterator[Lab]:
    """A lab of one host with SMTPSVC."""
    with Lab.start(backend=backend_name) as running:
        yield running


@pytest.fixture
def lab_host(lab: Lab) -> LabHost:
    """The host: SMTPSVC runs, was started without a TarpitTime, and the counters are at 0."""
    (host,) = lab.hosts
    host.reset()
    return host
