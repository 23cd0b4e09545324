# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation of all exchange_ modules has in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Use it by C(extends_documentation_fragment=[mailops.tarpit.exchange])."""

    DOCUMENTATION = r"""
options:
  endpoint:
    description:
      - URL of Exchange's remote PowerShell endpoint.
      - The default is C(http://<ansible_host>/PowerShell/).
    type: str
  auth:
    description:
      - How to log on. Exchange allows V(kerberos) as installed; the others only where an administrator allowed them.
      - V(basic) over plain HTTP is refused unless O(allow_insecure_basic) is set too. V(certificate) needs HTTPS.
    type: str
    choices: [kerberos, ntlm, negotiate, basic, certificate]
    default: kerberos
  username:
    description:
      - The account. With V(kerberos) and no password, a ticket that is there already is used.
      - The default is C(ansible_user), or its form for the C(psrp) or C(winrm) connection, where the host has one.
    type: str
  password:
    description:
      - Its password. The default is C(ansible_password) in the same way.
    type: str
  validate_certs:
    description:
      - Whether the server's TLS certificate is checked.
      - The default is true, unless C(ansible_psrp_cert_validation) or C(ansible_winrm_server_cert_validation) of the
        host says V(ignore).
    type: bool
  ca_cert:
    description:
      - File with the authorities that are trusted, in PEM.
      - The default is C(ansible_psrp_ca_cert) or C(ansible_winrm_ca_trust_path) of the host, then those of the system.
    type: path
  certificate_pem:
    description:
      - File with the client's certificate for O(auth=certificate).
      - The default is C(ansible_psrp_certificate_pem) or C(ansible_winrm_cert_pem) of the host.
    type: path
  certificate_key_pem:
    description:
      - File with its key.
      - The default is C(ansible_psrp_certificate_key_pem) or C(ansible_winrm_cert_key_pem) of the host.
    type: path
  negotiate_service:
    description:
      - The service in the server's Kerberos principal.
    type: str
    default: HTTP
  allow_insecure_basic:
    description:
      - Allows O(auth=basic) over plain HTTP, which sends the password in clear text.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that one cmdlet may take.
    type: int
    default: 60
attributes:
  async:
    description: Supports being used with the C(async) keyword.
    support: none
  platform:
    description: Target operating systems.
    support: full
    platforms: windows
requirements:
  - pypsrp on the controller, with its extra C(kerberos) for Kerberos
notes:
  - Opens its own session with Exchange from the controller, one a task and host, and closes it. The host's connection
    plugin takes no part, so set C(gather_facts=false) in the play.
  - C(become) is refused, since Exchange works with the rights of the account that logs on.
"""
