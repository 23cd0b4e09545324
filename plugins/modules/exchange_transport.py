#!/usr/bin/python
# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file documents the module. It runs on the controller: plugins/action/exchange_transport.py

from __future__ import annotations

DOCUMENTATION = r"""
module: exchange_transport
short_description: Make Exchange know the SMTP proxies in front of it
version_added: 0.1.0
author:
  - The mailops.tarpit contributors (@mailops)
description:
  - Adds the addresses of SMTP proxies to C(InternalSMTPServers) of the organisation's transport configuration. Exchange
    skips those hosts in Received headers where it looks for the client that a message came from.
  - What else stands there stays, unless it is to be V(absent).
options:
  internal_smtp_servers:
    description:
      - Addresses, networks or ranges, such as V(192.0.2.1), V(192.0.2.0/24) and V(192.0.2.1-192.0.2.9).
    type: list
    elements: str
    required: true
  state:
    description:
      - V(present) adds those that are not there, V(absent) removes those that are.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: full
extends_documentation_fragment:
  - mailops.tarpit.exchange
seealso:
  - module: mailops.tarpit.exchange_relay_info
"""

EXAMPLES = r"""
- name: Both proxies stand in front
  mailops.tarpit.exchange_transport:
    internal_smtp_servers: [192.0.2.25, 192.0.2.26]
"""

RETURN = r"""
before:
  description: InternalSMTPServers as found.
  returned: success
  type: list
  elements: str
  sample: []
after:
  description: InternalSMTPServers as they are now, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [192.0.2.25, 192.0.2.26]
"""
