# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a listing is narrowed to (`Wanted`), for stores that look through what they have."""

from __future__ import annotations

from greylist_proxy.store import Allowance, Logged, Remembered, Wanted


def wants_triplet(wanted: Wanted, remembered: Remembered) -> bool:
    """Tell whether a triplet is wanted."""
    triplet, record = remembered.triplet, remembered.record
    return (
        wanted.client in (None, triplet.client)
        and _is_address(wanted.sender, triplet.sender)
        and _is_address(wanted.recipient, triplet.recipient)
        and (wanted.since is None or record.first_seen >= wanted.since)
    )


def wants_allowance(wanted: Wanted, allowance: Allowance) -> bool:
    """Tell whether an earner is wanted."""
    return wanted.client in (None, allowance.earner)


def wants_decision(wanted: Wanted, logged: Logged) -> bool:
    """Tell whether a decision is wanted."""
    return (
        wanted.client in (None, logged.client, logged.network, logged.key)
        and _is_address(wanted.sender, logged.sender)
        and _is_address(wanted.recipient, logged.recipient)
        and wanted.verdict in (None, logged.verdict)
        and wanted.reason in (None, logged.reason)
        and wanted.id in (None, logged.id, logged.id.partition(".")[0])
        and (wanted.since is None or logged.time >= wanted.since)
    )


def _is_address(wanted: str | None, address: str) -> bool:
    """Compare an address, or `@domain`; domains without case (RFC 5321 section 2.4)."""
    if wanted is None:
        return True
    local, _at, domain = wanted.rpartition("@")
    own_local, own_at, own_domain = address.rpartition("@")
    if domain.lower() != own_domain.lower():
        return False
    return bool(own_at) if wanted.startswith("@") and not local else local == own_local
