# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a running greylist-proxy through its control socket: HTTP over a Unix socket, JSON in and out."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from urllib.parse import urlencode

SOCKET = "/run/greylist-proxy/control.sock"
ARGUMENTS = {
    "socket": {"type": "path", "default": SOCKET},
    "timeout": {"type": "int", "default": 60},
}
ELSEWHERE = "Where it listens is said by [admin] socket of its configuration, and by the event 'listening' of its log"
LOOK_INTO_THE_LOG = "Its log may say why: journalctl -u greylist-proxy"


class ControlError(Exception):
    """The proxy can't be asked, or says that it can't do it; the text says how to mend that."""


class NotRunning(ControlError):
    """There is nobody to be asked."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Control:
    """A proxy, by the path of its control socket; `timeout` in seconds is for the connection and for each read."""

    def __init__(self, path, timeout):
        self._path = path
        self._timeout = timeout

    def ask(self, method, path, query=None, body=None):
        """Return what the answer's JSON holds. ControlError, NotRunning."""
        return self._read(self._fetch(method, path, query, body))

    def lines(self, path):
        """Return what each line of the answer holds. ControlError, NotRunning."""
        return [self._read(line) for line in self._fetch("GET", path).splitlines()]

    def _fetch(self, method, path, query=None, body=None):
        connection = _Connection(self._path, self._timeout)
        try:
            target = f"{path}?{urlencode(query)}" if query else path
            connection.request(method, target, None if body is None else json.dumps(body).encode())
            response = connection.getresponse()
            status, answer = response.status, response.read()
        except http.client.HTTPException as error:
            raise ControlError(
                f"{self._path} broke off its answer ({error or type(error).__name__}). {LOOK_INTO_THE_LOG}"
            ) from error
        except OSError as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        if status == http.client.NOT_FOUND:
            raise ControlError(f"{self._path} knows no {path}: the proxy there is older than this collection")
        if status != http.client.OK:
            raise ControlError(f"greylist-proxy refuses: {_sentence(status, answer)}")
        return answer

    def _read(self, text):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ControlError(f"{self._path} gave something else than JSON. {ELSEWHERE}") from error

    def _unreachable(self, error):
        path = self._path
        if isinstance(error, FileNotFoundError):
            return NotRunning(
                f"there is no control socket {path}. Is the service up (systemctl status greylist-proxy)? {ELSEWHERE}"
            )
        if isinstance(error, ConnectionRefusedError):
            if not Path(path).is_socket():
                return ControlError(f"{path} is no socket. {ELSEWHERE}")
            return NotRunning(f"nobody listens on {path}. Start the service: systemctl start greylist-proxy")
        if isinstance(error, PermissionError):
            return ControlError(
                f"this user may not use {path}. Set 'become', or add the user to the group that the socket belongs to"
            )
        if isinstance(error, socket.timeout):  # another class than TimeoutError before Python 3.10
            return ControlError(
                f"{path} gave no answer within {self._timeout} seconds. Raise 'timeout'. {LOOK_INTO_THE_LOG}"
            )
        return ControlError(f"{path} can't be asked: {error.strerror or error}. {LOOK_INTO_THE_LOG}")


def _sentence(status, answer):
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {status}"
