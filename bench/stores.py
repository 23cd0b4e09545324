# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-stores`: what the greylist's stores cost with few triplets and with millions.

    stores.py             the run: fill, decide, expire, for each store and size
    stores_data.py        the triplets, each made from its number
    stores_databases.py   a file, and a server that the benchmark starts and ends
    stores_figures.py     figures, growth, the table

Decisions are calls of `Store.observe`, as the proxy makes them, of three kinds in equal parts: sightings that are
new (a record is written), early ones (pending triplets: nothing is written; whether the delay is over does not matter
to a store) and known ones. Each is picked at random from all there are, so a cache that holds what was asked for last
is of no use. Every answer is compared with what was put in. The clock of a decision runs from the call until the
caller has the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from greylist_proxy.policy import Rules
from greylist_proxy.store import Sighting as Answer
from greylist_proxy.store import Store, StoreError
from stores_data import SEED, Population, Sighting
from stores_databases import KINDS, Clock, Database, Unmeasurable
from stores_figures import Figures, Timing, growths, table, timing

DESCRIPTION = """\
Measure the greylist's stores: time of a decision, bytes a triplet, time to fill and to expire, at several sizes.

Exit status: 0 the target is reached; 1 it is not; 2 something is missing or did not run as it should."""

SIGHTINGS = ("new", "early", "known")
BATCH = 100_000  # triplets that are loaded at once,
LOADERS = 2  # while others are being made
WARM_UP = 300  # decisions, for which connections are opened and scripts are sent


class Unexpected(Exception):
    """A store did not do what it was to do: its figures would mean nothing."""


async def fill(store: Store, population: Population) -> float:
    """Load all triplets, and return the seconds it took; making them, which goes on meanwhile, is in it."""
    items, done = population.items(), 0
    began = time.perf_counter()

    async def loader() -> None:
        nonlocal done
        # Sorted, as another store's export comes client by client; what is stored before and after is still spread out.
        while batch := sorted(itertools.islice(items, BATCH), key=lambda item: item.triplet):
            changed = await store.load(batch)
            if changed != len(batch):
                raise Unexpected(f"{store.name} took {changed} of {len(batch)} triplets that it did not have")
            done += len(batch)
            if done % 1_000_000 == 0:
                _say(f"  {done:,} triplets, {done / (time.perf_counter() - began):,.0f} a second")

    await asyncio.gather(*(loader() for _loader in range(LOADERS)))
    await store.flush()
    seconds = time.perf_counter() - began
    counts = await store.counts()
    if counts.pending + counts.known != population.count:
        raise Unexpected(f"{store.name} counts {counts.pending + counts.known} triplets of {population.count}")
    return seconds


class Decisions:
    """Sightings of the three kinds, in turn, and how long the store took for each; no new one comes twice."""

    def __init__(self, store: Store, population: Population, numbers: Iterator[int], chance: random.Random) -> None:
        self._store = store
        self._population = population
        self._new = numbers
        self._chance = chance

    def _pick(self, kind: str) -> Sighting:
        if kind == "new":
            return self._population.sighting(next(self._new))
        return self._population.sighting(self._population.pick(self._chance, known=kind == "known"))

    async def ask(self) -> None:
        """Make a decision of something that is there, or was."""
        identities, sender, recipient = self._pick("early")
        await self._store.observe(identities, sender, recipient)

    async def measure(self, count: int, at_once: int) -> Timing:
        """Time `count` decisions; `at_once` callers each ask for the next one as soon as they have an answer."""
        # All is made before the clock starts, and looked at after it has stopped.
        sightings = [(kind, self._pick(kind)) for kind in itertools.islice(itertools.cycle(SIGHTINGS), count)]
        answers: list[tuple[float, Answer]] = [(0.0, Answer(0.0, ()))] * count
        turns = iter(range(count))

        async def caller() -> None:
            for turn in turns:
                _kind, (identities, sender, recipient) = sightings[turn]
                began = time.perf_counter()
                answer = await self._store.observe(identities, sender, recipient)
                answers[turn] = (time.perf_counter() - began, answer)

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _caller in range(at_once)))
        seconds = time.perf_counter() - began
        taken: dict[str, list[float]] = {kind: [] for kind in SIGHTINGS}
        for (kind, sighting), (took, answer) in zip(sightings, answers, strict=True):
            _check(kind, sighting, answer)
            taken[kind].append(took)
        return timing(seconds, taken)


