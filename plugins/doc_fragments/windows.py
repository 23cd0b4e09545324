# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation of all win_ modules has in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Use it by C(extends_documentation_fragment=[mailops.tarpit.windows])."""

    DOCUMENTATION = r"""
options:
  service:
    description:
      - Name of the SMTP service.
    type: str
    default: SMTPSVC
attributes:
  async:
    description: Supports being used with the C(async) keyword.
    support: none
  platform:
    description: Target operating systems.
    support: full
    platforms: windows
requirements:
  - pywinrm or pypsrp on the controller
notes:
  - Works over WS-Management on the host's own C(winrm) or C(psrp) connection. No PowerShell is started on the host
    and nothing is uploaded to it, so set C(gather_facts=false) in the play, which would do both.
  - The account must be a member of the host's Administrators group. A local account other than the built-in
    one also needs C(LocalAccountTokenFilterPolicy) set to 1.
  - C(become) is refused, since WinRM works with the rights of the account that logs on.
  - Windows Server 2025 has no SMTP service any more.
"""
