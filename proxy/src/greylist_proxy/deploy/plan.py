# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done, decided from what runs and what is wanted. Pure: no files, no processes.

A `Deployment` is everything that makes the service what it is: a release, a configuration, systemd's units. The one
that is *live* lies where systemd and the program look for it; the one that is *wanted* lies beside it, whole, before
anything is touched.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

SERVICE = "greylist-proxy.service"
NEXT = "greylist-proxy-next.service"
MAIL_SOCKET = "greylist-proxy.socket"
ADMIN_SOCKET = "greylist-proxy-admin.socket"
# All units that may be part of a deployment. Others whose names begin alike are somebody else's.
UNITS = (
    SERVICE,
    MAIL_SOCKET,
    ADMIN_SOCKET,
    "greylist-proxy-control.socket",
    "greylist-proxy-renew.path",
    "greylist-proxy-renew.service",
)
# What SIGHUP takes over; a change anywhere else takes another process. The program is asked all the same.
RELOADABLE = {"backend", "greylist", "allow", "trap", "tarpit"}
MODE = re.compile(r"(^\[greylist\]\n(?:(?!\[).*\n)*?mode = )\"([a-z]*)\"$", re.MULTILINE)
KEPT_RELEASES = 3
PART = re.compile(r"^#: (\S+)(?: (.+))?\n", re.MULTILINE)


class Step(Enum):
    """What leads from the live deployment to the wanted one."""

    NOTHING = "nothing"
    START = "start"  # it does not run, or takes its mail from no socket of systemd's
    RELOAD = "reload"
    HAND_OVER = "hand-over"  # to another process, while the sockets stay open
    REPLACE = "replace"  # sockets change as well, or are to be opened: nobody listens for a moment


@dataclass(frozen=True)
class Deployment:
    """A release (its folder), the configuration, and the units by their names; all of them as text."""

    release: str
    config: str
    units: Mapping[str, str]

    @staticmethod
    def parse(config: str, units: str) -> Deployment:
        """Make one of the configuration, and of a text with the rest.

        In that a line `#: release FOLDER` names the release, and each unit follows a line `#: NAME`. ValueError: it is
        not so.
        """
        _before, *parts = PART.split(units)
        found = {name: (rest, text) for name, rest, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}
        release = found.pop("release", (None, ""))[0]
        if not release or SERVICE not in found or not found.keys() <= set(UNITS):
            raise ValueError(
                f"a deployment has a release and the unit {SERVICE}, and of others only {', '.join(UNITS)}"
            )
        return Deployment(release, config, {name: text for name, (_rest, text) in found.items()})

    def units_text(self) -> str:
        """Return the text that `parse` reads."""
        return f"#: release {self.release}\n" + "".join(f"#: {name}\n{text}" for name, text in self.units.items())

    def credentials(self) -> list[str]:
        """Return the names of the credentials that systemd hands to the service."""
        return re.findall(r"^LoadCredential=([^:\n]+):", self.units[SERVICE], re.MULTILINE)

    def sockets(self) -> dict[str, str]:
        """Return the socket units."""
        return {name: text for name, text in self.units.items() if name.endswith(".socket")}


@dataclass(frozen=True)
class State:
    """How the service is."""

    is_running: bool
    closed_sockets: frozenset[str] = frozenset()  # of the live deployment; the one for mail counts always
    is_stale: bool = False  # a credential is younger than the process, or an earlier run broke off half-way
    is_replacing: bool = False  # that run was about to replace sockets: those that are open may be the old ones


def step(live: Deployment | None, wanted: Deployment, state: State) -> Step:
    """Decide. `live` is None where there is none yet."""
    if live is None or not state.is_running or MAIL_SOCKET in state.closed_sockets:
        return Step.START
    # No socket is opened for a service that runs, so one that is closed takes the same way.
    if live.sockets() != wanted.sockets() or state.closed_sockets or state.is_replacing:
        return Step.REPLACE
    if live.release != wanted.release or live.units.get(SERVICE) != wanted.units[SERVICE] or state.is_stale:
        return Step.HAND_OVER
    if live.config != wanted.config:
        return Step.RELOAD if changed_sections(live.config, wanted.config) <= RELOADABLE else Step.HAND_OVER
    return Step.NOTHING if live.units == wanted.units else Step.RELOAD


def changed_sections(one: str, other: str) -> set[str]:
    """Return the sections of the configuration that differ; all of them where one is not TOML."""
    try:
        before, after = tomllib.loads(one), tomllib.loads(other)
    except tomllib.TOMLDecodeError:
        return {"smtp"}
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def next_unit(service: str, release: str, config: str, places: tuple[str, str], sockets: Iterable[str]) -> str:
    """Make of the service's unit the one that serves beside it: this release and configuration, on the same sockets.

    `places` are the folder and the file that the service's unit names for them.
    """
    text = service.replace(places[0], release).replace(places[1], config)
    text = text.partition("\n[Install]")[0] + "\n"
    # Sockets are given to it, below; those that only the wanted deployment has are not there yet.
    text = re.sub(r"^Requires=.*\n", "", text, flags=re.MULTILINE)
    # It is there for a moment, and nobody would look after one that comes back by itself.
    text = re.sub(r"^Restart=.*$", "Restart=no", text, flags=re.MULTILINE)
    return re.sub(r"^(\[Service\])$", r"\1\nSockets=" + " ".join(sorted(sockets)), text, flags=re.MULTILINE)


def mode_of(config: str) -> str:
    """Return `greylist.mode` of a configuration as the role writes it. ValueError: it has none."""
    found = MODE.search(config)
    if found is None:
        raise ValueError("the configuration has no line `mode` in its section [greylist]")
    return found[2]


def with_mode(config: str, mode: str) -> str:
    """Return the configuration with another mode, all else as it is. ValueError: it has none."""
    mode_of(config)
    return MODE.sub(rf'\g<1>"{mode}"', config)


def superfluous(releases: Mapping[str, float | None], current: str) -> list[str]:
    """Return which releases to remove. `releases` tells when each was left last, None: it never ran.

    The current one stays, and so do those that were left last: one can go back to them. What never ran is no place to
    go back to.
    """
    others = {name: left for name, left in releases.items() if name != current and left is not None}
    kept = sorted(others, key=lambda name: others[name], reverse=True)[: KEPT_RELEASES - 1]
    return sorted(set(releases) - {current, *kept})


def last_left(releases: Mapping[str, float | None], current: str) -> str | None:
    """Return the release that ran before the current one, None: there is none."""
    others = {name: left for name, left in releases.items() if name != current and left is not None}
    return max(others, key=lambda name: others[name], default=None)
