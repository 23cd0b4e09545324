#!/usr/bin/python
# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file documents the module. It runs on the controller: plugins/action/exchange_tarpit_info.py

from __future__ import annotations

DOCUMENTATION = r"""
module: exchange_tarpit_info
short_description: Read the tarpit interval of Exchange receive connectors
version_added: 0.1.0
author:
  - The mailops.tarpit contributors (@mailops)
description:
  - Tells the receive connectors of an Exchange organisation and their C(TarpitInterval).
  - Without O(connectors) and O(server), all of them, whatever their role and port.
extends_documentation_fragment:
  - mailops.tarpit.info
  - mailops.tarpit.connectors
  - mailops.tarpit.exchange
seealso:
  - module: mailops.tarpit.exchange_tarpit
"""

EXAMPLES = r"""
- name: Look at all receive connectors
  mailops.tarpit.exchange_tarpit_info:
  register: exchange

- name: Name those that are open to everybody and have no tarpit
  ansible.builtin.debug:
    msg: "{{ exchange.connectors | selectattr('anonymous') | selectattr('tarpit_seconds', 'eq', 0)
             | map(attribute='identity') }}"
"""

RETURN = r"""
connectors:
  description: The receive connectors that were chosen.
  returned: success
  type: list
  elements: dict
  contains:
    identity:
      description: Its identity.
      type: str
      sample: EX01\Default Frontend EX01
    server:
      description: The server that it is on.
      type: str
      sample: EX01
    transport_role:
      description: V(FrontendTransport) or V(HubTransport).
      type: str
      sample: FrontendTransport
    bindings:
      description: The addresses and ports that it listens on.
      type: list
      elements: str
      sample: ["[::]:25", "0.0.0.0:25"]
    tarpit_seconds:
      description: Its TarpitInterval in seconds.
      type: float
      sample: 5
    anonymous:
      description: Whether clients need not log in (PermissionGroups has AnonymousUsers).
      type: bool
    enabled:
      description: Whether it is enabled.
      type: bool
"""
