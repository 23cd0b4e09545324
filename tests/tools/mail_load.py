# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mails without a break while something is done to the servers, and keeps the books.

    python mail_load.py run --server 192.0.2.1:25 --server 192.0.2.2:25 --recipient anna@example.org --report FILE
    python mail_load.py wait --report FILE --more 20
    python mail_load.py stop --report FILE
    python mail_load.py compare --report FILE [--log FILE]… TAKEN…

`run` sends new messages from several senders at once, each as a queueing mail server does: a server that refuses the
connection, breaks it off or says 421 is followed by the next one at once; a 4xx puts the message off for --retry
seconds; and so on until the final dot is answered by 250 (acknowledged) or something by 5xx (refused). Each message has
a sender address of its own, so that each is greylisted, and tries the servers in turn, another one first at each
attempt. One more sender takes --slow seconds over each message. On SIGTERM, SIGINT, or when FILE.stop is there, it
begins nothing new, goes on with what is under way for --patience seconds at most, and ends: 0, if every message was
acknowledged. FILE is written every half second, and replaced in one step:

    pid           of the program that writes it
    ended         it is the last report
    acknowledged  {id: seconds between the first attempt and the 250}
    unanswered    {id: how often the final dot got no answer}; such a message may be there twice (RFC 1047)
    refused       {id: reply}, a 5xx
    under_way     [id]
    seconds       the longest time without an acknowledgement, since the first one
    servers       {address: {attempts, acknowledged, deferred, refused, connections_refused, turned_away, broken}}

`connections_refused`: the host is there, and nobody listens. `turned_away`: a 421, or another word than 220 at the
beginning. `broken`: the host is not there, or the connection ended or was silent for --timeout seconds, before the
final dot or after it.

`wait` returns when that many messages more were begun and acknowledged since it was called, and prints how long that
took. `stop` makes the stop file and returns when the last report is there. `compare` reads ids from files, or `-`,
one a line, once for each time that a mail server has the message; `grep -rhoaE '^load-[a-z]+ ends here'` finds them
in a mailbox: the line is the message's last. Ids of another load are passed over. It fails where an acknowledged one
is missing, or where one is there more often than a 250, unanswered dots, and `outcome=unknown` in the proxies' logs
(--log) explain.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import signal
import smtplib
import string
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITTEN = 0.5  # seconds between two reports
PAUSE = 0.1  # seconds between two looks at a report
PARTS = 20  # of a message that is sent slowly
LINES = (1, 20, 400)  # of a message, by turns


def body(ident: str, number: int) -> bytes:
    """A message, whose last line says that it is whole."""
    lines = [
        f"From: <{ident}@client.test>",
        f"Subject: message {number}",
        f"Message-ID: <{ident}@client.test>",
        "",
        *["A line of a message."] * LINES[number % len(LINES)],
        f"{ident} ends here",
    ]
    return "\r\n".join(lines).encode() + b"\r\n"


class TurnedAway(Exception):
    """The server ends the session in good order: 421."""


class Dotted(Exception):
    """The connection broke after the final dot."""


