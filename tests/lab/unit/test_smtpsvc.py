# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from lab.smtpsvc import MAX_MESSAGE, Conversation

# What the client says and how each reply begins; MESSAGE lines after 354 have a reply only at the dot.
DIALOGUES = {
    "a message for a local domain": [
        ("EHLO a.test", "250-lab Hello"),
        ("MAIL FROM:<a@b.test> SIZE=10", "250 2.1.0"),
        ("RCPT TO:<x@LAB.test>", "250 2.1.5 x@LAB.test"),
        ("DATA", "354"),
        ("QUIT", None),
        ("..", None),
        (".", "250 2.6.0"),
        ("QUIT", "221"),
    ],
    "no relay": [
        ("HELO a.test", "250 lab Hello"),
        ("mail from:<>", "250 2.1.0"),
        ("rcpt to:<x@elsewhere.test>", "550 5.7.1 Unable to relay for x@elsewhere.test"),
        ("RCPT TO:<x@sub.lab.test>", "550 5.7.1"),
        ("RCPT TO:<postmaster>", "550 5.7.1"),
        ("DATA", "503 5.5.2 Need Rcpt"),
    ],
    "commands out of order": [
        ("MAIL FROM:<a@b.test>", "503 5.5.2"),
        ("HELO", "501"),
        ("HELO a.test", "250"),
        ("RCPT TO:<x@lab.test>", "503 5.5.2"),
        ("DATA", "503"),
        ("MAIL FROM:<a@b.test>", "250"),
        ("MAIL FROM:<a@b.test>", "503"),
        ("RSET", "250"),
        ("MAIL FROM:<a@b.test>", "250"),
    ],
    "commands that are none": [
        ("", "500 5.3.3"),
        ("STARTTLS", "500 5.3.3"),
        ("NOOP", "250"),
        ("VRFY x", "252"),
        ("HELO a", "250"),
        ("MAIL a@b.test", "501 5.5.4"),
        ("MAIL FROM:a@b.test", "501 5.5.4"),
        ("MAIL FROM:<a@b.test>", "250"),
        ("RCPT TO:<>", "501 5.5.4"),
        ("RCPT FROM:<x@lab.test>", "501 5.5.4"),
    ],
}


@pytest.mark.parametrize("dialogue", DIALOGUES.values(), ids=DIALOGUES)
def test_dialogues(dialogue: list[tuple[str, str | None]]) -> None:
    conversation = Conversation()
    for line, expected in dialogue:
        reply = conversation.message_line(line) if conversation.in_message else conversation.reply(line)
        if expected is None:
            assert reply is None, line
        else:
            assert reply is not None, line
            assert reply.startswith(expected), f"{line}: {reply}"


def test_every_line_of_a_long_reply_has_the_code() -> None:
    lines = Conversation().reply("EHLO a.test").split("\r\n")
    assert [line[:4] for line in lines] == ["250-"] * (len(lines) - 1) + ["250 "]


def test_a_message_that_is_too_large_is_refused_at_its_end() -> None:
    conversation = Conversation()
    for line in ("HELO a", "MAIL FROM:<>", "RCPT TO:<x@lab.test>", "DATA"):
        conversation.reply(line)
    for _n in range(MAX_MESSAGE // 1000):
        assert conversation.message_line("x" * 998) is None
    conversation.message_line("x" * 998)
    assert (conversation.message_line(".") or "").startswith("552 5.3.4")
