# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Times and durations as people write them, and times as programs read them."""

from __future__ import annotations

import datetime
import time

from greylist_proxy.config_values import parse_duration

MAX_AHEAD = 100 * 366 * 86400.0  # seconds; an entry that is to last longer does not expire
EARLIEST = datetime.datetime.min.replace(tzinfo=datetime.UTC).timestamp()  # no store has to hold an earlier one
WHEN = "a duration (90s, 12h, 2d) or a time (2024-05-17, 2024-05-17T08:30, 2024-05-17T06:30Z)"


def moment(text: str, direction: int) -> float:
    """Return the time that a text means; a duration is counted from now, by `direction` -1 into the past.

    ValueError: it means none; the text says what is allowed. A time without a zone is a local one.
    """
    try:
        found = time.time() + direction * parse_duration(text)
    except ValueError:
        pass
    else:
        if found < EARLIEST:
            raise ValueError(f"{text!r}: allowed is {WHEN}")
        return found
    try:
        return datetime.datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r}: allowed is {WHEN}") from None


def to_come(text: str) -> float:
    """Return the time to come that a text means. ValueError: it means none, has passed, or is too far ahead."""
    found = moment(text, 1)
    if found <= time.time():
        raise ValueError(f"{text!r} has passed already")
    if found > time.time() + MAX_AHEAD:
        raise ValueError(f"{text!r} is more than 100 years ahead; without it an entry does not expire")
    return found


def lasting(text: str) -> float | None:
    """Return the seconds where a text is a duration; None: it is none."""
    try:
        return parse_duration(text)
    except ValueError:
        return None


def iso_time(seconds: float | None) -> str | None:
    """Return a time for programs: ISO 8601, UTC."""
    if seconds is None:
        return None
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return None
