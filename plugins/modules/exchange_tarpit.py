#!/usr/bin/python
# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file documents the module. It runs on the controller: plugins/action/exchange_tarpit.py

from __future__ import annotations

DOCUMENTATION = r"""
module: exchange_tarpit
short_description: Set the tarpit interval of Exchange receive connectors
version_added: 0.1.0
author:
  - The mailops.tarpit contributors (@mailops)
description:
  - Sets C(TarpitInterval), by which a receive connector delays its 5xx replies to clients that have not logged in,
    over the remote PowerShell endpoint of Exchange 2010 and later.
  - Only connectors that differ are set, and what was set is read back.
  - One connector that fails does not keep the others from being set. RV(connectors) tells each one's fate.
options:
  seconds:
    description:
      - Seconds by which each 5xx reply is delayed, from 0 to 600. V(0) turns the tarpit off, 5 is Exchange's default.
      - More than 10 give a warning, since Microsoft's page says that more than a few can cause time-outs.
    type: int
    required: true
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: full
extends_documentation_fragment:
  - mailops.tarpit.connectors
  - mailops.tarpit.exchange
seealso:
  - module: mailops.tarpit.exchange_tarpit_info
  - module: mailops.tarpit.smtp_probe
"""

EXAMPLES = r"""
- name: Delay each refusal by 5 seconds where clients come in
  mailops.tarpit.exchange_tarpit:
    seconds: 5
    server: EX01

- name: Several servers from one task, by NTLM over HTTPS
  mailops.tarpit.exchange_tarpit:
    seconds: 5
    server: [EX01, EX02]
    endpoint: https://ex01.example.org/PowerShell/
    auth: ntlm

- name: One connector
  mailops.tarpit.exchange_tarpit:
    seconds: 10
    connectors:
      - EX01\Default Frontend EX01
"""

RETURN = r"""
connectors:
  description: The fate of each receive connector that was chosen.
  returned: when the connectors could be read
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
    before:
      description: Seconds that were found.
      type: float
      sample: 0
    after:
      description: Seconds that are there now, or would be in check mode.
      type: float
      sample: 5
    changed:
      description: Whether it was changed, or may have been where the connection broke.
      type: bool
    failed:
      description: Whether it is not as wanted.
      type: bool
    msg:
      description: Why not.
      type: str
    warnings:
      description: What Exchange warned of when it was set.
      type: list
      elements: str
"""
