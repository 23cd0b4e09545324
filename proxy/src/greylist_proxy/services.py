# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What sessions share, made of the configuration: at the start, and again when the configuration is read again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from greylist_proxy.assembly import Judgement
from greylist_proxy.config import Config, ConfigError
from greylist_proxy.config_sections import BackendSection
from greylist_proxy.lists import ListError
from greylist_proxy.log import Log
from greylist_proxy.metrics.counts import blank
from greylist_proxy.metrics.table import Cells
from greylist_proxy.smtp.capabilities import Capabilities, Promises
from greylist_proxy.smtp.events import Limits, Offers
from greylist_proxy.smtp.host import BackendSettings
from greylist_proxy.smtp.limits import Connections
from greylist_proxy.smtp.opening import tls_context
from greylist_proxy.smtp.pool import Backends
from greylist_proxy.smtp.recipients import Acceptance
from greylist_proxy.smtp.settings import SessionSettings
from greylist_proxy.smtp.shared import Services
from greylist_proxy.smtp.tarpit import Tarpit
from greylist_proxy.smtp.tls import Tls, TlsError
from greylist_proxy.systemd import own_folder
from greylist_proxy.tasks import Tasks

PROMISES = "backends.json"  # what the backends were last heard to offer


@dataclass(frozen=True)
class Files:
    """What the configuration names files for, read."""

    acceptance: Acceptance
    tls: Tls


def read_files(config: Config) -> Files:
    """Read the recipients, the certificate, and the authorities. ConfigError: one of them can't be used."""
    smtp, backend = config.smtp, config.backend
    try:
        acceptance = Acceptance.load(backend.domains, backend.recipients, backend.unknown_domain)
        tls = Tls(smtp.tls_certificate, smtp.tls_key)
        tls_context(backend.starttls, backend.ca_file)  # the pool makes its own, and must not be the first to try
    except ListError as error:
        raise ConfigError(error.lines) from error
    except TlsError as error:
        raise ConfigError([str(error)]) from error
    except OSError as error:
        raise ConfigError([f"backend.ca_file: {backend.ca_file}: can't be used: {error.strerror or error}"]) from error
    return Files(acceptance, tls)


def services_of(
    config: Config,
    judgement: Judgement,
    log: Log,
    tasks: Tasks,
    connections: Connections | None = None,
    workers: int = 1,
    cells: Cells | None = None,
) -> Services:
    """Return what the sessions of one of so many processes share. ConfigError: a file can't be used.

    `cells` is where they count.
    """
    cells = blank() if cells is None else cells
    smtp = config.smtp
    files = read_files(config)
    promises = Promises(promises_file(config))
    backends = Backends(_backend_settings(config, workers), smtp.hostname, promises, log, tasks, cells)
    offers = Offers(smtp.hostname, smtp.max_message_size, backends.offered, files.tls.context is not None)
    services = Services(
        hostname=smtp.hostname,
        acceptance=files.acceptance,
        ipv4_prefix=config.greylist.ipv4_prefix,
        ipv6_prefix=config.greylist.ipv6_prefix,
        greylisted_reply=config.greylist.reply,
        identifier=judgement.identifier,
        backends=backends,
        gate=judgement.gate,
        log=log,
        tasks=tasks,
        tarpit=Tarpit(0, 0, 0),
        offers=offers,
        connections=connections or Connections(smtp.max_connections, smtp.max_connections_per_client),
        tls=files.tls,
        cells=cells,
    )

    def offer() -> None:
        offers.capabilities = backends.offered

    backends.on_change = offer
    _take_over(services, config, workers)
    return services


def change(services: Services, config: Config, files: Files, workers: int = 1) -> None:
    """Let another configuration count, for what can change while sessions live. OSError: a file has just vanished."""
    services.backends.configure(_backend_settings(config, workers))
    services.acceptance = files.acceptance
    services.tls.context = files.tls.context
    services.ipv4_prefix = config.greylist.ipv4_prefix
    services.ipv6_prefix = config.greylist.ipv6_prefix
    services.greylisted_reply = config.greylist.reply
    services.offers.max_size = config.smtp.max_message_size
    services.offers.starttls = files.tls.context is not None
    _take_over(services, config, workers)


def _take_over(services: Services, config: Config, workers: int) -> None:
    smtp, tarpit = config.smtp, config.tarpit
    services.limits = Limits(
        bare_line_ends=smtp.bare_line_ends, max_header_size=smtp.max_header_size, max_hops=smtp.max_hops
    )
    services.settings = SessionSettings(
        command_timeout=smtp.command_timeout,
        data_timeout=smtp.data_timeout,
        session_timeout=smtp.session_timeout,
        min_data_rate=smtp.min_data_rate,
        greet_delay=tarpit.greet_delay,
        proxy_networks=tuple(smtp.proxy_protocol_from),
    )
    services.max_recipients = smtp.max_recipients
    # They are the same for all workers from before the first one on, and may have been changed since.
    services.connections.max_total = smtp.max_connections
    services.connections.max_per_client = smtp.max_connections_per_client
    services.verify_recipient_first = config.backend.verify_recipient_first
    services.shares.most = _share_of_a_client(config.backend, workers)
    services.tarpit.seconds = tarpit.seconds
    services.tarpit.trickle = config.trap.tarpit
    services.tarpit.max_waiting = _share(tarpit.max_waiting, workers)


def _backend_settings(config: Config, workers: int) -> BackendSettings:
    backend = config.backend
    return BackendSettings(
        hosts=backend.hosts,
        starttls=backend.starttls,
        ca_file=backend.ca_file,
        send_client_address=backend.send_client_address,
        capabilities=Capabilities.configured(backend.capabilities) if backend.capabilities else None,
        max_connections=_share(backend.max_connections, workers),
        idle_connections=_share(backend.idle_connections, workers),
        idle_timeout=backend.idle_timeout,
    )


def _share(number: int, workers: int) -> int:
    # What is allowed at all is allowed to each: a part of nothing would be none.
    return max(number // workers, min(number, 1))


def _share_of_a_client(backend: BackendSection, workers: int) -> int:
    # At least one: where there are so few that there is no quarter, a client has its messages taken one by one.
    return _share(backend.max_connections_per_client, workers) or max(_share(backend.max_connections, workers) // 4, 1)


def promises_file(config: Config) -> Path | None:
    """Return where the backends' offers are kept: in systemd's folder for us, else beside the SQLite file."""
    folder = own_folder("STATE_DIRECTORY", config.store.url)
    return folder / PROMISES if folder else None
