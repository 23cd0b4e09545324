# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host that the service runs on: files below three folders, systemd and the journal by their own programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greylist_proxy.deploy.plan import ADMIN_SOCKET, MAIL_SOCKET, NEXT, SERVICE, UNITS, Deployment, State

JOURNAL_LINES = 20
READY_PATIENCE = 30.0  # seconds
ADDRESS_PATIENCE = 10.0  # seconds; a process that is told to end gives its addresses up at once
RELOAD_PATIENCE = 120.0  # seconds; large lists take a while
REPLACING = "It replaces sockets.\n"


class Failure(Exception):
    """It can't be done; the text says what is wrong, and what state the host is in."""


class HalfDone(Failure):
    """Nor could what was done be put back: what is live is a part of both, and the next run begins anew."""


@dataclass(frozen=True)
class Places:
    """Where things lie. A test has its own."""

    home: Path = Path("/opt/greylist-proxy")
    etc: Path = Path("/etc/greylist-proxy")
    units: Path = Path("/etc/systemd/system")
    run: Path = Path("/run/systemd/system")  # units that are gone after a reboot

    @property
    def current(self) -> Path:
        """The link to the release that runs."""
        return self.home / "current"

    @property
    def config(self) -> Path:
        """The configuration that counts."""
        return self.etc / "greylist-proxy.toml"

    @property
    def wanted(self) -> Path:
        """What a run of the role wants: a deployment, which is two files of that name."""
        return self.etc / "wanted"

    @property
    def lists(self) -> Path:
        """Lists that configurations name."""
        return self.etc / "lists"

    @property
    def pending(self) -> Path:
        """There while a change is under way: the next run begins it anew."""
        return self.etc / "pending"

    @property
    def credentials(self) -> Path:
        """Secrets, or links to them, which systemd hands to the service when it starts."""
        return self.etc / "credentials"

    @property
    def wanted_credentials(self) -> Path:
        """Those of the last run of the role, where they are checked first."""
        return self.etc / "wanted.credentials"


def write(path: Path, text: str) -> None:
    """Replace a file, at once."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def link(path: Path, target: str) -> None:
    """Point a link elsewhere, at once."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)


# -- deployments --


def config_of(place: Path) -> Path:
    """Return the file with the configuration of a deployment that lies there."""
    return place.with_name(f"{place.name}.toml")


def units_of(place: Path) -> Path:
    """Return the file with all else of it."""
    return place.with_name(f"{place.name}.units")


def read(place: Path) -> Deployment:
    """Read a deployment that is not live. Failure: it is not whole."""
    try:
        return Deployment.parse(config_of(place).read_text(), units_of(place).read_text())
    except (OSError, ValueError) as error:
        raise Failure(f"{place}: no deployment: {error}. Nothing was changed.") from error


def save(deployment: Deployment, place: Path) -> None:
    """Write a deployment that is not live."""
    write(config_of(place), deployment.config)
    write(units_of(place), deployment.units_text())


def mark_pending(places: Places, *, replace_sockets: bool) -> None:
    """Leave a mark that a change is under way. A later one does not take back that it replaces sockets."""
    more = REPLACING if replace_sockets or is_replacing(places) else ""
    write(places.pending, "A change is under way. The next run begins it anew.\n" + more)


def is_replacing(places: Places) -> bool:
    """Tell whether a change is under way that replaces sockets: which are open, the units do not tell then."""
    return places.pending.exists() and REPLACING in places.pending.read_text()


def read_live(places: Places) -> Deployment | None:
    """Read the deployment that counts, None: there is none, or not all of it."""
    try:
        live = Deployment(str(places.current.readlink()), places.config.read_text(), _units(places.units))
    except OSError:
        return None
    return live if SERVICE in live.units else None


def _units(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in UNITS if (folder / name).exists()}


def install(deployment: Deployment, places: Places) -> None:
    """Let a deployment be the one that counts from the next start on, and tell systemd of it."""
    for name in _units(places.units).keys() - deployment.units.keys():
        systemctl("disable", "--now", name)
        (places.units / name).unlink()
    for name, text in deployment.units.items():
        write(places.units / name, text)
    write(places.config, deployment.config)
    link(places.current, deployment.release)
    systemctl("daemon-reload")


def applied(release: str) -> Path:
    """Return where a release's deployment lies, as it was when the release was left last."""
    return Path(release) / "applied"


def releases(places: Places) -> dict[str, float | None]:
    """Return the installed releases, and when each was left last."""
    found: dict[str, float | None] = {}
    for stamp in places.home.glob("*/installed"):
        if not stamp.parent.is_symlink():
            left = units_of(applied(str(stamp.parent)))
            found[str(stamp.parent)] = left.stat().st_mtime if left.exists() else None
    return found


def newest_credential(places: Places, wanted: Deployment) -> float:
    """Return when a credential of a deployment has changed last, in seconds since the epoch.

    A link is as young as what it leads to. Failure: it leads nowhere.
    """
    times = [0.0]
    for path in map(places.credentials.joinpath, wanted.credentials()):
        each = path
        while True:  # not `resolve`: a link that was pointed elsewhere counts as well
            times.append(each.lstat().st_ctime)
            if not each.is_symlink():
                break
            each = each.parent / each.readlink()
            if not each.exists():
                raise Failure(f"{path}: there is no {each}. Nothing was changed.")
    return max(times)


