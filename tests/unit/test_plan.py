# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan as a table: the state found, the state wanted, the steps. One line a case; add yours below."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from ansible_collections.mailops.tarpit.plugins.plugin_utils._plan import (
    Found,
    Mark,
    Restart,
    Stage,
    Step,
    Wanted,
    make_plan,
)

NOW = 400  # the id of the service's process, and another one that it had before a reboot
BEFORE = 300

SHORT = {
    Step.MARK_RESTART_OWED: "mark1",
    Step.SET_VALUE: "set",
    Step.DELETE_VALUE: "delete",
    Step.MARK_START_OWED: "mark2",
    Step.STOP_DEPENDENTS: "stop-dep",
    Step.STOP: "stop",
    Step.START: "start",
    Step.START_DEPENDENTS: "start-dep",
    Step.CLEAR_MARK: "clear",
}
RESTART = "mark2 stop start clear"


def running(value: int | None, mark: int = 0, process_id: int = NOW) -> Found:
    return Found(value, True, NOW, Mark(Stage(mark), process_id) if mark else None)


def stopped(value: int | None, mark: int = 0) -> Found:
    return Found(value, False, 0, Mark(Stage(mark), BEFORE) if mark else None)


def dependents(found: Found, running_now: str, in_mark: str = "") -> Found:
    mark = replace(found.mark, dependents=tuple(in_mark.split())) if found.mark else None
    return replace(found, dependents=tuple(running_now.split()), mark=mark)


N, A = Restart.NEVER, Restart.ALWAYS
WN = Restart.WHEN_NEEDED

CASES = [
    # found                      wanted  restart  steps                      pending
    (running(None), 30, WN, f"mark1 set {RESTART}", False),
    (running(5), 30, WN, f"mark1 set {RESTART}", False),
    (running(30), 30, WN, "", False),
    (running(0), None, WN, f"mark1 delete {RESTART}", False),
    (running(None), None, WN, "", False),
    (running(None), 0, WN, f"mark1 set {RESTART}", False),
    # a service that someone stopped gets its value and stays stopped
    (stopped(None), 30, WN, "set", False),
    (stopped(30), 30, WN, "", False),
    (stopped(30), 30, A, "", False),
    (stopped(None), 30, N, "set", False),
    # an earlier run died: after the mark, after the value, after the stop, after the start
    (running(5, mark=1), 30, WN, f"set {RESTART}", False),
    (running(30, mark=1), 30, WN, RESTART, False),
    (running(30, mark=2), 30, WN, f"mark1 {RESTART}", False),
    (stopped(30, mark=2), 30, WN, "start clear", False),
    (stopped(5, mark=2), 30, WN, "set start clear", False),
    (running(30, mark=2, process_id=BEFORE), 30, WN, "clear", False),
    # it died after the mark or the value, and the host has rebooted since
    (running(30, mark=1, process_id=BEFORE), 30, WN, "clear", False),
    (running(5, mark=1, process_id=BEFORE), 30, WN, f"mark1 set {RESTART}", False),
    # ... or an administrator has stopped the service since
    (stopped(30, mark=1), 30, WN, "clear", False),
    (stopped(5, mark=1), 30, WN, "set clear", False),
    # never: the restart stays owed, until it has happened
    (running(5), 30, N, "mark1 set", True),
    (running(30), 30, N, "", False),
    (running(30, mark=1), 30, N, "", True),
    (running(5, mark=1), 30, N, "set", True),
    (running(5, mark=1, process_id=BEFORE), 30, N, "mark1 set", True),
    (running(30, mark=1, process_id=BEFORE), 30, N, "clear", False),
    # never, but a run of ours had stopped the service: it is started; running again, it is not stopped twice
    (stopped(30, mark=2), 30, N, "start clear", False),
    (running(30, mark=2), 30, N, "mark1", True),
    # always
    (running(30), 30, A, f"mark1 {RESTART}", False),
    (running(5), 30, A, f"mark1 set {RESTART}", False),
]


