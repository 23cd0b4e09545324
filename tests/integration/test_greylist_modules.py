# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""greylist_entry and greylist_info, by ansible-playbook on a proxy that runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smtp_servers import proxy
from tools.ansible_runs import Controller, Run

ENTRY, INFO = "mailops.tarpit.greylist_entry", "mailops.tarpit.greylist_info"
NOBODY_THERE = 1  # a port of the backend's, which these tests have no need of
PASSWORD = "no-password-is-asked-for"


class Edge:
    """A proxy's host, which is this one, and its proxy's control socket."""

    def __init__(self, controller: Controller, folder: Path) -> None:
        self._controller = controller
        self._folder = folder
        self.socket = str(folder / "proxy" / "control.sock")

    def run(self, *tasks: dict[str, Any]) -> Run:
        """Run these tasks on it."""
        inventory = self._folder / "inventory.json"
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        inventory.write_text(json.dumps({"greylist_proxies": {"hosts": {"edge01": host}}}))
        playbook = self._folder / "play.yml"
        playbook.write_text(json.dumps([{"hosts": "edge01", "gather_facts": False, "tasks": tasks}]))
        return self._controller.playbook(str(playbook), inventory, PASSWORD)

    def entry(self, keywords: dict[str, Any] | None = None, **options: object) -> dict[str, Any]:
        """Return a task with greylist_entry."""
        usual = {"kind": "client", "value": "198.51.100.0/24", "socket": self.socket}
        return {ENTRY: usual | options} | (keywords or {})

    def info(self, **options: object) -> dict[str, Any]:
        """Return a task with greylist_info."""
        return {INFO: {"socket": self.socket} | options}


@pytest.fixture
def edge(controller: Controller, tmp_path: Path) -> Edge:
    return Edge(controller, tmp_path)


@pytest.fixture
def running(edge: Edge, tmp_path: Path) -> Iterator[Edge]:
    with proxy("proxy", tmp_path, NOBODY_THERE, smtp={"workers": 2}):
        yield edge


def results(run: Run) -> list[dict[str, Any]]:
    return [entry["result"] for entry in run.results]


def test_an_entry_is_made_kept_changed_and_removed(running: Edge) -> None:
    wanted: dict[str, object] = {"action": "block", "expires": "30d", "note": "their newsletter"}
    run = running.run(
        running.entry({"check_mode": True, "diff": True}, **wanted),
        running.entry({"diff": True}, **wanted),
        running.entry({}, **wanted),
        running.entry({"check_mode": True}, **wanted),
        running.entry({"diff": True}, **(wanted | {"note": "their new letter"})),
        running.entry({"check_mode": True}, state="absent"),
        running.entry({"diff": True}, state="absent"),
        running.entry({}, state="absent"),
    )
    assert run.status == 0, run.printed
    would, made, kept, would_keep, changed, would_remove, removed, gone = results(run)
    assert [each["changed"] for each in results(run)] == [True, True, False, False, True, True, True, False]
    assert (would["before"], would["after"]["note"]) == (None, "their newsletter")
    assert made["before"] is None
    assert {name: made["after"][name] for name in ("kind", "value", "action", "source", "note")} == {
        "kind": "client",
        "value": "198.51.100.0/24",
        "action": "block",
        "source": "operator",
        "note": "their newsletter",
    }
    assert all(each["effective"] for each in results(run))
    assert made["diff"]["before"] == {}
    assert made["diff"]["after"]["action"] == "block"
    assert kept["after"] == made["after"] == would_keep["before"] == changed["before"]
    assert (changed["diff"]["before"]["note"], changed["diff"]["after"]["note"]) == (
        "their newsletter",
        "their new letter",
    )
    assert would_remove["before"] == removed["before"] == changed["after"]
    assert removed["diff"]["after"] == {}
    assert (gone["before"], gone["after"]) == (None, None)


def test_what_it_is_and_what_it_has(running: Edge) -> None:
    run = running.run(
        running.entry(kind="trap", value="Old-Address@Example.org"),
        running.entry(kind="sender", value="@partner.example"),
        running.info(counts=True, entries=True),
        running.info(),
    )
    assert run.status == 0, run.printed
    _trap, _sender, full, short = results(run)
    assert full["running"]
    assert not full["changed"]
    assert (full["mode"], full["workers"], full["hostname"]) == ("enforce", 2, "mx.here.example")
    assert full["store"]["working"]
    assert full["backends"] == [{"address": f"127.0.0.1:{NOBODY_THERE}", "state": "down"}]
    assert full["counts"]["entries"] == 2
    assert full["entry_counts"] == {"sender allow": 1, "trap": 1}
    assert [each["value"] for each in full["entries"]] == ["partner.example", "old-address@example.org"]
    assert not {"counts", "entries"} & short.keys()


REFUSED = [
    ({"value": "198.51.100.7/24"}, "the network is 198.51.100.0/24"),
    ({"kind": "trap", "value": "a@example.org", "action": "block"}, "a trap has no action"),
    ({"expires": "soon"}, "allowed is a duration (90s, 12h, 2d) or a time"),
    ({"kind": "planet"}, "value of kind must be one of"),
    ({"value": "x.example", "note": "n" * 501}, "up to 500 characters"),
    ({"value": "", "state": "absent"}, "allowed is an IP address"),
]


def test_what_can_not_be_meant_fails_and_says_why(running: Edge) -> None:
    run = running.run(
        *(running.entry({"ignore_errors": True}, **options) for options, _said in REFUSED), running.info(entries=True)
    )
    assert run.status == 0, run.printed
    *refused, info = results(run)
    assert [said in each["msg"] for each, (_options, said) in zip(refused, REFUSED, strict=True)] == [True] * len(
        REFUSED
    )
    assert info["entries"] == []


def test_where_no_proxy_runs(edge: Edge) -> None:
    run = edge.run(edge.info(), edge.entry())
    assert run.status == 2
    info, entry = results(run)
    assert (info["running"], info.get("failed", False)) == (False, False)
    for sentence in (info["reason"], entry["msg"]):
        assert f"there is no control socket {edge.socket}. Is the service up" in sentence
