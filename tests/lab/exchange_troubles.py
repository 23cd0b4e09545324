# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong with Exchange's cmdlets on a test's behalf, and how its objects look.

`Behaviour` is one host's; what goes wrong with a request as a whole is in `host.faults` (faults.py). Cmdlets'
names ignore case. `times` counts the invocations that it happens to; None: all of them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from psrpcore.types import ErrorCategory

SpanForm = Literal["enhanced", "timespan", "string", "seconds-property-only"]
Nested = Literal["objects", "strings"]
MAX_SHELLS: Final = 18
# What a Receive may carry of PSRP's data: the size of WinRM's own packets for PowerShell.
PACKET_BYTES: Final = 32 * 1024


@dataclass(frozen=True)
class Problem:
    """An error record. `error_id` is the FullyQualifiedErrorId, the one that Exchange would make where empty."""

    message: str
    exception: str = "Microsoft.Exchange.Configuration.Tasks.TaskException"
    category: str = "NotSpecified"
    error_id: str = ""
    target: str | None = None

    @property
    def reason(self) -> str:
        """The exception's name without its namespace."""
        return self.exception.rpartition(".")[2]


@dataclass
class _Planned:
    cmdlet: str
    times: int | None

    def take(self) -> bool:
        """Count one; is there still one?"""
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0


@dataclass
class Failure(_Planned):
    """See `Behaviour.fail`."""

    problem: Problem
    identity: str | None
    terminating: bool
    carried_out: bool
    after: int


@dataclass
class _Warning(_Planned):
    text: str


@dataclass
class _Delay(_Planned):
    seconds: float


Plan = TypeVar("Plan", bound=_Planned)


@dataclass
class Behaviour:
    """The knobs; `reset` puts all of them back."""

    # TarpitInterval: an EnhancedTimeSpan (an object with a string and properties), a duration, a string, or an
    # object that has TotalSeconds and nothing else.
    span_form: SpanForm = "enhanced"
    # Identities, enumerations, switches, sizes: objects with a ToString, or already the string. Which one comes
    # depends on how deep the server serialises.
    nested: Nested = "objects"
    # Set- cmdlets say that all is well, and nothing changes.
    ignore_set: bool = False
    max_shells: int = MAX_SHELLS
    packet_bytes: int = PACKET_BYTES
    # Cmdlets that no role of the accounts has ("Set-ReceiveConnector"), and single parameters of them
    # ("Set-ReceiveConnector -TarpitInterval"): Exchange does not know them for these accounts.
    denied: set[str] = field(default_factory=set)
    # The same, for one account each: name of the account, and what it is denied.
    denied_to: dict[str, set[str]] = field(default_factory=dict)
    # Accounts without any role: they do not get a session.
    without_roles: set[str] = field(default_factory=set)
    # Servers that are outside the write scope of the accounts' roles.
    out_of_scope: set[str] = field(default_factory=set)
    _failures: list[Failure] = field(default_factory=list)
    _warnings: list[_Warning] = field(default_factory=list)
    _delays: list[_Delay] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def fail(
        self,
        cmdlet: str,
        identity: str | None = None,
        *,
        message: str = "The lab was told to refuse this.",
        exception: str = "Microsoft.Exchange.Configuration.Tasks.TaskException",
        category: str = "NotSpecified",
        error_id: str = "",
        times: int | None = 1,
        terminating: bool = False,
        carried_out: bool = False,
        after: int = 0,
    ) -> None:
        """An error record in the stream of a pipeline that completes or, terminating, that fails.

        `after` so many objects of its output; the rest of them and the change come where it is `carried_out`.
        """
        if category not in ErrorCategory.__members__:
            raise ValueError(f"PowerShell has no error category {category!r}")
        problem = Problem(message, exception, category, error_id, identity)
        with self._lock:
            self._failures.append(Failure(cmdlet, times, problem, identity, terminating, carried_out, after))

    def warn(self, cmdlet: str, text: str, *, times: int | None = 1) -> None:
        """A warning record before the output."""
        with self._lock:
            self._warnings.append(_Warning(cmdlet, times, text))

    def slow(self, cmdlet: str, seconds: float, *, times: int | None = 1) -> None:
        """The cmdlet does its work after so many seconds; until then Receive has nothing to give."""
        with self._lock:
            self._delays.append(_Delay(cmdlet, times, seconds))

    def micro_delay(self, cmdlet: str, milliseconds: int, *, times: int | None = 1) -> None:
        """Exchange's throttling: the cmdlet waits, and says so. How the text ends is a guess."""
        self.slow(cmdlet, milliseconds / 1000, times=times)
        text = (
            f"Micro delay applied. Actual delayed: {milliseconds} msecs, Enforced: True, Capped delay: {milliseconds}"
        )
        self.warn(cmdlet, f"{text} msecs, Required: False", times=times)

    def reset(self) -> None:
        """All goes well again, in the usual form."""
        with self._lock:
            fresh = Behaviour()
            for name, value in vars(fresh).items():
                if name != "_lock":
                    setattr(self, name, value)

    # -- what the host asks --

    def sees(self, user: str, cmdlet: str, parameter: str | None = None) -> bool:
        """Has the account a role with this cmdlet, and with this parameter of it?"""
        wanted = (cmdlet if parameter is None else f"{cmdlet} -{parameter}").casefold()
        hidden = {*self.denied, *self.denied_to.get(user, set())}
        return wanted not in {name.casefold() for name in hidden}

    def failure(self, cmdlet: str, identity: str | None) -> Failure | None:
        """What was planned for this invocation."""

        def concerns(one: Failure) -> bool:
            return one.identity is None or one.identity.casefold() == (identity or "").casefold()

        found = self._take(self._failures, cmdlet, concerns)
        return found[0] if found else None

    def warnings(self, cmdlet: str) -> list[str]:
        """What was planned for this invocation."""
        return [one.text for one in self._take(self._warnings, cmdlet)]

    def delay(self, cmdlet: str) -> float:
        """How many seconds this invocation takes."""
        return sum(one.seconds for one in self._take(self._delays, cmdlet))

    def _take(self, plans: list[Plan], cmdlet: str, concerns: Callable[[Plan], bool] = lambda _one: True) -> list[Plan]:
        with self._lock:
            due = deque(one for one in plans if one.cmdlet.casefold() == cmdlet.casefold() and concerns(one))
            return [one for one in due if one.take()]
