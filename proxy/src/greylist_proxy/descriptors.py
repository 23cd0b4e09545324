# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many file descriptors this process may have: each connection takes one."""

from __future__ import annotations

import resource

from greylist_proxy.config import Config

OTHER_DESCRIPTORS = 200  # of a process: standard streams, the store, the loop, lists that are read, the admin side


def raise_limit(config: Config) -> list[str]:
    """Allow ourselves as many file descriptors as the configuration may need; say so where they are fewer."""
    backend = config.backend
    needed = (
        config.smtp.max_connections
        + backend.max_connections * len(backend.hosts)
        + config.dns.max_in_flight
        + OTHER_DESCRIPTORS
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        return [f"{allowed} file descriptors are allowed, and {needed} may be needed: see smtp.max_connections"]
    return []
