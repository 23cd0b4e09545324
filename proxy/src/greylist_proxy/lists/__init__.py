# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of clients, senders and recipients: what a value may be, tables that find it fast, and where lists come from.

    entries.py      what may stand in a list, and how it is compared
    tables.py       lookup by network, name, address and pattern
    postgrey.py     files in postgrey's formats, and files of spam traps
    well_known.py   the list that ships with the package
    runtime.py      entries that were made at run time
    dns_lists.py    allow-lists that are asked over the DNS

Which list wins over which is decided in `exemptions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence


class ListError(Exception):
    """Lists that can't be read; `lines` has one sentence for each file."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)
