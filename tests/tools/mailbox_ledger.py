# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares a mailbox with the books that under_load.py kept. Runs where the mailbox is, on any Python 3.

    python mailbox_ledger.py MAILDIR LEDGER…

Prints, as JSON, how many messages were acknowledged and are there (`delivered`), and the numbers of those that are
`missing`, `damaged`, or there more than once (`twice`).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path


def main(maildir: str, *ledgers: str) -> None:
    """Read both, print what differs."""
    wanted = {}
    for ledger in ledgers:
        for line in Path(ledger).read_text().splitlines():
            number, digest = line.split()
            wanted[int(number)] = digest
    there: Counter[int] = Counter()
    damaged = []
    for path in Path(maildir).iterdir():
        found = re.search(rb"^X-Ledger: ([0-9]+)\n.*", path.read_bytes(), re.MULTILINE | re.DOTALL)
        if found is None:
            continue
        number = int(found[1])
        there[number] += 1
        if number in wanted and hashlib.sha256(found[0]).hexdigest() != wanted[number]:
            damaged.append(number)
    told = {
        "delivered": len(wanted.keys() & there.keys()),
        "missing": sorted(wanted.keys() - there.keys()),
        "damaged": sorted(damaged),
        "twice": sorted(number for number, times in there.items() if times > 1),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
