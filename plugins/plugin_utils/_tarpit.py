# Copyright: the mailops.tarpit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TarpitTime on one host: find the state, make a plan, carry it out.

TarpitTime is the DWORD below HKLM\\SYSTEM\\CurrentControlSet\\Services\\<service>\\Parameters, in seconds.
The mark of an unfinished run stands below HKLM\\SOFTWARE\\mailops.tarpit\\<service>.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ansible_collections.mailops.tarpit.plugins.plugin_utils._plan import (
    Found,
    Mark,
    Plan,
    Stage,
    Step,
    Wanted,
    make_plan,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._registry import Registry, WrongTypeError
from ansible_collections.mailops.tarpit.plugins.plugin_utils._service import (
    DISABLED,
    DOES_NOT_EXIST,
    RUNNING,
    START_MODE_DISABLED,
    STOPPED,
    ServiceControl,
    ServiceError,
    ServiceState,
)
from ansible_collections.mailops.tarpit.plugins.plugin_utils._wsman import CimClass, CimSession

OPERATING_SYSTEM = CimClass("root/cimv2", "Win32_OperatingSystem")
VALUE = "TarpitTime"
MARK_STAGE = "PendingRestart"
MARK_PROCESS = "ProcessId"
MARK_DEPENDENTS = "Dependents"
# Stands between their names: a service's name holds neither slash (CreateService, lpServiceName).
SEPARATOR = "/"


class NotInstalledError(Exception):
    """The host has no such service."""


@dataclass(frozen=True)
class Survey:
    """What was found on the host: the service as Windows describes it, and the facts that the plan needs."""

    service: ServiceState
    found: Found


class TarpitHost:
    """The tarpit of one SMTP service on one host, over one session."""

    def __init__(self, session: CimSession, service: str, timeout: float) -> None:
        self.done: list[Step] = []
        self.warnings: list[str] = []
        self._session = session
        self._registry = Registry(session)
        self._services = ServiceControl(session)
        self._service = service
        self._timeout = timeout
        self._parameters = rf"SYSTEM\CurrentControlSet\Services\{service}\Parameters"
        self._mark_key = rf"SOFTWARE\mailops.tarpit\{service}"

    def survey(self) -> Survey:
        """Read the service's state, TarpitTime and the mark. Raise NotInstalledError without the service."""
        service = self._services.query(self._service)
        if service is None:
            raise NotInstalledError
        service = self._services.settle(service, self._timeout)
        wrong_type = False
        try:
            tarpit_time = self._registry.read_dword(self._parameters, VALUE)
        except WrongTypeError:
            tarpit_time, wrong_type = None, True
        return Survey(
            service=service,
            found=Found(
                tarpit_time=tarpit_time,
                running=service.state != STOPPED,
                process_id=service.process_id,
                mark=self._read_mark(),
                wrong_type=wrong_type,
            ),
        )

    def look(self) -> Description:
        """The state, and the system's name; `survey` is None without the service."""
        system = (self._session.instances(OPERATING_SYSTEM) or [{}])[0]
        try:
            survey = self.survey()
        except NotInstalledError:
            survey = None
        return Description(survey, system.get("Caption") or "", system.get("Version") or "")

    def plan(self, survey: Survey, wanted: Wanted) -> Plan:
        """The steps from what was found to what is wanted.

        Asks for the services that depend on this one only where the plan needs to know them.
        """
        found = survey.found
        plan = make_plan(found, wanted)
        if Step.STOP in plan.steps or (found.running and found.mark is not None and found.mark.dependents):
            dependents = tuple(self._services.running_dependents(self._service))
            plan = make_plan(replace(found, dependents=dependents), wanted)
        return plan

    def demand_way_back(self, plan: Plan, survey: Survey) -> None:
        """Raise ServiceError for a plan that would stop a service which Windows does not start again."""
        if Step.STOP in plan.steps and survey.service.start_mode == START_MODE_DISABLED:
            raise ServiceError(
                f"the service {self._service} runs and is disabled, so Windows would not start it again after the stop."
                " Nothing was changed: set its start mode to Automatic or Manual, or the option 'restart' to never"
            )

    def carry_out(self, plan: Plan, survey: Survey, wanted: Wanted) -> None:
        """Do the steps in their order; what fails raises, and leaves a mark from which the next run goes on.

        `done` then tells the steps that were done, `warnings` what did not keep a step from being done.
        """
        for step in plan.steps:
            self._do(step, plan, survey, wanted)
            self.done.append(step)

    def _do(self, step: Step, plan: Plan, survey: Survey, wanted: Wanted) -> None:
        if step is Step.MARK_RESTART_OWED:
            self._registry.create_key(self._mark_key)
            if survey.found.mark is not None and survey.found.mark.dependents:
                self._registry.delete_value(self._mark_key, MARK_DEPENDENTS)
            # The process first: a stage must never stand beside the process of an older mark.
            self._registry.note_dword(self._mark_key, MARK_PROCESS, survey.service.process_id)
            self._registry.note_dword(self._mark_key, MARK_STAGE, Stage.RESTART_OWED)
        elif step is Step.SET_VALUE and wanted.tarpit_time is not None:
            self._registry.write_dword(self._parameters, VALUE, wanted.tarpit_time)
        elif step is Step.DELETE_VALUE:
            self._registry.delete_value(self._parameters, VALUE)
        elif step is Step.MARK_START_OWED:
            # The names first: a stage that says "stopped" must never stand without them.
            if plan.dependents:
                self._registry.note_string(self._mark_key, MARK_DEPENDENTS, SEPARATOR.join(plan.dependents))
            self._registry.note_dword(self._mark_key, MARK_STAGE, Stage.START_OWED)
        elif step is Step.STOP_DEPENDENTS:
            for name in plan.dependents:
                self._services.stop(name, self._timeout)
        elif step is Step.START_DEPENDENTS:
            self._start_dependents(plan)
        elif step is Step.STOP:
            self._services.stop(self._service, self._timeout)
        elif step is Step.START:
            self._services.start(self._service, self._timeout)
        elif step is Step.CLEAR_MARK:
            # The names first: left behind without a stage, they would join a later mark.
            if plan.dependents or (survey.found.mark is not None and survey.found.mark.dependents):
                self._registry.delete_value(self._mark_key, MARK_DEPENDENTS)
            self._registry.delete_value(self._mark_key, MARK_STAGE)

    def _start_dependents(self, plan: Plan) -> None:
        # In the other order than they were stopped.
        for name in reversed(plan.dependents):
            try:
                self._services.start(name, self._timeout)
            except ServiceError as error:
                if error.code not in (DISABLED, DOES_NOT_EXIST):
                    raise
                # Whoever disabled or removed it meant it to stay down.
                self.warnings.append(f"not started again: {error}")

    def _read_mark(self) -> Mark | None:
        try:
            stage = self._registry.read_dword(self._mark_key, MARK_STAGE)
            if stage not in (Stage.RESTART_OWED, Stage.START_OWED):
                return None
            process_id = self._registry.read_dword(self._mark_key, MARK_PROCESS)
            names = self._registry.read_string(self._mark_key, MARK_DEPENDENTS) or ""
        except WrongTypeError:
            return None  # not written by this collection
        return Mark(Stage(stage), process_id, tuple(name for name in names.split(SEPARATOR) if name))


@dataclass(frozen=True)
class Description:
    """What a host says of itself, for the module win_smtp_tarpit_info."""

    survey: Survey | None
    os_caption: str
    os_version: str


def describe(survey: Survey) -> dict[str, int | str | None]:
    """The state found, as the module returns it under `before`."""
    return {"tarpit_time": survey.found.tarpit_time, "service_state": survey.service.state}


def foretell(survey: Survey, plan: Plan, wanted: Wanted) -> dict[str, int | str | None]:
    """The state that the plan leads to, as the module returns it under `after`."""
    return {
        "tarpit_time": wanted.tarpit_time,
        "service_state": RUNNING if plan.restarts else survey.service.state,
    }
