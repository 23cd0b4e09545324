# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may log in to the lab's hosts.

Basic needs the password itself, NTLM needs what pyspnego's acceptor reads: a file of `:user:password`
lines that the environment variable NTLM_USER_FILE names. The variable belongs to the whole process, the
accounts to one lab, so all labs of a process share one file: it holds the accounts of the labs that
are open, is readable by its owner only, and goes away with the last of them. Two labs with the same
name and two passwords cannot be told apart by NTLM, and are refused.
"""

from __future__ import annotations

import hmac
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

NTLM_USER_FILE: Final = "NTLM_USER_FILE"


class Users:
    """The accounts of one lab. Names ignore case, as on Windows."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        for name, password in passwords.items():
            if not name or not password:
                raise ValueError("an account of the lab needs a name and a password")
            if not _fits_a_line(name) or not _fits_a_line(password):
                raise ValueError(f"account {name!r}: name and password must have no colon and no line break")
        self._passwords = {name.casefold(): password for name, password in passwords.items()}
        self._names = {name.casefold(): name for name in passwords}
        if len(self._names) != len(passwords):
            raise ValueError("two accounts of the lab have the same name")

    def open(self) -> None:
        """Make the accounts known to NTLM."""
        _ntlm_file.add(self)

    def close(self) -> None:
        """Take them away from NTLM; once is enough, twice is harmless."""
        _ntlm_file.remove(self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.casefold() in self._passwords

    def accepts(self, name: str, password: str) -> bool:
        """Is this the password of that account? Takes as long for an unknown name as for a known one."""
        expected = self._passwords.get(name.casefold(), "")
        same = hmac.compare_digest(expected.encode(), password.encode())
        return same and bool(expected)

    def accounts(self) -> list[tuple[str, str]]:
        """Name and password of each account."""
        return [(self._names[key], password) for key, password in self._passwords.items()]


def _fits_a_line(text: str) -> bool:
    return ":" not in text and len(text.splitlines()) == 1


class _NtlmUserFile:
    """The file behind NTLM_USER_FILE: rewritten whole, so that a reader never sees half of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Users] = []
        self._folder: Path | None = None
        self._inherited: str | None = None

    def add(self, users: Users) -> None:
        with self._lock:
            for name, password in users.accounts():
                if any(name in other and not other.accepts(name, password) for other in self._open):
                    raise ValueError(f"another lab of this process has {name!r} with another password")
            if self._folder is None:
                # mkdtemp makes the folder 0700, which protects the file in every moment of its life.
                self._folder = Path(tempfile.mkdtemp(prefix="lab-ntlm-"))
                self._inherited = os.environ.get(NTLM_USER_FILE)
            self._open.append(users)
            os.environ[NTLM_USER_FILE] = str(self._write(self._folder))

    def remove(self, users: Users) -> None:
        with self._lock:
            if self._folder is None or users not in self._open:
                return
            self._open.remove(users)
            if self._open:
                self._write(self._folder)
                return
            shutil.rmtree(self._folder)
            self._folder = None
            if self._inherited is None:
                os.environ.pop(NTLM_USER_FILE, None)
            else:
                os.environ[NTLM_USER_FILE] = self._inherited

    def _write(self, folder: Path) -> Path:
        lines = sorted({f":{name}:{word}" for users in self._open for name, word in users.accounts()})
        fresh = folder / "users.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        return fresh.replace(folder / "users")


_ntlm_file = _NtlmUserFile()
