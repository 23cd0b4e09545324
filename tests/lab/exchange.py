# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exchange's PowerShell endpoint: PowerShell remoting ([MS-PSRP]) in shells of WS-Management.

The client chooses ShellId and CommandId. A shell is a runspace pool, a command a pipeline; what goes in and
out are fragments of PSRP messages, which psrpcore takes apart and puts together. The pipelines of this endpoint
have no language: one cmdlet with parameters, which exchange_cmdlets.py runs.

A cmdlet runs while its Command (or the last Send of it) is answered, a slow one in a timer's thread. Receive
waits until there is something to give. Each shell has a condition, held by whoever works with it: psrpcore is
not made for several threads. It is always taken before the lock of the organisation.

Guesses: the code of the fault for an account without roles, and the end of the texts that refuse a session.
Microsoft's page on failing shells shows 2150858819 with Exchange's own "[Server=…] Access is denied".
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import threading
import uuid
from collections.abc import Callable
from typing import Final
from xml.sax.saxutils import escape

from psrpcore import CreatePipelineEvent, GetCommandMetadataEvent, ServerPipeline
from psrpcore.types import PSInvocationState

from lab.exchange_cmdlets import Cmdlets, Invocation, TerminatingError, no_language
from lab.exchange_organisation import CONFIGURATION
from lab.exchange_runspace import BadFragmentError, Command, Runspace
from lab.shell import content_of, invalid, no_such_shell, not_supported, shell_reply
from lab.wsman import ANONYMOUS, SCHEMA_VALIDATION_ERROR, SHELL, TRANSFER, Fault, Request, unknown_resource

log = logging.getLogger(__name__)

EXCHANGE: Final = "http://schemas.microsoft.com/powershell/Microsoft.Exchange"
PATHS: Final = ("/powershell", "/powershell/")
POWERSHELL: Final = "http://schemas.microsoft.com/powershell"

OPERATION_TIMED_OUT: Final = 2150858793
ACCESS_DENIED: Final = 5
# What Exchange's authorisation plug-in gives.
AUTHORIZATION_FAILED: Final = 2150858819
# Win32's code for what ended before it had something to say (ERROR_OPERATION_ABORTED).
ABORTED: Final = 995
# A client that names no time-out gets WinRM's own.
DEFAULT_TIMEOUT: Final = 60.0
LONGEST_TIMEOUT: Final = 300.0

_STATE: Final = f"{SHELL}/CommandState"
_STOPS: Final = frozenset({"powershell/signal/ctrl_c", f"{SHELL}/signal/ctrl_c", f"{SHELL}/signal/ctrl_break"})
_TERMINATE: Final = f"{SHELL}/signal/terminate"
_CMDLET = re.compile(rb'<S N="Cmd">([A-Za-z]{1,40}-[A-Za-z]{1,60})</S>')


