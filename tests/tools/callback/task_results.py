# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what each task said of each host to the file that TARPIT_RESULTS names, a JSON line each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_results
type: notification
short_description: Results of tasks as JSON lines
description: Writes what each task said of each host to a file, for tests.
"""


class CallbackModule(CallbackBase):
    """Beside the ordinary output, which stays as users see it."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "task_results"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, result: Any, **more: object) -> None:
        entry = {"host": result.host.get_name(), "action": result.task.action, "result": {**result.result, **more}}
        line = json.dumps(entry, default=str)
        with Path(os.environ["TARPIT_RESULTS"]).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task that went well."""
        self._write(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task that failed."""
        self._write(result, failed=True)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host that could not be reached."""
        self._write(result, unreachable=True)
