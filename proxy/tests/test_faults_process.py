# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program itself fails, or the machine under it: killed, stopped, reloaded, disk full, no files left, wrong clock.

The clock: `altered.py` has `time.time` be wrong in the real program. A time namespace would not do, since it shifts
the monotonic clocks only, and those never jump in life.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .altered import set_clock
from .ledger import LedgerClient, Told, deliver_all
from .peers import Proxy, Wire, free_port, wait_until
from .scene import MakeScene, Scene


def fixed_port(workers: int = 1) -> dict[str, Any]:
    """Return settings with which the program comes back where it was."""
    return {"workers": workers, "listen": [f"127.0.0.1:{free_port()}"], "hostname": "mx.test"}


async def during_load(scene: Scene, count: int, events: Any) -> None:
    """Deliver messages over 20 connections, while something happens."""
    load = asyncio.create_task(deliver_all(scene.proxy.port, scene.ledger, count, 20))
    await asyncio.gather(load, asyncio.to_thread(events, load))


@pytest.mark.parametrize(("workers", "messages"), [(1, 1000), (2, 500)])
def test_killed_at_random(make_scene: MakeScene, workers: int, messages: int) -> None:
    scene = make_scene(smtp=fixed_port(workers))
    chance = random.Random(6647)  # noqa: S311 - a test's dice
    kills = 0

    def kill_now_and_again(load: asyncio.Task[None]) -> None:
        nonlocal kills
        while len(scene.ledger.delivered) < messages - 100:
            time.sleep(chance.uniform(0.05, 0.4))
            scene.proxy.process.kill()
            scene.proxy.wait()
            kills += 1
            scene.proxy.start()

    asyncio.run(during_load(scene, messages, kill_now_and_again))
    assert len(scene.ledger.delivered) == messages
    assert kills > 1
    scene.end()


def test_stopped_under_load(make_scene: MakeScene) -> None:
    scene = make_scene(smtp=fixed_port())
    statuses = []

    def stop_and_start(load: asyncio.Task[None]) -> None:
        for _n in range(3):
            before = len(scene.ledger.delivered)
            wait_until(lambda before=before: len(scene.ledger.delivered) > before + 60 or load.done(), "some")
            statuses.append(scene.proxy.stop())
            scene.proxy.start()

    asyncio.run(during_load(scene, 500, stop_and_start))
    assert statuses == [0, 0, 0]
    # Polite: whoever sent a final dot has heard what became of it.
    assert scene.ledger.unanswered.total() == 0
    assert [each["dropped"] for each in scene.proxy.select("stopped")] == [0, 0, 0]
    scene.end()


def test_reloaded_under_load(make_scene: MakeScene) -> None:
    scene = make_scene()
    text = scene.proxy.config.read_text()

    def reload_again_and_again(load: asyncio.Task[None]) -> None:
        for number in range(10):
            size = "5MiB" if number % 2 else "6MiB"
            broken = number == 7
            scene.proxy.config.write_text(
                text.replace("[smtp]", f'[smtp]\nmax_message_size = "{size}"') if not broken else "no TOML at all"
            )
            scene.proxy.process.send_signal(signal.SIGHUP)
            scene.proxy.wait_for("reload", number + 1)

    asyncio.run(during_load(scene, 500, reload_again_and_again))
    assert [each["state"] for each in scene.proxy.select("reload")] == [*["done"] * 7, "failed", "done", "done"]
    # Nobody noticed anything: no session was ended, and every message took one attempt.
    assert scene.ledger.unanswered.total() == 0
    assert {each["outcome"] for each in scene.proxy.select("relay")} == {"accepted"}
    scene.end()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[list[str]]:
    """Have files in the folder stop growing soon: a small file system where root may mount one, else a limit.

    It gives the command that the program is to be started with.
    """
    folder.mkdir()
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
        try:
            yield []
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    else:
        yield ["prlimit", "--fsize=200000"]


