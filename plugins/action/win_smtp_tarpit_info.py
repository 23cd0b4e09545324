# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module win_smtp_tarpit_info: runs on the controller, on the host's own WinRM connection."""

from __future__ import annotations

import typing as t

from ansible_collections.mailops.tarpit.plugins.plugin_utils._action import WindowsActionBase, check_service_name
from ansible_collections.mailops.tarpit.plugins.plugin_utils._plan import Wanted
from ansible_collections.mailops.tarpit.plugins.plugin_utils._tarpit import TarpitHost
from ansible_collections.mailops.tarpit.plugins.plugin_utils._wsman import CimSession

# A service that is starting or stopping is given this long to settle.
SETTLE_SECONDS = 30


class ActionModule(WindowsActionBase):
    """Tell the tarpit's state, and change nothing."""

    ARGUMENTS: t.ClassVar[dict[str, t.Any]] = {"service": {"type": "str", "default": "SMTPSVC"}}

    def check_options(self, options: dict[str, t.Any]) -> None:
        """Refuse a name that no service can have."""
        check_service_name(options["service"])

    def perform(self, session: CimSession, options: dict[str, t.Any]) -> dict[str, t.Any]:
        """Look, and tell."""
        host = TarpitHost(session, options["service"], SETTLE_SECONDS)
        seen = host.look()
        result: dict[str, t.Any] = {
            "changed": False,
            "installed": seen.survey is not None,
            "tarpit_time": None,
            "service_state": None,
            "start_mode": None,
            "restart_pending": False,
            "os": {"caption": seen.os_caption, "version": seen.os_version},
        }
        if seen.survey is not None:
            found, service = seen.survey.found, seen.survey.service
            # A mark that is out of date owes nothing: the plan for what is there already tells.
            plan = host.plan(seen.survey, Wanted(found.tarpit_time))
            result.update(
                tarpit_time=found.tarpit_time,
                service_state=service.state,
                start_mode=service.start_mode,
                restart_pending=plan.changed and not found.wrong_type,
            )
            if found.wrong_type:
                result["warnings"] = ["TarpitTime has another type than DWORD: Windows does not obey it"]
        return result
