# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run against Exchange that is killed leaves a state from which the next run finishes the job.

There is nothing to record: a connector has the new value or the old one, and the next run sets what is left.
"""

from __future__ import annotations

import pytest
from tools.ansible_runs import play
from tools.exchange_site import Site
from tools.killed_runs import run_until_killed

# Open: Create, Receive. Get: Command, Receive, Receive. For each of the two connectors: Signal, Command, Receive. Read
# back: Signal, Command, Receive, Receive. Delete. All five connectors of the server come with each Get, 50 kB.
REQUESTS_OF_A_CHANGE = 16


@pytest.mark.parametrize("position", range(1, REQUESTS_OF_A_CHANGE + 1))
def test_the_next_run_finishes_it(position: int, site: Site) -> None:
    host = site.host
    task = site.task("exchange_tarpit", seconds=1, server="EX01", port=0)
    host.exchange.connector(r"EX01\Client Frontend EX01").tarpit_seconds = 1
    once = play(site.folder / "once.json", task)
    run_until_killed(site.controller, once, site.inventory, site.lab, host, position)

    run = site.run(task, task)

    assert run.status == 0, run.printed
    assert {one["after"] for one in run.last("win01")["connectors"]} == {1}
    assert run.last("win01")["changed"] is False
    # The run that was killed could not close its session; both of the others did.
    assert host.exchange.sessions <= 1


def test_a_change_makes_no_more_requests_than_are_killed_here(site: Site) -> None:
    site.host.exchange.connector(r"EX01\Client Frontend EX01").tarpit_seconds = 1
    assert site.one("exchange_tarpit", seconds=1, server="EX01", port=0)["changed"] is True
    assert len(site.host.traffic.journal) == REQUESTS_OF_A_CHANGE
