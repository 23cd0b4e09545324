#!/usr/bin/python
# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file documents the module. It runs on the controller: plugins/action/win_smtp_tarpit.py

from __future__ import annotations

DOCUMENTATION = r"""
module: win_smtp_tarpit
short_description: Set the tarpit time of the Windows SMTP service
version_added: 0.1.0
author:
  - The mailops.tarpit contributors (@mailops)
description:
  - Sets or removes the registry value C(TarpitTime) of the Windows SMTP service (SMTPSVC), by which the
    service delays each of its 5xx replies, and restarts the service so that the value counts.
  - Running services that depend on it are stopped before it and started after it.
  - A restart that a run could not finish is recorded on the host and finished by the next run.
options:
  seconds:
    description:
      - Seconds by which each 5xx reply is delayed, from 0 to 86400. V(0) turns the tarpit off.
      - Required with O(state=present).
    type: int
  state:
    description:
      - V(present) sets the value, V(absent) removes it, by which the tarpit is off.
    type: str
    choices: [present, absent]
    default: present
  restart:
    description:
      - V(when_needed) restarts the service after a change, or where an earlier run left one to be done.
      - V(never) leaves the service alone, and RV(restart_pending) tells that a restart is owed.
      - V(always) restarts it in any case.
      - A service that was stopped stays stopped, but for one that an interrupted run of this module stopped.
    type: str
    choices: [when_needed, never, always]
    default: when_needed
  timeout:
    description:
      - Seconds to wait for the service to stop, and again for it to start.
    type: int
    default: 60
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: full
extends_documentation_fragment:
  - mailops.tarpit.windows
seealso:
  - module: mailops.tarpit.win_smtp_tarpit_info
  - module: mailops.tarpit.smtp_probe
"""

EXAMPLES = r"""
- name: Delay each 5xx reply by 30 seconds
  mailops.tarpit.win_smtp_tarpit:
    seconds: 30

- name: Set the value now, restart in the maintenance window
  mailops.tarpit.win_smtp_tarpit:
    seconds: 30
    restart: never

- name: Remove the tarpit
  mailops.tarpit.win_smtp_tarpit:
    state: absent
"""

RETURN = r"""
before:
  description: What was found.
  returned: success
  type: dict
  sample: {tarpit_time: null, service_state: Running}
  contains:
    tarpit_time:
      description: The value in seconds, or null where there was none.
      type: int
    service_state:
      description: The state that Windows gave for the service.
      type: str
after:
  description: What is there now, or would be in check mode. Contains the same keys as RV(before).
  returned: success
  type: dict
  sample: {tarpit_time: 30, service_state: Running}
restarted:
  description: Whether the service was started anew.
  returned: success
  type: bool
restart_pending:
  description: Whether a restart is still owed for the value to count.
  returned: success
  type: bool
dependents:
  description: The services that depend on it and that were stopped and started with it, or would be.
  returned: success
  type: list
  elements: str
  sample: []
steps:
  description: What was done, in order, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [record that a restart is owed, set TarpitTime, record that a start is owed, stop the service,
           start the service, remove the record]
"""
