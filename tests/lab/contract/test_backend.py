# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What both backends promise (lab/backend.py), asked of each without WinRM in between.

A refusal is compared as the pair that Windows gives: error number and failing call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from lab.backend import (
    ERROR_FILE_NOT_FOUND,
    ERROR_INVALID_HANDLE,
    ERROR_SERVICE_ALREADY_RUNNING,
    ERROR_SERVICE_DISABLED,
    ERROR_SERVICE_DOES_NOT_EXIST,
    ERROR_SERVICE_NOT_ACTIVE,
    HKEY_LOCAL_MACHINE,
    REG_DWORD,
    REG_SZ,
    Backend,
    RegistryValue,
    Win32Error,
)
from lab.contract.client import PARAMETERS, Smtp
from lab.hosts import LabHost
from lab.memory import MemoryBackend

KEY: Final = r"SOFTWARE\Contract"
MISSING_KEY: Final = r"SOFTWARE\NoSuchKey\Below"
NUMBER: Final = RegistryValue(REG_DWORD, 7)
ERROR_INVALID_PARAMETER: Final = 87
ERROR_BAD_PATHNAME: Final = 161
NO_HIVE: Final = 1


@pytest.fixture
def windows(lab_host: LabHost) -> Backend:
    """A host whose SMTPSVC runs without a TarpitTime, with an empty key for the test to use."""
    lab_host.backend.create_key(HKEY_LOCAL_MACHINE, KEY)
    return lab_host.backend


MakeBackend = Callable[[bool], Backend]


@pytest.fixture
def make_another(lab_host: LabHost, tmp_path: Path) -> Iterator[MakeBackend]:
    """Make one more host of the same kind, with SMTPSVC or without."""
    with ExitStack() as cleanup:

        def make(smtpsvc: bool) -> Backend:
            backend = _make(lab_host.backend_name, tmp_path, smtpsvc)
            cleanup.callback(backend.close)
            return backend

        yield make


def _make(name: str, folder: Path, smtpsvc: bool) -> Backend:
    if name == "memory":
        return MemoryBackend(smtpsvc=smtpsvc)
    from lab.wine import WineBackend

    return WineBackend(folder, smtpsvc=smtpsvc)


def refusal(call: Callable[..., object], *arguments: object) -> tuple[int, str]:
    with pytest.raises(Win32Error) as raised:
        call(*arguments)
    return raised.value.code, raised.value.call


def await_state(windows: Backend, wanted: str) -> None:
    deadline = time.monotonic() + 30
    while (state := windows.service_status("SMTPSVC").state) != wanted:
        assert time.monotonic() < deadline, f"SMTPSVC is {state}, not {wanted}"
        time.sleep(0.005)


def stop(windows: Backend) -> None:
    windows.stop_service("SMTPSVC")
    await_state(windows, "Stopped")


def restart(windows: Backend) -> None:
    stop(windows)
    windows.start_service("SMTPSVC")
    await_state(windows, "Running")


# -- registry --


def test_a_missing_key_is_told_from_a_missing_value(windows: Backend) -> None:
    missing_key = (ERROR_FILE_NOT_FOUND, "RegOpenKeyEx")
    assert refusal(windows.read_value, HKEY_LOCAL_MACHINE, MISSING_KEY, "N") == missing_key
    assert refusal(windows.write_value, HKEY_LOCAL_MACHINE, MISSING_KEY, "N", NUMBER) == missing_key
    assert refusal(windows.delete_value, HKEY_LOCAL_MACHINE, MISSING_KEY, "N") == missing_key
    assert refusal(windows.read_value, HKEY_LOCAL_MACHINE, KEY, "NoSuchValue") == (
        ERROR_FILE_NOT_FOUND,
        "RegQueryValueEx",
    )
    assert refusal(windows.delete_value, HKEY_LOCAL_MACHINE, KEY, "NoSuchValue") == (
        ERROR_FILE_NOT_FOUND,
        "RegDeleteValue",
    )


def test_a_write_creates_no_key(windows: Backend) -> None:
    refusal(windows.write_value, HKEY_LOCAL_MACHINE, MISSING_KEY, "N", NUMBER)
    assert refusal(windows.read_value, HKEY_LOCAL_MACHINE, MISSING_KEY, "N")[1] == "RegOpenKeyEx"


