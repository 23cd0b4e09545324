# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way to a Windows host: the host's own Ansible connection, without the shell that it would open.

Ansible's `winrm` connection opens a shell on the host as soon as it connects, and WMI needs none. So the
connection plugin only works out its settings here (inventory, vault, `ansible_winrm_*` and all), and
pywinrm sends our envelopes. The names used for that (`_build_winrm_kwargs`, `_winrm_*`) are private to the
plugin: they are used in this file alone.
"""

from __future__ import annotations

import ipaddress
import typing as t
from urllib.parse import urlunsplit

from ansible.errors import AnsibleConnectionFailure, AnsibleError

try:
    import requests
    import winrm.exceptions
    import winrm.protocol
except ImportError as error:
    IMPORT_ERROR: ImportError | None = error
else:
    IMPORT_ERROR = None

SUPPORTED_CONNECTIONS = ("winrm",)


class WinrmTransport:
    """Sends envelopes by pywinrm as the host's `winrm` connection is configured.

    The inventory may list several authentication transports. As in the connection plugin, they are tried
    in order, and the first that the host lets in stays.
    """

    def __init__(self, connection: t.Any) -> None:
        self._connection = connection
        connection._build_winrm_kwargs()
        host = connection._winrm_host
        netloc = f"{_bracketed(host)}:{int(connection._winrm_port)}"
        self._host = host
        self._endpoint = urlunsplit((connection._winrm_scheme, netloc, connection._winrm_path, "", ""))
        self._kwargs = dict(connection._winrm_kwargs)
        timeout = connection._winrm_connection_timeout
        if timeout:
            # The HTTP time-out must be the longer one: the host answers within the operation's time-out.
            self._kwargs.update(operation_timeout_sec=timeout, read_timeout_sec=timeout + 10)
        self._untried: list[t.Any] = list(connection._winrm_transport)
        self._protocol: t.Any = None

    @property
    def endpoint(self) -> str:
        """The URL of the host's WinRM service."""
        return str(self._endpoint)

    @property
    def operation_timeout(self) -> int:
        """Seconds that the host may take for one operation."""
        default = winrm.protocol.Protocol.DEFAULT_OPERATION_TIMEOUT_SEC
        return int(self._kwargs.get("operation_timeout_sec", default))

    def send(self, envelope: bytes) -> tuple[int, bytes]:
        """Send one envelope. Raise AnsibleConnectionFailure where the host cannot be reached or logged on to."""
        if self._protocol is not None:
            try:
                return self._exchange(self._protocol, envelope)
            except Exception as error:  # see below
                raise self._unreachable([_explain(error)]) from error
        failures: list[str] = []
        while self._untried:
            name = self._untried.pop(0)
            try:
                if name == "kerberos" and self._connection._kerb_managed:
                    self._connection._kerb_auth(self._connection._winrm_user, self._connection._winrm_pass)
                protocol = winrm.protocol.Protocol(self._endpoint, transport=name, **self._kwargs)
                answer = self._exchange(protocol, envelope)
            except Exception as error:  # noqa: BLE001 - each authentication library has error types of its own
                failures.append(f"{name}: {_explain(error)}")
                continue
            self._protocol = protocol
            return answer
        raise self._unreachable(failures)

    def close(self) -> None:
        """Close the HTTP connection; the host has nothing open for it."""
        if self._protocol is not None:
            self._protocol.transport.close_session()
            self._protocol = None

    def _exchange(self, protocol: t.Any, envelope: bytes) -> tuple[int, bytes]:
        try:
            return 200, protocol.transport.send_message(envelope)
        except winrm.exceptions.WinRMTransportError as error:
            return error.code, error.response_text.encode()

    def _unreachable(self, failures: list[str]) -> AnsibleConnectionFailure:
        return AnsibleConnectionFailure(f"{self._endpoint} ({'; '.join(failures)})")


def open_transport(connection: t.Any) -> WinrmTransport:
    """The transport for a host's connection. Raise AnsibleError for a connection that is not WinRM."""
    kind = connection.transport
    if kind not in SUPPORTED_CONNECTIONS:
        raise AnsibleError(
            f"ansible_connection is '{kind}', which has no WS-Management to ask Windows over:"
            " set ansible_connection: winrm for this host"
        )
    if IMPORT_ERROR is not None:
        raise AnsibleError(f"the Python package pywinrm is missing on the controller ({IMPORT_ERROR}): install it")
    return WinrmTransport(connection)


def _bracketed(host: str) -> str:
    """The host as it stands in a URL: an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return f"[{host}]"


def _explain(error: Exception) -> str:
    """One sentence, with the mend, for what pywinrm and requests raise where no answer came."""
    if isinstance(error, winrm.exceptions.AuthenticationError):
        return (
            "the host refused the user name or password: check ansible_user and ansible_password, and that"
            " its WinRM service allows this authentication"
        )
    if isinstance(error, requests.exceptions.SSLError):
        return (
            f"the TLS certificate or handshake is not acceptable ({_cause(error)}): give the authority's"
            " certificate with ansible_winrm_ca_trust_path"
        )
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time: check address, port and firewall, or raise ansible_winrm_connection_timeout"
    if isinstance(error, requests.exceptions.ConnectionError):
        return f"no connection ({_cause(error)}): check address and port, and that WinRM runs on the host"
    return str(error) or type(error).__name__


def _cause(error: BaseException) -> str:
    """The innermost reason of a chain of exceptions, without the objects' addresses that urllib3 prints."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = getattr(error, "strerror", None) or str(error)
    return str(text).rpartition("object at ")[2].partition(": ")[2] or str(text)
