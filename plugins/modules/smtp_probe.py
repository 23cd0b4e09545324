#!/usr/bin/python
# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: smtp_probe
short_description: Measure how an SMTP server refuses a recipient
version_added: 0.1.0
author:
  - The mailops.tarpit contributors (@mailops)
description:
  - Connects to an SMTP server from where the task runs, asks for a recipient in a foreign domain, and measures
    how long the refusal takes. That shows a tarpit from outside.
  - Never sends DATA, so no message comes into being.
  - A server that accepts the recipient would relay for this client, and a tarpit cannot be seen from here. The
    answer is then RV(conclusive=false). It is no surprise where O(expect.code) asks for it, as for a recipient of
    the server's own.
options:
  host:
    description: Name or address of the server.
    type: str
    required: true
  port:
    description: Its SMTP port.
    type: int
    default: 25
  recipient:
    description:
      - The recipient to ask for. Keep a foreign domain, since servers answer 5xx to that at RCPT, where they may
        refuse unknown users of their own only after DATA.
    type: str
    default: postmaster@relay-probe.invalid
  sender:
    description: The envelope sender. Empty for the null sender.
    type: str
    default: ""
  helo:
    description: The name to give in EHLO. The name of the host that the task runs on by default.
    type: str
  starttls:
    description:
      - V(never) stays in clear text, V(offered) uses STARTTLS where the server offers it, V(required) fails
        where it does not. The certificate is not checked, since nothing secret is sent.
    type: str
    choices: [never, offered, required]
    default: never
  proxy_protocol:
    description:
      - The PROXY header to send before anything else, for a server that wants one, V(v1) or V(v2). It names the asking
        host itself as the client.
    type: str
    choices: [none, v1, v2]
    default: none
  timeout:
    description: Seconds to wait for the connection and for each reply. Must be longer than the delay looked for.
    type: int
    default: 60
  required:
    description:
      - Whether a server that cannot be reached is a failure. With V(false) it is a warning, and RV(reachable)
        is V(false).
    type: bool
    default: true
  expect:
    description: What the answer must be. The task fails where it is not.
    type: dict
    suboptions:
      code:
        description: The reply code, such as V(550), or its first digit, such as V(5).
        type: int
      min_delay:
        description: Seconds that the refusal must take at least.
        type: float
      max_delay:
        description: Seconds that the refusal may take at most.
        type: float
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
    details:
      - Measures in check mode too, since it changes nothing.
  diff_mode:
    description: Returns details on what has changed, when in diff mode.
    support: none
  platform:
    description: Target operating systems.
    support: full
    platforms: posix
notes:
  - Run it from a host that the server does not trust, such as the controller, with C(delegate_to=localhost).
"""

EXAMPLES = r"""
- name: A refusal takes 30 seconds, seen from the controller
  mailops.tarpit.smtp_probe:
    host: "{{ ansible_host }}"
    expect:
      code: 5
      min_delay: 30
  delegate_to: localhost

- name: Look at what a server says, whatever it is
  mailops.tarpit.smtp_probe:
    host: mail01.example.org
    starttls: offered
  register: probe
"""

RETURN = r"""
reachable:
  description: Whether the server could be asked.
  returned: always
  type: bool
conclusive:
  description: Whether the answer tells anything of a tarpit. False where the recipient was accepted.
  returned: always
  type: bool
client_address:
  description:
    - The address that the connection came from, as the asking host has it. Behind NAT the server sees another.
  returned: when reachable
  type: str
  sample: 192.0.2.25
banner:
  description: The text of the server's greeting.
  returned: when reachable
  type: str
  sample: mail01.example.org Microsoft ESMTP MAIL Service ready
extensions:
  description: The extensions that the server offers in its answer to EHLO.
  returned: when reachable
  type: list
  elements: str
  sample: [SIZE 36700160, PIPELINING, 8BITMIME]
code:
  description: The code of the reply to RCPT, or to MAIL where that was refused already.
  returned: when reachable
  type: int
  sample: 550
message:
  description: The text of that reply.
  returned: when reachable
  type: str
  sample: 5.7.1 Unable to relay for postmaster@relay-probe.invalid
delay_seconds:
  description: How long that reply took.
  returned: when reachable
  type: float
  sample: 30.012
"""

import smtplib
import socket
import ssl
import struct
import time

from ansible.module_utils.basic import AnsibleModule


def ascii_address(address):
    """An address with its domain as it goes over the wire (RFC 5891). UnicodeError: it is none."""
    local, at, domain = address.rpartition("@")
    return local + at + (domain if domain.isascii() else domain.encode("idna").decode("ascii"))


def printable(text):
    """A server's words, without what could steer a terminal."""
    return "".join(c if c.isprintable() or c == " " else "?" for c in text.decode("ascii", "replace"))


def proxy_header(version, sock):
    """The PROXY header for a connection that tells of nobody else (haproxy's doc/proxy-protocol.txt)."""
    source, target = sock.getsockname(), sock.getpeername()
    six = sock.family == socket.AF_INET6
    if version == "v1":
        line = "PROXY %s %s %s %d %d\r\n" % ("TCP6" if six else "TCP4", source[0], target[0], source[1], target[1])
        return line.encode("ascii")
    addresses = b"".join(socket.inet_pton(sock.family, each[0]) for each in (source, target))
    addresses += struct.pack("!HH", source[1], target[1])
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, 0x21 if six else 0x11, len(addresses)) + addresses


