#!/usr/bin/python
# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file documents the module. It runs on the controller: plugins/action/win_smtp_tarpit_info.py

from __future__ import annotations

DOCUMENTATION = r"""
module: win_smtp_tarpit_info
short_description: Read the tarpit time of the Windows SMTP service
version_added: 0.1.0
author:
  - The mailops.tarpit contributors (@mailops)
description:
  - Tells whether the Windows SMTP service is installed, its state, its C(TarpitTime), and whether a restart is
    still owed for that to count.
  - A host without the service is no failure.
extends_documentation_fragment:
  - mailops.tarpit.info
  - mailops.tarpit.windows
seealso:
  - module: mailops.tarpit.win_smtp_tarpit
"""

EXAMPLES = r"""
- name: Look at the tarpit
  mailops.tarpit.win_smtp_tarpit_info:
  register: tarpit

- name: Name the hosts that have none
  ansible.builtin.debug:
    msg: "{{ inventory_hostname }} ({{ tarpit.os.caption }}) has no tarpit"
  when: tarpit.installed and not tarpit.tarpit_time
"""

RETURN = r"""
installed:
  description: Whether the host has the service.
  returned: success
  type: bool
tarpit_time:
  description: The value in seconds, or null where there is none or where it is no DWORD.
  returned: success
  type: int
  sample: 30
service_state:
  description: The state that Windows gives for the service, or null without it.
  returned: success
  type: str
  sample: Running
start_mode:
  description: V(Auto), V(Manual) or V(Disabled), or null without the service.
  returned: success
  type: str
  sample: Auto
restart_pending:
  description: Whether an earlier run of M(mailops.tarpit.win_smtp_tarpit) left a restart to be done.
  returned: success
  type: bool
os:
  description: The host's operating system.
  returned: success
  type: dict
  contains:
    caption:
      description: Its name.
      type: str
      sample: Microsoft Windows Server 2019 Standard
    version:
      description: Its version.
      type: str
      sample: 10.0.17763
"""
