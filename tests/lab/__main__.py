# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab as a program, for demos, playbooks and molecule: `python -m lab --help`.

It says in a JSON file where its hosts are, once all of them answer, and runs until it is told to end.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import select
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lab.backend import Win32Error
from lab.hosts import BACKENDS, Lab, LabHost
from lab.machine import DEFAULT_SYSTEM, SYSTEMS

DESCRIPTION = """\
Start lab Windows hosts: WinRM (Basic, NTLM, certificates) on loopback in front of a registry and an SMTP service.

The program runs until SIGTERM, SIGINT or, with --until-stdin-closes, until its standard input ends.
Then it ends every host and removes the state file."""

STATE_FILE = """\
The state file appears once all hosts answer, whole, and looks like this:

  {"pid": 4711, "backend": "memory", "hosts": [
    {"name": "lab1", "backend": "memory", "pid": 4711, "winrm_address": "127.0.0.1",
     "winrm_port": 40123, "winrm_scheme": "http", "ca_file": null,
     "smtp_address": "127.0.0.1", "smtp_port": 23456, "exchange": null}]}

smtp_port is null with --no-smtpsvc. ca_file is the authority's certificate with --https, else null. With
--exchange EX01,EX02 a host's exchange is {"path": "/PowerShell/", "servers": ["EX01", "EX02"],
"server": "EX01", "smtp_port": 23457}: all servers of the organisation, and the one that this host is.
The lab speaks to loopback only.

example:
  LAB_PASSWORD=secret python -m lab --user lab --password-env LAB_PASSWORD --state-file lab.json"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the lab; the exit status is 0 after an ordinary end, 1 where a host did not start, 2 for usage."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    signals = _signal_pipe()
    # Before anything is started: a state file of an earlier run would send its readers astray.
    options.state_file.unlink(missing_ok=True)
    try:
        lab = Lab.start(
            backend=options.backend,
            hosts=options.hosts,
            users={options.user: options.password},
            smtpsvc=options.smtpsvc,
            dependents=options.dependents,
            system=options.system,
            allow_unencrypted=options.allow_unencrypted,
            https=options.https,
            exchange=options.exchange,
        )
    except (OSError, ValueError, Win32Error) as error:
        print(f"lab: cannot start: {error}", file=sys.stderr)
        return 1
    with lab:
        try:
            _write_state(options.state_file, lab, options.backend)
            _wait_for_the_end(signals, until_stdin_closes=options.until_stdin_closes)
        finally:
            options.state_file.unlink(missing_ok=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab",
        description=DESCRIPTION,
        epilog=STATE_FILE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--backend", choices=BACKENDS, default="memory", help="what stands behind WinRM (default: memory)")
    add(
        "--hosts",
        type=_count,
        default=1,
        metavar="N",
        help="number of hosts, each on its own port (default: 1)",
    )
    add("--no-smtpsvc", dest="smtpsvc", action="store_false", help="hosts on which SMTPSVC is not installed")
    add(
        "--dependents",
        type=_number,
        default=0,
        metavar="N",
        help="services that run and depend on SMTPSVC: LabDependent1, ... (default: none)",
    )
    add("--system", choices=SYSTEMS, default=DEFAULT_SYSTEM, help="the Windows Server that the hosts say they are")
    add("--https", action="store_true", help="HTTPS, with certificates of an authority made for this lab")
    add(
        "--exchange",
        type=_names,
        metavar="NAME[,NAME]",
        help="servers of an Exchange organisation; the first host is the first of them (default: no Exchange)",
    )
    add("--user", required=True, metavar="NAME", help="the account that may log in")
    add("--password-env", required=True, metavar="VAR", help="environment variable that holds its password")
    add("--state-file", required=True, type=Path, metavar="FILE", help="where to write the addresses, as JSON")
    add(
        "--allow-unencrypted",
        action="store_true",
        help="take unencrypted messages over NTLM too, as Windows with AllowUnencrypted (Basic: always)",
    )
    add("--until-stdin-closes", action="store_true", help="end when the standard input does: with the caller")
    options = parser.parse_args(arguments)
    # Taken out of the environment, so that no program that the lab starts inherits it.
    options.password = os.environ.pop(options.password_env, "")
    if not options.password:
        parser.error(f"the environment variable {options.password_env} is not set or is empty")
    return options


def _count(text: str) -> int:
    number = _number(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 1000:
        raise argparse.ArgumentTypeError("must be from 0 to 1000")
    return number


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(re.fullmatch("[A-Za-z0-9-]{1,15}", name) for name in names):
        raise argparse.ArgumentTypeError("must be names of computers with commas between them")
    return names


def _write_state(path: Path, lab: Lab, backend: str) -> None:
    hosts = [
        {
            "name": host.name,
            "backend": host.backend_name,
            "pid": os.getpid(),
            "winrm_address": host.address,
            "winrm_port": host.winrm_port,
            "winrm_scheme": host.scheme,
            "ca_file": str(lab.ca_file) if lab.ca_file else None,
            "smtp_address": host.address,
            "smtp_port": host.smtp_port,
            "exchange": _exchange_of(host),
        }
        for host in lab.hosts
    ]
    state = {"pid": os.getpid(), "backend": backend, "hosts": hosts}
    # In the same folder, so that the rename is one step and a reader finds all of it or nothing.
    descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(state, file, indent=2)
            file.write("\n")
        Path(fresh).replace(path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def _exchange_of(host: LabHost) -> dict[str, object] | None:
    if host.exchange is None:
        return None
    servers, server = list(host.exchange.servers), host.exchange.server
    return {"path": "/PowerShell/", "servers": servers, "server": server, "smtp_port": host.exchange.smtp_port}


def _signal_pipe() -> int:
    """From now on SIGTERM and SIGINT make this descriptor readable.

    A pipe, not a threading.Event: a handler runs in the main thread between any two instructions, also
    while that thread holds the event's lock, and would wait for it for ever.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        # The wake-up descriptor tells; the handler only keeps the signal from ending the process.
        signal.signal(number, lambda *_: None)
    return reading


def _wait_for_the_end(signals: int, *, until_stdin_closes: bool) -> None:
    watched = [signals, 0] if until_stdin_closes else [signals]
    while True:
        ready, _ignored, _ignored = select.select(watched, [], [])
        if signals in ready or not os.read(0, 4096):
            return


if __name__ == "__main__":
    sys.exit(main())
