# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a server takes to refuse a recipient in a foreign domain, measured from outside.

    python refusal_delay.py HOST PORT

prints {"code": 550, "seconds": 3.001, "accepted_seconds": 0.002}: the reply to RCPT, how long it took, and
how long the reply to MAIL took just before it. No message is sent.
"""

from __future__ import annotations

import json
import smtplib
import sys
import time

FOREIGN = "postmaster@relay-probe.invalid"


def measure(host: str, port: int) -> dict[str, float]:
    """The reply code, and the seconds that the replies to RCPT and to MAIL took."""
    with smtplib.SMTP(host, port, local_hostname="probe.invalid", timeout=120) as client:
        client.ehlo()
        started = time.monotonic()
        client.mail("probe@probe.invalid")
        accepted = time.monotonic()
        code, _text = client.rcpt(FOREIGN)
        refused = time.monotonic()
    return {
        "code": code,
        "seconds": round(refused - accepted, 3),
        "accepted_seconds": round(accepted - started, 3),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
