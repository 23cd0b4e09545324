# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
r"""Exchange on a lab host, as tests look at it and change it: `host.exchange`.

    host.exchange.connector(r"EX01\Default Frontend EX01").tarpit_seconds = 30
    host.exchange.fail("Set-ReceiveConnector", times=2, message="…")
    host.exchange.sessions, host.exchange.open_shells

The organisation is the lab's: what one host changes, all see. What goes wrong is the host's own: all that
`Behaviour` has (exchange_troubles.py) is here too. A server that is here has an SMTP listener, which plays its
port 25: each reply asks the organisation, since Exchange's settings count without a restart. Without a tarpit,
a session that no connector serves is refused by a real server before it says a word; here it is not.
"""

from __future__ import annotations

from collections.abc import Iterable

from lab.exchange import ExchangeShells
from lab.exchange_cmdlets import Cmdlets
from lab.exchange_organisation import Connector, Organisation, TransportConfig, relay_connector
from lab.exchange_runspace import Runspace
from lab.exchange_troubles import Behaviour
from lab.ports import free_port, release_port
from lab.smtpsvc import SmtpService


class ExchangeHost(Behaviour):
    """One server of an organisation."""

    def __init__(self, organisation: Organisation, server: str) -> None:
        super().__init__()
        self.organisation = organisation
        self.server = server
        self.shells = ExchangeShells(Cmdlets(organisation, self, server))
        self.smtp_port = free_port()
        self._smtp = SmtpService(self.smtp_port, self._tarpit, relays=self._relays)
        try:
            self._smtp.start()
        except OSError:
            release_port(self.smtp_port)
            raise

    # -- the organisation --

    @property
    def servers(self) -> tuple[str, ...]:
        """All servers of the organisation."""
        return self.organisation.servers

    @property
    def connectors(self) -> list[Connector]:
        """All connectors of the organisation."""
        return self.organisation.connectors

    @property
    def transport(self) -> TransportConfig:
        """The transport configuration."""
        return self.organisation.transport

    def connector(self, identity: str) -> Connector:
        """A connector by whatever Exchange takes as its Identity, or KeyError."""
        found = self.organisation.find(identity, self.server)
        if found is None:
            raise KeyError(identity)
        return found

    def add_connectors(self, *connectors: Connector) -> None:
        """Add connectors that an administrator has made."""
        with self.organisation.lock:
            self.organisation.connectors.extend(connectors)

    def add_relay_connector(
        self,
        name: str,
        remote: Iterable[str] = ("127.0.0.1",),
        *,
        server: str | None = None,
        external: bool = False,
        tarpit_seconds: int = 5,
    ) -> Connector:
        """Add a connector that relays for these addresses: for anonymous clients, or `external`ly secured ones."""
        made = relay_connector(server or self.server, name, remote, external=external, tarpit_seconds=tarpit_seconds)
        self.add_connectors(made)
        return made

    # -- the host --

    @property
    def sessions(self) -> int:
        """How many shells are open."""
        return len(self.shells.open)

    @property
    def open_shells(self) -> list[Runspace]:
        """The open shells: their `id`, `user`, `idle_timeout` as the client asked for it, and `commands`."""
        return self.shells.open

    def reset(self) -> None:
        """The organisation as setup left it, no shell open, and nothing goes wrong."""
        self.shells.close()
        super().reset()
        self.organisation.reset()

    def close(self) -> None:
        """End its shells and its SMTP listener."""
        self.shells.close()
        self._smtp.stop()
        release_port(self.smtp_port)

    def _tarpit(self, client: str) -> float:
        connector = self.organisation.serving(self.server, client)
        return connector.tarpit_seconds if connector else 0

    def _relays(self, client: str) -> bool:
        connector = self.organisation.serving(self.server, client)
        return connector is not None and connector.relays
