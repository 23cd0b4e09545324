# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that logs in to the lab's host."""

from __future__ import annotations

import pytest

from lab.contract.client import Account, WinRM
from lab.hosts import Lab, LabHost


@pytest.fixture
def account(lab: Lab) -> Account:
    """The account that may log in."""
    return Account(lab.username, lab.password)


@pytest.fixture
def client(lab_host: LabHost, account: Account) -> WinRM:
    """A client over NTLM with encryption, the collection's usual way."""
    return WinRM(lab_host, account)
