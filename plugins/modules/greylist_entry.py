#!/usr/bin/python
# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: greylist_entry
short_description: Allow or block a client, sender or recipient of greylist-proxy, or set a spam trap
version_added: 0.1.0
author:
  - The mailops.tarpit contributors (@mailops)
description:
  - Makes, replaces and removes entries of a running C(greylist-proxy), through its control socket.
  - An entry is durable and counts when the task ends. Other proxies that share the store count it within a second, so
    one host of a cluster is enough.
  - An entry that was learned, or made by a spam trap, is replaced by the operator's own.
options:
  kind:
    description:
      - What the entry is about. A V(trap) is a recipient that nobody writes to who means well.
    type: str
    choices: [client, sender, recipient, trap]
    required: true
  value:
    description:
      - For a V(client) an IP address, a network, or a domain name, which stands for all names below it too.
      - Otherwise an address, or a domain with all below it. For a V(recipient) or V(trap) also C(user@), which is that
        local part at any domain.
      - There is one entry for each O(kind) and O(value). Case and other ways of writing the same make no difference.
    type: str
    required: true
  action:
    description:
      - V(allow) exempts from greylisting, V(block) refuses. The default is V(allow). A V(trap) has none.
    type: str
    choices: [allow, block]
  expires:
    description:
      - When the entry ends. A duration such as V(90s), V(12h) or V(30d), or a time such as V(2030-05-17T06:30Z).
        A time without a zone is in the time of the proxy. By default an entry does not end.
      - A duration is counted from when the entry is made. As long as it lasts, a task that asks for the same duration
        changes nothing, and does not prolong it. Once it has ended, the task makes it anew.
    type: str
  note:
    description:
      - What it is for, for those who come after you. Up to 500 characters.
    type: str
    default: ""
  state:
    description:
      - V(absent) removes the entry, whoever made it.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Returns details on what has changed, when in diff mode.
    support: full
extends_documentation_fragment:
  - mailops.tarpit.control
seealso:
  - module: mailops.tarpit.greylist_info
"""

EXAMPLES = r"""
- name: A partner's mail never waits
  mailops.tarpit.greylist_entry:
    kind: sender
    value: partner.example
    note: orders, see their contract
  become: true

- name: A network is refused for a month
  mailops.tarpit.greylist_entry:
    kind: client
    value: 198.51.100.0/24
    action: block
    expires: 30d
  become: true

- name: An address of somebody who has left becomes a spam trap
  mailops.tarpit.greylist_entry:
    kind: trap
    value: old-address@example.org
  become: true

- name: The month was enough
  mailops.tarpit.greylist_entry:
    kind: client
    value: 198.51.100.0/24
    state: absent
  become: true
"""

RETURN = r"""
before:
  description: The entry that was there, or null.
  returned: success
  type: dict
  contains: &entry
    kind:
      description: What it is about.
      type: str
      sample: client
    value:
      description: The value, as the proxy keeps it.
      type: str
      sample: 198.51.100.0/24
    action:
      description: What it does. For a trap it says nothing, and is V(block).
      type: str
      sample: block
    source:
      description: Who made it, V(operator), V(learned) or V(trap).
      type: str
      sample: operator
    created:
      description: When it was made, in UTC.
      type: str
      sample: "2030-04-17T06:30:00.000+00:00"
    expires:
      description: When it ends, in UTC, or null.
      type: str
      sample: "2030-05-17T06:30:00.000+00:00"
    note:
      description: What it is for.
      type: str
      sample: orders, see their contract
after:
  description: The entry that is there now, or null. In check mode the one that would be.
  returned: success
  type: dict
  contains: *entry
effective:
  description:
    - Whether all of the proxy's processes count the change already. One that cannot look into the store does so as soon
      as it can.
  returned: success
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mailops.tarpit.plugins.module_utils._control import ARGUMENTS, Control, ControlError


def shown(entry):
    """What a diff shows of an entry: what somebody may want of it."""
    return {name: entry[name] for name in ("action", "expires", "note", "source")} if entry else {}


def main():
    """Read the arguments, have the proxy do it, and say what was and is."""
    module = AnsibleModule(
        argument_spec=dict(
            ARGUMENTS,
            kind={"type": "str", "required": True, "choices": ["client", "sender", "recipient", "trap"]},
            value={"type": "str", "required": True},
            action={"type": "str", "choices": ["allow", "block"]},
            expires={"type": "str"},
            note={"type": "str", "default": ""},
            state={"type": "str", "choices": ["present", "absent"], "default": "present"},
        ),
        supports_check_mode=True,
    )
    params = module.params
    control = Control(params["socket"], params["timeout"])
    subject = {"kind": params["kind"], "value": params["value"]}
    query = {"dry_run": "true"} if module.check_mode else {}
    try:
        if params["state"] == "absent":
            answer = control.ask("DELETE", "/v1/entry", dict(subject, **query))
        else:
            wish = {name: params[name] for name in ("action", "expires", "note") if params[name]}
            answer = control.ask("PUT", "/v1/entry", query, dict(subject, **wish))
    except ControlError as error:
        module.fail_json(msg=str(error))
    if not answer["effective"]:
        module.warn("the change is in the store, and not all of the proxy's processes count it yet; its log says why")
    title = "%(kind)s %(value)s" % (answer["after"] or answer["before"] or subject)
    module.exit_json(
        diff={
            "before_header": title,
            "after_header": title,
            "before": shown(answer["before"]),
            "after": shown(answer["after"]),
        },
        **answer,
    )


if __name__ == "__main__":
    main()
