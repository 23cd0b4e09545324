# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation that ansible-doc shows, and its examples, run as they stand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab.hosts import Lab
from smtp_servers import proxy
from tools.ansible_runs import BIN, ROOT, Controller, windows_inventory
from tools.exchange_site import Site

MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
ROLES = sorted(path.parent.parent.name for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"))


def document(controller: Controller, *arguments: str) -> dict[str, dict[str, object]]:
    done = subprocess.run(
        [BIN / "ansible-doc", "--json", *arguments],
        env=controller.environment("unused"),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("module", MODULES)
def test_ansible_doc_shows_a_module(module: str, controller: Controller) -> None:
    found = document(controller, f"mailops.tarpit.{module}")[f"mailops.tarpit.{module}"]
    assert {"doc", "examples", "return"} <= found.keys()


@pytest.mark.parametrize("role", ROLES)
def test_ansible_doc_shows_a_role(role: str, controller: Controller) -> None:
    assert (
        "main"
        in document(controller, "--type=role", f"mailops.tarpit.{role}")[f"mailops.tarpit.{role}"]["entry_points"]
    )


def examples_of(controller: Controller, module: str) -> list[dict[str, Any]]:
    found = document(controller, f"mailops.tarpit.{module}")[f"mailops.tarpit.{module}"]
    return list(yaml.safe_load(str(found["examples"])))


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("exchange_")])
def test_examples_for_exchange_run_as_they_stand(module: str, site: Site) -> None:
    name = f"mailops.tarpit.{module}"
    tasks = examples_of(site.controller, module)
    for task in tasks:
        if name in task:
            # What an example cannot know: where the lab is, and that it does without Kerberos.
            task[name] = (task[name] or {}) | site.task(module)[name]
    run = site.run(*tasks)
    assert run.status == 0, run.printed


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("greylist_")])
def test_examples_for_a_proxy_run_as_they_stand(
    module: str, memory_lab: Lab, controller: Controller, tmp_path: Path
) -> None:
    tasks = examples_of(controller, module)
    for task in tasks:
        # What an example cannot know: where the socket is, and who may use it.
        task.pop("become", None)
    socket = str(tmp_path / "proxy" / "control.sock")
    defaults = {"group/mailops.tarpit.greylist": {"socket": socket}}
    playbook = tmp_path / "examples.json"
    playbook.write_text(
        json.dumps([{"hosts": "edge01", "gather_facts": False, "module_defaults": defaults, "tasks": tasks}])
    )
    inventory = tmp_path / "inventory.json"
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory.write_text(json.dumps({"greylist_proxies": {"hosts": {"edge01": here}}}))
    (host,) = memory_lab.hosts
    host.reset()
    with proxy("proxy", tmp_path, host.smtp_port):
        run = controller.playbook(str(playbook), inventory, memory_lab.password)
    assert run.status == 0, run.printed


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(("exchange_", "greylist_"))])
def test_examples_run_as_they_stand(module: str, memory_lab: Lab, controller: Controller, tmp_path: Path) -> None:
    examples = examples_of(controller, module)
    (host,) = memory_lab.hosts
    host.reset()
    for task in examples:
        options = task.get("mailops.tarpit.smtp_probe")
        if options is not None:
            # What an example cannot know: where the lab is. It is on this machine, not on port 25.
            options.update(host=host.address, port=host.smtp_port, starttls=options.get("starttls", "never"))
            options.get("expect", {}).pop("min_delay", None)
            task["vars"] = {
                "ansible_connection": "local",
                "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            }
    playbook = tmp_path / "examples.json"
    playbook.write_text(json.dumps([{"hosts": "win01", "gather_facts": False, "tasks": examples}]))
    where = {"ansible_host": host.address, "ansible_port": host.winrm_port}
    inventory = windows_inventory(tmp_path, {"win01": where}, memory_lab.username)
    run = controller.playbook(str(playbook), inventory, memory_lab.password)
    assert run.status == 0, run.printed
