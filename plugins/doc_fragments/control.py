# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation of all greylist_ modules has in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Use it by C(extends_documentation_fragment=[mailops.tarpit.control])."""

    DOCUMENTATION = r"""
options:
  socket:
    description:
      - Path of the proxy's control socket, C([admin] socket) of its configuration.
    type: path
    default: /run/greylist-proxy/control.sock
  timeout:
    description:
      - Seconds to wait for the connection, and for the answer.
    type: int
    default: 60
attributes:
  platform:
    description: Target operating systems.
    support: full
    platforms: posix
notes:
  - Runs on the proxy's host, and needs nothing there but Python.
  - Only root, the user that the proxy runs as, and members of the socket's group may use it. Set C(become).
"""
