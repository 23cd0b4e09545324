# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every exchange_ module has in common: options and the host's variables in, one session, a result out."""

from __future__ import annotations

import typing as t
from urllib.parse import urlsplit

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange import Exchange
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_plan import (
    ALL_ROLES,
    FRONTEND,
    HUB,
    Selection,
    SelectionError,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_session import (
    Endpoint,
    ExchangeError,
    ExchangeSession,
)

SESSION: dict[str, t.Any] = {
    "endpoint": {"type": "str"},
    "auth": {
        "type": "str",
        "choices": ["kerberos", "ntlm", "negotiate", "basic", "certificate"],
        "default": "kerberos",
    },
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "validate_certs": {"type": "bool"},
    "ca_cert": {"type": "path"},
    "certificate_pem": {"type": "path"},
    "certificate_key_pem": {"type": "path"},
    "negotiate_service": {"type": "str", "default": "HTTP"},
    "allow_insecure_basic": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 60},
}

SELECTION: dict[str, t.Any] = {
    "connectors": {"type": "list", "elements": "str"},
    "server": {"type": "list", "elements": "str"},
    "transport_role": {"type": "str", "choices": [FRONTEND, HUB, ALL_ROLES], "default": FRONTEND},
    "port": {"type": "int", "default": 25},
}

# Which of the host's variables stands in for an option that is not given: the first that is set.
VARIABLES = {
    "username": ("ansible_psrp_user", "ansible_winrm_user", "ansible_user"),
    "password": ("ansible_psrp_password", "ansible_winrm_password", "ansible_password", "ansible_winrm_pass"),
    "ca_cert": ("ansible_psrp_ca_cert", "ansible_winrm_ca_trust_path"),
    "certificate_pem": ("ansible_psrp_certificate_pem", "ansible_winrm_cert_pem"),
    "certificate_key_pem": ("ansible_psrp_certificate_key_pem", "ansible_winrm_cert_key_pem"),
    "proxy": ("ansible_psrp_proxy", "ansible_winrm_proxy"),
}
VALIDATION = ("ansible_psrp_cert_validation", "ansible_winrm_server_cert_validation")


class ExchangeActionBase(ActionBase):
    """An action on Exchange's own PowerShell endpoint; the connection plugin takes no part."""

    ARGUMENTS: t.ClassVar[dict[str, t.Any]] = {}

    _requires_connection = False
    _supports_async = False
    _supports_check_mode = True

    def check_options(self, options: dict[str, t.Any]) -> None:
        """Raise AnsibleActionFail for options that are wrong together or out of range."""

    def perform(self, exchange: Exchange, options: dict[str, t.Any]) -> dict[str, t.Any]:
        """Do the work and return the module's result."""
        raise NotImplementedError

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Called by Ansible, once a host."""
        variables = task_vars or {}
        result: dict[str, t.Any] = super().run(tmp, variables)
        host = variables.get("inventory_hostname", "host")
        try:
            _dummy, options = self.validate_argument_spec(argument_spec={**self.ARGUMENTS, **SESSION})
            self.check_options(options)
            if self._play_context.become:
                raise AnsibleActionFail(
                    "become does not apply: Exchange works with the rights of the account that logs on."
                    " Set become: false, and name that account in 'username'"
                )
            session = ExchangeSession(make_endpoint(options, self._host_variables(variables)))
            try:
                result.update(self.perform(Exchange(session), options))
            finally:
                session.close()
        except AnsibleConnectionFailure as error:
            raise AnsibleConnectionFailure(f"{host}: cannot reach Exchange at {error}") from None
        except (AnsibleError, ExchangeError, SelectionError) as error:
            more = {"changed": False, **(getattr(error, "result", None) or {})}
            # Returned, not raised: `failed_when` has no say over what is raised.
            result.update(more, failed=True, msg=f"{host}: {error}")
        return result

    def _host_variables(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The connection variables of the host that the task is for, of the delegate where there is one."""
        source: t.Mapping[str, t.Any] = task_vars
        delegate = self._task.delegate_to
        if delegate:
            source = task_vars.get("ansible_delegated_vars", {}).get(delegate, {})
        names = {"ansible_host", *VALIDATION, *(name for several in VARIABLES.values() for name in several)}
        found = {name: self._templar.template(source[name]) for name in names if source.get(name) is not None}
        found.setdefault("ansible_host", delegate or task_vars.get("inventory_hostname"))
        return found


