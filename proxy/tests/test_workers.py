# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several processes on one port: mail goes on when one dies, signals reach all, and none outlives the parent."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from greylist_proxy.cli import main

from .peers import DEADLINE, Proxy, Sink, Wire, closing, wait_until

StartProxy = Callable[..., Proxy]
WORKERS = 3


def pids(proxy: Proxy) -> dict[int, int]:
    """Return the process of each worker that runs now."""
    ready: dict[int, int] = {}
    for line in proxy.select("worker"):
        if line["state"] == "ready":
            ready[line["number"]] = line["pid"]
    return ready


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# A program with three workers, who say when they begin. One of them is not ready before it has read something; all end
# at SIGTERM.
PROGRAM = """
import os, signal, sys
from greylist_proxy.log import Log
from greylist_proxy.metrics.counts import Counts
from greylist_proxy.watchdog import Watchdog
from greylist_proxy.workers import Supervisor

def say(word, number):
    os.write(1, f"{word} {number}\\n".encode())  # in one piece, as others speak too

def work(parent):
    say(parent.number, os.getpid())
    if parent.number == int(sys.argv[1]):
        os.read(0, 1)
    parent.tell("READY=1")
    while signal.sigwait({signal.SIGTERM, signal.SIGHUP}) != signal.SIGTERM:
        say("reloaded", parent.number)
    return 0

def nothing(*_ignored):
    pass

def ready():
    say("ready", 0)

supervisor = Supervisor(
    3, work, Log(), Watchdog(Counts(3)), on_ready=ready, on_death=nothing, on_reload=nothing, on_stop=nothing
)
sys.exit(supervisor.run())
"""


