# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One lab per backend and test process; each test finds its host as if it had just been set up."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lab.hosts import BACKENDS, BackendName, Lab, LabHost
from lab.wine import missing


@pytest.fixture(scope="session", params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> BackendName:
    """Each backend in turn. Without Wine its tests are skipped, but not in CI, where all must be shown."""
    name: BackendName = request.param
    if name == "wine" and (packages := missing()):
        reason = f"the wine backend needs these Debian packages: {' '.join(packages)}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; in CI nothing is left out")
        pytest.skip(reason)
    return name


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
