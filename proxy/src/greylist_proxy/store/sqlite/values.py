# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How values are written in the SQLite file: times as whole milliseconds, rows as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable


def to_ms(seconds: float) -> int:
    """Give a time as the file keeps it."""
    return round(seconds * 1000)


def from_ms(milliseconds: int) -> float:
    """Give a time of the file in seconds."""
    return milliseconds / 1000


def as_json(rows: Iterable[object]) -> str:
    """Write rows for `json_each`."""
    return json.dumps(list(rows), ensure_ascii=False)
