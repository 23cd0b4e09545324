# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""WinRS shells: what Ansible's winrm connection needs to connect, and no more."""

from __future__ import annotations

import uuid

import pytest
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader
from winrm.exceptions import WSManFaultError

from lab.contract.client import Account, FaultSeen, WinRM
from lab.hosts import LabHost


def test_a_shell_opens_and_closes(client: WinRM, lab_host: LabHost) -> None:
    shell = client.protocol.open_shell(codepage=65001)
    assert uuid.UUID(shell)
    client.protocol.close_shell(shell)
    assert lab_host.traffic.journal == ["Shell Create", "Shell Delete"]


def test_a_shell_closes_once(client: WinRM) -> None:
    shell = client.protocol.open_shell()
    client.protocol.close_shell(shell, close_session=False)
    with pytest.raises(WSManFaultError) as raised:
        client.protocol.close_shell(shell)
    assert FaultSeen.of(raised.value) == FaultSeen(2150858843, "InvalidSelectors", None)


def test_a_shell_runs_nothing(client: WinRM) -> None:
    shell = client.protocol.open_shell()
    with pytest.raises(WSManFaultError) as raised:
        client.protocol.run_command(shell, "whoami")
    assert FaultSeen.of(raised.value).subcode == "ActionNotSupported"
    client.protocol.close_shell(shell)


@pytest.mark.parametrize("transport", ["basic", "ntlm"])
def test_ansible_connects(lab_host: LabHost, account: Account, transport: str) -> None:
    connection = connection_loader.get("winrm", PlayContext())
    options = {
        "remote_addr": lab_host.address,
        "remote_user": account.name,
        "remote_password": account.password,
        "port": lab_host.winrm_port,
        "scheme": "http",
        "transport": [transport],
    }
    connection.set_options(var_options={"_extras": {}}, direct=options)
    connection._connect()
    assert connection.shell_id or connection.protocol
    connection.close()
    assert lab_host.traffic.journal == ["Shell Create", "Shell Delete"]