class Client(smtplib.SMTP):
    """An SMTP client that keeps the server's greeting, which smtplib throws away, and may begin with a PROXY header."""

    banner = b""
    proxy_protocol = "none"

    def __init__(self, host, port, proxy_protocol, **kwargs):
        self.proxy_protocol = proxy_protocol
        super().__init__(host, port, **kwargs)

    def connect(self, *args, **kwargs):
        """Connect, as the constructor does."""
        code, self.banner = super().connect(*args, **kwargs)
        return code, self.banner

    def _get_socket(self, *args, **kwargs):
        # The one step between the connection and the greeting.
        sock = super()._get_socket(*args, **kwargs)
        if self.proxy_protocol != "none":
            sock.sendall(proxy_header(self.proxy_protocol, sock))
        return sock


def probe(host, port, recipient, sender, helo, starttls, proxy_protocol, timeout):
    """Ask, and return the module's result. Raise OSError or smtplib.SMTPException where there is no answer."""
    with Client(host, port, proxy_protocol, local_hostname=helo, timeout=timeout) as client:
        client_address = client.sock.getsockname()[0]
        greet(client)
        if starttls != "never":
            if client.has_extn("starttls"):
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                client.starttls(context=context)
                greet(client)
            elif starttls == "required":
                raise smtplib.SMTPNotSupportedError("the server does not offer STARTTLS")
        extensions = client.ehlo_resp.split(b"\n")[1:] if client.does_esmtp else []
        started = time.monotonic()
        code, text = client.mail(sender)
        if code == 250:
            started = time.monotonic()
            code, text = client.rcpt(recipient)
        delay = time.monotonic() - started
        return {
            "reachable": True,
            "conclusive": code >= 300,
            "client_address": client_address,
            "banner": printable(client.banner),
            "extensions": [printable(line) for line in extensions],
            "code": code,
            "message": printable(text),
            "delay_seconds": round(delay, 3),
        }


def greet(client):
    """EHLO, or HELO where the server knows no other."""
    code, text = client.ehlo()
    if code >= 400 and client.proxy_protocol != "none":
        # A server that wants no header takes it for a command, and this is its answer to that. The next one is still to
        # come, so no QUIT: its answer would be mistaken as well.
        client.close()
        raise smtplib.SMTPHeloError(code, b"it does not take the PROXY header: " + text)
    if code >= 400:
        code, text = client.helo()
    if code >= 400:
        raise smtplib.SMTPHeloError(code, text)


def shortfall(result, expect):
    """What of the expectation is not met, as a sentence, or ''."""
    code, delay = result["code"], result["delay_seconds"]
    wanted = expect.get("code")
    if wanted is not None and code != wanted and code // 100 != wanted:
        return "it answered %s (%s) where %s was expected" % (code, result["message"], wanted)
    least, most = expect.get("min_delay"), expect.get("max_delay")
    if least is not None and delay < least:
        return "it answered %s after %.3f seconds, and at least %g were expected" % (code, delay, least)
    if most is not None and delay > most:
        return "it answered %s after %.3f seconds, and at most %g were expected" % (code, delay, most)
    return ""


def main():
    """Read the arguments, probe, and compare with what was expected."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 25},
            "recipient": {"type": "str", "default": "postmaster@relay-probe.invalid"},
            "sender": {"type": "str", "default": ""},
            "helo": {"type": "str"},
            "starttls": {"type": "str", "choices": ["never", "offered", "required"], "default": "never"},
            "proxy_protocol": {"type": "str", "choices": ["none", "v1", "v2"], "default": "none"},
            "timeout": {"type": "int", "default": 60},
            "required": {"type": "bool", "default": True},
            "expect": {
                "type": "dict",
                "options": {
                    "code": {"type": "int"},
                    "min_delay": {"type": "float"},
                    "max_delay": {"type": "float"},
                },
            },
        },
        supports_check_mode=True,
    )
    params = module.params
    expect = params.pop("expect") or {}
    required = params.pop("required")
    if "\r" in params["recipient"] + params["sender"] or "\n" in params["recipient"] + params["sender"]:
        module.fail_json(msg="recipient and sender must be on one line")
    try:
        params["recipient"] = ascii_address(params["recipient"])
    except UnicodeError as error:
        module.fail_json(msg="recipient has no domain that can be written in ASCII: %s" % error)
    server = "%s port %s" % (params["host"], params["port"])
    params["helo"] = params["helo"] or socket.getfqdn()
    try:
        result = probe(**params)
    except (OSError, smtplib.SMTPException) as error:
        message = "%s gave no answer to measure: %s" % (server, error or type(error).__name__)
        if required:
            module.fail_json(
                msg=message + ". Check address, port and firewall, or raise 'timeout'",
                reachable=False,
                conclusive=False,
            )
        module.warn(message)
        module.exit_json(changed=False, reachable=False, conclusive=False)
    if not result["conclusive"] and expect.get("code") not in (2, result["code"]):
        module.warn(
            "%s accepted the foreign recipient %s: it relays for this client, so a tarpit cannot be seen from here"
            % (server, params["recipient"])
        )
    else:
        missing = shortfall(result, expect)
        if missing:
            module.fail_json(msg="%s: %s" % (server, missing), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
