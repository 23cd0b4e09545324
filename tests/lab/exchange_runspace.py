# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A runspace pool and its pipelines, in the terms of psrpcore: what an open shell of the endpoint holds.

Not for several threads: whoever calls anything here holds `Runspace.changed`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from psrpcore import (
    PowerShell,
    PSRPEvent,
    PSRPPayload,
    ServerPipeline,
    ServerRunspacePool,
    StreamType,
)
from psrpcore.types import ErrorCategory, ErrorCategoryInfo, ErrorRecord, NETException, PSInvocationState

from lab.exchange_cmdlets import Invocation, Warned, Written, text_of
from lab.exchange_troubles import Problem
from lab.shell import invalid

# Object id, fragment id, flags, length ([MS-PSRP] 2.2.4).
_FRAGMENT_HEADER: Final = 21
# What a client may have sent of messages that it has not ended.
_MAX_UNFINISHED: Final = 4 * 1024 * 1024
_COM_ERROR: Final = -2146233088


class BadFragmentError(Exception):
    """What the client sent is no PSRP, or not at this point."""


@dataclass(eq=False)
class _Source:
    """Something that Receive takes from: packets that are ready to leave."""

    output: deque[bytes] = field(default_factory=deque, kw_only=True)

    def take_output(self, most: int) -> bytes:
        """As many packets as fit, one at least."""
        data = self.output.popleft() if self.output else b""
        while self.output and len(data) + len(self.output[0]) <= most:
            data += self.output.popleft()
        return data


@dataclass(eq=False)
class Command(_Source):
    """A pipeline."""

    core: ServerPipeline
    timer: threading.Timer | None = None
    terminated: bool = False

    @property
    def id(self) -> str:
        """Its CommandId."""
        return str(self.core.pipeline_id).upper()

    @property
    def done(self) -> bool:
        """Has it ended, and has all that it said been taken?"""
        running = (PSInvocationState.NotStarted, PSInvocationState.Running)
        return self.core.state not in running and not self.output

    def start(self) -> None:
        """It runs. psrpcore's own start() would tell the client so, which a server of Windows does not."""
        self.core._change_state(PSInvocationState.Running, emit=False)

    def only_cmdlet(self) -> tuple[str, list[tuple[str | None, Any]]]:
        """The cmdlet and its arguments; LookupError where the pipeline is anything else than one cmdlet."""
        pipeline = self.core.metadata
        commands = pipeline.commands if isinstance(pipeline, PowerShell) else []
        if len(commands) != 1 or commands[0].is_script:
            raise LookupError("not one cmdlet")
        name, arguments = commands[0].command_text, commands[0].parameters
        # psrpcore does not look what a stranger has put where a name belongs.
        if not isinstance(name, str) or any(not isinstance(one, str | None) for one, _value in arguments):
            raise LookupError("a name is no string")
        return name, arguments

    def write(self, written: Written, invocation: Invocation) -> None:
        """One object or record, unless it was asked to be silent about them."""
        if isinstance(written, Warned):
            if not _silent(invocation, "WarningAction"):
                self.core.write_warning(written.text)
        elif isinstance(written, Problem):
            if not _silent(invocation, "ErrorAction"):
                record = error_record(written, invocation.cmdlet)
                self.core.write_error(
                    record.Exception,
                    record.CategoryInfo,
                    record.TargetObject,
                    record.FullyQualifiedErrorId,
                )
        else:
            self.core.write_output(written)

    def fail(self, problem: Problem) -> None:
        """It ends in the state Failed."""
        # psrpcore has a method for each state but this one.
        self.core._change_state(PSInvocationState.Failed, error_record(problem))

    def stop(self) -> None:
        """It ends in the state Stopped, if it has not ended before."""
        if self.timer is not None:
            self.timer.cancel()
        if self.core.state == PSInvocationState.Running:
            self.core.stop()


class Runspace(_Source):
    """A runspace pool: one shell. Its user, its commands, and what it has to say."""

    def __init__(self, shell_id: str, user: str, idle_timeout: str | None) -> None:
        super().__init__()
        self.id = shell_id
        self.user = user
        self.idle_timeout = idle_timeout
        self.pool = ServerRunspacePool()
        self.commands: dict[str, Command] = {}
        self.changed = threading.Condition(threading.RLock())
        self.closed = False

    def command(self, command_id: str | None) -> Command:
        """The command with that CommandId, or Fault."""
        found = self.commands.get((command_id or "").upper())
        if found is None:
            raise invalid("The CommandId names no command of this shell.")
        return found

    def take(self, data: bytes) -> list[PSRPEvent[Any, Any]]:
        """The messages that these fragments complete. Those for the number of runspaces get no answer."""
        _check(data)
        events = []
        try:
            self.pool.receive_data(PSRPPayload(data, StreamType.default, None))
            while (event := self.pool.next_event()) is not None:
                if str(event.runspace_pool_id).upper() != self.id:
                    raise BadFragmentError("the message is for another runspace pool")
                events.append(event)
        except BadFragmentError:
            raise
        except Exception as error:  # psrpcore raises whatever comes up while it reads a stranger's data
            raise BadFragmentError(f"{type(error).__name__}: {error}") from error
        unfinished = sum(len(part) for parts in self.pool._incoming_fragments.values() for part in parts)
        if unfinished > _MAX_UNFINISHED:
            raise BadFragmentError("a message is too large")
        return events

    def flush(self, most: int) -> None:
        """Put what the pool has to send where Receive takes it, in packets of so many bytes at most."""
        while (payload := self.pool.data_to_send(most)) is not None:
            to = payload.pipeline_id
            target = self if to is None else self.commands.get(str(to).upper())
            if target is not None:
                target.output.append(payload.data)
        self.changed.notify_all()

    def terminate(self, command: Command) -> None:
        """The client has done with it."""
        command.stop()
        command.terminated = True
        del self.commands[command.id]
        # What it still had to say goes with it: flush() finds no command for it.
        self.pool.pipeline_table.pop(command.core.pipeline_id, None)
        self.changed.notify_all()

    def close(self) -> None:
        """The shell ends, and all that waits for it."""
        self.closed = True
        for command in list(self.commands.values()):
            self.terminate(command)
        self.changed.notify_all()


def error_record(problem: Problem, activity: str = "") -> ErrorRecord:
    """An error record of .NET's."""
    exception = NETException(Message=problem.message, HResult=_COM_ERROR)
    exception.PSObject.type_names = [problem.exception, "System.Exception", "System.Object"]
    return ErrorRecord(
        Exception=exception,
        CategoryInfo=ErrorCategoryInfo(
            Category=ErrorCategory[problem.category],
            Activity=activity,
            Reason=problem.reason,
            TargetName=problem.target or "",
            TargetType="String" if problem.target else "",
        ),
        TargetObject=problem.target,
        FullyQualifiedErrorId=problem.error_id,
    )


def _silent(invocation: Invocation, preference: str) -> bool:
    return text_of(invocation.parameters.get(preference, "")).casefold() in ("silentlycontinue", "ignore", "0", "4")


def _check(data: bytes) -> None:
    """Whole fragments and nothing else: psrpcore takes what is cut off for complete."""
    for _header in _fragments(data):
        pass


def _fragments(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        header = data[position : position + _FRAGMENT_HEADER]
        if len(header) < _FRAGMENT_HEADER:
            raise BadFragmentError("a fragment is shorter than its header")
        position += _FRAGMENT_HEADER + int.from_bytes(header[17:21], "big")
        if position > len(data):
            raise BadFragmentError("a fragment is shorter than it says")
        yield header
