# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter greylist_preflight: the judgement of `_preflight.py` for the role greylist_proxy."""

from __future__ import annotations

DOCUMENTATION = r"""
name: greylist_preflight
short_description: Tell what would go wrong if mail came to a greylisting proxy
version_added: 0.1.0
author:
  - The mailops.tarpit contributors (@mailops)
description:
  - What the role P(mailops.tarpit.greylist_proxy#role) judges its preflight by. It asks nobody; the role has done
    that before.
  - Returns sentences, each with the way to mend what it says. None is good.
positional: _input
options:
  _input:
    description: The configuration of the proxy, by section.
    type: dict
    required: true
  host:
    description: The proxy's name in the inventory.
    type: str
    required: true
  proxies:
    description: The variables of each proxy of the inventory, this one among them.
    type: dict
    required: true
  answers:
    description: Results of M(mailops.tarpit.smtp_probe) in a loop over lists of a server and a recipient.
    type: list
    elements: dict
    required: true
  foreign:
    description: The recipient among them that no server must accept.
    type: str
    required: true
  certificate:
    description: The certificate, in PEM. Empty where there is none.
    type: str
    default: ""
  names:
    description: The names that the certificate must have.
    type: list
    elements: str
    default: []
  days:
    description: For how many days from now it must be valid.
    type: int
    default: 14
"""

EXAMPLES = r"""
- name: Say what is wrong
  ansible.builtin.debug:
    msg: >-
      {{ {'backend': {}, 'store': {'url': 'sqlite:////var/lib/greylist-proxy/greylist.db'}}
         | mailops.tarpit.greylist_preflight(host=inventory_hostname, proxies=hostvars, answers=[], foreign='') }}
"""

RETURN = r"""
_value:
  description: The sentences.
  type: list
  elements: str
"""

import datetime
import typing as t

from ansible.errors import AnsibleError
from ansible_collections.mailops.tarpit.plugins.plugin_utils import _preflight
from jinja2.exceptions import UndefinedError


class Told(t.Mapping[str, t.Any]):
    """A host's variables as far as they can be told: some need what is not at hand for another host."""

    def __init__(self, variables: _preflight.Variables) -> None:
        self._variables = variables

    def __getitem__(self, name: str) -> t.Any:
        try:
            value = self._variables[name]
            # What is made of other hosts' variables, or of facts that are missing, comes as a mark that raises this as
            # soon as it is touched.
            str(value)
        except (AnsibleError, UndefinedError):
            raise KeyError(name) from None
        return value

    def __iter__(self) -> t.Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


def greylist_preflight(
    config: _preflight.Variables,
    host: str,
    proxies: t.Mapping[str, _preflight.Variables],
    answers: t.Iterable[_preflight.Variables],
    foreign: str,
    certificate: str = "",
    names: t.Iterable[str] = (),
    days: int = 14,
) -> list[str]:
    """Return what is wrong."""
    troubles: list[str] = []
    forwarding = str(config["backend"].get("send_client_address") or "none")
    for answer in map(_preflight.Answer.read, answers):
        is_foreign = answer.recipient == foreign
        troubles += _preflight.relaying(answer, forwarding) if is_foreign else _preflight.domains(answer)
    if certificate:
        troubles += _preflight.certificate(certificate, names, days, datetime.datetime.now(datetime.UTC))
    told = {name: Told(variables) for name, variables in proxies.items()}
    troubles += _preflight.sharing(host, told, str(config["store"]["url"]))
    return troubles


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return them by name."""
        return {"greylist_preflight": greylist_preflight}
