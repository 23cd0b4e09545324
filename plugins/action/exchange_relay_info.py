# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module exchange_relay_info: runs on the controller, in a session of its own with Exchange."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible.errors import AnsibleActionFail
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange import Exchange, relay_causes
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_action import ExchangeActionBase
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_plan import ALL_ROLES, Selection, serving


class ActionModule(ExchangeActionBase):
    """Tell whether a server would relay for a client, and which right is the cause."""

    ARGUMENTS: t.ClassVar[dict[str, t.Any]] = {
        "server": {"type": "str", "required": True},
        "client": {"type": "str", "required": True},
        "port": {"type": "int", "default": 25},
    }

    def check_options(self, options: dict[str, t.Any]) -> None:
        """Refuse a client that is no address."""
        try:
            ipaddress.ip_address(options["client"])
        except ValueError:
            raise AnsibleActionFail(f"'client' must be an IP address, not '{options['client']}'") from None
        if not 1 <= options["port"] <= 65535:
            raise AnsibleActionFail(f"'port' must be 1 to 65535, not {options['port']}")

    def perform(self, exchange: Exchange, options: dict[str, t.Any]) -> dict[str, t.Any]:
        """Find the connector that serves the client, and who may do what there."""
        selection = Selection(servers=(options["server"],), transport_role=ALL_ROLES, port=options["port"])
        connector = serving(selection.choose(exchange.connectors(selection)), options["client"], options["port"])
        holders = exchange.relay_right(connector.identity) if connector else []
        causes = relay_causes(connector, holders) if connector else []
        return {
            "changed": False,
            "connector": connector.identity if connector else None,
            "relays": bool(causes),
            "causes": causes,
            "holders": [holder.user for holder in holders],
        }
