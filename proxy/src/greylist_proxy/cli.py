# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: arguments in, an exit status out (`EPILOG` lists them)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from greylist_proxy import __version__
from greylist_proxy.admin.access import read_token
from greylist_proxy.app import run
from greylist_proxy.commands import (
    DONE,
    NO,
    WRONG,
    decisions,
    entries,
    explain,
    export,
    import_,
    learn,
    reporting,
    stats,
    triplets,
)
from greylist_proxy.commands.arguments import add_command
from greylist_proxy.commands.output import complain
from greylist_proxy.config import Config, ConfigError, advice, load
from greylist_proxy.exemptions import Exemptions
from greylist_proxy.lists import ListError
from greylist_proxy.log import Log
from greylist_proxy.services import read_files
from greylist_proxy.smtp.listener import ListenError
from greylist_proxy.store.factory import make_store

DESCRIPTION = """\
A greylisting SMTP proxy. It stands in front of a mail server, asks senders that it does not know to come back
after a while, and passes everything else on. It never holds a message: a client hears "250" only after the mail
server has said it.
"""
EPILOG = """\
exit status:
  0  done
  1  the answer is no, or something is missing (an address can't be listened on)
  2  wrong usage or configuration
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    _open_streams()
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(load(options.config), options)
    except ConfigError as error:
        for line in error.lines:
            complain(line)
        return WRONG
    return status


def _open_streams() -> None:
    """Open what the caller has closed (`>&-`), so that nobody has to ask, and no other file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - until the end


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="greylist-proxy",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_command(
        commands, "serve", "run the proxy until SIGTERM; the log goes to stderr, one JSON object a line", _serve
    )
    add_command(
        commands,
        "check-config",
        "check the configuration file and the lists that it names, and say everything that is wrong with them",
        reporting(_check_config),
    )
    for command in (explain, triplets, decisions, entries, stats, export, import_, learn):
        command.add_parser(commands)
    return parser


def _serve(config: Config, options: argparse.Namespace) -> int:
    try:
        return run(config, lambda: load(options.config))
    except ListenError as error:
        complain(str(error))
        return NO


async def _check_config(config: Config, options: argparse.Namespace) -> int:
    try:
        # The files that it names belong to it: with one that can't be read the server does not start.
        warnings = Exemptions(config.allow, config.trap, None).warnings
        read_files(config)
        read_token(config)
        make_store(config.store, config.greylist.rules, Log())  # which opens nothing yet
    except ListError as error:
        for line in error.lines:
            complain(line)
        return WRONG
    for sentence in [*advice(config), *warnings]:
        complain(f"{options.config}: warning: {sentence}")
    print(f"{options.config}: ok")
    return DONE
