# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module win_smtp_tarpit: runs on the controller, on the host's own WinRM connection."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible_collections.mailops.tarpit.plugins.plugin_utils._action import WindowsActionBase, check_service_name
from ansible_collections.mailops.tarpit.plugins.plugin_utils._plan import Restart, Wanted
from ansible_collections.mailops.tarpit.plugins.plugin_utils._tarpit import (
    NotInstalledError,
    TarpitHost,
    describe,
    foretell,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._wsman import CimSession

MOST_SECONDS = 86400


class ActionModule(WindowsActionBase):
    """Set or remove TarpitTime of the Windows SMTP service."""

    ARGUMENTS: t.ClassVar[dict[str, t.Any]] = {
        "seconds": {"type": "int"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "restart": {"type": "str", "choices": [r.value for r in Restart], "default": "when_needed"},
        "service": {"type": "str", "default": "SMTPSVC"},
        "timeout": {"type": "int", "default": 60},
    }

    def check_options(self, options: dict[str, t.Any]) -> None:
        """Refuse values out of range before the host is asked anything."""
        seconds = options["seconds"]
        if options["state"] == "present":
            if seconds is None:
                raise AnsibleActionFail("'seconds' is required with state: present (0 turns the tarpit off)")
            if not 0 <= seconds <= MOST_SECONDS:
                raise AnsibleActionFail(
                    f"'seconds' must be 0 to {MOST_SECONDS}, not {seconds}: 30 is a usual start, 0 turns the tarpit off"
                )
        if options["timeout"] < 1:
            raise AnsibleActionFail(f"'timeout' must be 1 second or more, not {options['timeout']}")
        check_service_name(options["service"])

    def perform(self, session: CimSession, options: dict[str, t.Any]) -> dict[str, t.Any]:
        """Find the state, plan, and carry the plan out unless in check mode."""
        name = options["service"]
        host = TarpitHost(session, name, options["timeout"])
        wanted = Wanted(
            tarpit_time=options["seconds"] if options["state"] == "present" else None,
            restart=Restart(options["restart"]),
        )
        try:
            survey = host.survey()
        except NotInstalledError:
            raise AnsibleActionFail(
                f"the service {name} is not installed: install the Windows feature SMTP Server (gone since"
                " Windows Server 2025), name another service, or take the host out of the group",
                result={"installed": False},
            ) from None
        plan = host.plan(survey, wanted)
        host.demand_way_back(plan, survey)
        if not self._task.check_mode:
            try:
                host.carry_out(plan, survey, wanted)
            finally:
                self.done = [step.value for step in host.done]
        before, after = describe(survey), foretell(survey, plan, wanted)
        result = {
            "changed": plan.changed,
            "before": before,
            "after": after,
            "restarted": plan.restarts,
            "restart_pending": plan.restart_pending,
            "steps": [step.value for step in plan.steps],
            "dependents": list(plan.dependents),
            "diff": {
                "before": before | {"restart_pending": survey.found.mark is not None},
                "after": after | {"restart_pending": plan.restart_pending},
            },
        }
        if survey.found.wrong_type:
            host.warnings.append("TarpitTime was there with another type than DWORD: Windows did not obey it")
        if host.warnings:
            result["warnings"] = host.warnings
        return result
