# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the organisation looks from outside: objects as Exchange's cmdlets put them out, for psrpcore to serialise.

A guess where it goes beyond the names of the properties, which are those of Microsoft's reference. In what
depth Exchange serialises is not documented: `Behaviour.nested` and `Behaviour.span_form` give the forms in which
the same value may arrive. A connector has as many properties as a real one, which makes it some 10 kB of CLIXML.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

from psrpcore.types import PSDouble, PSFlagBase, PSInt64, PSList, PSNoteProperty, PSObject, PSType
from psrpcore.types import _serializer as psrpcore_serializer

from lab.exchange_organisation import CONFIGURATION, DOMAIN, DOMAIN_CONTROLLER, Connector, Permission, flags, server_dn
from lab.exchange_troubles import Behaviour

_DATA: Final = "Microsoft.Exchange.Data"
_DIRECTORY: Final = f"{_DATA}.Directory"
_CONFIG: Final = f"{_DIRECTORY}.SystemConfiguration"
_MADE: Final = datetime.datetime(2021, 3, 9, 14, 2, 31, tzinfo=datetime.UTC)
_BASES: Final = (
    f"{_CONFIG}.ADConfigurationObject",
    f"{_DIRECTORY}.ADObject",
    f"{_DIRECTORY}.ADRawEntry",
    f"{_DATA}.ConfigurableObject",
    "System.Object",
)


@PSType([f"{_CONFIG}.PermissionGroups"])
class _PermissionGroups(PSFlagBase):
    none = 0
    AnonymousUsers = 1
    ExchangeUsers = 2
    ExchangeServers = 4
    ExchangeLegacyServers = 8
    Partners = 16
    Custom = 32


@PSType([f"{_CONFIG}.AuthMechanisms"])
class _AuthMechanisms(PSFlagBase):
    none = 0
    Tls = 1
    Integrated = 2
    BasicAuth = 4
    BasicAuthRequireTLS = 8
    ExchangeServer = 16
    ExternalAuthoritative = 32


@PSType([f"{_CONFIG}.ServerRole"])
class _ServerRole(PSFlagBase):
    none = 0
    Mailbox = 2
    HubTransport = 32
    FrontendTransport = 16384


