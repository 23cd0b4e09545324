# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Postfix of a test's own, behind the proxy: what it takes, it delivers to a `Sink`.

It has its own configuration, queue and data folders, listens on a free loopback port, runs nothing in a chroot and
knows nothing of the system's Postfix. Its master process needs root, as Postfix always does.

What its programs log is taken by `Log`, where Postfix has postlogd. Each program waits until its line is taken, the
master process too, and that is who has to start postlogd. On a busy machine it was seen, seldom, that no line was taken
any more, and none of them went on.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tools.processes import family, waits

from .peers import Sink, closing, free_port, wait_until

# Only what receiving, queueing and passing on to the sink needs. The `n` in the fifth column: no chroot.
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup    unix n - n - 0 cleanup
qmgr       unix n - n 300 1 qmgr
rewrite    unix - - n - - trivial-rewrite
bounce     unix - - n - 0 bounce
defer      unix - - n - 0 bounce
trace      unix - - n - 0 bounce
tlsmgr     unix - - n 1000? 1 tlsmgr
verify     unix - - n - 1 verify
flush      unix n - n 1000? 0 flush
proxymap   unix - - n - - proxymap
smtp       unix - - n - - smtp
relay      unix - - n - - smtp
error      unix - - n - - error
retry      unix - - n - - error
discard    unix - - n - - discard
local      unix - n n - - local
anvil      unix - - n - 1 anvil
scache     unix - - n - 1 scache
postlog    unix-dgram n - n - 1 postlogd
"""
# It must not be postlog: Postfix insists on a line for that one in master.cf.
LOG_SERVICE = "log-of-the-test"


class Log:
    """Takes what is logged, at the socket of a service of Postfix, and appends it to a file."""

    def __init__(self, path: Path, socket_path: Path) -> None:
        file = path.open("ab", buffering=0)

        class Append(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                line, _socket = self.request
                file.write(line + b"\n")

        self._file = file
        self._server = socketserver.UnixDatagramServer(str(socket_path), Append)
        socket_path.chmod(0o666)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._file.close()


class PostfixServer:
    """Takes mail for `here.test`, and hands it to the sink as soon as it is queued.

    `settings` go into main.cf, and `main` and `master` are more lines for main.cf and master.cf.
    """

    def __init__(self, sink: Sink, main: str = "", master: str = "", **settings: str) -> None:
        # Not below pytest's folder: Postfix's user may not enter that one.
        self._folder = Path(tempfile.mkdtemp(prefix="postfix-"))
        self._folder.chmod(0o755)
        self.port = free_port()
        self.log = self._folder / "mail.log"
        (self._folder / "queue").mkdir()
        data = self._folder / "data"
        data.mkdir()
        shutil.chown(data, "postfix")
        values = {
            "compatibility_level": "3.6",
            "queue_directory": str(self._folder / "queue"),
            "data_directory": str(data),
            "maillog_file": str(self.log),
            "maillog_file_prefixes": str(self._folder),
            "postlog_service_name": LOG_SERVICE,
            "myhostname": "postfix.test",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mydestination": "",
            "mynetworks": "",  # the proxy is no friend: who relays for it makes an open relay
            "relay_domains": "here.test",
            "smtpd_relay_restrictions": "reject_unauth_destination",
            "relay_transport": f"relay:[127.0.0.1]:{sink.port}",
            "default_transport": "discard",  # a bounce must not leave this machine
            "local_recipient_maps": "",
            "alias_maps": "",
            "smtp_tls_security_level": "none",
            "smtp_host_lookup": "native",
            "disable_dns_lookups": "yes",
            "smtpd_peername_lookup": "no",
            **settings,
        }
        # Of a name that is there twice, the last value counts: `main` is the more special one.
        (self._folder / "main.cf").write_text("".join(f"{key} = {value}\n" for key, value in values.items()) + main)
        (self._folder / "master.cf").write_text(MASTER.format(port=self.port) + master)
        subprocess.run(
            ["postfix", "-c", str(self._folder), "start"], check=True, stdin=subprocess.DEVNULL, capture_output=True
        )
        self._log = Log(self.log, self._folder / "queue/public" / LOG_SERVICE)
        self._wants_proxy = "smtpd_upstream_proxy_protocol" in settings
        self._pid_file = self._folder / "queue/pid/master.pid"
        wait_until(self._listens, "Postfix")

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                if self._wants_proxy:
                    connection.sendall(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n")
                return connection.recv(100).startswith(b"220 ")
        except OSError:
            return False

    def version(self) -> str:
        """Return Postfix's version, for what only some have."""
        shown = subprocess.run(["postconf", "-dh", "mail_version"], check=True, capture_output=True, text=True)
        return shown.stdout.strip()

    def close(self) -> None:
        """End it, with everything that it has queued."""
        pid = int(self._pid_file.read_text())
        # pytest shows it where the test has failed.
        print(self.log.read_text(), waits(pid), *family(pid), sep="\n")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "Postfix's end")
        self._log.close()
        shutil.rmtree(self._folder)


@pytest.fixture
def start_postfix(sink: Sink) -> Iterator[Callable[..., PostfixServer]]:
    """Start Postfix before the sink, see `PostfixServer`."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a Postfix")
    with ExitStack() as stack:

        def start(main: str = "", master: str = "", **settings: str) -> PostfixServer:
            server: PostfixServer = stack.enter_context(closing(PostfixServer(sink, main, master, **settings)))
            return server

        yield start
