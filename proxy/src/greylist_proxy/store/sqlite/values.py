# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How values are written in the SQLite file: times as whole milliseconds, rows as JSON, text as SQLite can hold it."""

from __future__ import annotations

import json
from collections.abc import Iterable


def to_ms(seconds: float) -> int:
    """Give a time as the file keeps it."""
    return round(seconds * 1000)


def from_ms(milliseconds: int) -> float:
    """Give a time of the file in seconds."""
    return milliseconds / 1000


def is_clean(*texts: str) -> bool:
    """Tell whether `clean` is sure to leave all of them as they are."""
    text = "".join(texts)
    return text.isascii() and "\0" not in text


def clean(text: str) -> str:
    """Write what UTF-8 can't hold (surrogates) or SQLite would end a text at (NUL) as an escape."""
    if is_clean(text):
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def as_json(rows: Iterable[object]) -> str:
    """Write rows for `json_each`."""
    return json.dumps(list(rows), ensure_ascii=False)
