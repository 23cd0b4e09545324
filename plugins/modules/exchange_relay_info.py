#!/usr/bin/python
# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file documents the module. It runs on the controller: plugins/action/exchange_relay_info.py

from __future__ import annotations

DOCUMENTATION = r"""
module: exchange_relay_info
short_description: Tell whether Exchange would relay for a client, and why
version_added: 0.1.0
author:
  - The mailops.tarpit contributors (@mailops)
description:
  - Finds the receive connector that serves a client by its address, and whether a client that has not logged in may
    send to any recipient by way of it. A proxy that it would relay for must not be opened to the world.
  - It reads permissions, so it tells the cause. Whether mail is really relayed is measured by
    M(mailops.tarpit.smtp_probe) from the client.
options:
  server:
    description: The Exchange server that the client connects to.
    type: str
    required: true
  client:
    description: The client's IP address, as the server sees it.
    type: str
    required: true
  port:
    description: The port that it connects to.
    type: int
    default: 25
extends_documentation_fragment:
  - mailops.tarpit.info
  - mailops.tarpit.exchange
seealso:
  - module: mailops.tarpit.smtp_probe
"""

EXAMPLES = r"""
- name: Would EX01 relay for the proxy?
  mailops.tarpit.exchange_relay_info:
    server: EX01
    client: 192.0.2.25
  register: relay
  failed_when: relay is failed or relay.relays
"""

RETURN = r"""
connector:
  description: The identity of the receive connector that serves the client, or null where none does.
  returned: success
  type: str
  sample: EX01\Relay
relays:
  description: Whether it would relay for it.
  returned: success
  type: bool
causes:
  description: Why, a sentence for each reason.
  returned: success
  type: list
  elements: str
holders:
  description: All accounts that may send to any recipient by way of that connector.
  returned: success
  type: list
  elements: str
"""
