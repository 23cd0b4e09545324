# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a connection's settings become an endpoint, and what happens where the plugin has other private names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import requests
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.mailops.tarpit.plugins.plugin_utils._transport import (
    ConnectedTransport,
    PsrpTransport,
    WinrmTransport,
    open_transport,
)


def winrm(**settings: Any) -> SimpleNamespace:
    """A winrm connection plugin, as far as it is asked."""
    usual = {
        "transport": "winrm",
        "_build_winrm_kwargs": lambda: None,
        "_winrm_host": "win01.example.org",
        "_winrm_port": 5985,
        "_winrm_scheme": "http",
        "_winrm_path": "/wsman",
        "_winrm_transport": ["ntlm"],
        "_winrm_connection_timeout": None,
        "_winrm_kwargs": {"username": "u", "password": "p"},
        "_kerb_managed": False,
    }
    return SimpleNamespace(**(usual | settings))


@pytest.mark.parametrize(
    ("settings", "endpoint"),
    [
        ({}, "http://win01.example.org:5985/wsman"),
        ({"_winrm_host": "2001:db8::25"}, "http://[2001:db8::25]:5985/wsman"),
        ({"_winrm_host": "192.0.2.25", "_winrm_port": "80"}, "http://192.0.2.25:80/wsman"),
        ({"_winrm_scheme": "https", "_winrm_port": 5986}, "https://win01.example.org:5986/wsman"),
        ({"_winrm_path": "/other"}, "http://win01.example.org:5985/other"),
    ],
)
def test_endpoint(settings: dict[str, Any], endpoint: str) -> None:
    assert open_transport(winrm(**settings)).endpoint == endpoint


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({}, 20),
        ({"_winrm_connection_timeout": 7}, 7),
        ({"_winrm_kwargs": {"operation_timeout_sec": "45", "read_timeout_sec": "60"}}, 45),
    ],
)
def test_operation_timeout(settings: dict[str, Any], seconds: int) -> None:
    assert open_transport(winrm(**settings)).operation_timeout == seconds


def test_psrp() -> None:
    kwargs = {"server": "2001:db8::25", "port": 5985, "ssl": False, "auth": "ntlm", "operation_timeout": 9}
    transport = open_transport(SimpleNamespace(transport="psrp", _build_kwargs=lambda: None, _psrp_conn_kwargs=kwargs))
    assert isinstance(transport, PsrpTransport)
    assert transport.endpoint == "http://[2001:db8::25]:5985/wsman"
    assert transport.operation_timeout == 9


class Protocol:
    """What a connection that has connected in its own way holds."""

    operation_timeout_sec = 20

    def __init__(self, answer: Exception | bytes) -> None:
        self._answer = answer
        self.transport = SimpleNamespace(endpoint="http://win01:5985/wsman", send_message=self._send)

    def _send(self, envelope: bytes) -> bytes:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def connected(answer: Exception | bytes) -> tuple[SimpleNamespace, list[str]]:
    """A connection plugin without our private names, and what it is told to do."""
    told: list[str] = []
    return (
        SimpleNamespace(
            transport="winrm",
            protocol=Protocol(answer),
            _connect=lambda: told.append("connect"),
            close=lambda: told.append("close"),
        ),
        told,
    )


def test_a_plugin_with_other_private_names_connects_in_its_own_way() -> None:
    connection, told = connected(b"<reply/>")
    transport = open_transport(connection)
    assert isinstance(transport, ConnectedTransport)
    assert transport.send(b"<request/>") == (200, b"<reply/>")
    transport.close()
    assert told == ["connect", "close"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.exceptions.ConnectTimeout("x"), "no answer in time"),
        (requests.exceptions.ConnectionError("reset"), "no connection (reset)"),
        (requests.exceptions.ProxyError("refused"), "no connection through the proxy"),
        (requests.exceptions.SSLError("bad"), "the TLS certificate or handshake is not acceptable (bad)"),
        (ValueError("odd"), "odd"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_keeps_an_answer_away_is_said(error: Exception, words: str) -> None:
    connection, _told = connected(error)
    with pytest.raises(AnsibleConnectionFailure, match=r"http://win01:5985/wsman \(") as caught:
        open_transport(connection).send(b"")
    assert words in str(caught.value)


def test_other_connections_are_refused() -> None:
    with pytest.raises(AnsibleError, match="ansible_connection is 'ssh', which has no WS-Management"):
        open_transport(SimpleNamespace(transport="ssh"))


def test_it_is_lean_where_it_can_be() -> None:
    assert isinstance(open_transport(winrm()), WinrmTransport)
