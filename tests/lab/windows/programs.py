# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where are Wine and the compiler, and how is Wine started without a screen, a home or a user to ask?

Debian keeps the programs proper in /usr/lib/wine and puts shell scripts in front of them, in a package of
their own. The lab takes the programs: one package less, and a process id that is Wine's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WINE: Final = ("/usr/lib/wine/wine64", "wine64", "/usr/lib/wine/wine", "wine")
WINESERVER: Final = (
    "/usr/lib/wine/wineserver64",
    "/usr/lib/wine/wineserver",
    "wineserver",
    "wineserver64",
)
COMPILER: Final = ("x86_64-w64-mingw32-gcc",)

# No .NET and no HTML engine, which Wine would offer to download; no menu entries on the user's desktop.
DLL_OVERRIDES: Final = "mscoree,mshtml,winemenubuilder.exe="

_WINE_PACKAGE: Final = "wine64"
_COMPILER_PACKAGE: Final = "gcc-mingw-w64-x86-64"


class WineError(OSError):
    """Wine itself failed: not a refusal of Windows (`Win32Error`), but a host that cannot go on."""


@dataclass(frozen=True)
class Programs:
    """The programs that the wine backend runs."""

    wine: str
    wineserver: str
    compiler: str


def missing() -> list[str]:
    """The Debian packages that the wine backend needs and this machine lacks."""
    packages = []
    if not (_find(WINE) and _find(WINESERVER)):
        packages.append(_WINE_PACKAGE)
    if not _find(COMPILER):
        packages.append(_COMPILER_PACKAGE)
    return packages


def find() -> Programs:
    """Raise WineError where a program is missing, with the packages that have it."""
    wine, wineserver, compiler = _find(WINE), _find(WINESERVER), _find(COMPILER)
    if wine is None or wineserver is None or compiler is None:
        raise WineError(f"the wine backend needs these Debian packages: {' '.join(missing())}")
    return Programs(wine, wineserver, compiler)


def _find(candidates: tuple[str, ...]) -> str | None:
    return next(filter(None, map(shutil.which, candidates)), None)


def environment(programs: Programs, prefix: Path) -> dict[str, str]:
    """All that a Wine program gets to know of the caller's environment."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        # Not the user's: Wine leaves things there. It does in TMPDIR too, but Debian's Wine 10 crashes
        # where that is set (in a patch of Debian's), so see prefix.end_processes.
        "HOME": str(prefix),
        "WINEPREFIX": str(prefix),
        "WINESERVER": programs.wineserver,
        "WINEARCH": "win64",
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": DLL_OVERRIDES,
    }


def run(command: list[str], *, seconds: float, env: dict[str, str] | None = None, check: bool = True) -> str:
    """Run a program to its end and return what it wrote; WineError where it takes too long or fails."""
    # A file, no pipe: what Wine starts in the background keeps it open, and a pipe would have to be waited for.
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise WineError(f"{' '.join(command)} did not end within {seconds:g} s") from error
        output.seek(0)
        said = output.read().decode("utf-8", "replace").strip()
    if check and done.returncode != 0:
        raise WineError(f"{' '.join(command)} failed with status {done.returncode}: {said}")
    return said
