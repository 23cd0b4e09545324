# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: what a fleet of Windows hosts costs with this collection, and with ansible.windows instead.

    fleet.py      lab hosts, the four runs, what they cost
    figures.py    ratios, targets, the table
    playbooks/    the two ways, as their users write them

Both ways run twice, each from hosts as they were set up: first TarpitTime changes and the service restarts,
then there is nothing to change. The hosts are the lab's, in this process; ansible-playbook is a program of its
own. So the system's count of what ended children used is the client's CPU alone, and the hosts' part is this
process's own.

The lab has no PowerShell. It reads what the peer's modules upload, throws it away, and answers at once with
what they would have printed on Windows. What PowerShell costs a host, start-up and compilation of C# included,
is therefore left out, in the peer's favour.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from figures import Comparison, Cost, Targets, as_json, table  # noqa: E402
from lab.backend import HKEY_LOCAL_MACHINE, SMTPSVC, SMTPSVC_PARAMETERS  # noqa: E402
from lab.hosts import Lab  # noqa: E402
from tools.ansible_runs import BIN, Controller, windows_inventory  # noqa: E402

DESCRIPTION = """\
Measure what a fleet of lab Windows hosts costs: win_smtp_tarpit, and win_regedit with win_service instead.

Exit status: 0 the targets are reached; 1 they are not; 2 something did not run as it should."""

PLAYBOOKS = Path(__file__).parent / "playbooks"
WAYS = ("win_smtp_tarpit", "win_regedit, win_service")
TARPIT_SECONDS = 30  # as in both playbooks
NOTE = """\
The peer's PowerShell is not run: the lab answers its modules at once, with what they would have printed. Their
start-up on the host, seconds a task on real Windows, is left out in the peer's favour."""

# What the peer's modules print on Windows, the echo of their arguments (`invocation`) shortened to those given.
FACTS = {
    "changed": False,
    "ansible_facts": {"ansible_os_family": "Windows", "ansible_distribution": "Microsoft Windows Server 2019 Standard"},
}
REGEDIT = {
    "changed": True,
    "data_changed": False,
    "data_type_changed": False,
    "invocation": {
        "module_args": {
            "path": f"HKLM:\\{SMTPSVC_PARAMETERS}",
            "name": "TarpitTime",
            "data": TARPIT_SECONDS,
            "type": "dword",
            "state": "present",
            "delete_key": True,
            "hive": None,
        }
    },
}
SERVICE = {
    "changed": True,
    "exists": True,
    "can_pause_and_continue": True,
    "depended_by": [],
    "dependencies": ["IISADMIN"],
    "description": "Transports electronic mail across the network",
    "desktop_interact": False,
    "display_name": "Simple Mail Transfer Protocol (SMTP)",
    "name": SMTPSVC,
    "path": "C:\\Windows\\system32\\inetsrv\\inetinfo.exe",
    "start_mode": "auto",
    "state": "running",
    "username": "LocalSystem",
    "invocation": {"module_args": {"name": SMTPSVC, "state": "restarted", "force_dependent_services": False}},
}

RECAP = re.compile(r"^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=0 +failed=0 ", re.MULTILINE)


class Unexpected(Exception):
    """A run did not do what it was to do: its cost would mean nothing."""


class Fleet:
    """Lab hosts, an inventory of them, and a way to run a playbook and know its cost."""

    def __init__(self, lab: Lab, folder: Path, *, forks: int, facts: bool) -> None:
        self.lab = lab
        self.facts = facts
        self._forks = forks
        self._folder = folder
        self._inventory = windows_inventory(
            folder,
            {host.name: {"ansible_host": host.address, "ansible_port": host.winrm_port} for host in lab.hosts},
            lab.username,
        )
        environment = Controller(folder).environment(lab.password)
        # The tests' callback is not what users run with.
        del environment["ANSIBLE_CALLBACKS_ENABLED"]
        self._environment = environment | {"ANSIBLE_GATHERING": "implicit" if facts else "explicit"}

    def play(self, playbook: str, *, changed: bool) -> Cost:
        """Run a playbook on all hosts; every one of them must say that it changed, or that it did not."""
        for host in self.lab.hosts:
            host.traffic.clear()
        client, lab, started = _cpu(resource.RUSAGE_CHILDREN), _cpu(resource.RUSAGE_SELF), time.monotonic()
        done = subprocess.run(
            [
                BIN / "ansible-playbook",
                f"--inventory={self._inventory}",
                f"--forks={self._forks}",
                PLAYBOOKS / playbook,
            ],
            env=self._environment,
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=120 + 10 * len(self.lab.hosts),
            check=False,
        )
        seconds = time.monotonic() - started
        cost = Cost(
            requests=sum(host.traffic.requests for host in self.lab.hosts),
            bytes=sum(host.traffic.bytes_in + host.traffic.bytes_out for host in self.lab.hosts),
            seconds=seconds,
            client_cpu=_cpu(resource.RUSAGE_CHILDREN) - client,
            lab_cpu=_cpu(resource.RUSAGE_SELF) - lab,
        )
        said = {name: int(count) > 0 for name, count in RECAP.findall(done.stdout)}
        if done.returncode != 0 or said != dict.fromkeys((host.name for host in self.lab.hosts), changed):
            raise Unexpected(f"{playbook} did not run as it should:\n{(done.stdout + done.stderr)[-3000:]}")
        return cost

    def expect(self, *answers: dict[str, object]) -> None:
        """Prepare what PowerShell is to print on each host in the next run."""
        printed = [json.dumps(answer).encode() + b"\r\n" for answer in ((FACTS,) if self.facts else ()) + answers]
        for host in self.lab.hosts:
            host.shells.expect(*printed)

    def all_answers_taken(self) -> None:
        """Check that the peer has run as many modules as we thought."""
        if left := sum(host.shells.unused for host in self.lab.hosts):
            raise Unexpected(f"the peer did not run {left} modules that it was to run")

    def process_ids(self) -> list[int]:
        """The services' process identifiers: others afterwards mean restarts."""
        return [host.backend.service_status(SMTPSVC).process_id for host in self.lab.hosts]

    def tarpits(self) -> set[object]:
        """The values of TarpitTime that hosts have."""
        return {
            host.backend.read_value(HKEY_LOCAL_MACHINE, SMTPSVC_PARAMETERS, "TarpitTime").data
            for host in self.lab.hosts
        }


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def measure_ours(fleet: Fleet) -> tuple[Cost, Cost]:
    """The module, twice; the hosts' own registry and services must show what it did."""
    found = fleet.process_ids()
    _say("win_smtp_tarpit, run 1")
    first = fleet.play("ours.yml", changed=True)
    left = fleet.process_ids()
    if fleet.tarpits() != {TARPIT_SECONDS} or any(a == b for a, b in zip(found, left, strict=True)):
        raise Unexpected("win_smtp_tarpit said that it changed all hosts, and did not")
    _say("win_smtp_tarpit, run 2")
    second = fleet.play("ours.yml", changed=False)
    if fleet.process_ids() != left:
        raise Unexpected("win_smtp_tarpit said that it changed nothing, and restarted services")
    return first, second


