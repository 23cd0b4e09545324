# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do about a service's TarpitTime: the state found and the state wanted give the steps.

Pure: nothing here talks to a host. The rules:

1.  TarpitTime counts once the service has restarted. So a change to a service that runs is followed by a
    restart, and a service that does not run is left stopped: it will read the value when it starts.
2.  Intent is recorded before the deed, so that a run which dies half-way leaves a mark that the next run
    finds and finishes: stage RESTART_OWED is written before the value changes, stage START_OWED before the
    service is stopped; the mark goes when the service is known to run.
3.  Beside the mark stands the id of the service's process at that time. A running service with another
    process has restarted since (a reboot, an administrator): nothing is owed any more.
4.  A service that we stopped is always started again, whatever the option `restart` says: it was running
    before we came.
5.  Services that depend on it and run are stopped before it and started after it. Their names stand beside
    the mark, so that a run which dies in between leaves none of them forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Restart(Enum):
    """When the service may be restarted: the option `restart`."""

    WHEN_NEEDED = "when_needed"
    NEVER = "never"
    ALWAYS = "always"


class Stage(IntEnum):
    """What is owed to the service: the value `PendingRestart` of the mark."""

    RESTART_OWED = 1
    START_OWED = 2


@dataclass(frozen=True)
class Mark:
    """The mark of an earlier run: what was owed, the service's process id when it was written (None where the
    mark lacks it), and the dependents that the run was to stop.
    """

    stage: Stage
    process_id: int | None
    dependents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The state found: TarpitTime in seconds (None: no such value), the service, and the mark if any.

    `dependents` are the running services that depend on it, in the order in which they can be stopped; they
    count only for a plan that stops the service.
    """

    tarpit_time: int | None
    running: bool
    process_id: int = 0
    mark: Mark | None = None
    wrong_type: bool = False
    dependents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """The state wanted: TarpitTime in seconds, or None for no such value; and when to restart."""

    tarpit_time: int | None
    restart: Restart = Restart.WHEN_NEEDED


class Step(Enum):
    """One deed. They are carried out in the order of the plan, and each may be the last before a crash."""

    MARK_RESTART_OWED = "record that a restart is owed"
    SET_VALUE = "set TarpitTime"
    DELETE_VALUE = "delete TarpitTime"
    MARK_START_OWED = "record that a start is owed"
    STOP_DEPENDENTS = "stop the services that depend on it"
    STOP = "stop the service"
    START = "start the service"
    START_DEPENDENTS = "start the services that depend on it"
    CLEAR_MARK = "remove the record"


CHANGES = (Step.SET_VALUE, Step.DELETE_VALUE, Step.STOP, Step.START, Step.START_DEPENDENTS)


@dataclass(frozen=True)
class Plan:
    """The steps, and what they amount to.

    `changed` leaves out a mere CLEAR_MARK: that is our own bookkeeping, not the host's state.
    """

    steps: tuple[Step, ...]
    restart_pending: bool = False
    dependents: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the host's own state changes: TarpitTime, or a service's process."""
        return any(step in CHANGES for step in self.steps)

    @property
    def restarts(self) -> bool:
        """Whether the service is started, after a stop by this run or by one that died."""
        return Step.START in self.steps


def make_plan(found: Found, wanted: Wanted) -> Plan:
    """The steps from the state found to the state wanted."""
    differs = found.wrong_type or found.tarpit_time != wanted.tarpit_time
    write = () if not differs else (Step.DELETE_VALUE if wanted.tarpit_time is None else Step.SET_VALUE,)

    if not found.running:
        if found.mark is not None and found.mark.stage is Stage.START_OWED:
            return _start((*write, Step.START), found.mark.dependents)
        # Stopped by someone else: it reads the value when they start it.
        return Plan((*write, *_clear(found)))

    owed = found.mark is not None and found.mark.process_id in (None, found.process_id)
    # START_OWED over a service that runs is brought back: an administrator may stop it before we come again.
    recorded = owed and found.mark is not None and found.mark.stage is Stage.RESTART_OWED
    record = () if recorded else (Step.MARK_RESTART_OWED,)
    forgotten = _forgotten(found)
    revive = (Step.START_DEPENDENTS,) if forgotten else ()
    if not differs and not owed and wanted.restart is not Restart.ALWAYS:
        return Plan((*revive, *_clear(found)), dependents=forgotten)
    if wanted.restart is Restart.NEVER:
        return Plan((*revive, *record, *write), restart_pending=True, dependents=forgotten)
    dependents = (*forgotten, *found.dependents)
    stop = (Step.STOP_DEPENDENTS, Step.STOP) if found.dependents else (Step.STOP,)
    return _start((*record, *write, Step.MARK_START_OWED, *stop, Step.START), dependents)


def _start(steps: tuple[Step, ...], dependents: tuple[str, ...]) -> Plan:
    """The steps, then those that end every restart."""
    end = (Step.START_DEPENDENTS, Step.CLEAR_MARK) if dependents else (Step.CLEAR_MARK,)
    return Plan((*steps, *end), dependents=dependents)


def _forgotten(found: Found) -> tuple[str, ...]:
    """The dependents that an earlier run was to stop and that do not run now."""
    running = {name.lower() for name in found.dependents}
    return tuple(name for name in (found.mark.dependents if found.mark else ()) if name.lower() not in running)


def _clear(found: Found) -> tuple[Step, ...]:
    return (Step.CLEAR_MARK,) if found.mark is not None else ()
