# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""WinRS commands where the lab was told to play PowerShell: input in, a prepared answer out."""

from __future__ import annotations

import pytest
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader
from winrm.exceptions import WSManFaultError

from lab.contract.client import Account, FaultSeen, WinRM
from lab.hosts import LabHost

POWERSHELL = "PowerShell -NoProfile -EncodedCommand AAAA"
# More than two of the pieces that Ansible cuts input into.
LONG_INPUT = bytes(range(256)) * 2000


def test_a_command_prints_the_answer_once_its_input_has_ended(client: WinRM, lab_host: LabHost) -> None:
    lab_host.shells.expect(b'{"changed": true}\r\n')
    shell = client.protocol.open_shell()
    command = client.protocol.run_command(shell, POWERSHELL)
    client.protocol.send_command_input(shell, command, b"first")
    client.protocol.send_command_input(shell, command, b"last", end=True)
    assert client.protocol.get_command_output(shell, command) == (b'{"changed": true}\r\n', b"", 0)
    client.protocol.cleanup_command(shell, command)
    client.protocol.close_shell(shell)
    asked = ["Create", "Command", "Send", "Send", "Receive", "Signal", "Delete"]
    assert lab_host.traffic.journal == [f"Shell {action}" for action in asked]


def test_each_command_takes_the_next_answer_and_then_commands_are_refused(client: WinRM, lab_host: LabHost) -> None:
    lab_host.shells.expect(b"one", b"two")
    shell = client.protocol.open_shell()
    for answer, left in ((b"one", 1), (b"two", 0)):
        command = client.protocol.run_command(shell, POWERSHELL)
        client.protocol.send_command_input(shell, command, b"", end=True)
        assert client.protocol.get_command_output(shell, command)[0] == answer
        assert lab_host.shells.unused == left
    with pytest.raises(WSManFaultError) as raised:
        client.protocol.run_command(shell, POWERSHELL)
    assert FaultSeen.of(raised.value).subcode == "ActionNotSupported"


def test_a_host_that_was_reset_refuses_commands(client: WinRM, lab_host: LabHost) -> None:
    lab_host.shells.expect(b"one")
    lab_host.reset()
    shell = client.protocol.open_shell()
    with pytest.raises(WSManFaultError):
        client.protocol.run_command(shell, POWERSHELL)


def test_what_windows_would_not_understand_is_refused(client: WinRM, lab_host: LabHost) -> None:
    lab_host.shells.expect(b"one")
    shell = client.protocol.open_shell()
    command = client.protocol.run_command(shell, POWERSHELL)
    seen = []
    for act in (
        lambda: client.protocol.get_command_output(shell, command),  # its input has not ended
        lambda: client.protocol.get_command_output(shell, shell),  # no command
        lambda: client.protocol.cleanup_command(shell, shell),
        lambda: client.protocol.send_command_input(command, command, b""),  # no shell
        lambda: client.protocol.send_command_input(shell, command, b"", end=True),
        lambda: client.protocol.send_command_input(shell, command, b""),  # after the end
    ):
        try:
            act()
        except WSManFaultError as error:
            seen.append(FaultSeen.of(error).subcode)
        else:
            seen.append("")
    assert seen == [
        *("ActionNotSupported", "InvalidParameter", "InvalidParameter", "InvalidSelectors", "", "InvalidParameter"),
    ]


def test_a_command_is_gone_after_its_signal(client: WinRM, lab_host: LabHost) -> None:
    lab_host.shells.expect(b"one")
    shell = client.protocol.open_shell()
    command = client.protocol.run_command(shell, POWERSHELL)
    client.protocol.cleanup_command(shell, command)
    with pytest.raises(WSManFaultError):
        client.protocol.cleanup_command(shell, command)


@pytest.mark.parametrize("transport", ["basic", "ntlm"])
def test_ansible_runs_a_command(lab_host: LabHost, account: Account, transport: str) -> None:
    lab_host.shells.expect(b'{"changed": false}')
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
    assert connection.exec_command(POWERSHELL, in_data=LONG_INPUT) == (0, b'{"changed": false}', b"")
    connection.close()
    assert lab_host.traffic.journal.count("Shell Send") == 3
    assert lab_host.traffic.bytes_in > len(LONG_INPUT)
