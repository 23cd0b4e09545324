# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments in, a line of JSON out; for a dry run of `apply` also what is wanted, as JSON, from standard input."""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
from pathlib import Path
from typing import Any

from greylist_proxy import deploy
from greylist_proxy.deploy.deployer import Deployer
from greylist_proxy.deploy.host import Failure, Places
from greylist_proxy.deploy.plan import Deployment, Step

FORETOLD = {
    Step.NOTHING: "the service would stay as it is",
    Step.START: "the service would be started",
    Step.RELOAD: "the service would read its configuration again",
    Step.HAND_OVER: "another process would take over from the one that runs, and no connection be refused",
    Step.REPLACE: "the service would be started anew, as its sockets change or one is closed: for a moment connections "
    "are refused",
}
LOCK = Path("/run/greylist-proxy-deploy.lock")


def main() -> int:
    """Read the arguments, do it, print what was done."""
    parser = argparse.ArgumentParser(
        prog="greylist_proxy.deploy", description=deploy.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say what would be done")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("apply")
    commands.add_parser("renew")
    commands.add_parser("rollback").add_argument("name", nargs="?", default="")
    commands.add_parser("mode").add_argument("mode", choices=["enforce", "observe", "off"])
    options = parser.parse_args()
    if options.check and options.command == "renew":
        parser.error("--check: what is renewed depends on files that change meanwhile")
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a certificate may be renewed at this moment
        deployer = Deployer(Places(), check=options.check)
        try:
            if options.check and options.command == "apply":
                done = _foresee(deployer, json.load(sys.stdin))
            else:
                given = [getattr(options, name) for name in ("name", "mode") if hasattr(options, name)]
                done = getattr(deployer, options.command)(*given)
        except (Failure, ValueError, OSError) as error:
            print(json.dumps({"failed": True, "changed": False, "msg": str(error)}))
            return 1
        foretold = {"msg": FORETOLD[done]} if options.check else {}
        told = {"changed": done is not Step.NOTHING, "step": done.value, "release": deployer.release(), **foretold}
        print(json.dumps(told))
    return 0


def _foresee(deployer: Deployer, given: dict[str, Any]) -> Step:
    wanted = Deployment.parse(given["config"], given["units"])
    return deployer.foresee(wanted, has_new_credentials=given["has_new_credentials"])


if __name__ == "__main__":
    sys.exit(main())
