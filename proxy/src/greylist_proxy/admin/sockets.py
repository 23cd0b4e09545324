# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin side's listening sockets: taken from systemd, or made here, before workers are forked.

One that can't be had is a warning and no more: mail goes on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from greylist_proxy.config import Config
from greylist_proxy.smtp.listener import ListenError, address, make_sockets
from greylist_proxy.systemd import Given, own_folder

CONTROL = "control.sock"
RUNTIME_FOLDER = Path("/run/greylist-proxy")  # systemd's RuntimeDirectory of the unit, where a command looks too
BACKLOG = 32  # connections that wait to be accepted
MODE = 0o660  # who may write to the control socket may change who is greylisted


class AdminSockets:
    """Listening sockets for the address and for control, and how to be rid of them."""

    def __init__(self, tcp: Sequence[socket.socket] = (), control: Sequence[socket.socket] = ()) -> None:
        self.tcp = list(tcp)
        self.control = list(control)
        self.warnings: list[str] = []
        self._made: list[tuple[Path, os.stat_result]] = []

    @classmethod
    def open(cls, config: Config, given: Given) -> AdminSockets:
        """Take or make what the configuration wants; `warnings` has a sentence for each that can't be had."""
        sockets = cls(given.admin, given.control)
        listen = config.admin.listen
        if not sockets.tcp and listen is not None:
            try:
                sockets.tcp = make_sockets([listen], 0, BACKLOG)
            except ListenError as error:
                sockets.warnings.append(f"admin.listen: {error}; nobody can ask for health and metrics there")
        path = None if sockets.control else socket_path(config)
        if path is not None:
            try:
                sockets._listen(path)
            except (OSError, ListenError) as error:
                reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
                sockets.warnings.append(f"admin.socket: can't listen on {path}: {reason}; nobody can control us there")
        return sockets

    def __bool__(self) -> bool:
        return bool(self.tcp or self.control)

    def all(self) -> list[socket.socket]:
        """Return all of them."""
        return [*self.tcp, *self.control]

    @property
    def addresses(self) -> list[str]:
        """Return where they listen."""
        return [address(listener) for listener in self.all()]

    @property
    def are_local(self) -> bool:
        """Tell whether only this host can connect."""
        return all(ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback for listener in self.tcp)

    def close(self) -> None:
        """Listen no more in this process; others that have them go on."""
        for listener in self.all():
            listener.close()

    def remove(self) -> None:
        """Remove the control socket's file, unless another server has put its own there."""
        while self._made:
            path, made = self._made.pop()
            with contextlib.suppress(OSError):
                if os.path.samestat(path.lstat(), made):
                    path.unlink()

    def _listen(self, path: Path) -> None:
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Never open to all, not even for a moment. There is no other thread yet that could make a file.
        mask = os.umask(0o777 & ~MODE)
        try:
            listener.setblocking(False)
            listener.bind(str(path))
            listener.listen(BACKLOG)
            self._made.append((path, path.lstat()))
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
        self.control.append(listener)


def socket_path(config: Config) -> Path | None:
    """Return where the control socket is to be made, None: there is none."""
    if config.admin.socket == "off":
        return None
    if config.admin.socket is not None:
        return config.admin.socket
    folder = own_folder("RUNTIME_DIRECTORY", config.store.url)
    return folder / CONTROL if folder else None


def _clear(path: Path) -> None:
    """Remove what a server that was killed has left. ListenError: that is something else."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise ListenError("something else is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full
    raise ListenError("another server listens there")
