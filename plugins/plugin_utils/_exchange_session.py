# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One session with Exchange's remote PowerShell endpoint, by pypsrp: a cmdlet in, objects and records out.

The endpoint has no language: a pipeline is one cmdlet with parameters ([MS-PSRP] 2.2.2.10). A pipeline that has
completed may still have error records in its stream, and that is how most of Exchange's cmdlets fail.

Everything opens when the first cmdlet is invoked, and `close` gives the session back: Exchange counts them, and
allows an account 18 by default.
"""

from __future__ import annotations

import contextlib
import time
import typing as t
from dataclasses import dataclass, field

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.mailops.tarpit.plugins.plugin_utils._explain import Explanations, explain

CONFIGURATION = "Microsoft.Exchange"
# Exchange closes a session that a killed run left open after so many seconds, not after its own quarter of an hour.
# WinRM takes no less than a minute for it ([MS-WSMV], IdleTimeout).
IDLE_SECONDS = 60
# How long one Receive waits for output. The HTTP time-out must be the longer one.
POLL_SECONDS = 20
OPERATION_TIMED_OUT = 2150858793
ACCESS_DENIED = 5
RUNNING = 1  # PSInvocationState.Running ([MS-PSRP]); by its number, since pypsrp may be missing

RIGHTS = (
    "the account needs a management role with this cmdlet and its parameters (docs/exchange.md has one with just the"
    " cmdlets that this collection uses), and remote PowerShell (Set-User -RemotePowerShellEnabled $true)"
)
LIMIT = "close other remote Exchange sessions of this account, or take fewer hosts at once (serial, forks)"

EXPLANATIONS: Explanations = (
    (
        ("AuthenticationError",),
        "Exchange refused the user name or password: check 'username' and 'password', and that the PowerShell virtual"
        " directory allows this 'auth' (Get-PowerShellVirtualDirectory)",
    ),
    (
        ("Krb5Error", "KerberosExchangeError", "MutualAuthenticationError", "NoCredentialError", "SpnegoError"),
        "Kerberos or NTLM did not let the account in ({cause}): check the account, its password or its ticket"
        " (klist), and that 'endpoint' names the server as in its service principal (negotiate_service)",
    ),
    (
        ("SSLError",),
        "the TLS certificate or handshake is not acceptable ({cause}): give the authority's certificate with 'ca_cert'",
    ),
    (("ProxyError",), "no connection through the proxy ({cause}): check the proxy's address and what it allows"),
    (("Timeout",), "no answer in time: check address, port and firewall, or raise 'timeout'"),
    (("ConnectionError",), "no connection ({cause}): check 'endpoint' and that Exchange's PowerShell is up there"),
)


class ExchangeError(Exception):
    """A cmdlet that failed, with Exchange's own words; `error_id` is the record's FullyQualifiedErrorId."""

    def __init__(self, message: str, error_id: str = "") -> None:
        super().__init__(message)
        self.error_id = error_id


@dataclass(frozen=True)
class Endpoint:
    """Where Exchange's PowerShell is and how to log on to it. `verify` is True, False or a file of authorities."""

    server: str
    port: int
    path: str
    https: bool
    auth: str
    username: str | None
    password: str | None = field(repr=False)
    verify: bool | str
    certificate_pem: str | None
    certificate_key_pem: str | None
    negotiate_service: str
    proxy: str | None
    timeout: int

    @property
    def url(self) -> str:
        """As a user writes it."""
        host = f"[{self.server}]" if ":" in self.server else self.server
        default = 443 if self.https else 80
        port = "" if self.port == default else f":{self.port}"
        return f"{'https' if self.https else 'http'}://{host}{port}/{self.path}"


@dataclass(frozen=True)
class Outcome:
    """What a cmdlet put out: objects as dictionaries of their properties, and the texts of its warnings."""

    objects: list[dict[str, t.Any]]
    warnings: list[str]


