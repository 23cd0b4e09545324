# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way to a Windows host: the host's own Ansible connection, without the shell that it would open.

Ansible's `winrm` connection opens a shell on the host as soon as it connects, and `psrp` a PowerShell
runspace; WMI needs neither. So the connection plugin only works out its settings here (inventory, vault,
`ansible_winrm_*` and all), and pywinrm or pypsrp sends our envelopes. The names used for that are private to
the plugins and stand in this file alone; where a plugin lacks them, it connects in its own way after all.
"""

from __future__ import annotations

import ipaddress
import typing as t
from urllib.parse import urlunsplit

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.mailops.tarpit.plugins.plugin_utils._explain import Explanations, explain
from ansible_collections.mailops.tarpit.plugins.plugin_utils._wsman import Transport

Post = t.Callable[[bytes], bytes]


class _Sender:
    """What both libraries have in common: a call that posts an envelope and raises for an HTTP error."""

    def __init__(self, endpoint: str, operation_timeout: int) -> None:
        self._endpoint = endpoint
        self._operation_timeout = operation_timeout

    @property
    def endpoint(self) -> str:
        """The URL of the host's WinRM service."""
        return self._endpoint

    @property
    def operation_timeout(self) -> int:
        """Seconds that the host may take for one operation."""
        return self._operation_timeout

    def _exchange(self, post: Post, envelope: bytes) -> tuple[int, bytes]:
        """Post, and make of the libraries' error for an HTTP status what it is: a reply."""
        try:
            return 200, post(envelope)
        except Exception as error:
            # pywinrm and pypsrp each have a WinRMTransportError of their own, with the same attributes.
            if type(error).__name__ != "WinRMTransportError":
                raise
            failure: t.Any = error
            return int(failure.code), str(failure.response_text).encode()

    def _unreachable(self, *failures: str) -> AnsibleConnectionFailure:
        return AnsibleConnectionFailure(f"{self._endpoint} ({'; '.join(failures)})")


class WinrmTransport(_Sender):
    """Sends envelopes by pywinrm as the host's `winrm` connection is configured.

    The inventory may list several authentication transports. As in the connection plugin, they are tried
    in order, and the first that the host lets in stays.
    """

    def __init__(self, connection: t.Any) -> None:
        import winrm.protocol

        self._connection = connection
        self._make_protocol = winrm.protocol.Protocol
        connection._build_winrm_kwargs()
        self._kwargs = dict(connection._winrm_kwargs)
        timeout = connection._winrm_connection_timeout
        if timeout:
            # The HTTP time-out must be the longer one: the host answers within the operation's time-out.
            self._kwargs.update(operation_timeout_sec=timeout, read_timeout_sec=timeout + 10)
        self._untried: list[t.Any] = list(connection._winrm_transport)
        self._protocol: t.Any = None
        netloc = f"{_bracketed(connection._winrm_host)}:{int(connection._winrm_port)}"
        super().__init__(
            urlunsplit((connection._winrm_scheme, netloc, connection._winrm_path, "", "")),
            int(self._kwargs.get("operation_timeout_sec", self._make_protocol.DEFAULT_OPERATION_TIMEOUT_SEC)),
        )

    def send(self, envelope: bytes) -> tuple[int, bytes]:
        """Send one envelope. Raise AnsibleConnectionFailure where the host can't be reached or logged on to."""
        if self._protocol is not None:
            try:
                return self._exchange(self._protocol.transport.send_message, envelope)
            except Exception as error:  # noqa: BLE001 - each library has error types of its own
                raise self._unreachable(_explain(error)) from None
        failures: list[str] = []
        while self._untried:
            name = self._untried.pop(0)
            try:
                if name == "kerberos" and self._connection._kerb_managed:
                    self._connection._kerb_auth(self._connection._winrm_user, self._connection._winrm_pass)
                protocol = self._make_protocol(self.endpoint, transport=name, **self._kwargs)
                answer = self._exchange(protocol.transport.send_message, envelope)
            except Exception as error:  # noqa: BLE001 - each authentication library has error types of its own
                failures.append(f"{name}: {_explain(error)}")
                continue
            self._protocol = protocol
            return answer
        raise self._unreachable(*failures)

    def close(self) -> None:
        """Close the HTTP connection; the host has nothing open for it."""
        if self._protocol is not None:
            self._protocol.transport.close_session()
            self._protocol = None


