# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text as every store can hold it."""

from __future__ import annotations

from dataclasses import replace

from greylist_proxy.store import Entry


def is_clean(*texts: str) -> bool:
    """Tell whether `clean` is sure to leave all of them as they are."""
    text = "".join(texts)
    return text.isascii() and "\0" not in text


def clean(text: str) -> str:
    """Write what UTF-8 can't hold (surrogates) or SQLite would end a text at (NUL) as an escape."""
    if is_clean(text):
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def clean_entry(entry: Entry) -> Entry:
    """Write the texts of an entry so."""
    return replace(entry, value=clean(entry.value), note=clean(entry.note))
