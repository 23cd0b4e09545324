# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP side of one lab host: HTTP/1.1 on loopback, a thread a connection.

The handler object of the standard library lives as long as its connection, and so carries what the
connection has proved (`Authenticator`). A request passes four doors in order: the HTTP door (path, length),
the login, the seal (is the body encrypted, must it be), and the endpoint of its path (wsman.py).

`Traffic` counts what passed, bytes as they were on the wire (inside TLS, where there is TLS), and journals
what was asked; tests read it. What goes wrong on a test's behalf is the reply's `exchange` (faults.py).
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

from lab.auth import Admission, Authenticator, Verdict
from lab.sealing import SealError, is_sealed, protocol_of, seal, unseal
from lab.tls import Tls, account_of
from lab.wsman import MAX_ENVELOPE, Endpoint

log = logging.getLogger(__name__)

# A connection that says nothing for so long is closed; clients open another and log in again.
IDLE_SECONDS: Final = 120
# Encryption adds headers and a signature to the largest envelope.
MAX_BODY: Final = MAX_ENVELOPE + 4096
# What is too large is still read up to here, so that the client gets to know.
MAX_DISCARD: Final = 16 * 1024 * 1024


@dataclass
class Traffic:
    """What a host has seen since it started. Complete for a request once its reply has arrived."""

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    journal: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, *, requests: int = 0, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """Add to the counters."""
        with self._lock:
            self.requests += requests
            self.bytes_in += bytes_in
            self.bytes_out += bytes_out

    def note(self, line: str) -> None:
        """Add a line to the journal."""
        with self._lock:
            self.journal.append(line)

    def clear(self) -> None:
        """Start anew, between two parts of a test."""
        with self._lock:
            self.requests = self.bytes_in = self.bytes_out = 0
            self.journal.clear()

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Add up, for a lab of many hosts; the journals one after the other."""
        whole = cls()
        for part in parts:
            with part._lock:
                whole.count(requests=part.requests, bytes_in=part.bytes_in, bytes_out=part.bytes_out)
                whole.journal.extend(part.journal)
        return whole


class _CountedSocket(io.RawIOBase):
    """A socket as a raw stream whose bytes are counted."""

    def __init__(self, connection: socket.socket, traffic: Traffic) -> None:
        self._connection = connection
        self._traffic = traffic

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._connection.recv_into(buffer)
        self._traffic.count(bytes_in=size)
        return size

    def write(self, data: Any) -> int:
        size = len(data)
        # Counted first: whoever has the reply finds it counted.
        self._traffic.count(bytes_out=size)
        self._connection.sendall(data)
        return size


class WinRMServer(ThreadingHTTPServer):
    """Listens on a loopback port of the system's choice from the moment it is made."""

    # Not daemons, so that server_close() joins them: nothing of a host outlives it.
    daemon_threads = False
    request_queue_size = 128

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        admission: Admission,
        traffic: Traffic,
        *,
        allow_unencrypted: bool = False,
        tls: Tls | None = None,
    ) -> None:
        self.endpoints = endpoints
        self.admission = admission
        self.traffic = traffic
        # Over TLS nothing is readable on the wire, and nobody encrypts twice.
        self.allow_unencrypted = allow_unencrypted or tls is not None
        self._tls = tls
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name=f"winrm-{self.port}", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def close(self) -> None:
        """Close the listener and every connection, and wait for what is being answered."""
        self.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                # Fails where the client has gone already.
                with contextlib.suppress(OSError):
                    # Not SSLSocket's own, which pulls TLS away from under the thread that reads.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
        self.server_close()

    def server_bind(self) -> None:
        """Bind without the reverse lookup of the host's name that HTTPServer would do."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. TLS begins in its own thread, where a silent client holds up nobody else."""
        connection, address = super().get_request()
        if self._tls is not None:
            connection = self._tls.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Know the connection before its thread starts: close() must find it."""
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is a fault of the lab."""
        log.exception("a connection from %s failed", client_address)