class PsrpTransport(_Sender):
    """Sends envelopes by pypsrp as the host's `psrp` connection is configured."""

    def __init__(self, connection: t.Any) -> None:
        import pypsrp.wsman

        connection._build_kwargs()
        self._wsman = pypsrp.wsman.WSMan(**connection._psrp_conn_kwargs)
        self._auth = str(connection._psrp_conn_kwargs["auth"])
        super().__init__(self._wsman.transport.endpoint, int(self._wsman.operation_timeout))

    def send(self, envelope: bytes) -> tuple[int, bytes]:
        """Send one envelope. Raise AnsibleConnectionFailure where the host can't be reached or logged on to."""
        try:
            return self._exchange(self._wsman.transport.send, envelope)
        except Exception as error:  # noqa: BLE001 - each library has error types of its own
            raise self._unreachable(f"{self._auth}: {_explain(error)}") from None

    def close(self) -> None:
        """Close the HTTP connection; the host has nothing open for it."""
        self._wsman.close()


class ConnectedTransport(_Sender):
    """Sends envelopes over a connection that the plugin made in its own way, with a shell or a runspace.

    The fallback for a plugin without the private names that the two classes above use.
    """

    def __init__(self, connection: t.Any) -> None:
        connection._connect()
        self._connection = connection
        if connection.transport == "winrm":
            self._post: Post = connection.protocol.transport.send_message
            super().__init__(connection.protocol.transport.endpoint, int(connection.protocol.operation_timeout_sec))
        else:
            wsman = connection.runspace.connection
            self._post = wsman.transport.send
            super().__init__(wsman.transport.endpoint, int(wsman.operation_timeout))

    def send(self, envelope: bytes) -> tuple[int, bytes]:
        """Send one envelope. Raise AnsibleConnectionFailure where the host does not answer."""
        try:
            return self._exchange(self._post, envelope)
        except Exception as error:  # noqa: BLE001 - each library has error types of its own
            raise self._unreachable(_explain(error)) from None

    def close(self) -> None:
        """Close the connection with its shell or runspace."""
        self._connection.close()


LEAN: dict[str, tuple[str, t.Callable[[t.Any], Transport]]] = {
    "winrm": ("pywinrm", WinrmTransport),
    "psrp": ("pypsrp", PsrpTransport),
}


def open_transport(connection: t.Any) -> Transport:
    """The transport for a host's connection. Raise AnsibleError for a connection that is not WinRM."""
    kind = connection.transport
    if kind not in LEAN:
        raise AnsibleError(
            f"ansible_connection is '{kind}', which has no WS-Management to ask Windows over:"
            " set ansible_connection: winrm or psrp for this host"
        )
    package, lean = LEAN[kind]
    try:
        return lean(connection)
    except ImportError as error:
        raise AnsibleError(
            f"the Python package {package} is missing on the controller ({error}): install {package}"
        ) from None
    except AttributeError:
        return ConnectedTransport(connection)


def _bracketed(host: str) -> str:
    """The host as it stands in a URL: an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return f"[{host}]"


EXPLANATIONS: Explanations = (
    (
        ("AuthenticationError",),
        "the host refused the user name or password: check ansible_user and ansible_password, and that its"
        " WinRM service allows this authentication",
    ),
    (
        ("Krb5Error", "KerberosExchangeError", "MutualAuthenticationError", "NoCredentialError", "SpnegoError"),
        "Kerberos or NTLM did not let the account in ({cause}): check the account, its password or its ticket"
        " (klist), and that the host is named as in its service principal",
    ),
    (
        ("SSLError",),
        "the TLS certificate or handshake is not acceptable ({cause}): give the authority's certificate with"
        " ansible_winrm_ca_trust_path (winrm) or ansible_psrp_ca_cert (psrp)",
    ),
    (("ProxyError",), "no connection through the proxy ({cause}): check the proxy's address and what it allows"),
    (
        ("Timeout",),
        "no answer in time: check address, port and firewall, or raise the connection's time-out",
    ),
    (("ConnectionError",), "no connection ({cause}): check address and port, and that WinRM runs on the host"),
    (
        ("WinRMError", "WinRMTransportError"),
        "{cause}",
    ),
)


def _explain(error: Exception) -> str:
    return explain(error, EXPLANATIONS)
