#!/usr/bin/python
# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: greylist_info
short_description: Read what a running greylist-proxy is and how it does
version_added: 0.1.0
author:
  - The mailops.tarpit contributors (@mailops)
description:
  - Asks a running C(greylist-proxy), through its control socket, for its version, its mode, its store and the mail
    servers behind it, and on request for what it remembers and for its entries.
  - A host where none runs is no failure.
options:
  counts:
    description:
      - Whether to count what is remembered. May take seconds where there are millions of triplets.
    type: bool
    default: false
  entries:
    description:
      - Whether to list the entries, which may be many where recipients are learned from outbound mail.
    type: bool
    default: false
extends_documentation_fragment:
  - mailops.tarpit.info
  - mailops.tarpit.control
seealso:
  - module: mailops.tarpit.greylist_entry
"""

EXAMPLES = r"""
- name: Look at the proxy
  mailops.tarpit.greylist_info:
    counts: true
  become: true
  register: proxy

- name: Name what is wrong with it
  ansible.builtin.assert:
    that:
      - proxy.running
      - proxy.store.working
      - proxy.backends | rejectattr('state', 'eq', 'up') | length == 0
    quiet: true
"""

RETURN = r"""
running:
  description: Whether a proxy answers on the socket. Without one there is nothing else.
  returned: success
  type: bool
reason:
  description: Why there is no answer.
  returned: when none runs
  type: str
version:
  description: The program's version.
  returned: when it runs
  type: str
  sample: 0.1.0
hostname:
  description: The name that it greets clients by.
  returned: when it runs
  type: str
  sample: mx1.example.org
mode:
  description: V(enforce), V(observe) or V(off).
  returned: when it runs
  type: str
  sample: enforce
started:
  description: When the process that answers began, in UTC.
  returned: when it runs
  type: str
  sample: "2030-04-17T06:30:00.000+00:00"
uptime_seconds:
  description: How long ago that is.
  returned: when it runs
  type: int
  sample: 86400
workers:
  description: How many processes serve.
  returned: when it runs
  type: int
  sample: 1
connections:
  description: How many clients are connected to all of them.
  returned: when it runs
  type: int
  sample: 12
store:
  description: Where it remembers.
  returned: when it runs
  type: dict
  contains:
    address:
      description: The file's path, or the server's address, without a password.
      type: str
      sample: /var/lib/greylist-proxy/greylist.db
    prefix:
      description: What its keys begin with, where it is a Valkey or Redis server.
      type: str
      sample: greylist
    working:
      description: Whether it answered when it was last asked.
      type: bool
    on_failure:
      description: What happens to mail where it does not, V(accept) or V(defer).
      type: str
      sample: accept
backends:
  description: The mail servers behind it.
  returned: when it runs
  type: list
  elements: dict
  contains:
    address:
      description: Host and port.
      type: str
      sample: mail01.example.org:25
    state:
      description: V(up), V(down), or V(unknown) until it was asked.
      type: str
      sample: up
counts:
  description: What is remembered.
  returned: when it runs and O(counts) is set
  type: dict
  contains:
    pending:
      description: Triplets that wait for a retry.
      type: int
    known:
      description: Triplets that have passed.
      type: int
    earners:
      description: Clients that have earned an exemption, or are about to.
      type: int
    entries:
      description: Entries of all kinds.
      type: int
    decisions:
      description: Decisions that are kept for questions.
      type: int
entry_counts:
  description: Entries by kind, and for all but traps by action.
  returned: when it runs and O(counts) is set
  type: dict
  sample: {"client block": 2, "sender allow": 1, "trap": 1}
entries:
  description: The entries, as M(mailops.tarpit.greylist_entry) returns them.
  returned: when it runs and O(entries) is set
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mailops.tarpit.plugins.module_utils._control import (
    ARGUMENTS,
    Control,
    ControlError,
    NotRunning,
)


def look(control, counts, entries):
    """Ask for what is wanted. ControlError, NotRunning."""
    found = control.ask("GET", "/v1/info")
    if counts:
        counted = control.ask("GET", "/v1/counts")
        found.update(counts=counted["store"], entry_counts=counted["entries"])
    if entries:
        found["entries"] = sorted(control.lines("/v1/entries"), key=lambda entry: (entry["kind"], entry["value"]))
    return found


def main():
    """Read the arguments, and ask."""
    module = AnsibleModule(
        argument_spec=dict(
            ARGUMENTS,
            counts={"type": "bool", "default": False},
            entries={"type": "bool", "default": False},
        ),
        supports_check_mode=True,
    )
    params = module.params
    try:
        found = look(Control(params["socket"], params["timeout"]), params["counts"], params["entries"])
    except NotRunning as error:
        module.exit_json(changed=False, running=False, reason=str(error))
    except ControlError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, running=True, **found)


if __name__ == "__main__":
    main()
