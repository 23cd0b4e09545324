# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Smuggling: a message in which there is something like an end of data, and a second message after it.

What two servers in a row read differently lets a sender put a message into the second one's hands that the first
has never judged. Here every look-alike that was published, and all others of the same pattern, goes through the
program to servers that are careful and careless: one message goes in, and one comes out, or none.
"""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Callable

import pytest

from .lenient_server import LINE_ENDS, LenientServer
from .peers import Proxy, Sink, Wire, closing, wait_until
from .postfix_server import PostfixServer

# Line ends that somebody somewhere takes for one, around a dot; without the true one.
ENDS = (b"\n", b"\r", b"\r\n", b"\r\r\n", b"\n\r", b"\n\n", b"\r\n\r", b"\r\n\n", b"\n\r\n")
TRUE_END = re.compile(rb"\r\n\.\r\n")
LOOK_ALIKES = [
    *(
        look_alike
        for before, after in itertools.product(ENDS, ENDS)
        if not TRUE_END.search(look_alike := before + b"." + after)
    ),
    # With something that a server may drop, or take for an end of line.
    b"\r\n\x00.\r\n",
    b"\r\n.\x00\r\n",
    b"\r\n\x00.\x00\r\n",
    b"\n\x00.\n",
    b"\r\x00.\r",
    b"\r\n. \r\n",
    b"\r\n.\t\r\n",
    b"\r\n .\r\n",
    b"\r\n..\r\n",
    b"\r\n\x1a.\r\n",
    b"\r\n.\x1a\r\n",
    b"\x0b.\x0b",
    b"\x0c.\x0c",
    b"\x85.\x85",
    b"\xe2\x80\xa8.\xe2\x80\xa8",
    b"\r\n\xe2\x80\x8b.\r\n",
    b"\r\n\xef\xbc\x8e\r\n",  # a full-width dot
]
PUBLISHED = (
    *(b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r.\r\n", b"\r.\n", b"\r\n.\n", b"\r\n.\r", b"\n.\r", b"\n\n.\r\n"),
    *(b"\r\n\x00.\r\n", b"\r\n.\x00\r\n", b"\r\n\r.\r\n", b"\r\n.\r\r\n", b"\r\r\n.\r\r\n"),
)
SMUGGLED = (
    b"MAIL FROM:<evil@away.test>\r\nRCPT TO:<victim@here.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nsmuggled text\r\n"
)
BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def send(proxy: Proxy, look_alike: bytes) -> bytes:
    """Send one message with a look-alike and what would follow it; return the one reply, and see that it is one."""
    before = b"Subject: outer\r\n\r\nouter text"
    with Wire(proxy.port) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.hello()
        for line in (b"MAIL FROM:<a@far.test>", b"RCPT TO:<u@here.test>"):
            assert client.ask(line).startswith(b"250 ")
        assert client.ask(b"DATA").startswith(b"354 ")
        client.send(before)
        for index in range(len(look_alike)):  # in pieces, so that they may lie on both sides of a read
            client.send(look_alike[index : index + 1])
        client.send(SMUGGLED + b".\r\n")
        reply = client.reply()
        assert client.ask(b"NOOP").startswith(b"250 2.0.0 "), look_alike
        assert client.ask(b"QUIT").startswith(b"221 ")
    return reply


def send_all(proxy: Proxy, setting: str) -> int:
    """Send every look-alike, and return how many messages were taken."""
    taken = 0
    for look_alike in LOOK_ALIKES:
        refused = is_refused(look_alike, setting)
        assert send(proxy, look_alike).startswith(b"554 5.6.0 " if refused else b"250 "), look_alike
        taken += not refused
    return taken


def is_refused(look_alike: bytes, setting: str) -> bool:
    """A bare CR or LF by setting, a NUL beside the dot always."""
    return b"\x00" in look_alike or (setting == "refuse" and bool(BARE.search(look_alike)))


def test_the_list_has_what_was_published() -> None:
    assert set(PUBLISHED) <= set(LOOK_ALIKES)
    assert len(LOOK_ALIKES) > 80


@pytest.mark.parametrize("line_end", LINE_ENDS)
@pytest.mark.parametrize("setting", ["normalise", "refuse"])
def test_to_a_careless_server(start_proxy: Callable[..., Proxy], setting: str, line_end: str) -> None:
    with closing(LenientServer(line_end)) as server:
        proxy = start_proxy(server.port, greylist={"delay": 0}, smtp={"bare_line_ends": setting})
        taken = send_all(proxy, setting)
        assert len(server.taken) == taken
        assert proxy.stop() == 0
    for message in server.taken:
        assert (message.sender[:22], message.recipients) == (b"MAIL FROM:<a@far.test>", (b"RCPT TO:<u@here.test>",))
        # The rest is there as text.
        assert message.text.endswith(SMUGGLED.rstrip(b"\r\n").replace(b"\r\n", b"\n"))
    assert taken > (80 if setting == "normalise" else 10)


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_the_careless_server_is_careless(line_end: str) -> None:
    with closing(LenientServer(line_end)) as server:
        with Wire(server.port) as client:
            client.hello()
            for line in (b"MAIL FROM:<a@far.test>", b"RCPT TO:<u@here.test>", b"DATA"):
                client.ask(line)
            client.send(b"outer\n.\n" + SMUGGLED + b".\r\n")
            for _n in range(4):
                client.reply()
        assert [message.text for message in server.taken] == [b"outer", b"Subject: smuggled\n\nsmuggled text"]


@pytest.mark.parametrize(
    ("setting", "forbid"), [("normalise", ""), ("normalise", "no"), ("normalise", "yes"), ("refuse", "no")]
)
def test_to_postfix(
    start_proxy: Callable[..., Proxy],
    start_postfix: Callable[..., PostfixServer],
    sink: Sink,
    setting: str,
    forbid: str,
) -> None:
    """Postfix as it comes, and as careless or careful as it can be told to be."""
    postfix = start_postfix(**({"smtpd_forbid_bare_newline": forbid} if forbid else {}))
    proxy = start_proxy(postfix.port, greylist={"delay": 0}, smtp={"bare_line_ends": setting})
    taken = send_all(proxy, setting)

    def all_out() -> bool:
        log = postfix.log.read_text()
        return log.count(": removed") == log.count("(queue active)") >= taken

    wait_until(all_out, "Postfix's queue to be empty")
    assert len(sink.mails) == taken
    for mail in sink.mails:
        assert (mail.sender, mail.recipients) == ("a@far.test", ["u@here.test"])
        assert b"MAIL FROM:<evil@away.test>\r\nRCPT TO:<victim@here.test>\r\nDATA\r\n" in mail.content
        assert mail.content.endswith(b"smuggled text\r\n")
    assert proxy.stop() == 0
