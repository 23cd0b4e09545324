# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mail servers behind: which one a transaction goes to, and the connections that are kept for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Literal

from greylist_proxy.config_values import Endpoint
from greylist_proxy.log import Log
from greylist_proxy.smtp.address import Parameter, Path
from greylist_proxy.smtp.backend import Timeouts
from greylist_proxy.smtp.capabilities import Capabilities, Promises
from greylist_proxy.smtp.forwarding import Introduction
from greylist_proxy.smtp.replies import Reply
from greylist_proxy.tasks import Tasks


@dataclass(frozen=True)
class BackendSettings:
    """`[backend]`: the hosts in order, and how they are talked to."""

    hosts: Sequence[Endpoint]
    starttls: Literal["never", "opportunistic", "required", "verify"] = "opportunistic"
    ca_file: FilePath | None = None  # None: the system's authorities
    send_client_address: Literal["none", "xclient", "proxy-v1", "proxy-v2"] = "none"
    capabilities: Capabilities | None = None  # what to offer, whatever the hosts say; None: ask them
    max_connections: int = 100  # a host
    idle_connections: int = 20  # a host
    idle_timeout: float = 60.0  # seconds
    timeouts: Timeouts = field(default_factory=Timeouts)


class Backends:
    """The hosts, with their connections and what is known about them."""

    def __init__(self, settings: BackendSettings, hostname: str, promises: Promises, log: Log, tasks: Tasks) -> None:
        self._settings = settings

    def configure(self, settings: BackendSettings) -> None:
        """Take other settings over, for connections still to be made. OSError: the CA file can't be read."""
        raise NotImplementedError

    @property
    def offered(self) -> Capabilities | None:
        """What a client may be promised; None while nothing is known of any host."""
        raise NotImplementedError

    async def verify(
        self, sender: Path, parameters: Sequence[Parameter], recipient: str, introduction: Introduction
    ) -> Reply:
        """Ask for a recipient in a transaction of its own, and take it back. Never raises BackendError."""
        raise NotImplementedError

    async def keep_probing(self) -> None:
        """Ask every host for its capabilities, at once and from time to time; runs until it is cancelled."""
        raise NotImplementedError

    def health(self) -> dict[str, str]:
        """Return `up`, `down` or `unknown` for each host."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of the connections that are kept."""
        raise NotImplementedError
