# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that look into the store or change it, and what they have in common.

A module has one command: `add_parser` describes it, and each of its actions is a coroutine that gets the
configuration, the opened store and the options, and returns an exit status. `on_store` makes of such a coroutine
what `cli.main` calls.

The store is opened directly, whether or not a server runs on it: each call of a store is atomic between processes. Only
entries are a server's business where one runs (`running.py`), and it hears within a second of those that are changed
without it. What asks only to look never makes a store: a misspelt path would
be answered with "nothing there", and the file would belong to whoever asked, not to the server's user.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum
from pathlib import Path
from typing import Any

from greylist_proxy.commands.output import complain
from greylist_proxy.commands.running import find_server
from greylist_proxy.config import Config, ConfigError
from greylist_proxy.config_values import FileAddress
from greylist_proxy.lists.operator import Keeper
from greylist_proxy.log import Log
from greylist_proxy.store import Store, StoreError
from greylist_proxy.store.factory import make_store

DONE, NO, WRONG = 0, 1, 2
INTERRUPTED = 130  # what a shell says of a program that SIGINT ended

Action = Callable[[Config, Store, argparse.Namespace], Awaitable[int]]
EntryAction = Callable[[Config, Keeper, argparse.Namespace], Awaitable[int]]
Run = Callable[[Config, argparse.Namespace], int]


class Missing(Enum):
    """What a command does where the store's file is not there."""

    REFUSE = "refuse"  # it was to be looked at, or changed: the path may be wrong
    CREATE = "create"
    EMPTY = "empty"  # an empty one serves as well, for this command only


class WrongUsage(Exception):
    """Arguments that can't be meant; the text is a sentence that says why."""


def on_store(action: Action, *, missing: Missing = Missing.REFUSE) -> Run:
    """Return a function that opens the store, runs the action, and returns the exit status, whatever happens.

    `missing` says what becomes of a SQLite file that is not there; a dry run makes none. WrongUsage and ConfigError (a
    password that can't be read) end with 2, StoreError and an output that can't be written with 1. A reader that went
    away (`| head`) has had enough: that is no failure.
    """

    return reporting(lambda config, options: _with_store(action, config, options, missing))


def on_entries(action: EntryAction, *, missing: Missing = Missing.REFUSE) -> Run:
    """Return a function that does the same, but has a server that runs with this configuration do it, if there is one.

    So an entry counts at once, and those who may use the control socket need no access to the store.
    """

    async def run(config: Config, options: argparse.Namespace) -> int:
        server = await find_server(config)
        if server is not None:
            return await action(config, server, options)
        return await _with_store(action, config, options, missing)

    return reporting(run)


def reporting(work: Callable[[Config, argparse.Namespace], Coroutine[Any, Any, int]]) -> Run:
    """Return a function that runs a coroutine without a store, and makes a status and a sentence of what goes wrong."""

    def run(config: Config, options: argparse.Namespace) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal that knows no UTF-8 gets escapes instead of a traceback.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            status = asyncio.run(work(config, options))
            sys.stdout.flush()
        except WrongUsage as error:
            complain(str(error))
            return WRONG
        except ConfigError as error:
            for line in error.lines:
                complain(line)
            return WRONG
        except StoreError as error:
            complain(str(error))
            return NO
        except BrokenPipeError:
            _drop_output()
            return DONE
        except KeyboardInterrupt:
            return INTERRUPTED
        except OSError as error:
            # Stores turn theirs into StoreError, so this is the output.
            complain(f"the output can't be written: {error.strerror}")
            _drop_output()
            return NO
        return status

    return run


async def _with_store(action: Action, config: Config, options: argparse.Namespace, missing: Missing) -> int:
    with contextlib.ExitStack() as stack:
        section = config.store
        if missing is Missing.CREATE and getattr(options, "dry_run", False):
            missing = Missing.EMPTY
        if isinstance(section.url, FileAddress) and missing is not Missing.CREATE and not _exists(section.url):
            if missing is Missing.REFUSE:
                raise StoreError(f"{section.url}: there is no such file (`greylist-proxy serve` makes it)")
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="greylist-proxy-"))
            section = section.model_copy(update={"url": FileAddress(Path(folder) / "empty.db")})
        store = make_store(section, config.greylist.rules, Log())
        try:
            status = await action(config, store, options)
            await store.flush()
        finally:
            await store.close()
        return status


def _exists(url: FileAddress) -> bool:
    try:
        url.path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"{url}: {error.strerror}") from error
    return True


def _drop_output() -> None:
    """Let what is still to be written go nowhere, so that the interpreter's last flush does not complain."""
    try:
        target = sys.stdout.fileno()
    except OSError:  # not a file: nothing is flushed at exit
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, target)
    os.close(nowhere)
