# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only Wine hosts can get wrong: processes and files that outlive a host, and a helper that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.backend import (
    ERROR_INTERNAL_ERROR,
    HKEY_LOCAL_MACHINE,
    RPC_S_SERVER_UNAVAILABLE,
    SMTPSVC,
    Win32Error,
)
from lab.windows import helper
from lab.windows import prefix as prefixes
from lab.windows import programs as found
from lab.windows.helper import Helper
from lab.wine import WineBackend, WineError, missing

TESTS = Path(__file__).resolve().parents[2]
KEY = r"SOFTWARE\NoSuchKey"


@pytest.fixture(scope="module", autouse=True)
def _wine() -> None:
    if packages := missing():
        reason = f"the wine backend needs these Debian packages: {' '.join(packages)}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; in CI nothing is left out")
        pytest.skip(reason)


def processes_of(folder: Path) -> list[int]:
    """The processes that live in a Wine prefix below that folder."""
    mark = f"WINEPREFIX={folder.resolve()}/".encode()
    numbers = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if any(word.startswith(mark) for word in (entry / "environ").read_bytes().split(b"\0")):
                numbers.append(int(entry.name))
        except OSError:
            continue
    return numbers


def await_no_process_of(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while left := processes_of(folder):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def test_a_host_leaves_nothing_behind_but_what_the_caller_had(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    backend = WineBackend(tmp_path)
    assert processes_of(tmp_path)
    backend.close()
    backend.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]
    await_no_process_of(tmp_path)


def test_a_host_does_not_write_into_the_pristine_prefix(tmp_path: Path) -> None:
    pristine = prefixes.pristine_prefix(found.find())

    def times() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in pristine.rglob("*")}

    before = times()
    WineBackend(tmp_path).close()
    assert times() == before


def test_a_folder_takes_one_host(tmp_path: Path) -> None:
    (tmp_path / "prefix").mkdir()
    with pytest.raises(WineError, match="a folder of its own"):
        WineBackend(tmp_path, smtpsvc=False)
    assert (tmp_path / "prefix").is_dir()


def test_the_host_goes_down_when_its_lab_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time; from lab.wine import WineBackend; "
        "backend = WineBackend(pathlib.Path(sys.argv[1])); print('up', flush=True); time.sleep(300)"
    )
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env=env) as lab:
        assert lab.stdout is not None
        assert lab.stdout.readline() == b"up\n"
        assert processes_of(tmp_path)
        lab.kill()
    try:
        await_no_process_of(tmp_path)
    finally:
        prefixes.end_processes(found.find(), tmp_path / "prefix")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_helper_that_died_or_hangs_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    backend = WineBackend(tmp_path, smtpsvc=False)
    monkeypatch.setattr(helper, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(helper, "END_SECONDS", 0.5)
    try:
        with pytest.raises(Win32Error):
            backend.read_value(HKEY_LOCAL_MACHINE, KEY, "N")
        os.kill(backend._helper._process.pid, number)
        for _n in range(2):
            with pytest.raises(WineError, match=r"the helper in Wine (ended|did not answer)"):
                backend.read_value(HKEY_LOCAL_MACHINE, KEY, "N")
    finally:
        backend.close()
    await_no_process_of(tmp_path)


def test_a_host_whose_service_manager_does_not_come_is_booted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def ask(self: Helper, verb: str, *arguments: int | str | bytes) -> list[str]:
        asked.append(self._process.pid)
        if len(asked) == 1:
            raise Win32Error(RPC_S_SERVER_UNAVAILABLE, "OpenSCManager")
        return really_ask(self, verb, *arguments)

    really_ask = Helper.ask
    monkeypatch.setattr(Helper, "ask", ask)
    backend = WineBackend(tmp_path)
    try:
        assert backend.service_status(SMTPSVC).state == "Running"
        first, *others = asked
        assert first not in others
    finally:
        backend.close()
    await_no_process_of(tmp_path)


@pytest.mark.parametrize(("ended_early", "started"), [(1, True), (2, True), (3, False)])
def test_a_service_whose_process_ends_before_its_first_word_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_early: int, started: bool
) -> None:
    backend = WineBackend(tmp_path)
    try:
        backend.stop_service(SMTPSVC)
        backend._wait_for(SMTPSVC, "Stopped", 30)
        left = ended_early

        def ask(self: Helper, verb: str, *arguments: int | str | bytes) -> list[str]:
            nonlocal left
            if verb == "start" and left > 0:
                left -= 1
                raise Win32Error(ERROR_INTERNAL_ERROR, "StartService")
            return really_ask(self, verb, *arguments)

        really_ask = Helper.ask
        monkeypatch.setattr(Helper, "ask", ask)
        if started:
            backend.start_service(SMTPSVC)
            backend._wait_for(SMTPSVC, "Running", 30)
        else:
            with pytest.raises(Win32Error, match="1359"):
                backend.start_service(SMTPSVC)
        assert left == 0
    finally:
        backend.close()


def test_a_wineserver_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "END_SECONDS", 1.0)
    monkeypatch.setattr(helper, "END_SECONDS", 1.0)
    backend = WineBackend(tmp_path, smtpsvc=False)
    (server,) = [
        number for number in processes_of(tmp_path) if b"wineserver" in Path(f"/proc/{number}/cmdline").read_bytes()
    ]
    os.kill(server, signal.SIGSTOP)
    backend.close()
    await_no_process_of(tmp_path)


def test_the_helper_refuses_what_is_not_its_protocol(tmp_path: Path) -> None:
    # One program a test: a mistake in the protocol ends the conversation.
    programs = found.find()
    backend = WineBackend(tmp_path, smtpsvc=False)
    try:
        env = found.environment(programs, tmp_path / "prefix")
        command = [programs.wine, f"C:\\{prefixes.PROGRAM_FOLDER}\\{prefixes.HELPER}"]
        for request in (["read", "1"], ["read", "1", "2", "3"], ["status", b"", "x"], ["sing"], ["mode", 1, 2]):
            verb, *arguments = request
            another = Helper(command, env, tmp_path / "another.log")
            try:
                with pytest.raises(WineError, match="malformed"):
                    another.ask(str(verb), *arguments)
            finally:
                another.close()
    finally:
        backend.close()
