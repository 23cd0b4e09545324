# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dialogues of tests/dialogues with the real program, each as it is written and in small pieces."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .dialogue_client import Conversation, Stream
from .dialogue_servers import Programs, certificate, program_key
from .dialogues import FOLDER, Dialogue, DialogueError, load_all, parse, reply_pattern, shown, wire
from .peers import ScriptedPeer, closing
from .postfix_server import PostfixServer

README = (FOLDER / "README.md").read_text(encoding="utf-8")
DIALOGUES = sorted(load_all(), key=program_key)  # so that those with the same settings share a process


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """The program, with any settings."""
    with closing(Programs(lambda: tmp_path_factory.mktemp("program"))) as made:
        yield made


RUNS = [
    pytest.param(dialogue, pieces, id=f"{dialogue.name}-{'pieces' if pieces else 'whole'}")
    for dialogue in DIALOGUES
    for pieces in ([False] if dialogue.whole else [False, True])
]


@pytest.mark.parametrize(("dialogue", "pieces"), RUNS)
def test_dialogue(programs: Programs, dialogue: Dialogue, pieces: bool) -> None:
    program = programs.ready_for(dialogue)
    Conversation(dialogue, program, pieces=pieces).run()
    assert program.errors() == []


# -- against other servers --

COMMAND = Path(__file__).parents[2] / "dev/dialogues.py"


def compared(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(COMMAND), "--brief", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_there_are_many_and_each_says_what_it_shows() -> None:
    assert len(DIALOGUES) >= 100
    assert len({dialogue.summary for dialogue in DIALOGUES}) == len(DIALOGUES)
    assert sum(not dialogue.only for dialogue in DIALOGUES) >= 60


def test_another_server_that_differs(scripted: Callable[..., ScriptedPeer]) -> None:
    """This one takes mail for anybody, and does not know RSET."""
    peer = scripted({"RSET": b"500 what?\r\n"})
    names = ("greeting/banner", "addresses/relay-denied", "commands/rset")
    result = compared("--server", f"127.0.0.1:{peer.port}", *names)
    assert result.stdout.splitlines() == [
        "addresses/relay-denied.txt:10: expected 'S: 5xx', got '250 recipient ok'",
        "commands/rset.txt:6: expected 'S: 250', got '500 what?'",
        "3 dialogues, 2 differ",
    ]
    assert result.returncode == 1


def test_another_servers_own_addresses(scripted: Callable[..., ScriptedPeer]) -> None:
    peer = scripted()
    mapping = ["--map", "here.test=example.org", "--map", "user@here.test=ann@example.org"]
    result = compared("--server", f"127.0.0.1:{peer.port}", *mapping, "data/dots", "dsn")
    assert result.stdout == "1 dialogues, 0 differ, 6 left out\n"  # it does not offer DSN
    assert result.returncode == 0
    assert b"RCPT TO:<ann@example.org>\r\n" in peer.lines


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nonsense"], "no dialogue or folder nonsense"),
        (["--server", "127.0.0.1:1"], "Connection refused"),
        (["--server", "127.0.0.1:25", "--map", "a"], "not OLD=NEW: a"),
        (["--starttls"], "--starttls and --map are for another server"),
    ],
)
def test_wrong_usage(words: list[str], problem: str) -> None:
    result = compared(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert problem in result.stderr


def test_where_postfix_differs_is_in_the_readme(start_postfix: Callable[..., PostfixServer], tmp_path: Path) -> None:
    made, key = certificate(tmp_path)
    users = ", ".join(f"{name}@here.test=OK" for name in ("user", "other", "postmaster"))
    postfix = start_postfix(
        relay_recipient_maps=f"inline:{{{users}}}",
        mydestination="postfix.test",
        local_transport="discard",
        smtpd_tls_security_level="may",
        smtpd_tls_cert_file=str(made),
        smtpd_tls_key_file=str(key),
    )
    result = compared("--server", f"127.0.0.1:{postfix.port}")
    explained = re.findall(r"(?<=[ ,])[a-z0-9-]+/[a-z0-9-]+(?=[, ][^|]*\|)", README.partition("## Where Postfix")[2])
    differing = re.findall(r"^([a-z0-9/-]+)\.txt:", result.stdout, re.MULTILINE)
    assert result.returncode == 1, result.stderr
    assert len(differing) > 5
    # A newer Postfix may differ less.
    assert set(differing) <= set(explained), result.stdout
    if postfix.version().startswith("3.7."):
        assert set(differing) == set(explained)


# -- the format --


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("RFC: 5321\n\nS: 220\n", "x.txt: no summary (a line that begins with #)"),
        ("# x\n\nS: 220\n", "x.txt: no RFC, and not about this program only"),
        ("# x\nRFC: 5321\n\nC: NOOP\n", "x.txt: nothing is expected"),
        ("# x\nRFC: 5321\nonly: postfix\n\nS: 220\n", "x.txt:3: not a header line: only: postfix"),
        ("# x\nRFC: 5321\nS: 220\n", "x.txt:3: not a header line: S: 220"),
        ("# x\nRFC: 5321\n\nS 220\n", "x.txt:4: not a step: S 220"),
        ("# x\nRFC: 5321\n\nS: 2X0\n", "x.txt:4: not a reply code: 2X0"),
        ("# x\nRFC: 5321\n\nS: 220\nC: \\q\n", "x.txt:5: unknown escape \\q"),
        ("# x\nRFC: 5321\n\nS: 220\nstop\n", "x.txt:5: stop needs a header `only: greylist-proxy`"),
        ("# x\nRFC: 5321\n\nafter a while\nS: 220\n", "x.txt:4: after what? Such as `after 1s`"),
        ("# x\nRFC: 5321\n\n2 times\n    S: 220\n", "x.txt:2: `times` without an `end`"),
        ("# x\nRFC: 5321\nwith: [smtp] max_hops = many\n\nS: 220\n", "x.txt:3: Invalid value"),
    ],
)
def test_what_is_no_dialogue(text: str, problem: str) -> None:
    with pytest.raises(DialogueError, match="^" + re.escape(problem)):
        parse("x", text)


