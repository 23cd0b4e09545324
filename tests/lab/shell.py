# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""WinRS shells ([MS-WSMV] 3.1.4.5, Create): they open and close, and run nothing.

Ansible's winrm connection opens a shell when it connects and closes it when it is done, whatever the task
does. The lab lets it, so that the connection is as happy as with Windows. Nothing in this collection may
run a command on a Windows host, so Command and what follows it are refused, and a task that tries fails.
"""

from __future__ import annotations

import threading
import uuid
from typing import Final
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

_CREATE: Final = f"{TRANSFER}/Create"
_DELETE: Final = f"{TRANSFER}/Delete"


class CmdShells:
    """The open shells of one host."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._lock = threading.Lock()

    def describe(self, request: Request) -> str:
        """Shell Create, Shell Delete, Shell Command, …"""
        return f"Shell {request.action.rpartition('/')[2]}"

    def answer(self, request: Request) -> str:
        """Open or close a shell."""
        if request.action == _CREATE:
            return self._create(request)
        if request.action == _DELETE:
            return self._delete(request)
        reason = "The lab's shells run nothing: this action is not supported."
        raise Fault(ACTION_NOT_SUPPORTED, "a:ActionNotSupported", reason)

    def _create(self, request: Request) -> str:
        if request.body is None or request.body.tag != f"{{{SHELL}}}Shell":
            reason = "Create needs a Shell element."
            raise Fault(SCHEMA_VALIDATION_ERROR, "w:SchemaValidationError", reason)
        shell_id = str(uuid.uuid4()).upper()
        with self._lock:
            self._open.add(shell_id)
        streams = "".join(
            f"<rsp:{name}>{escape(request.body.findtext(f'{{{SHELL}}}{name}') or '')}</rsp:{name}>"
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
        shell_id = request.selectors.get("shellid", "").upper()
        with self._lock:
            known = shell_id in self._open
            self._open.discard(shell_id)
        if not known:
            reason = "The request contained invalid selectors for the resource."
            detail = "UnexpectedSelectors"
            raise Fault(UNEXPECTED_SELECTORS, "w:InvalidSelectors", reason, detail=detail)
        return ""
