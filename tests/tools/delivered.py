# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares a message as it was sent with the file that a mail server made of it.

    python delivered.py SENT DELIVERED

The file must end with the message byte for byte, but for the line ends, which mail servers keep as LF. What
stands above it, the headers of those who passed it on, is printed. Exit status 1 where it differs.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(sent_path: str, delivered_path: str) -> int:
    """Compare, and print the headers that were added or the first difference."""
    sent = Path(sent_path).read_bytes().replace(b"\r\n", b"\n")
    delivered = Path(delivered_path).read_bytes()
    if delivered.endswith(sent):
        print(delivered.removesuffix(sent).decode("ascii", "backslashreplace"))
        return 0
    tail = delivered[-len(sent) :]
    at = next((i for i, (a, b) in enumerate(zip(sent, tail, strict=False)) if a != b), len(tail))
    print(f"differs from byte {at}: sent {sent[at : at + 60]!r}, delivered {tail[at : at + 60]!r}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
