# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make demo`: the collection's whole job on this machine, on loopback, with nothing left behind.

A lab Windows host (real WinRM, a registry in memory), a mail server and greylist-proxy are started. The site
playbook runs twice on the Windows host, then mail goes through the proxy. The exit status is 0 only if each
thing happened as it should.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from aiosmtpd.smtp import SMTP, Envelope, Session  # noqa: E402
from lab.hosts import Lab  # noqa: E402
from tools.ansible_runs import BIN, Controller, Run, windows_inventory  # noqa: E402
from tools.greylisted_mail import Story  # noqa: E402
from tools.refusal_delay import measure  # noqa: E402

SECONDS = 2  # short, so that the demo is
DELAY = 3
RECIPIENT = "anna@example.org"


class Mailbox:
    """The handler of a mail server that keeps what it takes, in memory."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Called by aiosmtpd after the end of a message."""
        if isinstance(envelope.content, bytes):
            self.messages.append(envelope.content)
        return f"250 2.0.0 Ok: queued as {len(self.messages):06d}"


@contextlib.contextmanager
def mail_server(mailbox: Mailbox) -> Iterator[int]:
    """A mail server on a free loopback port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: SMTP(mailbox, loop=loop), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@contextlib.contextmanager
def proxy(folder: Path, backend_port: int) -> Iterator[int]:
    """greylist-proxy as its users run it, on a free loopback port."""
    config = folder / "greylist-proxy.toml"
    config.write_text(
        f"""\
[smtp]
listen = ["127.0.0.1:0"]
hostname = "edge.example.org"
[backend]
hosts = ["127.0.0.1:{backend_port}"]
domains = ["example.org"]
[greylist]
delay = "{DELAY}s"
client_key = "network" # the demo needs no DNS
[allow]
well_known = false
[store]
url = "sqlite:///{folder}/greylist.db"
[admin]
listen = "" # its port is fixed
"""
    )
    log = folder / "greylist-proxy.log"
    with log.open("wb") as output:
        program = subprocess.Popen([BIN / "greylist-proxy", "serve", "--config", config], stderr=output)
    try:
        yield _listening_port(log, program)
    finally:
        program.terminate()
        program.wait(30)


def _listening_port(log: Path, program: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and program.poll() is None:
        for line in log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("event") == "listening":
                    return int(entry["addresses"][0].rpartition(":")[2])
        time.sleep(0.05)
    raise SystemExit(f"demo: greylist-proxy did not start:\n{log.read_text()}")


class Table:
    """What happened, line by line, and whether it was as it should be."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.right = True

    def add(self, what: str, happened: str, seconds: float | None, right: bool) -> None:
        """One line: what was done, what came of it, how long it took, and whether that is right."""
        self.right = self.right and right
        took = f"{seconds:.2f} s" if seconds is not None else ""
        self.rows.append((what, happened if right else f"{happened}  <-- WRONG", took))

    def show(self) -> None:
        """Print it, with columns as wide as they need."""
        widths = [max(len(row[column]) for row in self.rows) for column in range(3)]
        rule = "-" * (sum(widths) + 4)
        print(f"\n{rule}")
        for what, happened, took in self.rows:
            print(f"{what:<{widths[0]}}  {happened:<{widths[1]}}  {took:>{widths[2]}}")
        print(rule)


def windows_part(table: Table, folder: Path) -> None:
    """The tarpit of a Windows host: measured, set, set again, measured."""
    controller = Controller(folder)
    with Lab.start(backend="memory", users={"demo": secrets.token_urlsafe(24)}) as lab:
        (host,) = lab.hosts
        variables: dict[str, object] = {"ansible_host": host.address, "ansible_port": host.winrm_port}
        inventory = windows_inventory(folder, {"win01": variables}, lab.username)

        def site() -> tuple[Run, dict[str, Any], float]:
            started = time.monotonic()
            run = controller.playbook(
                "mailops.tarpit.site",
                inventory,
                lab.password,
                windows_tarpit_seconds=SECONDS,
                windows_tarpit_verify_port=host.smtp_port,
            )
            if run.status != 0:
                raise SystemExit(f"demo: the playbook failed:\n{run.printed}")
            return run, run.last("win01", "win_smtp_tarpit"), time.monotonic() - started

        before = measure(host.address, host.smtp_port or 0)
        _run, first, first_took = site()
        after = measure(host.address, host.smtp_port or 0)
        _run, second, second_took = site()

    found, left = first["before"]["tarpit_time"], first["after"]["tarpit_time"]
    shown = "none" if found is None else found
    table.add("Windows: TarpitTime", f"before {shown}, after {left}", None, (found, left) == (None, SECONDS))
    for name, result, took, right in (
        ("Windows: site.yml, first run", first, first_took, True),
        ("Windows: site.yml, second run", second, second_took, False),
    ):
        happened = "changed" if result["changed"] else "unchanged"
        table.add(name, happened, took, result["changed"] is right)
    table.add("Windows: a refusal before", f"{before['code']} at once", before["seconds"], before["seconds"] < SECONDS)
    table.add("Windows: a refusal after", f"{after['code']} delayed", after["seconds"], after["seconds"] >= SECONDS)


def proxy_part(table: Table, folder: Path) -> None:
    """A message through the proxy: first contact, too early, at the right time, and to a foreign domain."""
    mailbox = Mailbox()
    with mail_server(mailbox) as backend_port, proxy(folder, backend_port) as port:
        story = Story("127.0.0.1", port, RECIPIENT)
        told = story.tell()
    for name, attempt, code in (
        ("Proxy: first contact", "first", 450),
        ("Proxy: retry at once", "early", 450),
        ("Proxy: retry after the delay", "delivered", 250),
        ("Proxy: recipient elsewhere", "foreign", 550),
    ):
        reply = told[attempt]
        table.add(name, f"{reply['code']} {reply['text']}", float(str(reply["seconds"])), reply["code"] == code)
    same = [message.endswith(story.message) for message in mailbox.messages] == [True]
    table.add("Proxy: at the mail server", "one message, byte for byte" if same else "not what was sent", None, same)


def main() -> int:
    """Run both parts and print the table."""
    started = time.monotonic()
    table = Table()
    with tempfile.TemporaryDirectory(prefix="tarpit-demo-") as name:
        print("demo: a lab Windows host, and the site playbook twice", file=sys.stderr, flush=True)
        windows_part(table, Path(name))
        print("demo: a mail server, greylist-proxy in front of it, and a client", file=sys.stderr, flush=True)
        proxy_part(table, Path(name))
    table.add("in all", "as it should be" if table.right else "not as it should be", time.monotonic() - started, True)
    table.show()
    return 0 if table.right else 1


if __name__ == "__main__":
    sys.exit(main())