def measure_peer(fleet: Fleet) -> tuple[Cost, Cost]:
    """The peer, twice, on a Windows that says what it is told to."""
    _say("win_regedit and win_service, run 1")
    fleet.expect(REGEDIT, SERVICE)
    first = fleet.play("peer.yml", changed=True)
    fleet.all_answers_taken()
    _say("win_regedit and win_service, run 2")
    fleet.expect(REGEDIT | {"changed": False}, SERVICE | {"changed": False})
    second = fleet.play("peer.yml", changed=False)
    fleet.all_answers_taken()
    return first, second


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fleet.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--hosts", type=_count, default=100, metavar="N", help="lab hosts (default: 100)")
    add("--forks", type=_count, default=20, metavar="N", help="hosts that Ansible works on at once (default: 20)")
    add("--facts", action="store_true", help="the peer gathers facts, as plays do that say nothing of it")
    add("--least-bytes", type=float, default=10, metavar="X", help="times fewer bytes than the peer (default: 10)")
    add(
        "--least-requests",
        type=float,
        default=3,
        metavar="X",
        help="times fewer requests where nothing changes (default: 3)",
    )
    add("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _measure(options: argparse.Namespace) -> list[Comparison]:
    with (
        tempfile.TemporaryDirectory(prefix="tarpit-bench-") as name,
        Lab.start(backend="memory", hosts=options.hosts, users={"bench": secrets.token_urlsafe(24)}) as lab,
    ):
        fleet = Fleet(lab, Path(name), forks=options.forks, facts=options.facts)
        ours, peer = measure_ours(fleet), measure_peer(fleet)
    names = ("run 1: TarpitTime changes, the service restarts", "run 2: there is nothing to change")
    return [Comparison(*run) for run in zip(names, ours, peer, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, judge."""
    options = _parse(arguments)
    if importlib.util.find_spec("ansible_collections.ansible.windows") is None:
        print("bench: this Python has no ansible.windows; `make bench` takes one that has", file=sys.stderr)
        return 2
    _say(f"{options.hosts} lab hosts")
    try:
        comparisons = _measure(options)
    except (Unexpected, OSError, subprocess.TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    targets = Targets(requests=options.least_requests, bytes=options.least_bytes)
    change, everyday = comparisons
    # Most runs of a fleet change nothing: their requests are judged. A change is mostly the restart itself, step by
    # step and with a record of each, which the peer does in one upload: its requests are printed only.
    missed = [*change.shortfalls(Targets(requests=0, bytes=targets.bytes)), *everyday.shortfalls(targets)]
    setting = {
        "hosts": options.hosts,
        "forks": options.forks,
        "peer_gathers_facts": options.facts,
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in ("ansible-core", "pywinrm")},
    }
    if options.json:
        print(json.dumps(setting | {"runs": as_json(comparisons), "note": NOTE, "missed": missed}, indent=2))
    else:
        versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
        facts = "the peer gathers facts" if options.facts else "nobody gathers facts"
        print(f"{options.hosts} lab hosts, {options.forks} forks, {setting['cores']} cores, {versions}")
        print(f"HTTP, NTLM with message encryption; {facts}\n")
        for comparison in comparisons:
            print(f"{table(comparison, options.hosts, WAYS)}\n")
        print(NOTE)
    for sentence in missed:
        print(f"bench: target missed: {sentence}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
