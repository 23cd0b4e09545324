# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every win_ module has in common: options in, a session on the host, a result or one clear sentence."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.mailops.tarpit.plugins.plugin_utils._registry import RegistryError
from ansible_collections.mailops.tarpit.plugins.plugin_utils._service import ServiceError
from ansible_collections.mailops.tarpit.plugins.plugin_utils._transport import open_transport
from ansible_collections.mailops.tarpit.plugins.plugin_utils._wsman import CimError, CimFault, CimSession

# WSManFault codes by which WMI refuses an account: the service's, the provider's, on connect.
ACCESS_DENIED_FAULTS = (2150859012, 2150859013, 2150859014)
REGISTRY_ACCESS_DENIED = 5  # StdRegProv
SERVICE_ACCESS_DENIED = 2  # Win32_Service

RIGHTS = (
    "the account must be a member of the host's Administrators group, and a local account other than the"
    " built-in one also needs LocalAccountTokenFilterPolicy = 1 on the host"
)


class WindowsActionBase(ActionBase):
    """An action on the host's own WinRM connection.

    A module names its ARGUMENTS, checks them in `check_options`, and works in `perform`. Every error that
    it can meet leaves here as one sentence that begins with the host's name.
    """

    ARGUMENTS: t.ClassVar[dict[str, t.Any]] = {}

    _supports_async = False
    _supports_check_mode = True

    def check_options(self, options: dict[str, t.Any]) -> None:
        """Raise AnsibleActionFail for options that are wrong together or out of range."""

    def perform(self, session: CimSession, options: dict[str, t.Any]) -> dict[str, t.Any]:
        """Do the work and return the module's result."""
        raise NotImplementedError

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Called by Ansible, once a host."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        host = (task_vars or {}).get("inventory_hostname", "host")
        self.done: list[str] = []
        try:
            _dummy, options = self.validate_argument_spec(argument_spec=self.ARGUMENTS)
            self.check_options(options)
            if self._play_context.become:
                raise AnsibleActionFail(
                    "become does not apply: WinRM works with the rights of the account that logs on."
                    " Set become: false, and name an administrator in ansible_user"
                )
            transport = open_transport(self._connection)
            try:
                result.update(self.perform(CimSession(transport), options))
            finally:
                transport.close()
        except AnsibleConnectionFailure as error:
            raise AnsibleConnectionFailure(f"{host}: cannot reach WinRM at {error}{self._told()}") from None
        except (AnsibleError, RegistryError, ServiceError, CimError) as error:
            more = {**(getattr(error, "result", None) or {}), "changed": bool(self.done)}
            # Returned, not raised: `failed_when` has no say over what is raised.
            result.update(more, failed=True, msg=f"{host}: {error}{_mend(error)}{self._told()}")
        return result

    def _told(self) -> str:
        """What was done on the host before it failed, so that nobody has to guess."""
        if not self.done:
            return ""
        return f". Before that this run did: {', '.join(self.done)}. The next run goes on from there"


def check_service_name(name: str) -> None:
    """Raise AnsibleActionFail for a name that no Windows service can have (CreateService, lpServiceName)."""
    if not name or "/" in name or "\\" in name:
        raise AnsibleActionFail(f"'service' must be the name of a Windows service, such as SMTPSVC, not '{name}'")


def _mend(error: Exception) -> str:
    denied = (
        (isinstance(error, CimFault) and error.code in ACCESS_DENIED_FAULTS)
        or (isinstance(error, RegistryError) and error.code == REGISTRY_ACCESS_DENIED)
        or (isinstance(error, ServiceError) and error.code == SERVICE_ACCESS_DENIED)
    )
    return f": {RIGHTS}" if denied else ""