class _RefusedError(Exception):
    """A request whose connection cannot go on: where it ends is unknown, or its encryption is broken."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "Microsoft-HTTPAPI/2.0"
    sys_version = ""
    server: WinRMServer

    def setup(self) -> None:
        self.connection = self.request
        self.connection.settimeout(IDLE_SECONDS)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._traffic = self.server.traffic
        self.rfile = io.BufferedReader(_CountedSocket(self.connection, self._traffic))
        # Holds headers and body together, so that a reply leaves in one piece.
        self.wfile = io.BufferedWriter(_CountedSocket(self.connection, self._traffic), 1 << 16)

    def handle(self) -> None:
        # A client that leaves, does not trust the certificate, or is cut off: there is nobody to tell.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            certified = None
            if isinstance(self.connection, ssl.SSLSocket):
                self.connection.do_handshake()
                certified = account_of(self.connection)
            self._authenticator = Authenticator(self.server.admission, certified)
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def do_POST(self) -> None:
        self._traffic.count(requests=1)
        try:
            self._serve()
        except _RefusedError as refused:
            self.close_connection = True
            self._send(refused.status)

    def do_GET(self) -> None:
        self._traffic.count(requests=1)
        # It may have a body, which nobody reads.
        self.close_connection = True
        self._send(HTTPStatus.METHOD_NOT_ALLOWED)

    def _serve(self) -> None:
        body = self._read_body()
        endpoint = self.server.endpoints.get(self.path.partition("?")[0].lower())
        if endpoint is None:
            self._send(HTTPStatus.NOT_FOUND)
            return
        verdict = self._authenticator.authenticate(self.headers.get("Authorization"))
        if verdict.user is None:
            self._send(HTTPStatus.UNAUTHORIZED, challenges=verdict.headers)
        elif not body:
            # How clients finish a login before they have something to say that may not go in clear.
            self._send(HTTPStatus.OK, challenges=verdict.headers)
        else:
            self._answer(endpoint, body, verdict)

    def _read_body(self) -> bytes:
        if "Transfer-Encoding" in self.headers:
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED)
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths:
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED)
        text = lengths[0].strip()
        if len(lengths) > 1 or not (text.isascii() and text.isdigit()):
            raise _RefusedError(HTTPStatus.BAD_REQUEST)
        # Twelve digits are too large already, and int() is slow for thousands.
        if len(text) > 12 or int(text) > MAX_DISCARD:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if int(text) > MAX_BODY:
            # Read to its end: closing on unread data resets the connection, and the answer would be lost.
            self._discard(int(text))
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(int(text))
        if len(body) < int(text):
            raise ConnectionResetError("the client left in the middle of a request")
        return body

    def _discard(self, size: int) -> None:
        while size > 0 and (chunk := self.rfile.read(min(size, 1 << 16))):
            size -= len(chunk)

    def _answer(self, endpoint: Endpoint, body: bytes, verdict: Verdict) -> None:
        context = self._authenticator.context
        content_type = self.headers.get("Content-Type", "")
        sealed = is_sealed(content_type)
        if sealed:
            if context is None:
                raise _RefusedError(HTTPStatus.BAD_REQUEST)
            try:
                body = unseal(context, body, content_type)
            except SealError as error:
                log.warning("%s", error)
                raise _RefusedError(HTTPStatus.BAD_REQUEST) from error
        elif context is not None and not self.server.allow_unencrypted:
            # AllowUnencrypted=false: the message was readable on the wire and is not acted upon.
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        reply = endpoint.answer(body, verdict.user or "")
        media_type, content = reply.media_type, reply.body
        if sealed and context is not None and reply.sealed and content:
            media_type, content = seal(context, content, protocol_of(context, content_type))
        # Written aside first: a test may have the reply cut in the middle, headers and all.
        outgoing, self.wfile = self.wfile, io.BytesIO()
        try:
            self._send(HTTPStatus(reply.status), content, content_type=media_type, challenges=verdict.headers)
            message = self.wfile.getvalue()
        finally:
            self.wfile = outgoing
        reply.exchange.deliver(message, self._write_now)

    def _write_now(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def _send(
        self,
        status: HTTPStatus,
        content: bytes = b"",
        *,
        content_type: str | None = None,
        challenges: tuple[str, ...] = (),
    ) -> None:
        self.send_response(status)
        for challenge in challenges:
            self.send_header("WWW-Authenticate", challenge)
        if content_type is not None:
            self.send_header("Content-Type", content_type)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def version_string(self) -> str:
        return self.server_version

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s %s", self.client_address, format % args)