def _check(kind: str, sighting: Sighting, answer: Answer) -> None:
    """Compare an answer with what was put in."""
    if len(answer.found) != len(sighting.identities):
        raise Unexpected(f"{len(sighting.identities)} identities were asked for, and {len(answer.found)} answered")
    for found in answer.found:
        if kind == "new":
            right = found.record is None or found.shared
        else:
            right = found.record is not None and (found.record.last_used is not None) is (kind == "known")
        if not right:
            raise Unexpected(f"of a sighting that is {kind} the store says {found}: {sighting}")


async def measure(database: Database, count: int, options: argparse.Namespace) -> Figures:
    """Do everything with one empty database."""
    clock = Clock()
    population = Population(count, Rules(), clock())
    chance = random.Random(SEED)  # noqa: S311 - the same picks in each run
    new = itertools.count(population.sightings)
    empty = database.bytes()
    store = database.open(clock)
    _say(f"{database.name}: {count:,} triplets go in")
    seconds = await fill(store, population)
    filled = database.bytes() - empty
    await store.close()
    database.settle()
    taken = database.bytes() - empty
    store = database.open(clock)
    decisions = Decisions(store, population, new, chance)
    _say(f"{database.name}: {options.decisions:,} decisions, one at a time")
    await decisions.measure(WARM_UP, 1)
    single = await decisions.measure(options.decisions, 1)
    _say(f"{database.name}: {options.decisions:,} decisions, {options.at_once} at once")
    await decisions.measure(WARM_UP, options.at_once)
    concurrent = await decisions.measure(options.decisions, options.at_once)
    await store.flush()
    cold = None
    if database.on_disk:
        await store.close()
        database.settle(forget=True)
        store = database.open(clock)
        _say(f"{database.name}: {options.decisions // 10:,} decisions, one at a time, cold cache")
        decisions = Decisions(store, population, new, chance)
        cold = await decisions.measure(options.decisions // 10, 1)
    _say(f"{database.name}: half of all expires")
    expiry = await database.expire(store, population, clock, decisions.ask)
    await store.close()
    return Figures(database.name, count, seconds, filled, taken, single, concurrent, cold, expiry)


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="stores.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--triplets",
        type=_sizes,
        default=[10_000, 10_000_000],
        metavar="N,N",
        help="how many, from 1,000 on (default: 10000,10000000)",
    )
    add("--stores", type=_names, default=list(KINDS), metavar="NAME,NAME", help="default: " + ",".join(KINDS))
    add("--decisions", type=int, default=6_000, metavar="N", help="to time at each size (default: 6000)")
    add("--at-once", type=int, default=50, metavar="N", help="callers at once (default: 50)")
    add("--most", type=float, default=2, metavar="X", help="times slower at the greatest size (default: 2)")
    add("--folder", type=Path, default=Path(".cache"), help="where the files go (default: .cache)")
    add("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(arguments)


def _sizes(text: str) -> list[int]:
    sizes = sorted(int(size) for size in text.split(","))
    if sizes[0] < 1_000:
        raise argparse.ArgumentTypeError("must be 1000 or more")
    return sizes


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(KINDS):
        raise argparse.ArgumentTypeError(f"not a store: {', '.join(sorted(unknown))}")
    return names


def _measure_all(options: argparse.Namespace) -> list[Figures]:
    for name in options.stores:
        KINDS[name].check(max(options.triplets), options.folder)
    measured = []
    for name in options.stores:
        for count in options.triplets:
            folder = Path(tempfile.mkdtemp(prefix="bench-stores-", dir=options.folder))
            try:
                with KINDS[name].make(folder) as database:
                    measured.append(asyncio.run(measure(database, count, options)))
            finally:
                shutil.rmtree(folder)
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, judge."""
    options = _parse(arguments)
    # A run that is told to end takes its server and its files with it.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        measured = _measure_all(options)
    except (Unmeasurable, Unexpected, StoreError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    growth = growths(measured)
    missed = [sentence for one in growth for sentence in one.shortfalls(options.most)]
    setting = {
        "decisions": options.decisions,
        "at_once": options.at_once,
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()} | {name: KINDS[name].version() for name in options.stores},
    }
    if options.json:
        figures = {"stores": [asdict(one) for one in measured], "growth": [asdict(one) for one in growth]}
        print(json.dumps(setting | figures | {"missed": missed}, indent=2))
    else:
        versions = ", ".join(f"{name}: {version}" for name, version in setting["versions"].items())
        cores = f"{os.cpu_count()} cores"
        print(f"{options.decisions:,} decisions, many at once: {options.at_once}; {cores}; {versions}\n")
        print(table(measured), *growth, sep="\n")
    for sentence in missed:
        print(f"bench: target missed: {sentence}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
