# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this collection asks of Exchange: receive connectors, the transport configuration, who may relay.

Nothing here knows Ansible. Errors are ExchangeError with Exchange's own words.
"""

from __future__ import annotations

import datetime
import typing as t
from dataclasses import dataclass
from xml.etree import ElementTree

from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_plan import (
    TICKS_A_SECOND,
    Connector,
    Selection,
    parse_seconds,
    write_duration,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._exchange_session import ExchangeError, ExchangeSession

ANY_RECIPIENT = "ms-exch-smtp-accept-any-recipient"
# Account names as Get-ADPermission prints them on an English system; the SID elsewhere, where it does not resolve.
ANONYMOUS = ("anonymous logon", "s-1-5-7")
EXTERNALLY_SECURED = "ExternalAuthoritative"


@dataclass(frozen=True)
class Holder:
    """An account with the right to send to any recipient by way of a connector."""

    user: str

    @property
    def anonymous(self) -> bool:
        """Is it everybody who has not logged in? The names end so, whatever the authority before them is called."""
        return self.user.rpartition("\\")[2].casefold() in ANONYMOUS


class Exchange:
    """An Exchange organisation, over one session."""

    def __init__(self, session: ExchangeSession) -> None:
        self._session = session
        self.warnings: list[str] = []

    def connectors(self, selection: Selection) -> list[Connector]:
        """All that the selection's queries bring, each once."""
        found: dict[str, Connector] = {}
        for query in selection.queries:
            try:
                outcome = self._session.invoke("Get-ReceiveConnector", **query)
            except ExchangeError as error:
                if "ManagementObjectNotFound" not in error.error_id:
                    raise
                if "Server" in query:
                    raise ExchangeError(f"there is no Exchange server {query['Server']}{self._servers()}") from None
                # Unknown by its bare name: what there is will be listed.
                outcome = self._session.invoke("Get-ReceiveConnector")
            self.warnings += outcome.warnings
            for properties in outcome.objects:
                connector = read_connector(properties)
                found[connector.identity.casefold()] = connector
        return list(found.values())

    def _servers(self) -> str:
        """What servers there are, for a message; nothing where the account may not ask."""
        try:
            servers = self._session.invoke("Get-ExchangeServer").objects
        except ExchangeError:
            return ""
        return f": there are {', '.join(sorted(_text(server.get('Name')) for server in servers))}"

    def set_tarpit(self, identity: str, seconds: int) -> list[str]:
        """Set TarpitInterval of one connector; the warnings that Exchange gave."""
        outcome = self._session.invoke(
            "Set-ReceiveConnector", Identity=identity, TarpitInterval=write_duration(seconds)
        )
        return outcome.warnings

    def internal_smtp_servers(self) -> list[str]:
        """InternalSMTPServers of the transport configuration."""
        outcome = self._session.invoke("Get-TransportConfig")
        if len(outcome.objects) != 1:
            raise ExchangeError(f"Get-TransportConfig gave {len(outcome.objects)} objects, not one")
        return _strings(outcome.objects[0].get("InternalSMTPServers"))

    def change_internal_smtp_servers(self, *, add: t.Sequence[str] = (), remove: t.Sequence[str] = ()) -> list[str]:
        """Add and remove single ranges, so that two runs at once do not undo each other; Exchange's warnings."""
        change: dict[str, list[str]] = {}
        if add:
            change["Add"] = list(add)
        if remove:
            change["Remove"] = list(remove)
        return self._session.invoke("Set-TransportConfig", InternalSMTPServers=change).warnings

    def relay_right(self, identity: str) -> list[Holder]:
        """Who may send to any recipient by way of that connector (Get-ADPermission, entries that allow)."""
        outcome = self._session.invoke("Get-ADPermission", Identity=identity)
        users = {
            _text(entry.get("User")): None
            for entry in outcome.objects
            if not _true(entry.get("Deny"))
            and ANY_RECIPIENT in {right.casefold() for right in _strings(entry.get("ExtendedRights"))}
        }
        return [Holder(user) for user in users]


