# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wine prefixes: the folder in which Wine keeps one Windows host, its disk and its registry.

Wine needs some ten seconds and 700 MB for a new one. So a *pristine* prefix is made once a checkout, and
every lab host gets a copy that costs neither: Windows' own files, which nothing in a lab writes to, are
links into the pristine prefix; folders and the registry, which change, are the copy's own. A copy has a
wineserver, a registry and processes of its own, and knows nothing of other copies.

What is made once lives in `.cache/wine/` of the checkout, under a name that says what it was made of: after
an upgrade of Wine, or an edit of the C sources, it is made anew. It is made in a folder beside and moved to
its place when it is whole, under a lock, so neither an interrupted set-up nor a second one leaves half of
it behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lab.windows.programs import Programs, WineError, environment, run

SOURCES: Final = Path(__file__).resolve().parent
CACHE: Final = SOURCES.parents[2] / ".cache" / "wine"

COMPILER_FLAGS: Final = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s")
HELPER: Final = "helper.exe"
SMTPSVC: Final = "smtpsvc.exe"
IDLE: Final = "idle.exe"
# Program, its sources, the Windows libraries that it calls.
BUILDS: Final = (
    (HELPER, ("helper.c", "calls.c"), ("-ladvapi32",)),
    (SMTPSVC, ("smtpsvc.c", "smtp.c"), ("-ladvapi32", "-lws2_32")),
    (IDLE, ("idle.c",), ("-ladvapi32",)),
)

# Where the programs are on a host's disk.
PROGRAM_FOLDER: Final = "lab"

# Enlarge it when `_make_pristine` changes what it makes.
PRISTINE_FORMAT: Final = 1
PRISTINE_SECONDS: Final = 300.0
END_SECONDS = 20.0
# Wine asks this file whether the prefix was made by an older Wine; such an update would write into it.
UPDATE_MARK: Final = ".update-timestamp"


def windows_programs(programs: Programs) -> Path:
    """The folder with helper.exe and the services' programs, compiled from the sources as they are now."""
    ingredients = [run([programs.compiler, "--version"], seconds=30), *COMPILER_FLAGS]
    for source in sorted(SOURCES.glob("*.[ch]")):
        ingredients += [source.name, source.read_text("utf-8")]
    return _made_once(programs, f"programs-{_digest(ingredients)}", lambda folder: _compile(programs, folder))


def _compile(programs: Programs, folder: Path) -> None:
    for program, sources, libraries in BUILDS:
        files = [str(SOURCES / source) for source in sources]
        run([programs.compiler, *COMPILER_FLAGS, "-o", str(folder / program), *files, *libraries], seconds=120)


def pristine_prefix(programs: Programs) -> Path:
    """A prefix as Wine makes it, in which no lab has run."""
    version = run([programs.wine, "--version"], seconds=60)
    name = f"prefix-{_digest([version, str(PRISTINE_FORMAT)])}"
    return _made_once(programs, name, lambda folder: _make_pristine(programs, version, folder))


def _make_pristine(programs: Programs, version: str, prefix: Path) -> None:
    print(f"lab: setting up {version}, once a checkout, for some ten seconds", file=sys.stderr, flush=True)
    env = environment(programs, prefix)
    try:
        run([programs.wine, "wineboot", "--init"], seconds=PRISTINE_SECONDS, env=env)
        # Not killed: it writes the registry as it ends.
        run([programs.wineserver, "-w"], seconds=END_SECONDS, env=env)
    finally:
        end_processes(programs, prefix)
    if not (prefix / "system.reg").is_file():
        raise WineError(f"{programs.wine} made no registry in {prefix}")
    (prefix / UPDATE_MARK).write_text("disable\n", "ascii")
    # Wine points Documents, Desktop and so on at the home folder of whoever made the prefix.
    for entry in (prefix / "drive_c" / "users").rglob("*"):
        if entry.is_symlink():
            entry.unlink()
            entry.mkdir()


def copy_prefix(pristine: Path, prefix: Path, windows_programs: Path) -> None:
    """Make `prefix`, which must not exist, a host of its own with the lab's programs on its disk."""
    prefix.mkdir()
    # Only these: a prefix may also hold the address of its wineserver, which is nobody else's.
    for registry in pristine.glob("*.reg"):
        shutil.copyfile(registry, prefix / registry.name)
    shutil.copyfile(pristine / UPDATE_MARK, prefix / UPDATE_MARK)
    shutil.copytree(pristine / "dosdevices", prefix / "dosdevices", symlinks=True)
    shutil.copytree(pristine / "drive_c", prefix / "drive_c", symlinks=True, copy_function=os.symlink)
    folder = prefix / "drive_c" / PROGRAM_FOLDER
    folder.mkdir()
    for program, _ignored, _also in BUILDS:
        shutil.copyfile(windows_programs / program, folder / program)


def end_processes(programs: Programs, prefix: Path) -> None:
    """End all that runs in a prefix, and return when it has ended."""
    env = environment(programs, prefix)
    try:
        # Status 1 where no wineserver runs, which is what is wanted.
        run([programs.wineserver, "-k", "-w"], seconds=END_SECONDS, env=env, check=False)
    except WineError:
        run([programs.wineserver, "-k9"], seconds=END_SECONDS, env=env, check=False)
        _kill_orphans(f"WINEPREFIX={prefix}".encode())
    _remove_socket_folder(prefix)


def _remove_socket_folder(prefix: Path) -> None:
    """Debian's wineserver has its socket in a folder in /tmp, whose name it leaves in the prefix."""
    mark = prefix / "wineserver"
    if mark.is_file():
        name = mark.read_text("utf-8").strip()
        mark.unlink()
        if re.fullmatch(r"wine-\w{6}", name):
            shutil.rmtree(Path("/tmp") / name, ignore_errors=True)  # noqa: S108


def _kill_orphans(mark: bytes) -> None:
    """Kill what a wineserver that had to be killed left behind, known by its environment."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def _digest(ingredients: list[str]) -> str:
    return hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:16]


def _made_once(programs: Programs, name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name in the cache, filled by `make` where it was not there."""
    folder = CACHE / name
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        for unfinished in CACHE.glob(f"{name}.new-*"):
            end_processes(programs, unfinished)  # a set-up that was killed leaves Wine's at work
            shutil.rmtree(unfinished, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{name}.new-", dir=CACHE))
        try:
            make(fresh)
            fresh.rename(folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return folder