class ExchangeShells:
    """The open shells of one host. Implements `lab.wsman.Resource`."""

    def __init__(self, cmdlets: Cmdlets) -> None:
        self._cmdlets = cmdlets
        self._open: dict[str, Runspace] = {}
        self._lock = threading.Lock()
        self._acts: dict[str, Callable[[Request], str]] = {
            f"{TRANSFER}/Create": self._create,
            f"{TRANSFER}/Delete": self._delete,
            f"{SHELL}/Command": self._command,
            f"{SHELL}/Send": self._send,
            f"{SHELL}/Receive": self._receive,
            f"{SHELL}/Signal": self._signal,
        }

    @property
    def open(self) -> list[Runspace]:
        """The open shells, the oldest first."""
        with self._lock:
            return list(self._open.values())

    def close(self) -> None:
        """Close all shells; who waits for one gets a fault."""
        for runspace in self.open:
            self._close(runspace)

    # -- Resource --

    def describe(self, request: Request) -> str:
        """Exchange Create, Exchange Command Get-ReceiveConnector, Exchange Receive, …"""
        if request.resource_uri.lower() != EXCHANGE.lower():
            raise unknown_resource()
        action = request.action.rpartition("/")[2]
        if action != "Command" or request.body is None:
            return f"Exchange {action}"
        # Journalled before it is carried out; the name is in the first fragment, however many follow.
        try:
            data = base64.b64decode(request.body.findtext(f"{{{SHELL}}}Arguments") or "")
        except binascii.Error:
            data = b""
        match = _CMDLET.search(data)
        return f"Exchange Command {match[1].decode()}" if match else "Exchange Command"

    def answer(self, request: Request) -> str:
        """Do one thing with one shell."""
        act = self._acts.get(request.action)
        if act is None:
            raise not_supported("The lab's Exchange does not have this action.")
        return act(request)

    # -- shells --

    def _create(self, request: Request) -> str:
        body = content_of(request, "Shell")
        behaviour = self._cmdlets.behaviour
        if request.user.casefold() in {name.casefold() for name in behaviour.without_roles}:
            raise self._refused(ACCESS_DENIED, f'The user "{request.user}" isn\'t assigned to any management roles.')
        content = body.findtext(f"{{{POWERSHELL}}}creationXml")
        if not content:
            raise Fault(SCHEMA_VALIDATION_ERROR, "w:SchemaValidationError", "Shell needs a creationXml.")
        runspace = Runspace(_uuid(body.get("ShellId")), request.user, body.findtext(f"{{{SHELL}}}IdleTimeOut"))
        with runspace.changed:
            self._take(runspace, _decoded(content))
            with self._lock:
                self._admit(runspace)
        streams = "".join(
            f"<rsp:{name}>{escape(body.findtext(f'{{{SHELL}}}{name}') or '')}</rsp:{name}>"
            for name in ("IdleTimeOut", "InputStreams", "OutputStreams")
            if body.find(f"{{{SHELL}}}{name}") is not None
        )
        return (
            f"<x:ResourceCreated><a:Address>{ANONYMOUS}</a:Address><a:ReferenceParameters>"
            f"<w:ResourceURI>{EXCHANGE}</w:ResourceURI>"
            f'<w:SelectorSet><w:Selector Name="ShellId">{runspace.id}</w:Selector></w:SelectorSet>'
            f'</a:ReferenceParameters></x:ResourceCreated><rsp:Shell xmlns:rsp="{SHELL}">'
            f"<rsp:ShellId>{runspace.id}</rsp:ShellId><rsp:ResourceUri>{EXCHANGE}</rsp:ResourceUri>"
            f"<rsp:Owner>{escape(request.user)}</rsp:Owner><rsp:ClientIP>127.0.0.1</rsp:ClientIP>"
            f"{streams}<rsp:ShellRunTime>P0DT0H0M0S</rsp:ShellRunTime>"
            "<rsp:ShellInactivity>P0DT0H0M0S</rsp:ShellInactivity></rsp:Shell>"
        )

    def _admit(self, runspace: Runspace) -> None:
        if runspace.id in self._open:
            raise invalid("There is a shell with this ShellId already.")
        most = self._cmdlets.behaviour.max_shells
        mine = sum(one.user.casefold() == runspace.user.casefold() for one in self._open.values())
        if mine >= most:
            raise self._refused(
                AUTHORIZATION_FAILED,
                "Fail to create a runspace because you have exceeded the maximum number of connections allowed :"
                f" {most} for the policy party : MaxConcurrency. Please close existing runspace and try again."
                f"\nPolicy: CN=GlobalThrottlingPolicy,CN=Global Settings,{CONFIGURATION};"
                f"\nSnapshot: Owner: Sid~{runspace.user}~WSMan~false\nActiveRunspaces: {mine}/{most}",
                category="AuthZ-AuthorizationException",
            )
        self._open[runspace.id] = runspace

    def _refused(self, code: int, reason: str, *, category: str = "AuthZ-CmdletAccessDeniedException") -> Fault:
        server = self._cmdlets.server
        where = f"[ClientAccessServer={server},BackEndServer={server.lower()}.lab.test,RequestId={uuid.uuid4()}]"
        return Fault(code, "w:AccessDenied", f"{where} [FailureCategory={category}] {reason}")

    def _delete(self, request: Request) -> str:
        self._close(self._find(request))
        return ""

    def _close(self, runspace: Runspace) -> None:
        with self._lock:
            self._open.pop(runspace.id, None)
        with runspace.changed:
            runspace.close()

    def _find(self, request: Request) -> Runspace:
        with self._lock:
            runspace = self._open.get(request.selectors.get("shellid", "").upper())
        if runspace is None:
            raise no_such_shell()
        if runspace.user.casefold() != request.user.casefold():
            raise Fault(ACCESS_DENIED, "w:AccessDenied", "Access is denied.")
        return runspace

    # -- pipelines --

    def _command(self, request: Request) -> str:
        body = content_of(request, "CommandLine")
        runspace = self._find(request)
        command_id = _uuid(body.get("CommandId"))
        data = _decoded("".join(one.text or "" for one in body.iterfind(f"{{{SHELL}}}Arguments")))
        with runspace.changed:
            if runspace.closed:
                raise no_such_shell()
            if command_id in runspace.commands:
                raise invalid("There is a command with this CommandId already.")
            # psrpcore gives the message to the pipeline that it names: that must be there before.
            runspace.commands[command_id] = Command(ServerPipeline(runspace.pool, uuid.UUID(command_id)))
            self._take(runspace, data)
        return shell_reply("CommandResponse", f"<rsp:CommandId>{command_id}</rsp:CommandId>")

    def _send(self, request: Request) -> str:
        body = content_of(request, "Send")
        runspace = self._find(request)
        with runspace.changed:
            for stream in body.iterfind(f"{{{SHELL}}}Stream"):
                if stream.get("Name") not in ("stdin", "pr"):
                    raise invalid("PowerShell's input streams are stdin and pr.")
                if stream.get("CommandId") is not None:
                    runspace.command(stream.get("CommandId"))
                self._take(runspace, _decoded(stream.text or ""))
        return shell_reply("SendResponse")

    def _take(self, runspace: Runspace, data: bytes) -> None:
        """Fragments of the client: act on the messages that they complete."""
        try:
            events = runspace.take(data)
        except BadFragmentError as error:
            log.info("shell %s ends: %s", runspace.id, error)
            # A real runspace is broken after it too.
            self._close(runspace)
            raise invalid("The data is no PowerShell remoting fragment that could be expected here.") from error
        for event in events:
            if isinstance(event, CreatePipelineEvent | GetCommandMetadataEvent):
                self._begin(runspace, runspace.command(str(event.pipeline_id)))
        runspace.flush(self._cmdlets.behaviour.packet_bytes)

    def _begin(self, runspace: Runspace, command: Command) -> None:
        if command.core.state != PSInvocationState.NotStarted:
            raise invalid("The pipeline has begun already.")
        command.start()
        try:
            name, arguments = command.only_cmdlet()
            invocation = self._cmdlets.bind(name, arguments, runspace.user)
        except LookupError:
            command.fail(no_language())
            return
        except TerminatingError as error:
            command.fail(error.problem)
            return
        seconds = self._cmdlets.behaviour.delay(invocation.cmdlet)
        if not seconds:
            self._run(command, invocation)
            return
        command.timer = threading.Timer(seconds, self._run_late, (runspace, command, invocation))
        command.timer.daemon = True
        command.timer.start()

    def _run(self, command: Command, invocation: Invocation) -> None:
        try:
            with self._cmdlets.organisation.lock:
                for written in self._cmdlets.run(invocation):
                    command.write(written, invocation)
            command.core.complete()
        except TerminatingError as error:
            command.fail(error.problem)

    def _run_late(self, runspace: Runspace, command: Command, invocation: Invocation) -> None:
        with runspace.changed:
            if command.core.state == PSInvocationState.Running and not runspace.closed:
                self._run(command, invocation)
                runspace.flush(self._cmdlets.behaviour.packet_bytes)

    def _receive(self, request: Request) -> str:
        wanted = content_of(request, "Receive").find(f"{{{SHELL}}}DesiredStream")
        if wanted is None or (wanted.text or "").strip() != "stdout":
            reason = "Receive needs a DesiredStream, and PowerShell's is stdout."
            raise Fault(SCHEMA_VALIDATION_ERROR, "w:SchemaValidationError", reason)
        runspace = self._find(request)
        timeout = min(request.timeout or DEFAULT_TIMEOUT, LONGEST_TIMEOUT)
        command_id = wanted.get("CommandId")
        with runspace.changed:
            command = None if command_id is None else runspace.command(command_id)
            source = runspace if command is None else command

            def ended() -> bool:
                return runspace.closed or (command is not None and command.terminated)

            if not runspace.changed.wait_for(lambda: bool(source.output) or ended(), timeout):
                reason = (
                    "The WS-Management service cannot complete the operation within the time specified in"
                    " OperationTimeout."
                )
                raise Fault(OPERATION_TIMED_OUT, "w:TimedOut", reason)
            if ended():
                reason = "The I/O operation has been aborted because of either a thread exit or an application request."
                raise Fault(ABORTED, "w:InternalError", reason)
            data = source.take_output(self._cmdlets.behaviour.packet_bytes)
            done = command is not None and command.done
        of = "" if command is None else f' CommandId="{command.id}"'
        state = f'<rsp:CommandState{of} State="{_STATE}/Done"/>' if done else ""
        printed = base64.b64encode(data).decode()
        return shell_reply("ReceiveResponse", f'<rsp:Stream Name="stdout"{of}>{printed}</rsp:Stream>{state}')

    def _signal(self, request: Request) -> str:
        body = content_of(request, "Signal")
        runspace = self._find(request)
        code = (body.findtext(f"{{{SHELL}}}Code") or "").strip().lower()
        with runspace.changed:
            command = runspace.command(body.get("CommandId"))
            if code == _TERMINATE:
                runspace.terminate(command)
            elif code in {stop.lower() for stop in _STOPS}:
                command.stop()
                runspace.flush(self._cmdlets.behaviour.packet_bytes)
            else:
                raise invalid("The lab's Exchange does not know this signal.")
        return shell_reply("SignalResponse")


def _uuid(text: str | None) -> str:
    """An identifier that the client has chosen, as WinRM writes it."""
    try:
        return str(uuid.UUID(text or "")).upper()
    except ValueError:
        raise invalid("PowerShell's clients choose ShellId and CommandId: each is a GUID.") from None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("The data is not Base64.") from error
