# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lab`: how demos and playbooks start it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xmltodict  # type: ignore[import-untyped]
from winrm.protocol import Protocol

import lab
from lab.contract.client import GET, SERVICE, WMI
from lab.hosts import BackendName

TESTS = Path(lab.__file__).parents[1]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the program with a password in its environment and a temporary folder of its own."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "LAB_PASSWORD": "secret-Word-1", "TMPDIR": str(scratch)}
    started = contextlib.ExitStack()

    def run(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lab", "--user", "lab", "--password-env", "LAB_PASSWORD", *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=TESTS, env=environment, stdin=pipe, stderr=pipe)
        started.enter_context(process)
        started.callback(process.kill)
        return process

    with started:
        yield run


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for a state file; one of an earlier run is no JSON, and may vanish at any moment."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            state: dict[str, Any] = json.loads(path.read_text())
            return state
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def reaches(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGINT", "stdin"])
def test_it_runs_until_told_to_end_and_leaves_nothing(
    start: Start, tmp_path: Path, backend_name: BackendName, ending: str
) -> None:
    file = tmp_path / "state.json"
    file.write_text("of an earlier run, that was killed")
    process = start("--state-file", str(file), "--backend", backend_name, "--hosts", "2", "--until-stdin-closes")
    state = wait_for(file, process)
    assert (state["pid"], state["backend"], len(state["hosts"])) == (process.pid, backend_name, 2)
    ports = [host[name] for host in state["hosts"] for name in ("winrm_port", "smtp_port")]
    assert len(set(ports)) == 4
    assert all(map(reaches, ports))
    for host in state["hosts"]:
        assert (host["winrm_address"], host["pid"], host["backend"]) == ("127.0.0.1", process.pid, backend_name)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    if ending == "stdin":
        assert process.stdin is not None
        process.stdin.close()
    else:
        process.send_signal(signal.Signals[ending])
    assert process.wait(timeout=30) == 0
    assert not any(map(reaches, ports))
    assert not file.exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_host_without_smtpsvc(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    process = start("--state-file", str(file), "--no-smtpsvc")
    (host,) = wait_for(file, process)["hosts"]
    assert (host["smtp_port"], host["exchange"]) == (None, None)
    assert reaches(host["winrm_port"])


def test_a_host_with_exchange(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    process = start("--state-file", str(file), "--no-smtpsvc", "--exchange", "EX01, EX02")
    (host,) = wait_for(file, process)["hosts"]
    port = host["exchange"].pop("smtp_port")
    assert host["exchange"] == {"path": "/PowerShell/", "servers": ["EX01", "EX02"], "server": "EX01"}
    assert reaches(port)


@pytest.mark.parametrize("names", ["", "EX01,", "EX 01", "a-name-that-is-too-long"])
def test_no_names_of_servers(start: Start, tmp_path: Path, names: str) -> None:
    assert start("--state-file", str(tmp_path / "state.json"), "--exchange", names).wait(timeout=30) == 2


def test_a_host_with_https_dependents_and_another_windows(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    process = start("--state-file", str(file), "--https", "--dependents", "2", "--system", "2012 R2")
    (host,) = wait_for(file, process)["hosts"]
    assert host["winrm_scheme"] == "https"
    client = Protocol(
        f"https://127.0.0.1:{host['winrm_port']}/wsman",
        transport="ntlm",
        username="lab",
        password="secret-Word-1",
        ca_trust_path=host["ca_file"],
        proxy=None,
    )
    system = f"{WMI}/root/cimv2/Win32_OperatingSystem"
    for uri, selectors, words in (
        (system, {}, "Server 2012 R2"),
        (SERVICE, {"w:SelectorSet": {"w:Selector": {"@Name": "Name", "#text": "LabDependent2"}}}, "Running"),
    ):
        header: dict[str, Any] = client.build_wsman_header(GET, uri)
        header["env:Header"] |= selectors
        header["env:Body"] = {}
        assert words in str(client.send_message(xmltodict.unparse({"env:Envelope": header})))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--state-file", "x", "--dependents", "-1"], "must be from 0"),
        (["--state-file", "x", "--system", "95"], "invalid choice"),
        (["--state-file", "x", "--password-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set"),
        (["--state-file", "x", "--hosts", "0"], "must be 1 or more"),
        (["--state-file", "x", "--backend", "vmware"], "invalid choice"),
        ([], "--state-file"),
    ],
)
def test_wrong_usage_is_explained(start: Start, arguments: list[str], words: str) -> None:
    process = start(*arguments)
    _ignored, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words in said.decode()


def test_a_password_that_cannot_work_is_explained(start: Start, tmp_path: Path) -> None:
    process = start("--state-file", str(tmp_path / "state.json"), "--user", "a:b")
    _ignored, said = process.communicate(timeout=60)
    assert (process.returncode, said.decode().startswith("lab: cannot start:")) == (1, True)


def test_the_help_explains_the_state_file() -> None:
    command = [sys.executable, "-m", "lab", "--help"]
    told = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=60, check=True).stdout
    for word in ("--until-stdin-closes", "winrm_port", "smtp_port", "SIGTERM", "example:"):
        assert word in told
