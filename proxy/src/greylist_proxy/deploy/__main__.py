# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments in, a line of JSON out."""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
from pathlib import Path

from greylist_proxy import deploy
from greylist_proxy.deploy.deployer import Deployer
from greylist_proxy.deploy.host import Failure, Places
from greylist_proxy.deploy.plan import Step

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
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a certificate may be renewed at this moment
        deployer = Deployer(Places(), check=options.check)
        given = [getattr(options, name) for name in ("name", "mode") if hasattr(options, name)]
        try:
            done = getattr(deployer, options.command)(*given)
        except (Failure, ValueError, OSError) as error:
            print(json.dumps({"failed": True, "changed": False, "msg": str(error)}))
            return 1
        print(json.dumps({"changed": done is not Step.NOTHING, "step": done.value, "release": deployer.release()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
