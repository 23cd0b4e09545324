# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cmdlets of Exchange's endpoint: an invocation in, objects and records out; no PowerShell remoting.

Binding is stricter than PowerShell's: a parameter is named in full, in any letter case, and only Identity may
come by its position. What Exchange says is in its own words where they are public; the range of TarpitInterval,
what a value that cannot be read gets, and the form of FullyQualifiedErrorIds are guesses from error messages
that people have published. A cmdlet that finds an error either writes its record and completes, or it ends the
pipeline (`TerminatingError`), as binding errors do in PowerShell.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from lab.exchange_objects import ObjectMaker
from lab.exchange_organisation import DOMAIN_CONTROLLER, MAX_TARPIT, Connector, Organisation, read_range
from lab.exchange_troubles import Behaviour, Problem

TASKS: Final = "Microsoft.Exchange.Configuration.Tasks"
_AUTOMATION: Final = "System.Management.Automation"
_CLASSES: Final = "Microsoft.Exchange.Management.SystemConfigurationTasks"
# What every cmdlet takes.
_COMMON: Final = ("ErrorAction", "WarningAction", "Verbose", "Debug", "DomainController")
_CHANGING: Final = (*_COMMON, "Confirm", "WhatIf")
_SPAN = re.compile(r"(?:(\d{1,5})\.)?(\d{1,2}):(\d{1,2})(?::(\d{1,2}))?")

Arguments = Sequence[tuple[str | None, Any]]


