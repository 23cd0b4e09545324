# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which recipients exist: asked of the mail server behind, and not told to who tries out names."""

from __future__ import annotations

from greylist_proxy.client import Client


class Harvesters:
    """Counts the unknown users that each client asked for."""

    def note(self, client: Client, recipient: str) -> None:
        """Count an unknown user; the same one counts once."""
        raise NotImplementedError

    def forgive(self, client: Client) -> None:
        """Start anew: it delivered a message."""
        raise NotImplementedError

    def has(self, client: Client) -> bool:
        """Tell whether a client has asked for too many."""
        raise NotImplementedError