def test_bad_hives_and_paths(windows: Backend) -> None:
    rooted = "\\" + KEY
    assert refusal(windows.read_value, NO_HIVE, KEY, "N") == (ERROR_INVALID_HANDLE, "RegOpenKeyEx")
    assert refusal(windows.create_key, NO_HIVE, KEY) == (ERROR_INVALID_HANDLE, "RegCreateKeyEx")
    assert refusal(windows.read_value, HKEY_LOCAL_MACHINE, rooted, "N") == (
        ERROR_BAD_PATHNAME,
        "RegOpenKeyEx",
    )


@pytest.mark.parametrize(
    "value",
    [
        RegistryValue(REG_DWORD, 0),
        RegistryValue(REG_DWORD, 30),
        RegistryValue(REG_DWORD, 2**32 - 1),
        RegistryValue(REG_SZ, ""),
        RegistryValue(REG_SZ, "thirty"),
        RegistryValue(REG_SZ, 'two words, "quoted"\tÜ€\r\n😀'),
        RegistryValue(REG_SZ, "long " * 10000),
    ],
    ids=lambda value: f"{value.type}-{str(value.data)[:6]!a}",
)
def test_what_was_written_is_read(windows: Backend, value: RegistryValue) -> None:
    windows.write_value(HKEY_LOCAL_MACHINE, KEY, "Written", value)
    assert windows.read_value(HKEY_LOCAL_MACHINE, KEY, "Written") == value


def test_a_write_replaces_the_type_too(windows: Backend) -> None:
    text = RegistryValue(REG_SZ, "7")
    for value in (NUMBER, text, NUMBER):
        windows.write_value(HKEY_LOCAL_MACHINE, KEY, "Changing", value)
        assert windows.read_value(HKEY_LOCAL_MACHINE, KEY, "Changing") == value


def test_keys_and_names_ignore_case(windows: Backend) -> None:
    windows.write_value(HKEY_LOCAL_MACHINE, KEY.upper(), "tarpittime", NUMBER)
    assert windows.read_value(HKEY_LOCAL_MACHINE, KEY.lower(), "TarpitTime") == NUMBER
    windows.delete_value(HKEY_LOCAL_MACHINE, KEY, "TARPITTIME")
    assert refusal(windows.read_value, HKEY_LOCAL_MACHINE, KEY, "tarpittime")[0] == ERROR_FILE_NOT_FOUND


def test_a_key_is_made_with_its_parents_and_kept_when_made_again(windows: Backend) -> None:
    deep = KEY + r"\One\Two"
    windows.create_key(HKEY_LOCAL_MACHINE, deep)
    windows.write_value(HKEY_LOCAL_MACHINE, KEY + r"\One", "Parent", NUMBER)
    windows.write_value(HKEY_LOCAL_MACHINE, deep, "Kept", NUMBER)
    windows.create_key(HKEY_LOCAL_MACHINE, deep)
    assert windows.read_value(HKEY_LOCAL_MACHINE, deep, "Kept") == NUMBER


# -- services --


def test_a_service_that_is_not_there(windows: Backend) -> None:
    no_service = (ERROR_SERVICE_DOES_NOT_EXIST, "OpenService")
    assert refusal(windows.service_status, "NoSuchService") == no_service
    assert refusal(windows.start_service, "NoSuchService") == no_service
    assert refusal(windows.stop_service, "NoSuchService") == no_service
    assert refusal(windows.change_start_mode, "NoSuchService", "Manual") == no_service


def test_status_has_the_services_own_name(windows: Backend) -> None:
    status = windows.service_status("smtpsvc")
    assert (status.name, status.display_name) == ("SMTPSVC", "Simple Mail Transfer Protocol (SMTP)")
    assert (status.state, status.start_mode) == ("Running", "Auto")
    assert status.process_id > 0


