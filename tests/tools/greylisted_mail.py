# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mails through a greylisting proxy as a well-behaved client does, and tells what happened as JSON.

    python greylisted_mail.py --host ADDRESS [--retry-host ADDRESS] [--port 25] --recipient anna@example.org
                              [--sender bert@client.test] [--keep FILE]

All attempts after the first go to --retry-host, if there is one.
Sends a message that exercises what relays get wrong: 8-bit bytes, leading dots, long lines, blank lines at
the end. Each of `first`, `early`, `delivered`, `foreign` has the reply's code and text, and the seconds since
the first attempt. --keep writes the message as it was sent, with CRLF.
"""

from __future__ import annotations

import argparse
import json
import re
import smtplib
import time
import uuid
from pathlib import Path

SENDER = "bert@client.test"


def message(sender: str, recipient: str) -> bytes:
    """A message with lines that relays get wrong, lines ended by CRLF."""
    lines = [
        b"From: Bert <" + sender.encode() + b">",
        b"To: <" + recipient.encode() + b">",
        b"Subject: through the proxy",
        b"Date: Mon, 23 Nov 2026 12:00:00 +0000",
        b"Message-ID: <" + uuid.uuid4().hex.encode() + b"@client.test>",
        b"MIME-Version: 1.0",
        b"Content-Type: text/plain; charset=iso-8859-1",
        b"Content-Transfer-Encoding: 8bit",
        b"X-Folded: first",
        b"\tsecond",
        b"",
        b".",
        b"..",
        b".leading dot, and trailing blanks   ",
        b"gr\xfc\xdfe \x80\xff",
        b"x" * 998,
        b"From here on, tabs\tand \x01 control characters",
        b"",
        b"",
    ]
    return b"\r\n".join(lines) + b"\r\n"


class Story:
    """Attempts to send one message, with their replies."""

    def __init__(
        self, host: str, port: int, recipient: str, *, sender: str = SENDER, retry_host: str | None = None
    ) -> None:
        self._address = (host, port)
        self._retry_address = (retry_host or host, port)
        self._sender = sender
        self._recipient = recipient
        self.message = message(sender, recipient)
        self._started = time.monotonic()

    def attempt(self, recipient: str | None = None) -> dict[str, object]:
        """One session: up to the first refusal, or to the reply after the message."""
        with smtplib.SMTP(*self._address, local_hostname="client.test", timeout=60) as client:
            client.ehlo()
            code, text = client.mail(self._sender, ["BODY=8BITMIME"])
            if code == 250:
                code, text = client.rcpt(recipient or self._recipient)
            if code == 250:
                code, text = client.data(self.message)
        return {
            "code": code,
            "text": text.decode("ascii", "replace"),
            "seconds": round(time.monotonic() - self._started, 3),
        }

    def tell(self) -> dict[str, dict[str, object]]:
        """First contact, a retry at once, one when the proxy said, and a recipient that is none of its own."""
        first = self.attempt()
        self._address = self._retry_address
        early = self.attempt()
        wait = re.search(r"try again in (\d+) seconds", str(early["text"]))
        time.sleep(int(wait[1]) if wait else 0)  # a client can do no better than to wait as it was told
        delivered = self.attempt()
        return {
            "first": first,
            "early": early,
            "delivered": delivered,
            "foreign": self.attempt("someone@elsewhere.test"),
        }


def main() -> None:
    """Read the arguments, mail, print the story."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True)
    parser.add_argument("--retry-host")
    parser.add_argument("--sender", default=SENDER)
    parser.add_argument("--port", type=int, default=25)
    parser.add_argument("--recipient", required=True)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    story = Story(options.host, options.port, options.recipient, sender=options.sender, retry_host=options.retry_host)
    if options.keep:
        options.keep.write_bytes(story.message)
    print(json.dumps(story.tell()))


if __name__ == "__main__":
    main()
