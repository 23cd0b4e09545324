# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a backend is told whom its connection speaks for: Postfix's XCLIENT, HAProxy's PROXY protocol. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from greylist_proxy.resolver import Address


@dataclass(frozen=True, slots=True)
class Introduction:
    """The client that a backend connection speaks for.

    `local_address` is where it connected to, "" where that is not known; `name` is its forward-confirmed name, None
    where it has none or nobody has asked; `helo` is what it called itself, whatever that is.
    """

    address: Address
    port: int
    local_address: str
    local_port: int
    name: str | None
    helo: str
    esmtp: bool
