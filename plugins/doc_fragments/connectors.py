# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the exchange_ modules choose receive connectors."""

from __future__ import annotations


class ModuleDocFragment:
    """Use it by C(extends_documentation_fragment=[mailops.tarpit.connectors])."""

    DOCUMENTATION = r"""
options:
  connectors:
    description:
      - The receive connectors by identity, such as V(EX01\\Default Frontend EX01).
      - All connectors of one server cost one request. One that does not exist is an error that lists what there is.
    type: list
    elements: str
  server:
    description:
      - Instead, the servers whose connectors are meant, narrowed by O(transport_role) and O(port). A server without
        such a connector is an error that lists what it has.
    type: list
    elements: str
  transport_role:
    description:
      - With O(server), the role of the connectors. Clients from outside reach V(FrontendTransport).
    type: str
    choices: [FrontendTransport, HubTransport, all]
    default: FrontendTransport
  port:
    description:
      - With O(server), a port that they listen on. V(0) is any.
    type: int
    default: 25
"""