class Client(smtplib.SMTP):
    """One that tells where a connection broke."""

    def send_whole(self, sender: str, recipient: str, message: bytes, seconds: float) -> tuple[int, bytes]:
        """Return the reply that decides: the first that is no success, or the one to the final dot.

        The message takes that many seconds.
        """
        for verb, words in (
            ("EHLO", "client.test"),
            ("MAIL", f"FROM:<{sender}>"),
            ("RCPT", f"TO:<{recipient}>"),
            ("DATA", ""),
        ):
            code, text = self.docmd(verb, words)
            if code not in (250, 354):
                return code, text
        wire = re.sub(rb"(?m)^\.", b"..", message) + b".\r\n"
        step = -(-len(wire) // PARTS) if seconds else len(wire)
        for begin in range(0, len(wire), step):
            self.send(wire[begin : begin + step])
            time.sleep(seconds / PARTS)
        try:
            return self.getreply()
        except (OSError, smtplib.SMTPException) as error:
            raise Dotted from error


@dataclass
class Books:
    """What senders note."""

    acknowledged: dict[str, float] = field(default_factory=dict)
    unanswered: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    under_way: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    servers: dict[str, Counter[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    last: float | None = None

    def acknowledge(self, ident: str) -> None:
        """Note a 250 to the final dot."""
        now = time.monotonic()
        with self.lock:
            self.acknowledged[ident] = round(now - self.under_way[ident], 3)
            self.seconds = self._longest(now)
            self.last = now

    def _longest(self, now: float) -> float:
        return max(self.seconds, round(now - self.last, 3)) if self.last is not None else self.seconds

    def write(self, path: Path, *, ended: bool = False) -> None:
        """Replace the report."""
        with self.lock:
            report = {
                "pid": os.getpid(),
                "ended": ended,
                "acknowledged": self.acknowledged,
                "unanswered": self.unanswered,
                "refused": self.refused,
                "under_way": [*self.under_way],
                "seconds": self.seconds if ended else self._longest(time.monotonic()),
                "servers": self.servers,
            }
            text = json.dumps(report)
        new = path.with_name(path.name + ".new")
        new.write_text(text + "\n")
        new.replace(path)


class Load:
    """Senders, each a thread with one message at a time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.books = Books(servers={server: Counter() for server in options.server})
        self.stopping = threading.Event()
        self.giving_up = threading.Event()
        self._numbers = itertools.count()

    def send_all(self, seconds: float) -> None:
        """Send one message after the other, each in that many seconds, until the load is to stop."""
        while not self.stopping.wait(self.options.pause):
            number = next(self._numbers)
            # Digits would look like a message's number, which the proxy leaves out of what it compares.
            ident = "load-" + "".join(random.choices(string.ascii_lowercase, k=16))  # noqa: S311 - a name
            with self.books.lock:
                self.books.under_way[ident] = time.monotonic()
            if self._deliver(ident, number, seconds):
                with self.books.lock:
                    del self.books.under_way[ident]

    def _deliver(self, ident: str, number: int, seconds: float) -> bool:
        """Attempt until there is an answer for good; False: given up, at the end."""
        names = self.options.server
        for attempt in itertools.count():
            start = (number + attempt) % len(names)
            for name in names[start:] + names[:start]:
                code, text = self._attempt(name, ident, number, seconds)
                if code == 250:
                    self.books.acknowledge(ident)
                    return True
                if code >= 500:
                    with self.books.lock:
                        self.books.refused[ident] = f"{code} {text}"
                    return True
                if code:
                    break  # put off: later
            if self.giving_up.wait(self.options.retry):
                return False
        raise AssertionError

    def _attempt(self, name: str, ident: str, number: int, seconds: float) -> tuple[int, str]:
        """Return the server's answer; 0: it had none, and the next one is to be asked."""
        code, text, outcome = 0, "", "broken"
        host, _colon, port = name.rpartition(":")
        try:
            client = Client(timeout=self.options.timeout, local_hostname="client.test")
            try:
                banner, _text = client.connect(host.strip("[]"), int(port))
                if banner != 220:
                    raise TurnedAway
                message = body(ident, number)
                code, said = client.send_whole(f"{ident}@client.test", self.options.recipient, message, seconds)
                if code == 421:
                    raise TurnedAway
                text = said.decode("ascii", "replace")
                outcome = "acknowledged" if code == 250 else "refused" if code >= 500 else "deferred"
                client.docmd("QUIT")
            finally:
                client.close()
        except TurnedAway:
            code, outcome = 0, "turned_away"
        except ConnectionRefusedError:
            outcome = "connections_refused"
        except Dotted:
            with self.books.lock:
                self.books.unanswered[ident] += 1
        except (OSError, smtplib.SMTPException):
            pass  # after the answer that counts, or without one
        with self.books.lock:
            self.books.servers[name].update(["attempts", outcome])
        return code, text

    def run(self) -> int:
        """Run until told to stop; 0: every message was acknowledged."""
        report, stop = self.options.report, stop_file(self.options.report)
        stop.unlink(missing_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())
        self.books.write(report)
        paces = [0.0] * self.options.senders + ([self.options.slow] if self.options.slow else [])
        threads = [threading.Thread(target=self.send_all, args=(pace,), daemon=True) for pace in paces]
        for thread in threads:
            thread.start()
        while not self.stopping.wait(WRITTEN):
            self.books.write(report)
            if stop.exists():
                self.stopping.set()
        end = time.monotonic() + self.options.patience
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        self.giving_up.set()
        for thread in threads:
            thread.join(self.options.timeout)
        self.books.write(report, ended=True)
        return int(bool(self.books.under_way or self.books.refused))


def stop_file(report: Path) -> Path:
    """The file that ends a load."""
    return report.with_name(report.name + ".stop")


def read(report: Path) -> Any:
    """What is written by now."""
    return json.loads(report.read_text())


def wait(options: argparse.Namespace) -> int:
    """Wait until more messages are acknowledged, of those that are begun from now on."""
    started = time.monotonic()
    time.sleep(2 * WRITTEN)  # the report may be old by that
    before = read(options.report)
    old = {*before["acknowledged"], *before["under_way"]}
    while (more := len({*(now := read(options.report))["acknowledged"]} - old)) < options.more:
        if now["ended"] or time.monotonic() - started > options.patience:
            print(f"{more} messages instead of {options.more} were acknowledged; {json.dumps(now['servers'])}")
            return 1
        time.sleep(PAUSE)
    print(json.dumps({"acknowledged": more, "seconds": round(time.monotonic() - started, 1)}))
    return 0


def stop(options: argparse.Namespace) -> int:
    """Stop a load, and print its last report without the messages."""
    stop_file(options.report).touch()
    end = time.monotonic() + options.patience
    while not (report := read(options.report))["ended"]:
        if time.monotonic() > end:
            print("the load does not end")
            return 1
        time.sleep(PAUSE)
    counts = {name: len(value) if name == "acknowledged" else value for name, value in report.items()}
    print(json.dumps(counts))
    return int(bool(report["under_way"] or report["refused"]))


def unknown(logs: list[Path]) -> Counter[str]:
    """Count the transactions of which a proxy does not know if a mail server took them, by the message's id."""
    senders, lost = {}, []
    for path in logs:
        for line in path.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "decision":
                senders[event["id"].partition(".")[0]] = event["sender"].partition("@")[0]
            elif event.get("event") == "relay" and event["outcome"] == "unknown":
                lost.append(event["id"])
    return Counter(senders[ident] for ident in lost)


def compare(options: argparse.Namespace) -> int:
    """Hold the report against what mail servers took."""
    report = read(options.report)
    begun = {*report["acknowledged"], *report["refused"], *report["under_way"]}
    taken: Counter[str] = Counter()
    for name in options.taken:
        text = sys.stdin.read() if name == "-" else Path(name).read_text()
        taken.update(each for each in re.findall(r"^load-[a-z]+", text, re.MULTILINE) if each in begun)
    acknowledged, unanswered = report["acknowledged"], Counter(report["unanswered"]) + unknown(options.log)
    missing = sorted({*acknowledged} - {*taken})
    twice = sorted(ident for ident, times in taken.items() if times > (ident in acknowledged) + unanswered[ident])
    result = {"acknowledged": len(acknowledged), "taken": taken.total(), "missing": missing, "unexplained": twice}
    print(json.dumps(result))
    return int(bool(missing or twice or not acknowledged))


def main() -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description="Mails without a break, and keeps the books.")
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.set_defaults(call=lambda options: Load(options).run())
    runs.add_argument("--server", action="append", required=True, help="address:port; may be given several times")
    runs.add_argument("--recipient", required=True)
    runs.add_argument("--senders", type=int, default=4, help="messages under way at once")
    runs.add_argument("--slow", type=float, default=0.0, help="seconds of each message of one more sender")
    runs.add_argument("--pause", type=float, default=0.05, help="seconds between two messages of a sender")
    runs.add_argument("--retry", type=float, default=1.0, help="seconds that a message which was put off waits")
    runs.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for a connection or a reply")
    runs.add_argument("--patience", type=float, default=60.0, help="seconds for what is under way at the end")
    waits = commands.add_parser("wait")
    waits.set_defaults(call=wait)
    waits.add_argument("--more", type=int, required=True)
    waits.add_argument("--patience", type=float, default=60.0)
    stops = commands.add_parser("stop")
    stops.set_defaults(call=stop)
    stops.add_argument("--patience", type=float, default=90.0)
    compares = commands.add_parser("compare")
    compares.set_defaults(call=compare)
    compares.add_argument("taken", nargs="+")
    compares.add_argument("--log", type=Path, action="append", default=[])
    for command in (runs, waits, stops, compares):
        command.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    result = options.call(options)
    return int(result)


if __name__ == "__main__":
    sys.exit(main())