class TerminatingError(Exception):
    """The pipeline fails."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True)
class Warned:
    """A warning record."""

    text: str


# What a cmdlet writes, in its order: objects, warnings, errors.
Written = Any | Warned | Problem


@dataclass(frozen=True)
class Invocation:
    """A cmdlet with its parameters bound, by their names as Exchange writes them."""

    cmdlet: str
    user: str
    parameters: Mapping[str, Any]

    @property
    def identity(self) -> str | None:
        """The Identity, as text."""
        value = self.parameters.get("Identity")
        return None if value is None else text_of(value)


@dataclass
class Cmdlets:
    """The cmdlets as one server of the organisation runs them."""

    organisation: Organisation
    behaviour: Behaviour
    server: str
    make: ObjectMaker = field(init=False)

    def __post_init__(self) -> None:
        self.make = ObjectMaker(self.behaviour)
        self._known: dict[str, tuple[Callable[[Invocation], Iterator[Written]], tuple[str, ...]]] = {
            "Get-ReceiveConnector": (self._get_receive_connector, ("Identity", "Server", *_COMMON)),
            "Set-ReceiveConnector": (self._set_receive_connector, ("Identity", "TarpitInterval", *_CHANGING)),
            "Get-ExchangeServer": (self._get_exchange_server, ("Identity", *_COMMON)),
            "Get-TransportConfig": (self._get_transport_config, ("Identity", *_COMMON)),
            "Set-TransportConfig": (self._set_transport_config, ("Identity", "InternalSMTPServers", *_CHANGING)),
            "Get-ADPermission": (self._get_ad_permission, ("Identity", "User", *_COMMON)),
        }

    def bind(self, name: str, arguments: Arguments, user: str) -> Invocation:
        """Find the cmdlet and its parameters, or raise TerminatingError."""
        cmdlet = next((known for known in self._known if known.casefold() == name.casefold()), None)
        if cmdlet is None or not self.behaviour.sees(user, cmdlet):
            raise TerminatingError(command_not_found(name))
        allowed = [one for one in self._known[cmdlet][1] if self.behaviour.sees(user, cmdlet, one)]
        bound: dict[str, Any] = {}
        for given, value in arguments:
            if given is None:
                if "Identity" in bound or "Identity" not in allowed:
                    reason = f"A positional parameter cannot be found that accepts argument '{text_of(value)}'."
                    raise TerminatingError(_binding(reason, "PositionalParameterNotFound", cmdlet))
                bound["Identity"] = value
                continue
            wanted = given.strip("-:").casefold()
            parameter = next((one for one in allowed if one.casefold() == wanted), None)
            if parameter is None:
                reason = f"A parameter cannot be found that matches parameter name '{given.strip('-:')}'."
                raise TerminatingError(_binding(reason, "NamedParameterNotFound", cmdlet))
            if parameter in bound:
                reason = f"Cannot bind parameter because parameter '{parameter}' is specified more than once."
                raise TerminatingError(_binding(reason, "ParameterAlreadyBound", cmdlet))
            bound[parameter] = value
        if cmdlet in ("Set-ReceiveConnector", "Get-ADPermission") and bound.get("Identity") is None:
            reason = "Cannot process command because of one or more missing mandatory parameters: Identity."
            raise TerminatingError(_binding(reason, "MissingMandatoryParameter", cmdlet))
        if cmdlet == "Get-ReceiveConnector" and "Identity" in bound and "Server" in bound:
            reason = "Parameter set cannot be resolved using the specified named parameters."
            raise TerminatingError(_binding(reason, "AmbiguousParameterSet", cmdlet))
        if bound.get("Confirm") is True:
            reason = (
                "A command that prompts the user failed because the host program or the command type does not"
                " support user interaction."
            )
            raise TerminatingError(Problem(reason, f"{_AUTOMATION}.Host.HostException", "NotImplemented", cmdlet))
        return Invocation(cmdlet, user, bound)

    def run(self, invocation: Invocation) -> Iterator[Written]:
        """Do the work; raise TerminatingError, also in the middle of it."""
        stop = text_of(invocation.parameters.get("ErrorAction", "")).casefold() == "stop"
        for written in self._run(invocation):
            if stop and isinstance(written, Problem):
                raise TerminatingError(self._named(written, invocation.cmdlet))
            yield self._named(written, invocation.cmdlet) if isinstance(written, Problem) else written

    def _run(self, invocation: Invocation) -> Iterator[Written]:
        for text in self.behaviour.warnings(invocation.cmdlet):
            yield Warned(text)
        work = self._known[invocation.cmdlet][0]
        failure = self.behaviour.failure(invocation.cmdlet, invocation.identity)
        if failure is None:
            yield from work(invocation)
            return
        output = list(work(invocation)) if failure.after or failure.carried_out else []
        yield from output[: failure.after]
        if failure.terminating:
            raise TerminatingError(self._named(failure.problem, invocation.cmdlet))
        yield failure.problem
        if failure.carried_out:
            yield from output[failure.after :]

    def _named(self, problem: Problem, cmdlet: str) -> Problem:
        """With the FullyQualifiedErrorId that Exchange makes, where it has none."""
        if problem.error_id:
            return problem
        stamp = datetime.datetime.now(datetime.UTC).strftime("%m/%d/%Y %I:%M:%S %p")
        request = f"[Server={self.server},RequestId={uuid.uuid4()},TimeStamp={stamp}]"
        number = f"{uuid.uuid5(uuid.NAMESPACE_OID, problem.reason).fields[0]:X}"
        error_id = f"{request} [FailureCategory=Cmdlet-{problem.reason}] {number},{_CLASSES}.{cmdlet.replace('-', '')}"
        return Problem(problem.message, problem.exception, problem.category, error_id, problem.target)

    # -- the cmdlets --

    def _get_receive_connector(self, invocation: Invocation) -> Iterator[Written]:
        found: list[Connector] | Problem
        if invocation.identity is not None:
            found = self._find(invocation.identity, wildcards=True)
        elif invocation.parameters.get("Server") is not None:
            name = text_of(invocation.parameters["Server"])
            server = self.organisation.find_server(name)
            found = [one for one in self.organisation.connectors if one.server == server]
            found = found if server else _not_found(name)
        else:
            found = list(self.organisation.connectors)
        if isinstance(found, Problem):
            yield found
            return
        for one in found:
            yield self.make.connector(one)

    def _set_receive_connector(self, invocation: Invocation) -> Iterator[Written]:
        given = invocation.parameters
        seconds = read_span(given["TarpitInterval"], invocation.cmdlet) if "TarpitInterval" in given else None
        found = self._find(invocation.identity or "")
        if isinstance(found, Problem):
            yield found
            return
        (one,) = found
        if one.server in self.behaviour.out_of_scope:
            reason = (
                f"The operation couldn't be performed because '{one.identity}' isn't within a valid server write scope."
            )
            kind = f"{TASKS}.OperationRequiresServerScopeException"
            yield Problem(reason, kind, "InvalidOperation", target=one.identity)
        elif seconds is not None and seconds > MAX_TARPIT:
            reason = (
                f'The property value you specified, "{text_of(given["TarpitInterval"])}", isn\'t valid.'
                " The value must be between 00:00:00 and 00:10:00."
            )
            yield Problem(reason, "Microsoft.Exchange.Data.DataValidationException", "InvalidData", target=one.identity)
        elif seconds is None or seconds == one.tarpit_seconds:
            yield _unchanged(one.identity)
        elif not self.behaviour.ignore_set and not given.get("WhatIf"):
            one.tarpit_seconds = seconds

    def _get_exchange_server(self, invocation: Invocation) -> Iterator[Written]:
        if invocation.identity is None:
            for name in self.organisation.servers:
                yield self.make.server(name)
            return
        found = self.organisation.find_server(invocation.identity)
        yield _not_found(invocation.identity) if found is None else self.make.server(found)

    def _get_transport_config(self, _invocation: Invocation) -> Iterator[Written]:
        yield self.make.transport_config(self.organisation.transport.internal_smtp_servers)

    def _set_transport_config(self, invocation: Invocation) -> Iterator[Written]:
        transport, given = self.organisation.transport, invocation.parameters
        before = transport.internal_smtp_servers
        after = before
        if "InternalSMTPServers" in given:
            after = _changed(before, given["InternalSMTPServers"], invocation.cmdlet)
        if after == before:
            yield _unchanged("Transport Settings")
        elif not self.behaviour.ignore_set and not given.get("WhatIf"):
            transport.internal_smtp_servers = after

    def _get_ad_permission(self, invocation: Invocation) -> Iterator[Written]:
        found = self._find(invocation.identity or "")
        if isinstance(found, Problem):
            yield found
            return
        (one,) = found
        wanted = invocation.parameters.get("User")
        for entry in one.permissions:
            if wanted is None or entry.user.casefold() == text_of(wanted).casefold():
                yield self.make.permission(one, entry)

    def _find(self, identity: str, *, wildcards: bool = False) -> list[Connector] | Problem:
        if wildcards and "*" in identity:
            pattern = identity.casefold().replace("[", "[[]")
            return [one for one in self.organisation.connectors if fnmatchcase(one.identity.casefold(), pattern)]
        found = self.organisation.find(identity, self.server)
        return [found] if found else _not_found(identity)


def read_span(value: Any, cmdlet: str) -> int:
    """Seconds of a TimeSpan as .NET reads it: "30" are 30 days. Raise TerminatingError for what it does not read."""
    if isinstance(value, datetime.timedelta):
        seconds = value.total_seconds()
        if seconds >= 0 and seconds == int(seconds):
            return int(seconds)
    text = text_of(value).strip()
    if re.fullmatch(r"\d{1,5}", text):
        return int(text) * 86400
    match = _SPAN.fullmatch(text)
    if match and not isinstance(value, datetime.timedelta):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        if hours < 24 and minutes < 60 and seconds < 60:
            return days * 86400 + hours * 3600 + minutes * 60 + int(seconds)
    raise TerminatingError(_transformation("TarpitInterval", text, "Microsoft.Exchange.Data.EnhancedTimeSpan", cmdlet))


def _changed(before: list[str], value: Any, cmdlet: str) -> list[str]:
    """A multi-valued property after a list that replaces it, or after @{Add=…; Remove=…}."""
    if not isinstance(value, dict):
        return list(dict.fromkeys(_ranges(value, cmdlet)))
    after = list(before)
    for name, ranges in value.items():
        match str(name).casefold():
            case "add":
                after += [one for one in _ranges(ranges, cmdlet) if one not in after]
            case "remove":
                gone = _ranges(ranges, cmdlet)
                after = [one for one in after if one not in gone]
            case _:
                kind = "Microsoft.Exchange.Data.MultiValuedProperty`1[Microsoft.Exchange.Data.IPRange]"
                raise TerminatingError(_transformation("InternalSMTPServers", str(name), kind, cmdlet))
    return after


def _ranges(value: Any, cmdlet: str) -> list[str]:
    if value is None:
        return []
    texts = [text_of(one).strip() for one in value] if isinstance(value, list) else [text_of(value).strip()]
    for text in texts:
        try:
            read_range(text)
        except ValueError:
            kind = "Microsoft.Exchange.Data.IPRange"
            raise TerminatingError(_transformation("InternalSMTPServers", text, kind, cmdlet)) from None
    return texts


def text_of(value: Any) -> str:
    """A value as .NET would write it: its ToString where it has one."""
    written = getattr(getattr(value, "PSObject", None), "to_string", None)
    return str(value) if written is None or isinstance(value, str) else str(written)


def command_not_found(name: str) -> Problem:
    """There is no such cmdlet, or the account has no role with it."""
    reason = (
        f"The term '{name}' is not recognized as the name of a cmdlet, function, script file, or operable program."
        " Check the spelling of the name, or if a path was included, verify that the path is correct and try again."
    )
    kind = f"{_AUTOMATION}.CommandNotFoundException"
    return Problem(reason, kind, "ObjectNotFound", "CommandNotFoundException", name)


def no_language() -> Problem:
    """Anything but one cmdlet with its parameters."""
    reason = "The syntax is not supported by this runspace. This can occur if the runspace is in no-language mode."
    return Problem(reason, f"{_AUTOMATION}.PSNotSupportedException", "InvalidOperation", "ScriptsNotAllowed")


def _binding(reason: str, error_id: str, cmdlet: str) -> Problem:
    kind = f"{_AUTOMATION}.ParameterBindingException"
    return Problem(reason, kind, "InvalidArgument", f"{error_id},{cmdlet}")


def _transformation(parameter: str, value: str, kind: str, cmdlet: str) -> Problem:
    reason = (
        f"Cannot process argument transformation on parameter '{parameter}'. Cannot convert value \"{value}\" to type"
        f' "{kind}".'
    )
    error_id = f"ParameterArgumentTransformationError,{cmdlet}"
    return Problem(reason, f"{_AUTOMATION}.ParameterBindingArgumentTransformationException", "InvalidData", error_id)


def _not_found(what: str) -> Problem:
    reason = f"The operation couldn't be performed because object '{what}' couldn't be found on '{DOMAIN_CONTROLLER}'."
    return Problem(reason, f"{TASKS}.ManagementObjectNotFoundException", target=what)


def _unchanged(what: str) -> Warned:
    return Warned(f"The command completed successfully but no settings of '{what}' have been modified.")
