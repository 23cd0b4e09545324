# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module exchange_tarpit_info: runs on the controller, in a session of its own with Exchange."""

from __future__ import annotations

import typing as t

from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange import Exchange
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_action import (
    SELECTION,
    ExchangeActionBase,
    make_selection,
    whole,
)


class ActionModule(ExchangeActionBase):
    """Tell what receive connectors there are, and change nothing."""

    ARGUMENTS: t.ClassVar[dict[str, t.Any]] = SELECTION

    def check_options(self, options: dict[str, t.Any]) -> None:
        """Refuse a selection that contradicts itself."""
        make_selection(options, required=False)

    def perform(self, exchange: Exchange, options: dict[str, t.Any]) -> dict[str, t.Any]:
        """Look, and tell."""
        selection = make_selection(options, required=False)
        chosen = selection.choose(exchange.connectors(selection))
        result: dict[str, t.Any] = {
            "changed": False,
            "connectors": [
                {
                    "identity": connector.identity,
                    "server": connector.server,
                    "transport_role": connector.transport_role,
                    "bindings": list(connector.bindings),
                    "tarpit_seconds": whole(connector.tarpit_seconds),
                    "anonymous": connector.anonymous,
                    "enabled": connector.enabled,
                }
                for connector in chosen
            ],
        }
        if exchange.warnings:
            result["warnings"] = exchange.warnings
        return result
