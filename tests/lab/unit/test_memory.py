# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lab.backend import HKEY_LOCAL_MACHINE as HKLM
from lab.backend import REG_DWORD, REG_SZ, SMTPSVC_PARAMETERS, Backend, RegistryValue, Win32Error
from lab.memory import MemoryBackend


@pytest.fixture
def bare() -> Iterator[MemoryBackend]:
    """A host without SMTPSVC."""
    backend = MemoryBackend(smtpsvc=False)
    yield backend
    backend.close()


@pytest.fixture
def host() -> Iterator[MemoryBackend]:
    """A host with it."""
    backend = MemoryBackend()
    yield backend
    backend.close()


ONE = RegistryValue(REG_DWORD, 1)
MISSING = r"SOFTWARE\no\such"
Call = Callable[[MemoryBackend], object]


def error_of(backend: MemoryBackend, act: Call) -> tuple[int, str]:
    with pytest.raises(Win32Error) as raised:
        act(backend)
    return raised.value.code, raised.value.call


def wait(backend: Backend, state: str) -> None:
    deadline = time.monotonic() + 30
    while (found := backend.service_status("SMTPSVC").state) != state:
        assert time.monotonic() < deadline, f"{found}, not {state}"
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda b: b.read_value(HKLM, MISSING, "v"), (2, "RegOpenKeyEx")),
        (lambda b: b.read_value(HKLM, "SOFTWARE", "v"), (2, "RegQueryValueEx")),
        (lambda b: b.write_value(HKLM, MISSING, "v", ONE), (2, "RegOpenKeyEx")),
        (lambda b: b.delete_value(HKLM, MISSING, "v"), (2, "RegOpenKeyEx")),
        (lambda b: b.delete_value(HKLM, "SOFTWARE", "v"), (2, "RegDeleteValue")),
        (lambda b: b.read_value(1, "SOFTWARE", "v"), (6, "RegOpenKeyEx")),
        (lambda b: b.create_key(1, "SOFTWARE"), (6, "RegCreateKeyEx")),
        (lambda b: b.read_value(HKLM, r"\SOFTWARE", "v"), (161, "RegOpenKeyEx")),
        (lambda b: b.read_value(HKLM, SMTPSVC_PARAMETERS, "TarpitTime"), (2, "RegOpenKeyEx")),
        (lambda b: b.service_status("SMTPSVC"), (1060, "OpenService")),
        (lambda b: b.stop_service("SMTPSVC"), (1060, "OpenService")),
        (lambda b: b.start_service("SMTPSVC"), (1060, "OpenService")),
        (lambda b: b.change_start_mode("SMTPSVC", "Manual"), (1060, "OpenService")),
    ],
)
def test_errors_of_a_host_without_smtpsvc(bare: MemoryBackend, act: Call, expected: tuple[int, str]) -> None:
    assert error_of(bare, act) == expected


def test_a_host_without_smtpsvc_has_no_port(bare: MemoryBackend) -> None:
    assert bare.smtp_port == 0


@pytest.mark.parametrize("spelling", [r"Software\One\Two", r"SOFTWARE\ONE\TWO", "software\\one\\two\\"])
def test_keys_and_names_ignore_case(bare: MemoryBackend, spelling: str) -> None:
    bare.create_key(HKLM, r"SOFTWARE\One\Two")
    bare.write_value(HKLM, spelling, "Name", ONE)
    assert bare.read_value(HKLM, r"software\one\two", "NAME") == ONE
    bare.delete_value(HKLM, spelling, "nAME")
    assert error_of(bare, lambda b: b.read_value(HKLM, spelling, "Name")) == (2, "RegQueryValueEx")


def test_creating_a_key_again_keeps_its_values(bare: MemoryBackend) -> None:
    bare.write_value(HKLM, "SOFTWARE", "v", ONE)
    bare.create_key(HKLM, r"SOFTWARE\below")
    bare.create_key(HKLM, "SOFTWARE")
    assert bare.read_value(HKLM, "SOFTWARE", "v") == ONE


def test_a_value_takes_the_type_of_what_was_written_last(bare: MemoryBackend) -> None:
    for value in (ONE, RegistryValue(REG_SZ, "x"), ONE):
        bare.write_value(HKLM, "SOFTWARE", "v", value)
        assert bare.read_value(HKLM, "SOFTWARE", "v") == value


def test_hives_are_apart(bare: MemoryBackend) -> None:
    assert error_of(bare, lambda b: b.read_value(0x80000001, "SOFTWARE", "v")) == (2, "RegOpenKeyEx")


def test_smtpsvc_runs_at_first(host: MemoryBackend) -> None:
    status = host.service_status("smtpsvc")
    assert (status.name, status.state, status.start_mode) == ("SMTPSVC", "Running", "Auto")
    assert status.process_id > 0
    assert error_of(host, lambda b: b.read_value(HKLM, SMTPSVC_PARAMETERS, "TarpitTime")) == (2, "RegQueryValueEx")


def test_states_and_their_errors(host: MemoryBackend) -> None:
    first = host.service_status("SMTPSVC").process_id
    assert error_of(host, lambda b: b.start_service("SMTPSVC")) == (1056, "StartService")
    host.stop_service("SMTPSVC")
    wait(host, "Stopped")
    assert host.service_status("SMTPSVC").process_id == 0
    assert error_of(host, lambda b: b.stop_service("SMTPSVC")) == (1062, "ControlService")
    host.change_start_mode("SMTPSVC", "Disabled")
    assert error_of(host, lambda b: b.start_service("SMTPSVC")) == (1058, "StartService")
    host.change_start_mode("SMTPSVC", "Manual")
    host.start_service("SMTPSVC")
    wait(host, "Running")
    assert host.service_status("SMTPSVC").process_id not in (0, first)
    assert error_of(host, lambda b: b.change_start_mode("SMTPSVC", "Auto")) == (87, "ChangeServiceConfig")


def test_a_pending_service_takes_no_control(host: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    stop = host._stop
    monkeypatch.setattr(host, "_stop", lambda service: (go_on.wait(30), stop(service)))
    host.stop_service("SMTPSVC")
    assert host.service_status("SMTPSVC").state == "Stop Pending"
    assert error_of(host, lambda b: b.stop_service("SMTPSVC")) == (1061, "ControlService")
    assert error_of(host, lambda b: b.start_service("SMTPSVC")) == (1056, "StartService")
    go_on.set()
    wait(host, "Stopped")


def test_a_service_whose_port_is_taken_does_not_start(host: MemoryBackend) -> None:
    host.stop_service("SMTPSVC")
    wait(host, "Stopped")
    with socket.create_server(("127.0.0.1", host.smtp_port)):
        host.start_service("SMTPSVC")
        wait(host, "Stopped")
        assert host.service_status("SMTPSVC").process_id == 0
    host.start_service("SMTPSVC")
    wait(host, "Running")


def test_closing_ends_the_service_in_any_state() -> None:
    running = MemoryBackend()
    stopping = MemoryBackend()
    stopping.stop_service("SMTPSVC")
    for backend in (running, stopping):
        port = backend.smtp_port
        backend.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=30)
