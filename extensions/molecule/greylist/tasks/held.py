# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients in the middle of a message, one at each of the two processes, while the port moves; then one at the new port.

    python3 held.py MARK

MARK is made when the first one waits. It ends its message when the process that it talks to is told to end; the second
one ends its own when port 2525 answers. So if either were waited for with no port open, neither would ever be done.
Prints the replies to all three messages.
"""

import pathlib
import smtplib
import subprocess
import sys
import time


def hold(port: int) -> smtplib.SMTP:
    """Return a client that has sent half of its message. Whoever turns it away is asked again."""
    while True:
        client = smtplib.SMTP(timeout=300)
        try:
            client.connect("127.0.0.1", port)
            client.ehlo("client.test")
            client.mail(f"{time.monotonic_ns()}@client.test")
            client.rcpt("load@example.org")
            if client.docmd("DATA")[0] == 354:
                client.send(b"Subject: held\r\n\r\n")
                return client
        except (OSError, smtplib.SMTPException):
            pass
        client.close()
        time.sleep(0.05)


def end(client: smtplib.SMTP) -> int:
    """Send the other half, and return the code of the reply."""
    client.send(b"ends here\r\n.\r\n")
    return client.getreply()[0]


def is_ending() -> bool:
    """Tell whether the service has been told to end."""
    command = ["systemctl", "show", "--property=ActiveState", "--value", "greylist-proxy.service"]
    return subprocess.check_output(command, text=True) == "deactivating\n"  # noqa: S603 - nothing comes from outside


first = hold(25)
pathlib.Path(sys.argv[1]).touch()
while not is_ending():
    time.sleep(0.05)
second = hold(25)
print(end(first))
third = hold(2525)
print(end(second))
print(end(third))
