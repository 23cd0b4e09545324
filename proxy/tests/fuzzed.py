# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold for any input whatever: one check for each thing that reads what others wrote.

A check takes bytes and raises AssertionError, or whatever the code under test should not have raised. Hypothesis calls
the checks in `test_fuzz.py`, Atheris for as long as it is told in `fuzz/`. The beginning of an input is read as
settings (how it is cut, which options are on), so that both engines can vary these too.
"""

from __future__ import annotations

import json
import random
import re
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from greylist_proxy.config import Config, ConfigError, advice, load
from greylist_proxy.lists import ListError
from greylist_proxy.lists import postgrey as list_files
from greylist_proxy.lists.entries import EntryError, canonical
from greylist_proxy.lists.operator import KEYS, as_json, read_wish
from greylist_proxy.log import json_line
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.events import (
    Bye,
    Chunk,
    Data,
    End,
    Event,
    Foreign,
    Limits,
    Mail,
    Offers,
    Rcpt,
    Refused,
    Spoiled,
    StartTls,
)
from greylist_proxy.smtp.protocol import MAX_COMMAND, ServerProtocol
from greylist_proxy.smtp.proxy_header import MAX_V2, HeaderError, HeaderReader, Named, Unnamed
from greylist_proxy.smtp.recipients import Recipients
from greylist_proxy.smtp.replies import MAX_REPLY_LINE, MAX_REPLY_LINES, Reply, ReplyError, own_reply, take_reply
from greylist_proxy.smtp.tls import TlsError, server_context

BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
OK = own_reply(250, "2.0.0", "OK")
GO_ON = Reply(354, (b"go on",))
LATER = own_reply(450, "4.7.1", "Later")
NEVER = own_reply(550, "5.7.1", "Never")
EVERYTHING = Capabilities.configured(("SIZE", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"))


def take(data: bytes) -> tuple[random.Random, bytes]:
    """Split off what is read as settings: four bytes that seed the choices."""
    return random.Random(data[:4]), data[4:]  # noqa: S311 - choices of a test


def check_words(*sentences: str) -> None:
    """See that there is something to say, and that a terminal can be given it."""
    assert sentences
    assert all(map(str.isprintable, sentences)), sentences


def pieces(dice: random.Random, data: bytes) -> list[bytes]:
    """Cut the data anywhere, often into single bytes."""
    found, at = [], 0
    longest = dice.choice((1, 2, 5, 40, 5000))
    while at < len(data):
        size = dice.randint(1, longest)
        found.append(data[at : at + size])
        at += size
    return found


# -- the core --


@dataclass
class Heard:
    """All that came out of a conversation. What a message came in as, and what would have gone to a backend."""

    events: list[Event]
    output: bytes
    messages: list[bytes]


def converse(inputs: list[bytes], seed: int, offers: Offers, limits: Limits, *, hold: bool) -> Heard:
    """Play a session; the replies that are owed are chosen by the seed, the same for any way of cutting the input."""
    dice = random.Random(seed)  # noqa: S311 - choices of a test
    core = ServerProtocol(offers, limits)
    core.hold_refusals = hold
    core.say(Reply(220, (b"mx.test ESMTP",)))
    heard = Heard([], core.take_output(), [])
    message: bytes | None = None
    for piece in inputs:
        core.receive(piece)
        while (event := core.next_event()) is not None:
            if isinstance(event, Chunk):
                message = (message or b"") + event.data
                check_message(message)
                continue
            heard.events.append(without_reason(event))
            if isinstance(event, Refused):
                core.reply(event.reply)
            elif isinstance(event, Data):
                core.reply(
                    GO_ON if dice.random() < 0.9 else dice.choice((LATER, own_reply(503, "5.5.1", "RCPT first")))
                )
                message = b"" if core.in_body else None
            elif isinstance(event, End):
                if event.refusal is None:
                    assert message is not None
                    check_whole_message(message)
                    heard.messages.append(message)
                core.reply(NEVER if event.refusal else dice.choice((OK, LATER, NEVER)))
                message = None
            elif isinstance(event, StartTls):
                accepted = dice.random() < 0.8
                core.reply(Reply(220, (b"go ahead",)) if accepted else LATER)
                if accepted:
                    core.restart_after_tls()
                    assert core.hello is None
                    assert not core.in_transaction
                    assert core.buffered == 0
            elif isinstance(event, Mail | Rcpt):
                assert core.owes
                core.reply(OK if dice.random() < 0.9 else dice.choice((LATER, NEVER)))
            elif isinstance(event, Spoiled):
                assert event.reply.code >= 500
        assert core.buffered <= MAX_COMMAND, core.buffered
        assert not core.owes
        heard.output += core.take_output()
    if core.closed:
        core.receive(b"NOOP\r\n" * 1000)
        assert (core.next_event(), core.buffered, core.take_output()) == (None, 0, b"")
    return heard


def without_reason(event: Event) -> Event:
    """Leave out which of several reasons there is for an end: that may depend on which of them came in first."""
    if isinstance(event, Spoiled):
        return Spoiled(NEVER)
    if isinstance(event, End) and event.refusal is not None:
        return End(NEVER)
    return Foreign("") if isinstance(event, Foreign) else event


def check_message(message: bytes) -> None:
    """See that no server can take what was passed on so far for the end of the message."""
    wire = b"\r\n" + message
    # A CRLF is held back until it is known what follows, and a bare one is completed with the next piece.
    assert not BARE.search(wire.removesuffix(b"\r")), wire[-200:]
    assert b"\r\n.\r\n" not in wire, wire[-200:]
    # Nor one that drops NULs; with what is still held back the message would be refused.
    assert b"\r\n.\r\n" not in wire.replace(b"\x00", b""), wire[-200:]


def check_whole_message(message: bytes) -> None:
    """See that what a backend gets ends once, at its end."""
    assert not message or message.endswith(b"\r\n")
    wire = b"\r\n" + message + b".\r\n"
    for seen in (wire, wire.replace(b"\x00", b"")):
        assert seen.find(b"\r\n.\r\n") == len(seen) - 5, wire[-200:]
    assert not message.startswith((b" ", b"\t"))


def as_read(message: bytes) -> bytes:
    """Return a message as its reader sees it: a dot that a client should have doubled counts as one that it did."""
    return (b"\r\n" + message).replace(b"\r\n.", b"\r\n")


def check_replies(output: bytes) -> None:
    """See that these are replies of SMTP, and nothing else."""
    buffer = bytearray(output)
    while buffer:
        reply = take_reply(buffer)
        assert reply is not None, bytes(buffer)
        assert reply.wire().isascii()


def check_protocol(data: bytes) -> None:
    """Random input, cut at random, to the core: what comes out is sound, and does not depend on the cuts."""
    dice, stream = take(data)
    limits = Limits(
        max_errors=dice.choice((3, 10, 1000)),
        max_idle_commands=dice.choice((5, 100)),
        max_rcpt_commands=dice.choice((3, 1000)),
        bare_line_ends="refuse" if dice.random() < 0.3 else "normalise",
        max_header_size=dice.choice((100, 1 << 20)),
        max_hops=dice.choice((2, 50)),
    )
    offers = Offers("mx.test", dice.choice((0, 500, 1 << 20)), dice.choice((None, EVERYTHING)), dice.random() < 0.5)
    hold, seed = dice.random() < 0.3, dice.getrandbits(32)
    whole = converse([stream], seed, offers, limits, hold=hold)
    cut = converse(pieces(dice, stream), seed, offers, limits, hold=hold)
    check_replies(whole.output)
    check_replies(cut.output)
    # What comes with DATA in one piece, and DATA is refused, ends a session; what comes with STARTTLS is thrown away.
    timely = any(isinstance(event, StartTls) or event == Bye("pipelining") for event in [*whole.events, *cut.events])
    if not timely:
        assert cut.events == whole.events
        assert cut.output == whole.output
        assert list(map(as_read, cut.messages)) == list(map(as_read, whole.messages))


# -- replies of a backend --


def check_take_reply(data: bytes) -> None:
    """Whatever a backend says is whole replies, an error, or not all there yet; and little is kept of it."""
    dice, stream = take(data)
    buffer = bytearray()
    try:
        for piece in pieces(dice, stream):
            buffer += piece
            while (reply := take_reply(buffer)) is not None:
                # What is passed on is a reply that means the same.
                again = bytearray(reply.wire())
                assert take_reply(again) == reply
                assert not again
                assert 200 <= reply.code <= 599
                assert len(reply.lines) <= MAX_REPLY_LINES
                assert b"\r" not in b"".join(reply.lines)
                assert b"\n" not in b"".join(reply.lines)
                assert str(reply)
            assert len(buffer) <= MAX_REPLY_LINE * MAX_REPLY_LINES + len(piece)
    except ReplyError as error:
        check_words(str(error))
    Capabilities.of(stream.split(b"\r\n"))


# -- PROXY headers --


def check_proxy_header(data: bytes) -> None:
    """A header names somebody, or nobody, or is an error; cut at random it is the same."""
    dice, stream = take(data)
    assert read_header([stream]) == read_header(pieces(dice, stream))


def read_header(inputs: list[bytes]) -> object:
    reader = HeaderReader()
    got = b""
    for number, piece in enumerate(inputs):
        got += piece
        try:
            found = reader.feed(piece)
        except HeaderError as error:
            check_words(str(error))
            return "error"
        if found is not None:
            assert isinstance(found, Named | Unnamed)
            if isinstance(found, Named):
                assert 0 <= found.port <= 65535
                assert 0 <= found.local_port <= 65535
            assert got.endswith(reader.rest)
            return found, reader.rest + b"".join(inputs[number + 1 :])
        assert len(got) <= MAX_V2 + 16
    return None


# -- files --


def with_file(data: bytes, use: Callable[[Path], None]) -> None:
    """Put the data into a file."""
    with tempfile.NamedTemporaryFile(prefix="fuzz-") as stream:
        stream.write(data)
        stream.flush()
        use(Path(stream.name))


def check_config(data: bytes) -> None:
    """Any file is a configuration, or an error of sentences that can be printed."""

    def use(path: Path) -> None:
        try:
            config = load(path)
        except ConfigError as error:
            check_words(*error.lines)
        else:
            assert isinstance(config, Config)
            check_words("read", *advice(config))

    with_file(data, use)


def check_lists(data: bytes) -> None:
    """Any file is a list, with warnings that can be printed, or an error."""

    def use(path: Path) -> None:
        try:
            loaded = list_files.load([path], [path], [path])
            found, warnings = list_files.entries([path], [path])
        except ListError as error:
            check_words(*error.lines)
        else:
            check_words("read", *loaded.warnings, *warnings)
            assert all(entry[1] for entry in found)
        try:
            Recipients.load(path)
        except ListError as error:
            check_words(*error.lines)

    with_file(data, use)


# -- TLS --


def check_tls(data: bytes) -> None:
    """Any file for a certificate or key is refused in a line; any bytes for a handshake end it, and nothing else."""

    def use(path: Path) -> None:
        try:
            server_context(path, path)
        except TlsError as error:
            check_words(str(error))

    with_file(data, use)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    connection = context.wrap_bio(incoming, outgoing, server_side=True)
    for piece in pieces(*take(data)):
        incoming.write(piece)
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            return
        raise AssertionError("a handshake without a certificate")


# -- entries --


def check_wish(data: bytes) -> None:
    """An entry as it comes through the control socket is refused in words, or is one that can be kept and shown."""
    _dice, text = take(data)
    fields = zip(KEYS, text.split(b"\n"), strict=False)
    try:
        wish = read_wish({name: _json_or_text(field) for name, field in fields if field})
    except EntryError as error:
        check_words(str(error))
        return
    entry = wish.entry
    entry.note.encode()
    assert canonical(entry.kind, entry.value) == entry.value
    assert wish.is_met_by(entry)
    assert json_line(as_json(entry)).isprintable()


def _json_or_text(field: bytes) -> object:
    try:
        return json.loads(field)
    except (ValueError, RecursionError):
        return field.decode("utf-8", "surrogateescape")


# -- all of them --


@dataclass(frozen=True)
class Target:
    """A check, inputs to begin with, and words that its input is made of."""

    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]


SESSION = (
    b"EHLO client.test\r\nMAIL FROM:<a@far.test> SIZE=100 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=x+2B\r\n"
    b"RCPT TO:<u@here.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;u@here.test\r\nDATA\r\n"
    b"Received: from x\r\nSubject: x\r\n\r\ntext\r\n..dot\r\n\x00\r\nbare\nLF\rCR\r\n.\r\nQUIT\r\n"
)
TARGETS: dict[str, Target] = {
    "protocol": Target(
        check_protocol,
        (b"0000" + SESSION, b"1111" + SESSION * 3, b"2222EHLO x\r\nSTARTTLS\r\nEHLO y\r\n", b"3333GET / HTTP/1.1\r\n"),
        (
            *(b"EHLO ", b"HELO ", b"MAIL FROM:<", b"RCPT TO:<", b"DATA\r\n", b"RSET\r\n", b"QUIT\r\n", b"NOOP\r\n"),
            *(b"STARTTLS\r\n", b"VRFY x\r\n", b">", b"@", b"\r\n", b"\n", b"\r", b".", b"\r\n.\r\n", b"\n.\n", b"\x00"),
            *(b"\r\n.", b"..", b" SIZE=", b" BODY=8BITMIME", b" SMTPUTF8", b" ENVID=", b" NOTIFY=", b" ORCPT="),
            *(b"a@far.test", b"u@here.test", b'"q\\" q"@x', b"\xc3\xbc", b"\r\nReceived: x", b"\r\n\r\n", b"x" * 100),
            *(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<u@here.test>\r\nDATA\r\n", b"%", b"!", b"[127.0.0.1]"),
        ),
    ),
    "replies": Target(
        check_take_reply,
        (b"0000250 ok\r\n", b"1111250-a\r\n250-SIZE 99\r\n250 XCLIENT NAME ADDR\r\n", b"2222550\n"),
        (
            b"250-",
            b"250 ",
            b"354 ",
            b"421 ",
            b"\r\n",
            b"\n",
            b"\r",
            b"\x00",
            b"\x1b",
            b"SIZE ",
            b"XCLIENT ADDR",
            b"\xff",
        ),
    ),
    "proxy_header": Target(
        check_proxy_header,
        (
            b"0000PROXY TCP4 192.0.2.1 192.0.2.2 1000 25\r\nEHLO x\r\n",
            b"1111PROXY TCP6 2001:db8::1 2001:db8::2 1000 25\r\n",
            b"2222PROXY UNKNOWN\r\n",
            b"3333\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x03\xe8\x00\x19",
            b"4444\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
        ),
        (
            *(b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"192.0.2.1 ", b"2001:db8::1 ", b"65535 ", b"\r\n", b" "),
            *(b"\r\n\r\n\x00\r\nQUIT\n", b"\x21", b"\x20", b"\x11", b"\x12", b"\x21\x11\x00\x0c", b"\x21\x31\x00\xd8"),
        ),
    ),
    "config": Target(
        check_config,
        (
            b'[smtp]\nlisten = ["127.0.0.1:25"]\nhostname = "mx.test"\n[backend]\nhosts = ["b.test:25"]\n'
            b'domains = ["here.test"]\n[greylist]\ndelay = "60s"\n[store]\nurl = "sqlite:////tmp/x.db"\n',
            b'[smtp]\nhostname = "mx.test"\n[backend]\nhosts = []\n[allow]\ndns_lists = ["a=127.0.[1..2].0"]\n',
        ),
        (
            *(f"[{name}]\n".encode() for name in Config.model_fields),
            *(f"{key} = ".encode() for each in Config.model_fields.values() for key in each.annotation.model_fields),  # type: ignore[union-attr]
            *(b'"60s"', b'"35MiB"', b"true", b"0", b"-1", b"[]", b'["127.0.0.1:25"]', b'["::/0"]', b"\n", b'"', b"="),
            *(b"valkey://u:p@h:1/0", b"sqlite:///", b'"\\u001b"', b"\xff", b"1e999", b"{id}", b"[..]"),
        ),
    ),
    "wish": Target(
        check_wish,
        (
            b"0000client\n192.0.2.0/24\nblock\n30d\nno more of it",
            b"0000trap\nOld@Example.org\n\n2099-05-17T06:30Z\n",
            b"0000sender\n@Partner.Example\nallow\n3600\n\xc3\xbc\x1b",
        ),
        (
            *(b"client\n", b"sender\n", b"recipient\n", b"trap\n", b"allow\n", b"block\n", b"\n", b"null", b"[", b"{}"),
            *(b"2001:db8::/32\n", b"a.example\n", b"u@\n", b"@", b"/", b"99999999d", b"9999-12-31T23:59:59+23:59"),
            *(b'"\\ud800"', b"1e999", b"90s", b"0", b"-1", b"\xff", b"x" * 100),
        ),
    ),
    "lists": Target(
        check_lists,
        (
            b"example.net\n/^mx[0-9]+\\.example$/\n192.0.2.1\n192.0.2.0/24\n10\n2001:db8::/32\n"
            b"user@example.org\nuser@\n# x\n",
            b"/(a+)+$/\n/[/\n@@\n1.2.3.4/33\n\xff\n",
        ),
        (
            b"example.net",
            b"/",
            b"\n",
            b"192.0.2.",
            b"/24",
            b"::",
            b"@",
            b"#",
            b"(",
            b")+",
            b"[",
            b"{9999}",
            b"\\",
            b"xn--",
        ),
    ),
    "tls": Target(
        check_tls,
        (
            b"0000\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
            b"1111-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            b"2222-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
        ),
        (
            b"\x16\x03\x01",
            b"\x16\x03\x03",
            b"\x15\x03\x03",
            b"\x01\x00",
            b"\x00\x2b",
            b"-----BEGIN ",
            b"PRIVATE KEY-----\n",
        ),
    ),
}
