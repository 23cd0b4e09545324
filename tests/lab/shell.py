# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""WinRS shells ([MS-WSMV] 3.1.4.5, Create): they open and close, and run nothing.

Ansible's winrm connection opens a shell when it connects and closes it when it is done, whatever the task
does. The lab lets it, so that the connection is as happy as with Windows. Nothing in this collection may
run a command on a Windows host, so Command is refused, and a task that tries fails.

The benchmark compares with modules that do run commands. For it, and only where `expect` has said so, a shell
plays PowerShell: each command takes the next of the answers that were prepared, its input is read to its end
and thrown away, and what it prints is the answer. What commands cost on the wire is all there; what PowerShell
costs the host is not.
"""

from __future__ import annotations

import base64
import binascii
import threading
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from lab.wsman import (
    ACTION_NOT_SUPPORTED,
    ANONYMOUS,
    SCHEMA_VALIDATION_ERROR,
    SHELL,
    TRANSFER,
    Fault,
    Request,
)

CMD_SHELL: Final = f"{SHELL}/cmd"

# Windows' code where ShellId names no shell (ERROR_WSMAN_UNEXPECTED_SELECTORS).
UNEXPECTED_SELECTORS: Final = 2150858843
# Win32's code for a parameter that means nothing: here a CommandId of no command.
INVALID_PARAMETER: Final = 87

_CREATE: Final = f"{TRANSFER}/Create"
_DELETE: Final = f"{TRANSFER}/Delete"
_COMMAND: Final = f"{SHELL}/Command"
_SEND: Final = f"{SHELL}/Send"
_RECEIVE: Final = f"{SHELL}/Receive"
_SIGNAL: Final = f"{SHELL}/Signal"
_DONE: Final = f"{SHELL}/CommandState/Done"


@dataclass
class _Command:
    """A command that pretends to run: what it will print, and whether its input has ended."""

    answer: bytes
    input_ended: bool = False


class CmdShells:
    """The open shells of one host."""

    def __init__(self) -> None:
        self._open: dict[str, dict[str, _Command]] = {}
        self._answers: deque[bytes] = deque()
        self._lock = threading.Lock()

    def expect(self, *answers: bytes) -> None:
        """Play PowerShell for so many commands: each prints the next answer. None: refuse, as at first."""
        with self._lock:
            self._answers = deque(answers)

    @property
    def unused(self) -> int:
        """How many answers no command has taken."""
        with self._lock:
            return len(self._answers)

    def describe(self, request: Request) -> str:
        """Shell Create, Shell Delete, Shell Command, …"""
        return f"Shell {request.action.rpartition('/')[2]}"

    def answer(self, request: Request) -> str:
        """Open or close a shell, or pretend to run a command in it."""
        acts = {
            _CREATE: self._create,
            _DELETE: self._delete,
            _COMMAND: self._run,
            _SEND: self._send,
            _RECEIVE: self._receive,
            _SIGNAL: self._signal,
        }
        act = acts.get(request.action)
        if act is None:
            raise not_supported("The lab's shells run nothing: this action is not supported.")
        with self._lock:
            return act(request)

    def _create(self, request: Request) -> str:
        body = content_of(request, "Shell")
        shell_id = str(uuid.uuid4()).upper()
        self._open[shell_id] = {}
        streams = "".join(
            f"<rsp:{name}>{escape(body.findtext(f'{{{SHELL}}}{name}') or '')}</rsp:{name}>"
            for name in ("InputStreams", "OutputStreams")
        )
        return (
            f"<x:ResourceCreated><a:Address>{ANONYMOUS}</a:Address><a:ReferenceParameters>"
            f"<w:ResourceURI>{CMD_SHELL}</w:ResourceURI>"
            f'<w:SelectorSet><w:Selector Name="ShellId">{shell_id}</w:Selector></w:SelectorSet>'
            f'</a:ReferenceParameters></x:ResourceCreated><rsp:Shell xmlns:rsp="{SHELL}">'
            f"<rsp:ShellId>{shell_id}</rsp:ShellId><rsp:ResourceUri>{CMD_SHELL}</rsp:ResourceUri>"
            f"{streams}</rsp:Shell>"
        )

    def _delete(self, request: Request) -> str:
        self._commands(request)
        del self._open[_shell_id(request)]
        return ""

    def _run(self, request: Request) -> str:
        # Before anything else is looked at: a lab that was not told to play PowerShell refuses every command.
        if not self._answers:
            raise not_supported("The lab's shells run nothing: this action is not supported.")
        commands = self._commands(request)
        if not content_of(request, "CommandLine").findtext(f"{{{SHELL}}}Command"):
            reason = "CommandLine needs a Command."
            raise Fault(SCHEMA_VALIDATION_ERROR, "w:SchemaValidationError", reason)
        command_id = str(uuid.uuid4()).upper()
        commands[command_id] = _Command(self._answers.popleft())
        return shell_reply("CommandResponse", f"<rsp:CommandId>{command_id}</rsp:CommandId>")

    def _send(self, request: Request) -> str:
        commands = self._commands(request)
        for stream in content_of(request, "Send").iterfind(f"{{{SHELL}}}Stream"):
            command, _command_id = _named(commands, stream)
            if stream.get("Name") != "stdin" or command.input_ended:
                raise invalid("Send is for the stdin of a command, and nothing comes after its end.")
            try:
                base64.b64decode(stream.text or "", validate=True)
            except binascii.Error as error:
                raise invalid("A stream is not Base64.") from error
            command.input_ended = stream.get("End", "").lower() in ("true", "1")
        return shell_reply("SendResponse")

    def _receive(self, request: Request) -> str:
        wanted = content_of(request, "Receive").find(f"{{{SHELL}}}DesiredStream")
        if wanted is None:
            reason = "Receive needs a DesiredStream."
            raise Fault(SCHEMA_VALIDATION_ERROR, "w:SchemaValidationError", reason)
        command, command_id = _named(self._commands(request), wanted)
        if not command.input_ended:
            # Windows would wait for the command until the operation's time-out, again and again.
            raise not_supported("The lab's commands print once their input has ended.")
        of = f'CommandId="{command_id}"'
        printed = base64.b64encode(command.answer).decode()
        return shell_reply(
            "ReceiveResponse",
            f'<rsp:Stream Name="stdout" {of}>{printed}</rsp:Stream>'
            f'<rsp:Stream Name="stdout" {of} End="true"></rsp:Stream>'
            f'<rsp:Stream Name="stderr" {of} End="true"></rsp:Stream>'
            f'<rsp:CommandState {of} State="{_DONE}"><rsp:ExitCode>0</rsp:ExitCode></rsp:CommandState>',
        )

    def _signal(self, request: Request) -> str:
        commands = self._commands(request)
        _command, command_id = _named(commands, content_of(request, "Signal"))
        # Whatever the signal: a client sends it when it has done with the command.
        del commands[command_id]
        return shell_reply("SignalResponse")

    def _commands(self, request: Request) -> dict[str, _Command]:
        """The commands of the shell that the request names."""
        commands = self._open.get(_shell_id(request))
        if commands is None:
            raise no_such_shell()
        return commands


def no_such_shell() -> Fault:
    """The fault where ShellId names no shell, as once it is closed."""
    reason = "The request contained invalid selectors for the resource."
    return Fault(UNEXPECTED_SELECTORS, "w:InvalidSelectors", reason, detail="UnexpectedSelectors")


def _shell_id(request: Request) -> str:
    return request.selectors.get("shellid", "").upper()


def content_of(request: Request, name: str) -> ElementTree.Element:
    """The element of that name that the Body of a request about a shell must be."""
    if request.body is None or request.body.tag != f"{{{SHELL}}}{name}":
        action = request.action.rpartition("/")[2]
        reason = f"{action} needs a {name} element."
        raise Fault(SCHEMA_VALIDATION_ERROR, "w:SchemaValidationError", reason)
    return request.body


def _named(commands: dict[str, _Command], element: ElementTree.Element) -> tuple[_Command, str]:
    """The command that an element's CommandId names."""
    command_id = element.get("CommandId", "").upper()
    command = commands.get(command_id)
    if command is None:
        raise invalid("The CommandId names no command of this shell.")
    return command, command_id


def shell_reply(name: str, content: str = "") -> str:
    """The element of that name that the Body of the reply is."""
    return f'<rsp:{name} xmlns:rsp="{SHELL}">{content}</rsp:{name}>'


def invalid(reason: str) -> Fault:
    """The fault for what was given and means nothing."""
    return Fault(INVALID_PARAMETER, "w:InvalidParameter", reason)


def not_supported(reason: str) -> Fault:
    """The fault for an action that the resource does not have."""
    return Fault(ACTION_NOT_SUPPORTED, "a:ActionNotSupported", reason)