class ExchangeSession:
    """See the module's docstring. Not for use by two threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._wsman: t.Any = None
        self._pool: t.Any = None
        self._last: t.Any = None
        self._make_pipeline: t.Any = None

    def invoke(self, cmdlet: str, **parameters: t.Any) -> Outcome:
        """Run one cmdlet.

        Raise ExchangeError where it wrote an error record or failed, AnsibleConnectionFailure where there was no
        answer at all.
        """
        try:
            pipeline = self._run(cmdlet, parameters)
        except (ExchangeError, AnsibleError):
            raise
        except Exception as error:  # noqa: BLE001 - each library has error types of its own
            # Without the chain: Ansible would print the libraries' own words after ours.
            raise self._translated(error, cmdlet) from None
        errors = [record for record in pipeline.streams.error if record is not None]
        if errors or pipeline.had_errors:
            raise _failure(cmdlet, errors)
        warnings = [str(getattr(record, "message", None) or record) for record in pipeline.streams.warning]
        return Outcome([_properties(one) for one in pipeline.output if one is not None], warnings)

    def close(self) -> None:
        """Give the session back. What goes wrong here is no failure of the work that was done."""
        pool, self._pool = self._pool, None
        wsman, self._wsman = self._wsman, None
        if pool is not None:
            with contextlib.suppress(Exception):
                pool.close()
        if wsman is not None:
            wsman.close()

    def _run(self, cmdlet: str, parameters: dict[str, t.Any]) -> t.Any:
        if self._pool is None:
            self._open()
        if self._last is not None:
            # Ended only now, so that the last one needs no request of its own: it ends with the session.
            last, self._last = self._last, None
            last.close()
        pipeline = self._make_pipeline(self._pool)
        pipeline.add_cmdlet(cmdlet)
        for name, value in parameters.items():
            pipeline.add_parameter(name, value)
        deadline = time.monotonic() + self._endpoint.timeout
        pipeline.begin_invoke()
        while pipeline.state == RUNNING:
            left = deadline - time.monotonic()
            if left <= 0:
                with contextlib.suppress(Exception):
                    pipeline.stop()
                raise ExchangeError(
                    f"{cmdlet} did not end within {self._endpoint.timeout} seconds: it may still take effect. Look at"
                    " the server's load, or raise 'timeout'"
                )
            pipeline.poll_invoke(timeout=max(1, min(POLL_SECONDS, round(left))))
        self._last = pipeline
        return pipeline

    def _open(self) -> None:
        try:
            from pypsrp.powershell import PowerShell, RunspacePool
            from pypsrp.wsman import WSMan
        except ImportError as error:
            raise AnsibleError(
                f"the Python package pypsrp is missing on the controller ({error}): install it"
            ) from None
        self._make_pipeline = PowerShell
        end = self._endpoint
        poll = min(POLL_SECONDS, end.timeout)
        self._wsman = WSMan(
            end.server,
            port=end.port,
            path=end.path,
            ssl=end.https,
            auth=end.auth,
            username=end.username,
            password=end.password,
            cert_validation=end.verify,  # type: ignore[arg-type]  # a path is taken too
            encryption="never" if end.auth == "basic" else "auto",
            proxy=end.proxy,
            operation_timeout=poll,
            connection_timeout=min(30, end.timeout),
            read_timeout=poll + 10,
            negotiate_service=end.negotiate_service,
            certificate_pem=end.certificate_pem,
            certificate_key_pem=end.certificate_key_pem,
        )
        pool = RunspacePool(self._wsman, configuration_name=CONFIGURATION, idle_timeout=IDLE_SECONDS)
        # Known before it is open: whatever of it the server has made is closed again.
        self._pool = pool
        pool.open()

    def _translated(self, error: Exception, cmdlet: str) -> ExchangeError | AnsibleConnectionFailure:
        """A connection that failed, or a request that the server refused, as one sentence."""
        names = {kind.__name__ for kind in type(error).__mro__}
        if "WSManFaultError" in names:
            return _fault(cmdlet, getattr(error, "code", None), getattr(error, "reason", None) or str(error))
        if "WinRMTransportError" in names:
            status = getattr(error, "code", None)
            mend = {
                404: ": check the path of 'endpoint', usually /PowerShell/",
                403: ": the server may want HTTPS, or a client certificate",
                503: ": Exchange's PowerShell application pool is down or restarting",
            }.get(status or 0, "")
            return AnsibleConnectionFailure(f"{self._endpoint.url} (HTTP status {status}{mend})")
        if names.intersection({"ValueError", "TypeError", "AttributeError", "KeyError"}):
            return ExchangeError(f"{cmdlet}: the answer cannot be read ({type(error).__name__}: {error})")
        return AnsibleConnectionFailure(f"{self._endpoint.url} ({self._endpoint.auth}: {explain(error, EXPLANATIONS)})")


def _fault(cmdlet: str, code: int | None, text: str) -> ExchangeError:
    reason = " ".join(text.split())
    lowered = reason.lower()
    if code == OPERATION_TIMED_OUT:
        return ExchangeError(
            f"{cmdlet}: the session did not open in time: look at the server's load, or raise 'timeout'"
        )
    if "maxconcurrency" in lowered or "maximum number of" in lowered or "quota" in lowered or "budget" in lowered:
        return ExchangeError(f"Exchange does not open another session ({reason.rstrip('.')}): {LIMIT}")
    if code == ACCESS_DENIED or "management role" in lowered or "access is denied" in lowered:
        return ExchangeError(f"Exchange does not let the account in ({reason.rstrip('.')}): {RIGHTS}")
    return ExchangeError(f"{cmdlet}: Exchange refused the request: {reason}")


def _failure(cmdlet: str, errors: list[t.Any]) -> ExchangeError:
    if not errors:
        return ExchangeError(f"{cmdlet} failed without saying why")
    texts = list(dict.fromkeys(_text(record) for record in errors))
    error_id = str(getattr(errors[0], "fq_error", None) or "")
    message = "; ".join(texts)
    denied = ("CommandNotFound", "ParameterNotFound", "AccessDenied", "Unauthorized", "NamedParameterNotFound")
    if any(word in error_id for word in denied) or "write scope" in message or "access rights" in message.lower():
        message = f"{message.rstrip('.')}: {RIGHTS}"
    return ExchangeError(f"{cmdlet}: {message}", error_id)


def _text(record: t.Any) -> str:
    """What a person reads of an error record ([MS-PSRP] 2.2.3.15)."""
    exception = getattr(record, "exception", None)
    for source in (
        getattr(record, "details_message", None),
        (getattr(exception, "adapted_properties", None) or {}).get("Message"),
        getattr(record, "to_string", None),
        getattr(record, "message", None),
    ):
        if source:
            return " ".join(str(source).split())
    return "an error record without a text"


def _properties(value: t.Any) -> dict[str, t.Any]:
    """The properties of a deserialised object; those that the class has itself go before those that were added."""
    added = getattr(value, "extended_properties", None) or {}
    own = getattr(value, "adapted_properties", None) or {}
    return {**added, **own}
