# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd and we tell each other.

It gives sockets that listen already (sd_listen_fds(3)), known apart by their FileDescriptorName, and folders. We say
how we are: sd_notify(3), which is one datagram to the socket that NOTIFY_SOCKET names. Its watchdog
(sd_watchdog_enabled(3)) ends a program that has not said for a while that it lives.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from greylist_proxy.config_values import FileAddress, StoreAddress
from greylist_proxy.smtp.listener import ListenError

FIRST_DESCRIPTOR = 3  # sd_listen_fds(3)
MOST_DESCRIPTORS = 1000
INTERNET = (socket.AF_INET, socket.AF_INET6)
BLOCKING = (
    "systemd made the sockets blocking: whoever else serves on them stands still while we start; "
    "say NonBlocking=yes in the unit"
)


@dataclass(frozen=True)
class Given:
    """The sockets that systemd has opened, by FileDescriptorName: `admin`, `control`, and with any other name SMTP."""

    smtp: list[socket.socket] = field(default_factory=list)
    admin: list[socket.socket] = field(default_factory=list)
    control: list[socket.socket] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def given_sockets() -> Given:
    """Take the sockets that systemd has opened for this process.

    ListenError: one is not a listening socket of the kind that its name wants. systemd's variables are forgotten,
    children must not take them.
    """
    number, process = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    given = Given()
    if not number or process != str(os.getpid()):
        return given
    if not (number.isascii() and number.isdecimal() and int(number) <= MOST_DESCRIPTORS):
        raise ListenError("LISTEN_FDS: not a number of sockets")
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(number))
    for index, descriptor in enumerate(descriptors):
        name = names[index] if index < len(names) else ""
        if _is_blocking(descriptor):
            given.warnings[:] = [BLOCKING]
        taken = _take(descriptor, (socket.AF_UNIX,) if name == "control" else INTERNET)
        {"admin": given.admin, "control": given.control}.get(name, given.smtp).append(taken)
    return given


def _is_blocking(descriptor: int) -> bool:
    # Not the socket's method: that tells what Python was told.
    with contextlib.suppress(OSError):  # there is none: whoever takes it says so
        return os.get_blocking(descriptor)
    return False


def _take(descriptor: int, families: tuple[socket.AddressFamily, ...]) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
        is_right = listener.family in families and listener.type == socket.SOCK_STREAM
        if not (is_right and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
            kind = "Unix" if socket.AF_UNIX in families else "TCP"
            raise ListenError(f"descriptor {descriptor} from systemd: not a listening {kind} socket")
        listener.setblocking(False)
    except OSError as error:
        raise ListenError(f"descriptor {descriptor} from systemd: {error.strerror}") from error
    return listener


def own_folder(variable: str, store: StoreAddress) -> Path | None:
    """Return where our own files go: the folder of STATE_DIRECTORY or the like, else the SQLite file's, or None."""
    folder = os.environ.get(variable, "").partition(":")[0]
    if folder:
        return Path(folder)
    return store.path.parent if isinstance(store, FileAddress) else None


def notify(state: str) -> None:
    """Send `READY=1`, `STOPPING=1` and the like; nothing happens where systemd did not start us.

    A service manager that is gone is no reason to stop mail, so errors are dropped.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path.startswith(("/", "@")):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
            sock.send(state.encode())


def watchdog_seconds() -> float | None:
    """Return how often systemd wants to hear `WATCHDOG=1` of this process at least; None: it does not watch."""
    process, microseconds = os.environ.get("WATCHDOG_PID", ""), os.environ.get("WATCHDOG_USEC", "")
    if process not in ("", str(os.getpid())) or not (microseconds.isascii() and microseconds.isdecimal()):
        return None
    return int(microseconds) / 1e6 or None
