# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module exchange_tarpit: runs on the controller, in a session of its own with Exchange."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange import Exchange
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_action import (
    SELECTION,
    ExchangeActionBase,
    make_selection,
    whole,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_plan import (
    MOST_SECONDS,
    SENSIBLE_SECONDS,
    Connector,
    Selection,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_session import ExchangeError


@dataclass
class _Fate:
    """What became of one connector."""

    connector: Connector
    after: float
    changed: bool = False
    error: str = ""
    warnings: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, t.Any]:
        """As the module returns it."""
        return {
            "identity": self.connector.identity,
            "server": self.connector.server,
            "before": whole(self.connector.tarpit_seconds),
            "after": whole(self.after),
            "changed": self.changed,
            "failed": bool(self.error),
            "msg": self.error,
            "warnings": self.warnings,
        }


class ActionModule(ExchangeActionBase):
    """Set TarpitInterval of receive connectors."""

    ARGUMENTS: t.ClassVar[dict[str, t.Any]] = {"seconds": {"type": "int", "required": True}, **SELECTION}

    def check_options(self, options: dict[str, t.Any]) -> None:
        """Refuse values out of range before Exchange is asked anything."""
        if not 0 <= options["seconds"] <= MOST_SECONDS:
            raise AnsibleActionFail(
                f"'seconds' must be 0 to {MOST_SECONDS}, not {options['seconds']}: 5 is Exchange's default,"
                " 0 turns the tarpit off"
            )
        make_selection(options, required=True)

    def perform(self, exchange: Exchange, options: dict[str, t.Any]) -> dict[str, t.Any]:
        """Find the connectors, set those that differ unless in check mode, and read them back."""
        seconds = options["seconds"]
        selection = make_selection(options, required=True)
        chosen = selection.choose(exchange.connectors(selection))
        fates = [_Fate(connector, connector.tarpit_seconds) for connector in chosen]
        differing = [fate for fate in fates if fate.connector.tarpit_seconds != seconds]
        broken: AnsibleConnectionFailure | None = None
        if self._task.check_mode:
            for fate in differing:
                fate.after, fate.changed = seconds, True
        elif differing:
            broken = _carry_out(exchange, differing, seconds)
            if broken is None:
                _read_back(exchange, selection, differing, seconds)
        return self._result(fates, seconds, exchange.warnings, broken)

    def _result(
        self, fates: list[_Fate], seconds: int, warnings: list[str], broken: AnsibleConnectionFailure | None
    ) -> dict[str, t.Any]:
        result: dict[str, t.Any] = {
            "changed": any(fate.changed for fate in fates),
            "connectors": [fate.describe() for fate in fates],
            "diff": {
                "before": {fate.connector.identity: whole(fate.connector.tarpit_seconds) for fate in fates},
                "after": {fate.connector.identity: whole(fate.after) for fate in fates},
            },
        }
        warnings = [*warnings, *(f"{f.connector.identity}: {text}" for f in fates for text in f.warnings)]
        if seconds > SENSIBLE_SECONDS:
            warnings.append(
                f"a tarpit of {seconds} seconds: Microsoft's page on Set-ReceiveConnector warns that more than a few"
                " seconds can cause time-outs in mail flow"
            )
        if warnings:
            result["warnings"] = warnings
        failed = [fate for fate in fates if fate.error]
        if failed:
            raise AnsibleActionFail(_summary(fates, failed, broken), result=result)
        return result


def _carry_out(exchange: Exchange, differing: list[_Fate], seconds: int) -> AnsibleConnectionFailure | None:
    """Set one after the other: one that fails does not keep the next from being set, a broken connection does."""
    broken: AnsibleConnectionFailure | None = None
    for fate in differing:
        if broken is not None:
            fate.error = "not tried, since the connection broke before"
            continue
        try:
            fate.warnings = exchange.set_tarpit(fate.connector.identity, seconds)
            fate.changed, fate.after = True, seconds
        except ExchangeError as error:
            fate.error = str(error).rstrip(".")
        except AnsibleConnectionFailure as error:
            # The command may have arrived: it counts as changed, so that nobody relies on the contrary.
            broken, fate.changed = error, True
            fate.error = "the connection broke while it was being set: whether it is, the next run will see"
    return broken


def _read_back(exchange: Exchange, selection: Selection, differing: list[_Fate], seconds: int) -> None:
    """Ask what is there now; what was set and is not so has failed."""
    try:
        there = {connector.identity: connector for connector in exchange.connectors(selection)}
    except (ExchangeError, AnsibleConnectionFailure) as error:
        for fate in differing:
            if not fate.error:
                fate.error = f"it was set, and reading it back failed: {str(error).rstrip('.')}"
        return
    for fate in differing:
        connector = there.get(fate.connector.identity)
        if connector is None:
            fate.error = fate.error or "it was set, and is gone now"
            continue
        fate.after = connector.tarpit_seconds
        # What counts is what is there, whatever the cmdlet said of it.
        fate.changed = connector.tarpit_seconds != fate.connector.tarpit_seconds
        if not fate.error and connector.tarpit_seconds != seconds:
            fate.error = (
                f"Exchange took the {seconds} seconds and still has {whole(connector.tarpit_seconds)}: read it again"
                " later, another domain controller may not have the change yet"
            )


def _summary(fates: list[_Fate], failed: list[_Fate], broken: AnsibleConnectionFailure | None) -> str:
    said = "; ".join(f"{fate.connector.identity}: {fate.error}" for fate in failed)
    done = [fate.connector.identity for fate in fates if fate.changed and not fate.error]
    of = f"{len(failed)} of {len(fates)} receive connectors" if len(fates) > 1 else "the receive connector"
    was = "were" if len(failed) > 1 else "was"
    told = f"{of} {was} not set as wanted: {said}"
    if broken is not None:
        told += f". The connection: {broken}"
    if done:
        told += f". This run did set {', '.join(done)}. The next run goes on from there"
    return told