def _write_duration(value: datetime.timedelta) -> str:
    """An xs:duration. psrpcore 0.3.1 loses the zeros of whole tens: of 30 seconds it makes PT3S."""
    minutes, seconds = divmod(int(value.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    time = "".join(f"{number}{unit}" for number, unit in ((hours, "H"), (minutes, "M"), (seconds, "S")) if number)
    day = f"P{days}D" if days else "P"
    return day + (f"T{time}" if time else "" if days else "T0S")


psrpcore_serializer._serialize_duration = _write_duration


class ObjectMaker:
    """Makes objects in the form that a host's behaviour asks for."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    def connector(self, one: Connector) -> PSObject:
        """What Get-ReceiveConnector gives."""
        properties = {
            "AuthMechanism": self._flags(_AuthMechanisms, one.auth),
            "Banner": None,
            "BinaryMimeEnabled": True,
            "Bindings": self._values(f"{_DATA}.IPBinding", one.bindings),
            "ChunkingEnabled": True,
            "DefaultDomain": None,
            "DeliveryStatusNotificationEnabled": True,
            "EightBitMimeEnabled": True,
            "SmtpUtf8Enabled": True,
            "BareLinefeedRejectionEnabled": False,
            "DomainSecureEnabled": "AnonymousUsers" in one.groups,
            "EnhancedStatusCodesEnabled": True,
            "LongAddressesEnabled": False,
            "OrarEnabled": False,
            "SuppressXAnonymousTls": False,
            "ProxyEnabled": False,
            "AdvertiseClientSettings": False,
            "Fqdn": f"{one.server}.{DOMAIN}",
            "ServiceDiscoveryFqdn": None,
            "TlsCertificateName": None,
            "Comment": "",
            "Enabled": one.enabled,
            "ConnectionTimeout": self.span(600),
            "ConnectionInactivityTimeout": self.span(300),
            "MessageRateLimit": self._unlimited(),
            "MessageRateSource": "None",
            "MaxInboundConnection": self._unlimited("5000"),
            "MaxInboundConnectionPerSource": self._unlimited("20"),
            "MaxInboundConnectionPercentagePerSource": 2,
            "MaxHeaderSize": self._size("256 KB (262,144 bytes)", 262144),
            "MaxHopCount": 60,
            "MaxLocalHopCount": 12,
            "MaxLogonFailures": 3,
            "MaxMessageSize": self._size("36 MB (37,748,736 bytes)", 37748736),
            "MaxProtocolErrors": self._unlimited("5"),
            "MaxRecipientsPerMessage": 200,
            "PermissionGroups": self._flags(_PermissionGroups, one.groups),
            "PipeliningEnabled": True,
            "ProtocolLoggingLevel": "None",
            "RemoteIPRanges": self._values(f"{_DATA}.IPRange", one.remote),
            "RequireEHLODomain": False,
            "RequireTLS": False,
            "EnableAuthGSSAPI": False,
            "ExtendedProtectionPolicy": "None",
            "LiveCredentialEnabled": False,
            "TlsDomainCapabilities": self._values(f"{_DATA}.SmtpReceiveDomainCapabilities", []),
            "Server": self._directory_id(one.server, server_dn(one.server)),
            "TransportRole": self._flags(_ServerRole, one.role),
            "RejectReservedTopLevelRecipientDomains": False,
            "RejectReservedSecondLevelRecipientDomains": False,
            "RejectSingleLabelRecipientDomains": False,
            "AcceptConsumerMail": False,
            "SizeEnabled": "Enabled",
            "TarpitInterval": self.span(one.tarpit_seconds),
            "AuthTarpitInterval": self.span(5),
            "MaxAcknowledgementDelay": self.span(30),
            **self._directory(
                one.identity, one.name, one.distinguished_name, one.guid, "ms-Exch-Smtp-Receive-Connector"
            ),
        }
        return make([f"{_CONFIG}.ReceiveConnector", *_BASES], properties, one.identity)

    def server(self, name: str) -> PSObject:
        """What Get-ExchangeServer gives."""
        properties = {
            "AdminDisplayVersion": self._text(f"{_DATA}.ServerVersion", "Version 15.2 (Build 1118.7)"),
            "CustomerFeedbackEnabled": None,
            "Domain": DOMAIN,
            "Edition": "Standard",
            "ExchangeLegacyDN": f"/o=Lab/ou=Exchange Administrative Group/cn=Configuration/cn=Servers/cn={name}",
            "Fqdn": f"{name}.{DOMAIN}",
            "IsHubTransportServer": True,
            "IsClientAccessServer": True,
            "IsEdgeServer": False,
            "IsMailboxServer": True,
            "IsFrontendTransportServer": True,
            "ServerRole": self._flags(_ServerRole, "Mailbox"),
            "Site": self._directory_id(
                "lab.test/Configuration/Sites/Lab", "CN=Lab,CN=Sites,CN=Configuration,DC=lab,DC=test"
            ),
            "StaticDomainControllers": self._values("System.String", []),
            **self._directory(
                name, name, server_dn(name), uuid.uuid5(uuid.NAMESPACE_DNS, name), "ms-Exch-Exchange-Server"
            ),
        }
        return make([f"{_DATA}.Directory.Management.ExchangeServer", *_BASES], properties, name)

    def transport_config(self, internal_smtp_servers: Iterable[str]) -> PSObject:
        """What Get-TransportConfig gives."""
        place = f"CN=Transport Settings,{CONFIGURATION}"
        properties = {
            "AddressBookPolicyRoutingEnabled": False,
            "AnonymousSenderToRecipientRatePerHour": 1800,
            "ClearCategories": True,
            "ConvertDisclaimerWrapperToEml": False,
            "DSNConversionMode": "PreserveDSNBody",
            "ExternalDelayDsnEnabled": True,
            "ExternalDsnDefaultLanguage": None,
            "ExternalDsnLanguageDetectionEnabled": True,
            "ExternalDsnMaxMessageAttachSize": self._size("10 MB (10,485,760 bytes)", 10485760),
            "ExternalDsnReportingAuthority": None,
            "ExternalDsnSendHtml": True,
            "ExternalPostmasterAddress": None,
            "GenerateCopyOfDSNFor": self._values("System.String", []),
            "HygieneSuite": "Standard",
            "InternalSMTPServers": self._values(f"{_DATA}.IPRange", internal_smtp_servers),
            "JournalingReportNdrTo": "<>",
            "MaxDumpsterTime": self.span(7 * 86400),
            "MaxReceiveSize": self._size("36 MB (37,748,736 bytes)", 37748736),
            "MaxRecipientEnvelopeLimit": self._unlimited("500"),
            "MaxSendSize": self._size("36 MB (37,748,736 bytes)", 37748736),
            "ShadowRedundancyEnabled": True,
            "SupervisionTags": self._values("System.String", ["Reject", "Allow"]),
            "TLSReceiveDomainSecureList": self._values("System.String", []),
            "VerifySecureSubmitEnabled": False,
            **self._directory(
                "Transport Settings", "Transport Settings", place, uuid.UUID(int=25), "ms-Exch-Transport-Settings"
            ),
        }
        return make([f"{_CONFIG}.TransportConfigContainer", *_BASES], properties, "Transport Settings")

    def permission(self, one: Connector, entry: Permission) -> PSObject:
        """What Get-ADPermission gives for one access control entry."""
        right = [] if entry.right is None else [entry.right]
        access = ["GenericAll"] if entry.right is None else ["ExtendedRight"]
        properties = {
            "AccessRights": self._texts("System.DirectoryServices.ActiveDirectoryRights", access),
            "ExtendedRights": self._texts("Microsoft.Exchange.Configuration.Tasks.ExtendedRightIdParameter", right)
            if right
            else None,
            "ChildObjectTypes": None,
            "InheritedObjectType": None,
            "Properties": None,
            "Deny": self._switch(entry.deny),
            "InheritanceType": "All",
            "User": self._text("Microsoft.Exchange.Configuration.Tasks.SecurityPrincipalIdParameter", entry.user),
            "Identity": self._directory_id(one.identity, one.distinguished_name),
            "IsInherited": entry.right is None,
            "IsValid": True,
            "ObjectState": "Unchanged",
        }
        types = ["Microsoft.Exchange.Management.RecipientTasks.ADAcePresentationObject", "System.Object"]
        return make(types, properties, f"{one.identity} {entry.user}")

    def span(self, seconds: int) -> Any:
        """A span of time in the form that is asked for."""
        days, rest = divmod(seconds, 86400)
        hours, rest = divmod(rest, 3600)
        text = f"{f'{days}.' if days else ''}{hours:02}:{rest // 60:02}:{rest % 60:02}"
        types = [f"{_DATA}.EnhancedTimeSpan", "System.ValueType", "System.Object"]
        match self._behaviour.span_form:
            case "timespan":
                return datetime.timedelta(seconds=seconds)
            case "string":
                return text
            case "seconds-property-only":
                return make(types, {"TotalSeconds": PSDouble(seconds)})
        totals = {"Days": 86400, "Hours": 3600, "Milliseconds": 0.001, "Minutes": 60, "Seconds": 1}
        properties = {
            "Ticks": PSInt64(seconds * 10_000_000),
            "Days": days,
            "Hours": hours,
            "Milliseconds": 0,
            "Minutes": rest // 60,
            "Seconds": rest % 60,
            "TotalMicroseconds": PSDouble(seconds * 1e6),
            **{f"Total{name}": PSDouble(seconds / unit) for name, unit in totals.items()},
        }
        return make(types, properties, text)

    def _directory(self, identity: str, name: str, place: str, guid: uuid.UUID, category: str) -> dict[str, Any]:
        """What every object of the directory has."""
        schema = "CN=Schema,CN=Configuration,DC=lab,DC=test"
        return {
            "AdminDisplayName": "",
            "ExchangeVersion": self._text(f"{_DATA}.ExchangeObjectVersion", "0.1 (8.0.535.0)"),
            "Name": name,
            "DistinguishedName": place,
            "Identity": self._directory_id(identity, place, guid),
            "ObjectCategory": self._directory_id(
                f"{DOMAIN}/Configuration/Schema/{category}", f"CN={category},{schema}"
            ),
            "ObjectClass": self._values("System.String", ["top", category.replace("-", "")]),
            "Id": self._directory_id(identity, place, guid),
            "Guid": guid,
            "OriginatingServer": DOMAIN_CONTROLLER,
            "IsValid": True,
            "ObjectState": "Unchanged",
            "WhenChanged": _MADE,
            "WhenCreated": _MADE,
            "WhenChangedUTC": _MADE,
            "WhenCreatedUTC": _MADE,
            "OrganizationId": "",
        }

    def _directory_id(self, text: str, place: str, guid: uuid.UUID | None = None) -> Any:
        if self._behaviour.nested == "strings":
            return text
        properties = {
            "Rdn": place.partition(",")[0],
            "Parent": place.partition(",")[2],
            "Depth": place.count(",") + 1,
            "DistinguishedName": place,
            "IsRelativeDn": False,
            "DomainId": DOMAIN,
            "PartitionGuid": uuid.UUID("59ce2f71-eaa2-4ddf-a4fa-f25069d0b324"),
            "PartitionFQDN": DOMAIN,
            "ObjectGuid": guid or uuid.UUID(int=0),
            "Name": place.partition(",")[0].removeprefix("CN="),
        }
        return make([f"{_DIRECTORY}.ADObjectId", f"{_DATA}.ObjectId", "System.Object"], properties, text)

    def _flags(self, kind: type[Any], text: str) -> Any:
        if self._behaviour.nested == "strings":
            return text
        value = kind(0)
        for name in flags(text):
            value |= kind[name]
        return value

    def _switch(self, on: bool) -> Any:
        if self._behaviour.nested == "strings":
            return str(on)
        types = ["System.Management.Automation.SwitchParameter", "System.ValueType", "System.Object"]
        return make(types, {"IsPresent": on}, str(on))

    def _text(self, kind: str, text: str) -> Any:
        return (
            text if self._behaviour.nested == "strings" else make([kind, "System.Object"], {"RawIdentity": text}, text)
        )

    def _texts(self, kind: str, texts: Iterable[str]) -> PSList:
        return PSList([self._text(kind, text) for text in texts])

    def _unlimited(self, text: str = "Unlimited") -> Any:
        if self._behaviour.nested == "strings":
            return text
        types = [f"{_DATA}.Unlimited`1[[System.Int32, mscorlib]]", "System.ValueType", "System.Object"]
        return make(
            types, {"IsUnlimited": text == "Unlimited", "Value": None if text == "Unlimited" else int(text)}, text
        )

    def _size(self, text: str, size: int) -> Any:
        if self._behaviour.nested == "strings":
            return text
        return make(
            [f"{_DATA}.ByteQuantifiedSize", "System.ValueType", "System.Object"], {"Bytes": PSInt64(size)}, text
        )

    def _values(self, kind: str, texts: Iterable[str]) -> PSList:
        """A multi-valued property: strings in a list of Exchange's own type, or in .NET's usual one."""
        values = PSList([str(text) for text in texts])
        if self._behaviour.nested == "strings":
            return values
        values.PSObject.type_names = [
            f"{_DATA}.MultiValuedProperty`1[[{kind}, {_DATA}]]",
            f"{_DATA}.MultiValuedPropertyBase",
            "System.Object",
        ]
        return values


def make(types: Iterable[str], properties: Mapping[str, Any], text: str | None = None) -> PSObject:
    """An object of a .NET type that psrpcore does not know."""
    made = PSObject()
    made.PSObject.type_names = list(types)
    made.PSObject.adapted_properties = [PSNoteProperty(name, value) for name, value in properties.items()]
    if text is not None:
        made.PSObject.to_string = text
    return made