class Begun:
    """That program, and what it has said."""

    def __init__(self, waiting: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(waiting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.pid = self._process.pid
        self.said: list[tuple[str, int]] = []

    def hears(self, count: int) -> list[str]:
        """Wait until it has said so much, and return the words."""
        assert self._process.stdout is not None
        while len(self.said) < count:
            readable, _ignored, _ignored = select.select([self._process.stdout], [], [], DEADLINE)
            assert readable, f"it said {self.said}, and no more"
            line = self._process.stdout.readline()
            assert line, f"it ended, and said {self.said}"
            word, number = line.split()
            self.said.append((word.decode(), int(number)))
        return [word for word, _number in self.said]

    def let_go_on(self) -> None:
        """Let who waits be ready, and another one, if it should wait too."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"..")

    def ends(self) -> int:
        """Wait for its end, and return its status."""
        return self._process.wait(DEADLINE)

    def close(self) -> None:
        """Clean up, whatever the test left."""
        self._process.kill()  # its workers may not notice: they are not the real ones
        for name, number in self.said:
            if name.isdecimal() and not is_gone(number):
                os.kill(number, signal.SIGKILL)
        self._process.wait(DEADLINE)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def waits(pid: int) -> bool:
    """Tell whether a signal waits for this process, or it has died of it."""
    if is_gone(pid):
        return True
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.findall(r"^ShdPnd:\s*(\w+)", status, re.MULTILINE)[0], 16))


def is_welcome(port: int) -> bool:
    with Wire(port) as client:
        return client.reply().startswith(b"220 ")


def deliver(proxy: Proxy, sender: str = "a@far.test") -> None:
    with smtplib.SMTP("127.0.0.1", proxy.port, local_hostname="client.test", timeout=DEADLINE) as client:
        assert client.sendmail(sender, ["u@here.test"], b"Subject: x\r\n\r\nx\r\n") == {}


@contextlib.contextmanager
def only(proxy: Proxy, number: int) -> Iterator[None]:
    """Have only one of the workers run: it is the one that serves."""
    others = [pid for other, pid in pids(proxy).items() if other != number]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def proxy(start_proxy: StartProxy, sink: Sink) -> Proxy:
    """Several workers that defer nobody."""
    # Nor is anybody told slowly that he is blocked.
    return start_proxy(sink.port, greylist={"delay": 0}, trap={"tarpit": 0}, smtp={"workers": WORKERS})


def test_all_start_and_all_end(proxy: Proxy, sink: Sink) -> None:
    (listening,) = proxy.select("listening")
    assert "worker" not in listening
    assert sorted(pids(proxy)) == list(range(WORKERS))
    assert len({*pids(proxy).values(), proxy.process.pid}) == WORKERS + 1
    for _n in range(5):
        deliver(proxy)
    assert len(sink.mails) == 5
    assert proxy.stop() == 0
    assert all(map(is_gone, pids(proxy).values()))
    assert sorted(line["worker"] for line in proxy.select("stopped")) == list(range(WORKERS))
    assert [line["status"] for line in proxy.select("worker", state="ended")] == [0] * WORKERS
    assert proxy.errors() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), DEADLINE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_transaction_under_way_is_finished(proxy: Proxy, sink: Sink, number: int) -> None:
    with Wire(proxy.port) as client:
        client.hello()
        for line in (b"MAIL FROM:<a@far.test>", b"RCPT TO:<u@here.test>", b"DATA"):
            assert client.ask(line)[:1] in (b"2", b"3")
        proxy.process.send_signal(number)
        proxy.wait_for("stopping", WORKERS)
        assert client.ask(b"Subject: x\r\n\r\nx\r\n.").startswith(b"250 ")
        assert client.reply().startswith(b"421 ")
    assert proxy.wait() == 0
    assert len(sink.mails) == 1


def test_a_worker_that_is_killed_is_replaced_and_mail_goes_on(proxy: Proxy, sink: Sink) -> None:
    before = pids(proxy)
    for number in range(WORKERS - 1):
        os.kill(before[number], signal.SIGKILL)
    for number in range(WORKERS - 1):
        (died,) = proxy.wait_for("worker", state="died", number=number)
        assert (died["status"], died["seconds"]) == (-signal.SIGKILL, 1)
    for _n in range(10):
        deliver(proxy)  # nobody is refused meanwhile
    assert len(sink.mails) == 10
    proxy.wait_for("worker", 2 * WORKERS - 1, state="ready")
    after = pids(proxy)
    assert after[WORKERS - 1] == before[WORKERS - 1]
    assert not {after[number] for number in range(WORKERS - 1)} & set(before.values())
    deliver(proxy)
    assert proxy.stop() == 0


def test_a_worker_that_dies_again_and_again_is_waited_for_longer_and_longer(proxy: Proxy) -> None:
    for times, seconds in ((1, 1), (2, 2)):
        os.kill(pids(proxy)[1], signal.SIGKILL)
        died = proxy.wait_for("worker", times, state="died", number=1)
        assert died[-1]["seconds"] == seconds
        proxy.wait_for("worker", times + 1, state="ready", number=1)
    assert proxy.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_a_worker_that_starts(number: signal.Signals) -> None:
    """Without its handlers it would die of it: at a reload, or with a status that is no good end."""
    with closing(Begun(waiting=0)) as program:
        program.hears(1)
        first = program.said[0][1]
        # Before all are ready the parent passes no SIGHUP on; it does while one starts again.
        os.kill(program.pid if number == signal.SIGTERM else first, number)
        wait_until(lambda: waits(first), "the signal")
        program.let_go_on()
        if number == signal.SIGHUP:
            assert sorted(program.hears(5)) == ["0", "1", "2", "ready", "reloaded"]
            os.kill(program.pid, signal.SIGTERM)
        assert program.ends() == 0


def test_a_first_worker_that_dies_before_all_are_ready_starts_the_others_once() -> None:
    """Nobody would know of those who were started before, and they would never end."""
    with closing(Begun(waiting=2)) as program:
        program.hears(3)
        first = program.said[0][1]
        os.kill(first, signal.SIGKILL)
        program.hears(4)
        program.let_go_on()
        assert sorted(program.hears(5)) == ["0", "0", "1", "2", "ready"]
        os.kill(program.pid, signal.SIGTERM)
        assert program.ends() == 0
        assert all(is_gone(number) for word, number in program.said if word != "ready")


def test_a_worker_that_is_told_to_end_is_replaced(proxy: Proxy, sink: Sink) -> None:
    os.kill(pids(proxy)[0], signal.SIGTERM)
    (died,) = proxy.wait_for("worker", state="died", number=0)
    assert died["status"] == 0
    proxy.wait_for("worker", 2, state="ready", number=0)
    deliver(proxy)
    assert proxy.stop() == 0


def test_a_reload_reaches_all(proxy: Proxy) -> None:
    text = proxy.config.read_text()
    proxy.config.write_text(text.replace('"here.test"', '"there.test"'))
    proxy.process.send_signal(signal.SIGHUP)
    done = proxy.wait_for("reload", WORKERS)
    assert sorted((line["worker"], line["state"]) for line in done) == [(n, "done") for n in range(WORKERS)]
    proxy.config.write_text(text.replace("delay = 0", "delay = -1"))
    proxy.process.send_signal(signal.SIGHUP)
    proxy.wait_for("reload", WORKERS, state="failed")
    with Wire(proxy.port) as client:
        client.hello()
        client.ask(b"MAIL FROM:<a@far.test>")
        assert client.ask(b"RCPT TO:<u@here.test>").startswith(b"550 5.7.1 ")
    assert proxy.stop() == 0


def test_a_worker_that_is_replaced_after_a_reload_has_the_configuration_of_the_others(proxy: Proxy) -> None:
    """With the one of the start it would refuse mail for good that the others take."""
    text = proxy.config.read_text()
    changed = text.replace('"here.test"', '"there.test"')
    changed = changed.replace("workers = ", "max_connections_per_client = 1\nworkers = ")
    proxy.config.write_text(changed)
    proxy.process.send_signal(signal.SIGHUP)
    proxy.wait_for("reload", WORKERS, state="done")
    # What is not reloaded, and what can't be, does not count.
    for broken in ("", "delay = -1", "x = " + "[" * 50_000):
        proxy.config.write_text(text + broken)
        if broken:
            proxy.process.send_signal(signal.SIGHUP)
            proxy.wait_for("reload", WORKERS, state="failed")
        ready = len(proxy.select("worker", state="ready", number=0))
        os.kill(pids(proxy)[0], signal.SIGKILL)
        proxy.wait_for("worker", ready + 1, state="ready", number=0)
        with only(proxy, 0), Wire(proxy.port) as client:
            client.hello()
            client.ask(b"MAIL FROM:<a@far.test>")
            assert client.ask(b"RCPT TO:<u@there.test>").startswith(b"250 ")
            with Wire(proxy.port) as second:
                assert second.reply().startswith(b"421 4.7.0 Too many connections")
        wait_until(lambda: is_welcome(proxy.port), "the end of the connections")
    assert proxy.stop() == 0


def test_workers_end_when_their_parent_is_killed(proxy: Proxy, sink: Sink) -> None:
    with Wire(proxy.port) as client:
        client.hello()
        for line in (b"MAIL FROM:<a@far.test>", b"RCPT TO:<u@here.test>", b"DATA"):
            assert client.ask(line)[:1] in (b"2", b"3")
        proxy.process.kill()
        assert client.ask(b"Subject: x\r\n\r\nx\r\n.").startswith(b"250 ")
    assert len(sink.mails) == 1
    wait_until(lambda: all(map(is_gone, pids(proxy).values())), "the end of the workers")
    proxy.wait()  # the log ends with the last of them
    assert sorted(line["worker"] for line in proxy.select("stopped")) == list(range(WORKERS))


def test_limits_are_for_all_together(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, smtp={"workers": WORKERS, "max_connections_per_client": 4})
    clients = []
    for _n in range(4):
        client = Wire(proxy.port)
        clients.append(client)
        assert client.reply().startswith(b"220 ")
    with Wire(proxy.port) as client:
        assert client.reply().startswith(b"421 4.7.0 ")
    # The connections of a dead worker do not count any more.
    for pid in pids(proxy).values():
        os.kill(pid, signal.SIGKILL)
    proxy.wait_for("worker", 2 * WORKERS, state="ready")
    for client in clients:
        client.close()
    for _n in range(4):
        client = Wire(proxy.port)
        clients.append(client)
        assert client.reply().startswith(b"220 ")
    for client in clients:
        client.close()
    assert proxy.stop() == 0


def test_an_entry_counts_in_all(proxy: Proxy, tmp_path: Path) -> None:
    arguments = ["entries", "add", "client", "127.0.0.1", "--action", "block", "--config", str(proxy.config)]
    assert main(arguments) == 0

    def is_blocked() -> bool:
        with Wire(proxy.port) as client:
            client.hello()
            client.ask(b"MAIL FROM:<a@far.test>")
            return client.ask(b"RCPT TO:<u@here.test>").startswith(b"550 5.7.1 Blocked")

    for number in range(WORKERS):
        with only(proxy, number):
            wait_until(is_blocked, f"a block in worker {number}")
    assert {line["worker"] for line in proxy.wait_for("decision", WORKERS, reason="blocked-client")} == {0, 1, 2}
    assert proxy.stop() == 0


def test_what_the_first_worker_cannot_start_with_ends_all(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, [sink.port], smtp={"workers": WORKERS}, allow={"client_files": [f"{tmp_path}/none"]})
    done = subprocess.run(
        [sys.executable, *proxy.program, "serve", "--config", str(proxy.config)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count(f"{tmp_path}/none") == 1
    assert "Traceback" not in done.stderr


def test_systemd_hears_from_the_parent_when_all_are_ready(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

        def heard() -> tuple[bytes, int]:
            data, ancillary, _flags, _address = manager.recvmsg(100, socket.CMSG_SPACE(12))
            ((_level, _kind, credentials),) = ancillary
            return data, int.from_bytes(credentials[:4], sys.byteorder)

        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        proxy = start_proxy(sink.port, smtp={"workers": WORKERS}, environment=environment)
        assert heard() == (b"READY=1", proxy.process.pid)
        assert len(pids(proxy)) == WORKERS
        proxy.process.send_signal(signal.SIGHUP)
        assert heard() == (b"RELOADING=1", proxy.process.pid)
        assert heard() == (b"READY=1", proxy.process.pid)
        assert len(proxy.wait_for("reload", WORKERS, state="done")) == WORKERS
        assert proxy.stop() == 0
        assert heard() == (b"STOPPING=1", proxy.process.pid)


def test_sockets_from_systemd_serve_all_workers(sink: Sink, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, [sink.port], smtp={"workers": WORKERS}, greylist={"delay": 0})
    with socket.create_server(("127.0.0.1", 0)) as listener, closing(proxy.activated(listener)):
        port = listener.getsockname()[1]
        assert proxy.start().addresses == [f"127.0.0.1:{port}"]
        with Wire(port) as client:
            assert re.match(rb"220 mx\.test ", client.reply())
        assert proxy.stop() == 0


def test_as_many_as_there_are_processors(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, smtp={"workers": 0})
    count = len(os.sched_getaffinity(proxy.process.pid))
    assert len(pids(proxy)) == (0 if count == 1 else count)
    with Wire(proxy.port) as client:
        client.hello()
    assert proxy.stop() == 0