# -- systemd --


def systemctl(*arguments: str) -> str:
    """Call systemctl. Failure: it says no."""
    done = _run("systemctl", *arguments)
    if done.returncode:
        raise Failure(f"systemctl {' '.join(arguments)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout.strip()


def forget_failure(*units: str) -> None:
    """Let systemd forget that units have failed; one that it has never loaded has nothing to forget."""
    _run("systemctl", "reset-failed", *units)


def let_end(unit: str) -> None:
    """Have a service give its sockets up and end when nothing is under way any more, without waiting for it.

    As a signal, not as a job to stop it: systemd would start no socket, which is ordered beside it, before that is
    done.
    """
    _run("systemctl", "kill", "--kill-whom=main", "--signal=TERM", unit)  # it may have ended


def start_sockets(units: list[str]) -> None:
    """Start sockets whose addresses another process may just be giving up. Failure: they are not to be had."""
    end = time.monotonic() + ADDRESS_PATIENCE
    while units:
        try:
            systemctl("start", *units)
        except Failure:
            if time.monotonic() > end:
                raise
            forget_failure(*units)
        else:
            return
        time.sleep(0.02)


def is_active(unit: str) -> bool:
    """Tell whether systemd runs this unit; one that is being reloaded runs."""
    return _active_state(unit) in ("active", "reloading", "refreshing")


def is_stopped(unit: str) -> bool:
    """Tell whether this unit was stopped, or is being: one that has failed, or is to be started again, was not."""
    return _active_state(unit) in ("inactive", "deactivating")


def _active_state(unit: str) -> str:
    return systemctl("show", "--property=ActiveState", "--value", unit)


def state(places: Places, live: Deployment | None, wanted: Deployment | None) -> State:
    """Ask how the service is, and whether it has the credentials that are wanted; with None, who asks knows that."""
    running = is_active(SERVICE)
    stale = places.pending.exists() or is_active(NEXT)
    if running and not stale and wanted is not None:
        started = int(systemctl("show", "--property=ExecMainStartTimestampMonotonic", "--value", SERVICE)) / 1e6
        # Both clocks now, for the one that files have may have been set since.
        stale = newest_credential(places, wanted) > time.time() - (time.monotonic() - started)
    sockets = {MAIL_SOCKET, *(live.sockets() if live else ())}
    closed = frozenset(name for name in sockets if not is_active(name))
    return State(running, closed, stale, is_replacing(places))


def journal(unit: str, *arguments: str) -> list[str]:
    """Return lines of the unit's journal, oldest first."""
    command = ("journalctl", f"--unit={unit}", "--output=cat", "--no-pager", "--quiet", *arguments)
    return _run(*command).stdout.splitlines()


def last_words(unit: str) -> str:
    """Return what the unit said since it was last started."""
    invocation = systemctl("show", "--property=InvocationID", "--value", unit)
    some = f"--lines={JOURNAL_LINES}"
    return "\n".join(journal(unit, some, f"_SYSTEMD_INVOCATION_ID={invocation}") or journal(unit, some)) or "nothing"


def reload() -> list[str]:
    """Have the service read its configuration again, and wait for what it says of it.

    Returns the settings that count only after a restart. Failure: it kept the old configuration.
    """
    since = time.time()
    systemctl("reload", SERVICE)
    end = time.monotonic() + RELOAD_PATIENCE
    while time.monotonic() < end:
        for event in _events(journal(SERVICE, f"--since=@{since:.6f}")):
            if event.get("event") == "reload" and event.get("state") == "failed":
                raise Failure("the service refuses it: " + "; ".join(map(str, event.get("errors", []))))
            if event.get("event") == "reload":
                return [str(name) for name in event.get("after_restart", [])]
        time.sleep(0.1)
    raise Failure(f"the service did not say within {RELOAD_PATIENCE:g} seconds whether it has read its configuration")


def _events(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # systemd's own words
        if isinstance(event, dict):
            yield event


def await_ready(deployment: Deployment) -> None:
    """Ask the service at its admin address, if it has one. Failure: it does not say that it is ready."""
    found = re.search(r"^ListenStream=(\S+):([0-9]+)$", deployment.units.get(ADMIN_SOCKET, ""), re.MULTILINE)
    if found is None:
        return
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(found[1], found[1])  # noqa: S104 - who listens there is here
    url = f"http://{host}:{found[2]}/readyz"
    # None of the host's proxies: it is this host that is asked.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + READY_PATIENCE
    while True:
        try:
            with opener.open(url, timeout=READY_PATIENCE):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > end:
                raise Failure(f"{url} does not answer that it is ready: {error}") from error
        time.sleep(0.1)


def check_config(deployment: Deployment, config: Path, places: Places) -> None:
    """Have a release check a configuration. Failure: it refuses it."""
    program = f"{deployment.release}/venv/bin/greylist-proxy"
    done = _run(program, "check-config", "--config", str(config), CREDENTIALS_DIRECTORY=str(places.credentials))
    if done.returncode:
        raise Failure(f"{deployment.release} refuses {config}: {done.stderr.strip()}. Nothing was changed.")


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - nothing in it comes from outside this host
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
