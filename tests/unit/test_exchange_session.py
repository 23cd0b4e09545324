# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user is told of answers that a lab gives only with effort: faults, statuses, records, broken objects."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange import Exchange
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_plan import Selection
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_session import (
    LIMIT,
    RIGHTS,
    Endpoint,
    ExchangeError,
    ExchangeSession,
    Outcome,
    _failure,
    _fault,
)
from pypsrp.exceptions import WinRMTransportError
from requests.exceptions import ConnectTimeout, ProxyError, ReadTimeout

ENDPOINT = Endpoint(
    server="ex01.example.org",
    port=443,
    path="PowerShell/",
    https=True,
    auth="ntlm",
    username="user",
    password="secret",
    verify=True,
    certificate_pem=None,
    certificate_key_pem=None,
    negotiate_service="HTTP",
    proxy=None,
    timeout=60,
)
URL = "https://ex01.example.org/PowerShell/"


@pytest.mark.parametrize(
    ("code", "text", "message"),
    [
        (
            2150858793,
            "whatever",
            "Get-X: the session did not open in time: look at the server's load, or raise 'timeout'",
        ),
        (
            2150858819,
            "Fail to create a runspace … MaxConcurrency.",
            f"Exchange does not open another session (Fail to create a runspace … MaxConcurrency): {LIMIT}",
        ),
        (
            2150859174,
            "This user is allowed a maximum number of 18 concurrent shells.",
            "Exchange does not open another session (This user is allowed a maximum number of 18 concurrent shells):"
            f" {LIMIT}",
        ),
        (
            0,
            "User has exceeded the budget.",
            f"Exchange does not open another session (User has exceeded the budget): {LIMIT}",
        ),
        (5, "Access is denied.", f"Exchange does not let the account in (Access is denied): {RIGHTS}"),
        (7, "Out of\n paper.", "Get-X: Exchange refused the request: Out of paper."),
    ],
)
def test_faults(code: int, text: str, message: str) -> None:
    assert str(_fault("Get-X", code, text)) == message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            WinRMTransportError("http", 404, ""),
            f"{URL} (HTTP status 404: check the path of 'endpoint', usually /PowerShell/)",
        ),
        (
            WinRMTransportError("http", 403, ""),
            f"{URL} (HTTP status 403: the server may want HTTPS, or a client certificate)",
        ),
        (
            WinRMTransportError("http", 503, ""),
            f"{URL} (HTTP status 503: Exchange's PowerShell application pool is down or restarting)",
        ),
        (WinRMTransportError("http", 500, ""), f"{URL} (HTTP status 500)"),
        (
            ProxyError("no route"),
            f"{URL} (ntlm: no connection through the proxy (no route): check the proxy's address and what it allows)",
        ),
        (
            ReadTimeout("slow"),
            f"{URL} (ntlm: no answer in time: check address, port and firewall, or raise 'timeout')",
        ),
        (
            ConnectTimeout("slow"),
            f"{URL} (ntlm: no answer in time: check address, port and firewall, or raise 'timeout')",
        ),
        (KeyError("rsp"), "Get-X: the answer cannot be read (KeyError: 'rsp')"),
        (OSError("odd"), f"{URL} (ntlm: odd)"),
    ],
)
def test_errors_of_the_libraries(error: Exception, message: str) -> None:
    assert str(ExchangeSession(ENDPOINT)._translated(error, "Get-X")) == message


def test_the_password_is_in_no_text() -> None:
    assert "secret" not in repr(ENDPOINT)


def record(**more: Any) -> SimpleNamespace:
    return SimpleNamespace(**more)


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([], "Get-X failed without saying why"),
        ([record()], "Get-X: an error record without a text"),
        ([record(to_string="Boom.")], "Get-X: Boom."),
        ([record(message="Boom.")], "Get-X: Boom."),
        ([record(details_message="More\n exactly.", to_string="Boom.")], "Get-X: More exactly."),
        (
            [record(to_string="Boom.", exception=SimpleNamespace(adapted_properties={"Message": "It went boom."}))],
            "Get-X: It went boom.",
        ),
        ([record(to_string="One."), record(to_string="Two."), record(to_string="One.")], "Get-X: One.; Two."),
        ([record(to_string="No.", fq_error="AccessDenied,X")], f"Get-X: No: {RIGHTS}"),
        (
            [record(to_string="Insufficient access rights to perform the operation.")],
            f"Get-X: Insufficient access rights to perform the operation: {RIGHTS}",
        ),
    ],
)
def test_error_records(errors: list[SimpleNamespace], message: str) -> None:
    assert str(_failure("Get-X", errors)) == message


class Answers:
    """A session that gives prepared objects."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self.objects = list(objects)

    def invoke(self, cmdlet: str, **parameters: Any) -> Outcome:
        return Outcome(self.objects, [])


@pytest.mark.parametrize(
    ("objects", "ask", "message"),
    [
        (
            [{"Name": "x"}],
            lambda exchange: exchange.connectors(Selection()),
            "Get-ReceiveConnector gave an object without Identity",
        ),
        (
            [{"Identity": r"EX01\A"}],
            lambda exchange: exchange.connectors(Selection()),
            r"EX01\A: TarpitInterval cannot be read: '' is no duration",
        ),
        ([], lambda exchange: exchange.internal_smtp_servers(), "Get-TransportConfig gave 0 objects, not one"),
        ([{}, {}], lambda exchange: exchange.internal_smtp_servers(), "Get-TransportConfig gave 2 objects, not one"),
    ],
)
def test_answers_that_make_no_sense(
    objects: list[dict[str, Any]], ask: Callable[[Exchange], object], message: str
) -> None:
    session: Any = Answers(*objects)
    with pytest.raises(ExchangeError) as raised:
        ask(Exchange(session))
    assert str(raised.value) == message