def test_escapes() -> None:
    assert wire(r"a\r\n\t\0\\\x41\xffü{x*3}{n}") == b"a\r\n\t\0\\A\xff\xc3\xbcxxx{n}"
    assert shown(b"a\\\r\n\0\xff\xc3\xbc") == "a\\\\\\r\\n\\x00\\xffü"


@pytest.mark.parametrize(
    ("pattern", "reply", "matches"),
    [
        ("250", b"250 anything", True),
        ("250", b"251 anything", False),
        ("5xx", b"554", True),
        ("4xx|5xx", b"450 4.7.1 wait", True),
        ("550 5.7.x ...", b"550 5.7.12 no", True),
        ("550 5.7.x ...", b"550 5.1.1 no", False),
        ("250 ok", b"250 ok then", False),
        ("450 4.7.1 wait ({word})", b"450 4.7.1 wait (a b)", False),
        ("250 mx.test", b"250 mxatest", False),
    ],
)
def test_what_a_reply_must_be(pattern: str, reply: bytes, matches: bool) -> None:
    assert bool(reply_pattern(pattern).fullmatch(reply)) is matches


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (b"250 ok\r\n", ""),
        (b"250-ok\r\n250 ok\r\n", ""),
        (b"250-ok\r\n251 ok\r\n", "a reply with two codes: 250-ok and 251 ok"),
        (b"250 ok\n", "a line that does not end in CRLF: 250 ok\\n"),
        (b"hello\r\n", "no reply: hello\\r\\n"),
        (b"250 5.1.1 no\r\n", "an enhanced status code of another class: 250 5.1.1 no\\r\\n"),
        (b"250-ok\r\n", "the end of the connection"),
    ],
)
def test_what_every_reply_must_obey(said: bytes, wrong: str) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        stream = Stream(ours, 5)
        assert stream.reply()[1] == wrong
        stream.close()