WITH_DEPENDENTS = [
    # found                                                 wanted restart steps                    dependents
    (dependents(running(5), "X Y"), 30, WN, "mark1 set mark2 stop-dep stop start start-dep clear", "X Y"),
    (dependents(running(30), "X"), 30, WN, "", ""),
    (dependents(running(5), "X"), 30, N, "mark1 set", ""),
    # a run died: after it stopped one of them, after it stopped all, after it started the service again
    (dependents(running(30, mark=2), "Y", "X Y"), 30, WN, "mark1 mark2 stop-dep stop start start-dep clear", "X Y"),
    (dependents(running(30, mark=2), "", "X"), 30, WN, "mark1 mark2 stop start start-dep clear", "X"),
    (dependents(running(30, mark=2), "", "X"), 30, N, "start-dep mark1", "X"),
    (dependents(stopped(30, mark=2), "", "X Y"), 30, WN, "start start-dep clear", "X Y"),
    (dependents(running(30, mark=2, process_id=BEFORE), "", "X"), 30, WN, "start-dep clear", "X"),
    (dependents(running(30, mark=2, process_id=BEFORE), "x", "X"), 30, WN, "clear", ""),
    (dependents(running(30, mark=2, process_id=BEFORE), "", "X"), 30, N, "start-dep clear", "X"),
    (dependents(running(5, mark=2, process_id=BEFORE), "", "X"), 30, N, "start-dep mark1 set", "X"),
]


@pytest.mark.parametrize(("found", "wanted", "restart", "steps", "names"), WITH_DEPENDENTS)
def test_plan_with_dependents(found: Found, wanted: int | None, restart: Restart, steps: str, names: str) -> None:
    plan = make_plan(found, Wanted(wanted, restart))
    assert " ".join(SHORT[step] for step in plan.steps) == steps
    assert " ".join(plan.dependents) == names


def test_a_mark_without_a_process_is_owed() -> None:
    found = Found(30, True, NOW, Mark(Stage.RESTART_OWED, None))
    assert make_plan(found, Wanted(30)).restarts


@pytest.mark.parametrize(("found", "wanted", "restart", "steps", "pending"), CASES)
def test_plan(found: Found, wanted: int | None, restart: Restart, steps: str, pending: bool) -> None:
    plan = make_plan(found, Wanted(wanted, restart))
    assert " ".join(SHORT[step] for step in plan.steps) == steps
    assert plan.restart_pending is pending


def test_a_value_of_another_type_is_replaced() -> None:
    plan = make_plan(Found(None, True, NOW, wrong_type=True), Wanted(None))
    assert Step.DELETE_VALUE in plan.steps


@pytest.mark.parametrize(
    ("steps", "changed"),
    [("", False), ("clear", False), ("set", True), ("delete", True), ("start clear", True)],
)
def test_changed_means_the_host_and_not_our_bookkeeping(steps: str, changed: bool) -> None:
    found = {
        "": running(30),
        "clear": running(30, mark=1, process_id=BEFORE),
        "set": stopped(None),
        "delete": stopped(5),
        "start clear": stopped(30, mark=2),
    }[steps]
    assert make_plan(found, Wanted(None if steps == "delete" else 30)).changed is changed


class Host:
    """The ten-line model of a host: what each step does to it, and the value that its service obeys."""

    def __init__(self, value: int | None, running: bool) -> None:
        self.value, self.running, self.process_id, self.mark = value, running, 100 if running else 0, None
        self.obeyed = value if running else None

    def found(self) -> Found:
        return Found(self.value, self.running, self.process_id if self.running else 0, self.mark)

    def do(self, step: Step, wanted: Wanted) -> None:
        if step is Step.MARK_RESTART_OWED:
            self.mark = Mark(Stage.RESTART_OWED, self.process_id)
        elif step is Step.MARK_START_OWED:
            assert self.mark is not None
            self.mark = Mark(Stage.START_OWED, self.mark.process_id)
        elif step in (Step.SET_VALUE, Step.DELETE_VALUE):
            self.value = wanted.tarpit_time
        elif step is Step.STOP:
            self.running = False
        elif step is Step.START:
            self.running, self.obeyed, self.process_id = True, self.value, self.process_id + 1
        elif step is Step.CLEAR_MARK:
            self.mark = None


@pytest.mark.parametrize(
    ("value", "wanted", "was_running", "first", "lived"),
    list(product([None, 0, 5], [None, 5, 30], [True, False], [WN, N, A], range(8))),
)
def test_a_run_that_dies_after_any_step_is_finished_by_the_next(
    value: int | None, wanted: int | None, was_running: bool, first: Restart, lived: int
) -> None:
    host = Host(value, was_running)
    aim = Wanted(wanted, first)
    for step in make_plan(host.found(), aim).steps[:lived]:
        host.do(step, aim)

    aim = Wanted(wanted)
    for step in make_plan(host.found(), aim).steps:
        host.do(step, aim)

    assert host.value == wanted
    assert host.running is was_running
    assert not host.running or host.obeyed == wanted, "the value is there, but the service does not obey it"
    assert make_plan(host.found(), aim).steps == ()
