# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Searches for inputs that break what the proxy reads: `make fuzz`, or `fuzz/search.py --seconds 600 [TARGET...]`.

The targets and what must hold for them are in `proxy/tests/fuzzed.py`. Each runs in a process of its own under Atheris
(libFuzzer), which follows the coverage of `greylist_proxy` from input to input. What it has found interesting is kept
in `.cache/fuzz/TARGET/`, so that a later search goes on where the last one stopped.

No crash: an exception that a check does not expect. No hang: an input that takes longer than PATIENCE. No growth: the
process stays below MEMORY. An input that breaks something is written to `.cache/fuzz/`, and printed.

Exit status: 0 nothing was found; 1 something was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".cache/fuzz"
PATIENCE = 10  # seconds for one input; the slowest take milliseconds
MEMORY = 200  # MiB for the process; it begins with 70
MAX_INPUT = 8192  # octets; a few commands longer than MAX_COMMAND, and messages of some lines
# What must be seen from the start: code that is imported before it is instrumented has no coverage.
sys.path.insert(0, str(ROOT / "proxy"))


def search_one(name: str, arguments: list[str]) -> None:
    """Be the process that searches one target. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["greylist_proxy", "aiosmtpd.proxy_protocol"]):
        from tests.fuzzed import TARGETS

    atheris.Setup([sys.argv[0], *arguments], TARGETS[name].check)
    atheris.Fuzz()


def prepare(name: str, seeds: tuple[bytes, ...], words: tuple[bytes, ...]) -> Path:
    """Write what a search begins with, and return its folder."""
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in words)
    (KEPT / f"{name}.words").write_text("".join(f'"{word}"\n' for word in quoted))
    return folder


def search(name: str, seconds: int) -> bool:
    """Search one target, and return whether nothing was found."""
    from tests.fuzzed import TARGETS

    folder = prepare(name, TARGETS[name].seeds, TARGETS[name].words)
    command = [
        *(sys.executable, __file__, "--target", name),
        f"-max_total_time={seconds}",
        f"-timeout={PATIENCE}",
        f"-rss_limit_mb={MEMORY}",
        f"-max_len={MAX_INPUT}",
        f"-artifact_prefix={KEPT}/{name}-",
        f"-dict={KEPT}/{name}.words",
        "-print_final_stats=1",
        "-verbosity=0",
        str(folder),
    ]
    before = set(KEPT.glob(f"{name}-*"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    statistics = dict(
        line.removeprefix("stat::").split(":", 1) for line in done.stderr.splitlines() if line.startswith("stat::")
    )
    runs, memory = (statistics.get(key, "?").strip() for key in ("number_of_executed_units", "peak_rss_mb"))
    print(f"{name}: {runs} inputs in {seconds} seconds, {memory} MiB, {len(list(folder.iterdir()))} kept", flush=True)
    if done.returncode == 0:
        return True
    print(done.stdout[-3000:], *(line for line in done.stderr.splitlines()[-15:] if "INFO" not in line), sep="\n")
    for file in sorted(set(KEPT.glob(f"{name}-*")) - before):
        print(f"{name}: {file.relative_to(ROOT)}: {file.read_bytes()!r}")
    return False


def main() -> int:
    """Search all targets, as many at once as there are processors."""
    from tests.fuzzed import TARGETS

    parser = argparse.ArgumentParser(description="Search for inputs that break what the proxy reads.")
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together (default: 600)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    at_once = min(len(os.sched_getaffinity(0)), len(names))
    # The core is what everybody can reach: it gets as much time as all others together.
    weights = {name: len(TARGETS) - 1 if name == "protocol" else 1 for name in names}
    seconds = {
        name: max(1, options.seconds * at_once * weight // sum(weights.values())) for name, weight in weights.items()
    }
    longest_first = sorted(names, key=lambda name: -seconds[name])
    with ThreadPoolExecutor(at_once) as pool:
        return (
            0
            if all(list(pool.map(lambda name: search(name, min(seconds[name], options.seconds)), longest_first)))
            else 1
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--target"]:
        search_one(sys.argv[2], sys.argv[3:])
    sys.exit(main())
