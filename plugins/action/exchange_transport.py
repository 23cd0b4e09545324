# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module exchange_transport: runs on the controller, in a session of its own with Exchange."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange import Exchange
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_action import ExchangeActionBase
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_plan import (
    check_range,
    missing_ranges,
    present_ranges,
)


class ActionModule(ExchangeActionBase):
    """Add proxies to InternalSMTPServers, or take them out."""

    ARGUMENTS: t.ClassVar[dict[str, t.Any]] = {
        "internal_smtp_servers": {"type": "list", "elements": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    }

    def check_options(self, options: dict[str, t.Any]) -> None:
        """Refuse what is no address before Exchange is asked anything."""
        for text in options["internal_smtp_servers"]:
            try:
                check_range(text)
            except ValueError:
                raise AnsibleActionFail(
                    f"'internal_smtp_servers' takes addresses, networks and ranges (192.0.2.1, 192.0.2.0/24,"
                    f" 192.0.2.1-192.0.2.9), not '{text}'"
                ) from None

    def perform(self, exchange: Exchange, options: dict[str, t.Any]) -> dict[str, t.Any]:
        """Compare, change what differs unless in check mode, and read it back."""
        wanted, present = options["internal_smtp_servers"], options["state"] == "present"
        before = exchange.internal_smtp_servers()
        change = missing_ranges(wanted, before) if present else present_ranges(wanted, before)
        after = [*before, *change] if present else [one for one in before if one not in change]
        warnings: list[str] = []
        if change and not self._task.check_mode:
            if present:
                warnings = exchange.change_internal_smtp_servers(add=change)
            else:
                warnings = exchange.change_internal_smtp_servers(remove=change)
            after = exchange.internal_smtp_servers()
            left = missing_ranges(wanted, after) if present else present_ranges(wanted, after)
            if left:
                raise AnsibleActionFail(
                    f"Exchange took the change, and InternalSMTPServers {'lacks' if present else 'still has'}"
                    f" {', '.join(left)}: read it again later, another domain controller may not have the change yet",
                    result={"changed": after != before, "before": before, "after": after},
                )
        result: dict[str, t.Any] = {
            "changed": bool(change),
            "before": before,
            "after": after,
            "diff": {"before": {"InternalSMTPServers": before}, "after": {"InternalSMTPServers": after}},
        }
        if warnings:
            result["warnings"] = warnings
        return result
