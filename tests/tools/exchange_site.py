# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller whose one host asks the lab's Exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.hosts import Lab, LabHost
from tools.ansible_runs import Controller, Run, play, windows_inventory

FRONT = r"EX01\Default Frontend EX01"


class Site:
    """A controller with one host, win01, whose Exchange is the lab's."""

    def __init__(self, controller: Controller, lab: Lab, host: LabHost, folder: Path) -> None:
        self.controller, self.lab, self.host, self.folder = controller, lab, host, folder
        self.inventory = windows_inventory(folder, {"win01": {"ansible_host": host.address}}, lab.username)

    def task(self, module: str, **options: object) -> dict[str, Any]:
        session = {"endpoint": f"http://{self.host.address}:{self.host.winrm_port}/PowerShell/", "auth": "ntlm"}
        given = {key: value for key, value in (session | options).items() if value is not None}
        return {f"mailops.tarpit.{module}": given}

    def run(self, *tasks: dict[str, Any], arguments: tuple[str, ...] = ()) -> Run:
        return self.controller.playbook(
            play(self.folder / "play.json", *tasks), self.inventory, self.lab.password, *arguments
        )

    def one(self, module: str, *arguments: str, **options: object) -> dict[str, Any]:
        """The result of one task."""
        return self.run(self.task(module, **options), arguments=arguments).last("win01")

    def tarpits(self) -> dict[str, float]:
        return {one.identity: one.tarpit_seconds for one in self.host.exchange.connectors}