def test_stop_and_start(windows: Backend) -> None:
    first = windows.service_status("SMTPSVC").process_id
    assert refusal(windows.start_service, "SMTPSVC") == (ERROR_SERVICE_ALREADY_RUNNING, "StartService")
    stop(windows)
    assert windows.service_status("SMTPSVC").process_id == 0
    assert refusal(windows.stop_service, "SMTPSVC") == (ERROR_SERVICE_NOT_ACTIVE, "ControlService")
    windows.start_service("smtpsvc")
    await_state(windows, "Running")
    assert windows.service_status("SMTPSVC").process_id not in (0, first)


@pytest.mark.parametrize(("mode", "told"), [("Automatic", "Auto"), ("Manual", "Manual"), ("Disabled", "Disabled")])
def test_start_modes(windows: Backend, mode: str, told: str) -> None:
    windows.change_start_mode("SMTPSVC", mode)
    status = windows.service_status("SMTPSVC")
    assert (status.start_mode, status.state) == (told, "Running")


def test_a_mode_that_windows_does_not_know(windows: Backend) -> None:
    invalid = (ERROR_INVALID_PARAMETER, "ChangeServiceConfig")
    assert refusal(windows.change_start_mode, "SMTPSVC", "Sometimes") == invalid
    assert windows.service_status("SMTPSVC").start_mode == "Auto"


def test_a_disabled_service_can_be_stopped_but_not_started(windows: Backend) -> None:
    windows.change_start_mode("SMTPSVC", "Disabled")
    stop(windows)
    assert refusal(windows.start_service, "SMTPSVC") == (ERROR_SERVICE_DISABLED, "StartService")
    assert windows.service_status("SMTPSVC").state == "Stopped"
    windows.change_start_mode("SMTPSVC", "Manual")
    windows.start_service("SMTPSVC")
    await_state(windows, "Running")


# -- SMTPSVC, seen from outside --


def set_tarpit(windows: Backend, value: RegistryValue) -> None:
    windows.write_value(HKEY_LOCAL_MACHINE, PARAMETERS, "TarpitTime", value)


def relay_seconds(windows: Backend) -> float:
    with Smtp(windows.smtp_port) as session:
        refused = session.ask_to_relay()
    assert refused.text == "550 5.7.1 Unable to relay for postmaster@relay-probe.invalid"
    return refused.seconds


def test_a_conversation(windows: Backend) -> None:
    with Smtp(windows.smtp_port) as session:
        assert session.banner.text == "220 lab Microsoft ESMTP MAIL Service ready"
        replies = {
            "RCPT TO:<anyone@lab.test>": "503 5.5.2 Need mail command.",
            "MAIL FROM:<a@probe.test>": "503 5.5.2 Send hello first",
            "HELO": "501 5.5.4 Invalid domain name",
            "helo probe.test": "250 lab Hello",
            "MAIL FROM:a@probe.test": "501 5.5.4 Invalid Address",
            "mail from: <> SIZE=100": "250 2.1.0 ....Sender OK",
            "DATA": "503 5.5.2 Need Rcpt command.",
            "RCPT TO:<>": "501 5.5.4 Invalid Address",
            "RCPT TO:<anyone@not-lab.test>": "550 5.7.1 Unable to relay for anyone@not-lab.test",
            "RCPT TO:<Anyone@LAB.test>": "250 2.1.5 Anyone@LAB.test",
            "data": "354 Start mail input; end with <CRLF>.<CRLF>",
        }
        assert {line: session.say(line).text for line in replies} == replies
        assert session.say("Subject: x\r\n\r\nQUIT\r\n..\r\n.").code == 250
        assert session.say("DATA").code == 503, "the message ended the transaction"
        assert [session.say(line).code for line in ("RSET", "NOOP", "VRFY x", "NONSENSE")] == [
            250,
            250,
            252,
            500,
        ]
        assert session.say("EHLO probe.test").text.splitlines()[0] == "250-lab Hello"
        assert session.say("QUIT").code == 221
        with pytest.raises(ConnectionError):
            session.say("NOOP")


def test_a_line_without_end_ends_the_session(windows: Backend) -> None:
    with Smtp(windows.smtp_port) as session, pytest.raises(ConnectionError):
        session.say("X" * 100_000)
    assert relay_seconds(windows) < 10