def test_the_disk_is_full(make_scene: MakeScene, tmp_path: Path) -> None:
    """The store can't grow: mail goes on, and the log says what is wrong."""
    disk = tmp_path / "disk"
    with small_disk(disk) as prefix:
        scene = make_scene(prefix=prefix, store={"url": f"sqlite:///{disk}/greylist.db"})

        async def many(rounds: int) -> None:
            # New triplets, more than fit, and mail all the while.
            async with asyncio.TaskGroup() as group:
                for _n in range(10):
                    group.create_task(deliver_all(scene.proxy.port, scene.ledger, rounds, 1))

        end = time.monotonic() + 20
        while not scene.proxy.select("store", state="failed") and time.monotonic() < end:
            asyncio.run(many(20))
        assert scene.proxy.select("store", state="failed")
        asyncio.run(many(5))
        assert scene.ledger.unanswered.total() == 0
        scene.end()


def test_no_descriptors_left(make_scene: MakeScene) -> None:
    """Who can't be accepted waits, those who are there are served; the log says it, and not without end."""
    scene = make_scene(prefix=["prlimit", "--nofile=64"])
    wires = [Wire(scene.proxy.port) for _n in range(80)]
    busy_before = cpu(scene.proxy)
    time.sleep(1)
    assert cpu(scene.proxy) - busy_before < 0.5  # seconds: it does not spin
    greeted = [wire for wire in wires if greets(wire)]
    assert 20 <= len(greeted) < 80
    assert greeted[0].ask(b"NOOP").startswith(b"250 ")
    # There is none left for a backend either: temporary, and nothing else.
    greeted[1].ask(b"EHLO client.test")
    greeted[1].ask(b"MAIL FROM:<a@far.test>")
    assert greeted[1].ask(b"RCPT TO:<u@here.test>").startswith((b"451 4.", b"250 "))
    for wire in wires:
        wire.close()
    scene.deliver_new()
    assert len(scene.proxy.errors()) < 20
    assert scene.proxy.stop() == 0
    assert scene.ledger.mistakes(scene.proxy.events) == []


def cpu(proxy: Proxy) -> float:
    """Return the seconds of CPU that the program has used."""
    fields = Path(f"/proc/{proxy.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def greets(wire: Wire) -> bool:
    """Tell whether the banner is there."""
    wire.socket.settimeout(0.1)
    try:
        return wire.socket.recv(200).startswith(b"220 ")
    except TimeoutError:
        return False
    finally:
        wire.socket.settimeout(20)


def test_the_clock_jumps(make_scene: MakeScene, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_bytes(bytes(8))
    scene = make_scene(clock=clock, greylist={"delay": "1h", "retry_window": "48h"})
    told: list[Told] = []

    def offer(number: int) -> bytes:
        client = LedgerClient(scene.proxy.port, scene.ledger)

        async def once() -> None:
            told.append(await client.offer(number))
            await client.leave()

        asyncio.run(once())
        return client.answer

    def deferred_for(number: int) -> int:
        answer = offer(number)
        assert answer.startswith(b"450 4.7.1 ")
        return int(answer.partition(b"again in ")[2].split()[0])

    first, second = scene.ledger.new(), scene.ledger.new()
    assert deferred_for(first) == 3600
    # Back: nobody was seen in the future, and nobody waits for longer than the delay.
    set_clock(clock, -1800)
    assert deferred_for(first) <= 3600
    set_clock(clock, 3700)
    assert offer(first).startswith(b"250 ")
    # Back by a year, and forward by ten: the worst is to wait once more. Timers are not of this clock.
    set_clock(clock, -86400 * 365)
    assert deferred_for(second) == 3600
    with scene.connect() as wire:
        set_clock(clock, 86400 * 3650)
        assert wire.ask(b"NOOP").startswith(b"250 ")
        assert deferred_for(second) == 3600
        set_clock(clock, 0)
        assert wire.ask(b"NOOP").startswith(b"250 ")
    assert deferred_for(second) <= 3600
    set_clock(clock, 3700)
    assert offer(second).startswith(b"250 ")
    assert scene.proxy.stop() == 0
    assert scene.ledger.mistakes(scene.proxy.events) == []
    assert scene.proxy.errors() == []
    assert told.count(Told.DELIVERED) == 2