def relay_causes(connector: Connector, holders: t.Sequence[Holder]) -> list[str]:
    """Why a client that does not log in may relay by way of that connector, a sentence for each reason."""
    causes = [
        f"{holder.user} has Ms-Exch-SMTP-Accept-Any-Recipient on {connector.identity} (Get-ADPermission)"
        for holder in holders
        if holder.anonymous
    ]
    if EXTERNALLY_SECURED.casefold() in connector.auth_mechanism.casefold():
        causes.append(
            f"{connector.identity} has AuthMechanism {EXTERNALLY_SECURED}: it trusts every client in its RemoteIPRanges"
        )
    return causes


def read_connector(properties: t.Mapping[str, t.Any]) -> Connector:
    """A connector from the properties that Get-ReceiveConnector gives. Raise ExchangeError where one is missing."""
    identity = _text(properties.get("Identity"))
    if not identity:
        raise ExchangeError("Get-ReceiveConnector gave an object without Identity")
    groups = {group.strip().casefold() for group in _text(properties.get("PermissionGroups")).split(",")}
    return Connector(
        identity=identity,
        server=_text(properties.get("Server")) or identity.partition("\\")[0],
        transport_role=_text(properties.get("TransportRole")),
        bindings=tuple(_strings(properties.get("Bindings"))),
        tarpit_seconds=seconds_of(properties.get("TarpitInterval"), identity),
        anonymous="anonymoususers" in groups,
        enabled=_true(properties.get("Enabled")),
        remote_ranges=tuple(_strings(properties.get("RemoteIPRanges"))),
        auth_mechanism=_text(properties.get("AuthMechanism")),
    )


def seconds_of(value: t.Any, identity: str) -> float:
    """Seconds of a duration in any form in which Exchange and PowerShell send one.

    An EnhancedTimeSpan comes as an object whose string is [d.]hh:mm:ss, with properties TotalSeconds and Ticks; a
    TimeSpan as an xs:duration; either may have become a string on the way. Raise ExchangeError for anything else.
    """
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    properties = {**getattr(value, "extended_properties", {}), **getattr(value, "adapted_properties", {})}
    for name, unit in (("Ticks", TICKS_A_SECOND), ("TotalSeconds", 1)):
        if properties.get(name) is not None:
            return float(properties[name]) / unit
    try:
        return parse_seconds(_text(value))
    except ValueError as error:
        raise ExchangeError(f"{identity}: TarpitInterval cannot be read: {error}") from None


def _text(value: t.Any) -> str:
    """A property as text: enumerations and identities come as objects with a string."""
    if value is None:
        return ""
    return str(getattr(value, "to_string", None) or value)


def _element_text(element: ElementTree.Element) -> str:
    """A member of a CLIXML list: a primitive, or the string of an object."""
    return (element.findtext("ToString") if element.tag == "Obj" else element.text) or ""


def _true(value: t.Any) -> bool:
    """A boolean; of a SwitchParameter comes the string, as of anything that is no primitive."""
    return _text(value).casefold() == "true"


def _strings(value: t.Any) -> list[str]:
    """A multi-valued property as strings; a single value may come without its list."""
    if value is None or value == "":
        return []
    if isinstance(value, list | tuple):
        return [_text(one) for one in value if one is not None]
    for inner in getattr(value, "property_sets", ()):
        if isinstance(inner, list):
            return _strings(inner)
        if isinstance(inner, str) and inner.startswith("<LST"):
            # pypsrp leaves the list of an object of a class that it does not know as CLIXML ([MS-PSRP] 2.2.5.2.6).
            # It begins with its own tag, so that it declares no document type and no entities.
            return [_element_text(element) for element in ElementTree.fromstring(inner)]  # noqa: S314
    return [part.strip() for part in _text(value).split(",") if part.strip()]
