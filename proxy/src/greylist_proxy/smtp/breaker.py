# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host is worth a try: after some failures in a row it is left alone for a while. No I/O, no clock.

    closed      every transaction may go there
    open        nobody goes there: a client would wait for nothing
    half open   the time is over, and one goes there to see; the others wait for how it fares

Times are seconds of any clock that only goes forward.
"""

from __future__ import annotations

from greylist_proxy.smtp.replies import Reply

THRESHOLD = 3  # failures in a row
FIRST_REST = 10.0  # seconds
LONGEST_REST = 60.0  # seconds; each rest is twice as long as the one before


class Breaker:
    """The state of one host. `reply` is what its last failure means for a client, `last` says how the last try went."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.last: bool | None = None
        self.until = 0.0  # where it is open: when the next may try
        self._failures = 0
        self._rest = FIRST_REST
        self._on_trial = False

    @property
    def is_open(self) -> bool:
        """Tell whether the host is being left alone (half open counts)."""
        return self._failures >= THRESHOLD

    def would_admit(self, now: float) -> bool:
        """Tell whether one more may try."""
        return not self.is_open or (now >= self.until and not self._on_trial)

    def admit(self, now: float) -> bool:
        """Let one more try, or not. Who was let must say how it went: `succeeded`, `failed` or `unsettled`.

        Who is let while it `is_open` is the one on trial.
        """
        if not self.would_admit(now):
            return False
        self._on_trial = self.is_open
        return True

    def succeeded(self) -> None:
        """All is well."""
        self.last = True
        self._on_trial = False
        self._failures = 0
        self._rest = FIRST_REST

    def failed(self, now: float, reply: Reply, *, on_trial: bool) -> bool:
        """Count a failure; True where it opens the breaker, or keeps it open for longer."""
        self.last = False
        self.reply = reply
        self._failures += 1
        if on_trial:
            self._on_trial = False
            self._rest = min(2 * self._rest, LONGEST_REST)
        elif self._failures != THRESHOLD:
            return False  # above it: one that had set out before
        self.until = now + self._rest
        return True

    def unsettled(self, *, on_trial: bool) -> None:
        """Who tried was called off: nothing is known."""
        self._on_trial = self._on_trial and not on_trial
