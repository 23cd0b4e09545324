# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make dialogues`: hold the SMTP conversations of tests/dialogues with any server, and say where it differs.

With a server's address only those run that are about SMTP in general, and that the server offers what is needed for.
They send mail to the recipients that --map names: take a server that may have it. Without an address this program is
started, and all of them run.

Exit status: 0 nothing differs, 1 something does, 2 wrong usage, or a server that can't be talked to.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "proxy"))

from tests.dialogue_client import Conversation, Difference, Server  # noqa: E402
from tests.dialogue_servers import Elsewhere, Programs, program_key  # noqa: E402

from tests.dialogues import Dialogue, DialogueError, load_all  # noqa: E402

EXAMPLE = "--map user@here.test=ann@example.org --map other@here.test=bob@example.org --map here.test=example.org"


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="dialogues.py", description=(__doc__ or "").partition(": ")[2].split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a dialogue (data/dots) or a folder (data); none: all")
    parser.add_argument("--server", metavar="HOST:PORT", help="another server; none: this program is started")
    parser.add_argument("--starttls", action="store_true", help="hold them under TLS")
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help=f"an address or domain of the dialogues, and the server's own for it: {EXAMPLE}",
    )
    parser.add_argument("--pieces", action="store_true", help="send everything in small pieces")
    parser.add_argument("--timeout", type=float, default=20.0, metavar="SECONDS", help="for any reply (default: 20)")
    parser.add_argument("--brief", action="store_true", help="do not show the conversations")
    given = parser.parse_args()
    if not given.server and (given.starttls or given.map):
        parser.error("--starttls and --map are for another server: --server HOST:PORT")
    if wrong := [each for each in given.map if not all(each.partition("="))]:
        parser.error(f"not OLD=NEW: {wrong[0]}")
    return given


def chosen(names: list[str]) -> list[Dialogue]:
    """Return the dialogues of these names and folders. DialogueError: there is none of such a name."""
    dialogues = load_all()
    for name in names:
        if not any(name in (each.name, each.name.partition("/")[0]) for each in dialogues):
            raise DialogueError(f"no dialogue or folder {name}")
    return [each for each in dialogues if not names or {each.name, each.name.partition("/")[0]} & set(names)]


@contextlib.contextmanager
def started() -> Iterator[Callable[[Dialogue], Server]]:
    """Start this program as each dialogue wants it."""
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(lambda: Path(tempfile.mkdtemp(dir=folder)))
        try:
            yield programs.ready_for
        finally:
            programs.close()


def compare(
    dialogues: list[Dialogue], server_for: Callable[[Dialogue], Server], *, pieces: bool, brief: bool
) -> list[Dialogue]:
    """Hold them all; print and return those in which the server differs."""
    different = []
    for dialogue in dialogues:
        try:
            Conversation(dialogue, server_for(dialogue), pieces=pieces and not dialogue.whole).run()
        except Difference as difference:
            different.append(dialogue)
            print(difference.line if brief else f"{difference}\n", flush=True)
    return different


def main() -> int:
    """Run."""
    given = arguments()
    try:
        dialogues = chosen(given.names)
        if given.server:
            host, _ignored, port = given.server.rpartition(":")
            server = Elsewhere(
                host.strip("[]") or "127.0.0.1",
                int(port),
                mapping=dict(each.split("=", 1) for each in given.map),
                starttls=given.starttls,
                timeout=given.timeout,
            )
            offers = server.offers()
            held = [each for each in dialogues if not each.only and offers.issuperset(each.needs)]
            different = compare(held, lambda _ignored: server, pieces=given.pieces, brief=given.brief)
        else:
            held = sorted(dialogues, key=program_key)
            with started() as ready_for:
                different = compare(held, ready_for, pieces=given.pieces, brief=given.brief)
    except (DialogueError, OSError, ValueError) as error:
        print(f"dialogues.py: {error}", file=sys.stderr)
        return 2
    left_out = len(dialogues) - len(held)
    print(f"{len(held)} dialogues, {len(different)} differ" + (f", {left_out} left out" if left_out else ""))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
