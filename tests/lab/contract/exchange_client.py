# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of Exchange's endpoint on pypsrp, which has its own idea of PowerShell remoting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree

from pypsrp.complex_objects import GenericComplexObject, PSInvocationState, RunspacePoolState
from pypsrp.powershell import PowerShell, RunspacePool
from pypsrp.wsman import WSMan

from lab.contract.client import Account
from lab.hosts import LabHost

CONFIGURATION: Final = "Microsoft.Exchange"
COMPLETED: Final = PSInvocationState.COMPLETED
FAILED: Final = PSInvocationState.FAILED
STOPPED: Final = PSInvocationState.STOPPED


@dataclass(frozen=True)
class Ran:
    """What a pipeline gave."""

    state: int
    output: list[Any]
    errors: list[tuple[str, str]]
    warnings: list[str]

    @property
    def identities(self) -> list[str]:
        """The Identity of each object."""
        return [str(one.adapted_properties["Identity"]) for one in self.output]

    def values(self, name: str) -> list[Any]:
        """A property of each object."""
        return [one.adapted_properties[name] for one in self.output]


def ran(pipeline: PowerShell) -> Ran:
    """What a pipeline gave, once it has ended."""
    errors = [(str(record), str(record.fq_error)) for record in pipeline.streams.error]
    return Ran(pipeline.state, list(pipeline.output), errors, [str(one.message) for one in pipeline.streams.warning])


class Remote:
    """An open session."""

    def __init__(self, pool: RunspacePool) -> None:
        self.pool = pool

    def gone(self) -> None:
        """It has been closed at the other end: there is nothing to close."""
        self.pool.state = RunspacePoolState.CLOSED

    def pipeline(self, cmdlet: str, *arguments: object, **parameters: object) -> PowerShell:
        """A pipeline of one cmdlet that has not begun."""
        made = PowerShell(self.pool)
        made.add_cmdlet(cmdlet)
        for argument in arguments:
            made.add_argument(argument)
        for name, value in parameters.items():
            made.add_parameter(name, value)
        return made

    def run(self, cmdlet: str, *arguments: object, **parameters: object) -> Ran:
        """Run one cmdlet to its end."""
        pipeline = self.pipeline(cmdlet, *arguments, **parameters)
        pipeline.invoke()
        return ran(pipeline)


def wsman(host: LabHost, account: Account, **options: Any) -> WSMan:
    """A connection to Exchange's path."""
    usual: dict[str, Any] = {
        "server": host.address,
        "port": host.winrm_port,
        "path": "PowerShell/",
        "ssl": False,
        "auth": "ntlm",
        "username": account.name,
        "password": account.password,
        "no_proxy": True,
        "operation_timeout": 20,
    }
    return WSMan(**{**usual, **options})


@contextmanager
def connected(host: LabHost, account: Account, **options: Any) -> Iterator[Remote]:
    """A session, closed at the end."""
    with (
        wsman(host, account, **options) as connection,
        RunspacePool(connection, configuration_name=CONFIGURATION) as pool,
    ):
        yield Remote(pool)


def strings(value: Any) -> list[str]:
    """A multi-valued property. pypsrp leaves a list of a class that it does not know as the XML that it came in."""
    if isinstance(value, GenericComplexObject):
        (content,) = value.property_sets
        return [one.text or "" for one in ElementTree.fromstring(content)]
    return [str(one) for one in value]


@contextmanager
def beside(remote: Remote, host: LabHost, account: Account) -> Iterator[RunspacePool]:
    """The same session by another connection: pypsrp's own serves one request at a time."""
    with wsman(host, account) as connection:
        other = RunspacePool(connection, configuration_name=CONFIGURATION)
        other.shell.id, other.shell._selector_set = remote.pool.shell.id, remote.pool.shell._selector_set
        yield other