def test_the_tarpit_counts_from_the_next_start_on(windows: Backend) -> None:
    before = relay_seconds(windows)
    set_tarpit(windows, RegistryValue(REG_DWORD, 1))
    written = relay_seconds(windows)
    restart(windows)
    held_back = relay_seconds(windows)
    with Smtp(windows.smtp_port) as session:
        others = [session.banner, *(session.say(line) for line in ("EHLO a.test", "VRFY x", "NOOP"))]
    windows.delete_value(HKEY_LOCAL_MACHINE, PARAMETERS, "TarpitTime")
    deleted = relay_seconds(windows)
    restart(windows)
    after = relay_seconds(windows)
    assert held_back >= 1.0
    assert deleted >= 1.0
    for prompt in (before, written, after, *(reply.seconds for reply in others)):
        assert prompt < held_back / 2


def test_a_string_is_no_tarpit(windows: Backend) -> None:
    set_tarpit(windows, RegistryValue(REG_SZ, "20"))
    restart(windows)
    assert relay_seconds(windows) < 10


def test_sessions_wait_side_by_side(windows: Backend) -> None:
    set_tarpit(windows, RegistryValue(REG_DWORD, 1))
    restart(windows)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        each = list(pool.map(lambda _: relay_seconds(windows), range(8)))
    assert min(each) >= 1.0
    assert time.monotonic() - started < sum(each) / 2


def test_a_stop_ends_sessions_that_wait(windows: Backend) -> None:
    set_tarpit(windows, RegistryValue(REG_DWORD, 2**32 - 1))
    restart(windows)
    with Smtp(windows.smtp_port) as held_back, Smtp(windows.smtp_port) as silent:
        held_back.socket.sendall(b"NONSENSE\r\n")
        time.sleep(0.05)  # it has to arrive; where it did not, the test shows less and still holds
        stop(windows)
        for session in (held_back, silent):
            with pytest.raises(ConnectionError):
                session.say("NOOP")
    with pytest.raises(ConnectionRefusedError):
        Smtp(windows.smtp_port)


def test_the_port_stays_the_same_right_after_traffic(windows: Backend) -> None:
    port = windows.smtp_port
    for _n in range(3):
        # One session that the server has to close, one that the client closed, one refused.
        with Smtp(port) as open_session:
            relay_seconds(windows)
            open_session.socket.sendall(b"NONSENSE\r\n")
            restart(windows)
        assert windows.smtp_port == port
        assert relay_seconds(windows) < 10


# -- the backend as a whole --


def test_calls_from_many_threads_do_not_mix(windows: Backend) -> None:
    def write_and_read(number: int) -> None:
        name, value = f"Thread{number}", RegistryValue(REG_DWORD, number)
        for _n in range(20):
            windows.write_value(HKEY_LOCAL_MACHINE, KEY, name, value)
            assert windows.read_value(HKEY_LOCAL_MACHINE, KEY, name) == value
            refusal(windows.read_value, HKEY_LOCAL_MACHINE, KEY, f"No{name}")
        assert windows.service_status("SMTPSVC").state == "Running"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_and_read, range(8)))


def test_two_hosts_do_not_see_each_other(windows: Backend, make_another: MakeBackend) -> None:
    another = make_another(True)
    assert another.smtp_port not in (0, windows.smtp_port)
    set_tarpit(another, NUMBER)
    assert refusal(windows.read_value, HKEY_LOCAL_MACHINE, PARAMETERS, "TarpitTime")[0] == 2
    stop(another)
    another.change_start_mode("SMTPSVC", "Disabled")
    status = windows.service_status("SMTPSVC")
    assert (status.state, status.start_mode) == ("Running", "Auto")
    another.close()
    assert relay_seconds(windows) < 10


def test_a_host_without_smtpsvc(make_another: MakeBackend) -> None:
    bare = make_another(False)
    assert bare.smtp_port == 0
    assert refusal(bare.service_status, "SMTPSVC") == (ERROR_SERVICE_DOES_NOT_EXIST, "OpenService")
    assert refusal(bare.read_value, HKEY_LOCAL_MACHINE, PARAMETERS, "TarpitTime") == (
        ERROR_FILE_NOT_FOUND,
        "RegOpenKeyEx",
    )