def make_endpoint(options: dict[str, t.Any], variables: dict[str, t.Any]) -> Endpoint:
    """Where and how to log on: the options, then the host's variables. Raise AnsibleActionFail for what can't be."""
    for option, names in VARIABLES.items():
        if options.get(option) is None:
            options[option] = next((variables[name] for name in names if variables.get(name)), None)
    host = str(variables["ansible_host"])
    if options["endpoint"] is None:
        options["endpoint"] = f"http://[{host}]/PowerShell/" if ":" in host else f"http://{host}/PowerShell/"
    url, auth = options["endpoint"], options["auth"]
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise AnsibleActionFail(f"'endpoint' must be a URL such as http://ex01.example.org/PowerShell/, not '{url}'")
    https = parts.scheme == "https"
    if auth == "basic" and not https and not options["allow_insecure_basic"]:
        raise AnsibleActionFail(
            f"'auth' is basic and {url} is not HTTPS: the password would cross the network in clear text."
            " Take an endpoint with https, another 'auth', or set allow_insecure_basic: true as well"
        )
    if auth == "certificate":
        if not https:
            raise AnsibleActionFail(f"'auth' is certificate, which needs an endpoint with https, not {url}")
        missing = [name for name in ("certificate_pem", "certificate_key_pem") if not options[name]]
        if missing:
            raise AnsibleActionFail(f"'auth' is certificate, which needs {' and '.join(missing)}")
    if auth in ("ntlm", "basic") and not (options["username"] and options["password"]):
        raise AnsibleActionFail(
            f"'auth' is {auth}, which needs 'username' and 'password', or the host's ansible_user and ansible_password"
        )
    if options["timeout"] < 1:
        raise AnsibleActionFail(f"'timeout' must be 1 second or more, not {options['timeout']}")
    validate = options["validate_certs"]
    if validate is None:
        said = next((variables[name] for name in VALIDATION if name in variables), True)
        validate = str(said).casefold() not in ("ignore", "false")
    certificate = auth == "certificate"
    return Endpoint(
        server=parts.hostname,
        port=port or (443 if https else 80),
        path=(parts.path.lstrip("/") or "PowerShell/") + (f"?{parts.query}" if parts.query else ""),
        https=https,
        auth=auth,
        username=None if certificate else options["username"],
        password=None if certificate else options["password"],
        verify=(options["ca_cert"] or True) if validate else False,
        certificate_pem=options["certificate_pem"] if certificate else None,
        certificate_key_pem=options["certificate_key_pem"] if certificate else None,
        negotiate_service=options["negotiate_service"],
        proxy=options["proxy"],
        timeout=options["timeout"],
    )


def make_selection(options: dict[str, t.Any], *, required: bool) -> Selection:
    """Which connectors the options mean. Raise AnsibleActionFail where they contradict each other."""
    connectors, servers = options["connectors"] or [], options["server"] or []
    if connectors and servers:
        raise AnsibleActionFail("give 'connectors' or 'server', not both: an identity names its server")
    if required and not connectors and not servers:
        raise AnsibleActionFail(
            "which receive connectors? Give 'connectors' (identities such as 'EX01\\Default Frontend EX01') or 'server'"
        )
    if not 0 <= options["port"] <= 65535:
        raise AnsibleActionFail(f"'port' must be 0 (any) to 65535, not {options['port']}")
    everything = not connectors and not servers
    return Selection(
        identities=tuple(connectors),
        servers=tuple(servers),
        transport_role=ALL_ROLES if everything and not required else options["transport_role"],
        port=0 if everything and not required else options["port"],
    )


def whole(seconds: float) -> int | float:
    """Seconds without a fraction where there is none."""
    return int(seconds) if seconds == int(seconds) else seconds
