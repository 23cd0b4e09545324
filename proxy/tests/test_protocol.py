# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The protocol core: conversations in tables. Each runs in one piece, byte by byte, and cut in two at every place."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace

import pytest
from greylist_proxy.smtp import events
from greylist_proxy.smtp.capabilities import Capabilities
from greylist_proxy.smtp.events import Event, Limits, Offers
from greylist_proxy.smtp.protocol import MAX_COMMAND, ServerProtocol
from greylist_proxy.smtp.replies import Reply, own_reply
from hypothesis import given, settings
from hypothesis import strategies as st

from .costs import cost

ALL = Capabilities(size=0, eightbitmime=True, smtputf8=True, dsn=True, enhancedstatuscodes=True)
OFFERS = Offers("mx.here.test", 1000, ALL, starttls=False)
# What the session answers, unless a conversation says otherwise.
ANSWERS: dict[type[Event], int] = {events.Mail: 250, events.Rcpt: 250, events.Data: 354, events.End: 250}


def show(event: Event) -> str:
    """Write an event as the tables below do."""
    match event:
        case events.Hello():
            return f"{'ehlo' if event.esmtp else 'helo'} {event.name}"
        case events.Mail():
            return " ".join(["mail", f"<{event.path.address}>", *(each.raw for each in event.parameters)])
        case events.Rcpt():
            return " ".join(["rcpt", f"<{event.address}>", *(each.raw for each in event.parameters)])
        case events.Chunk():
            return f"chunk {event.data.decode('latin-1')}"
        case events.Spoiled() | events.Refused():
            return f"{type(event).__name__.lower()} {event.reply.code}"
        case events.End():
            refusal = f" {event.refusal.code}" if event.refusal else ""
            return f"end{refusal}" + (f" normalised {event.normalised}" if event.normalised else "")
        case events.Foreign():
            return f"foreign {event.kind}"
        case events.Bye():
            return f"bye {event.why}"
    return type(event).__name__.lower()


class Conversation:
    """A core, and what came out of it: the events, with the pieces of a message put together, and all replies."""

    def __init__(self, offers: Offers = OFFERS, limits: Limits | None = None, answers: dict | None = None) -> None:
        self.core = ServerProtocol(offers, limits or Limits())
        self.answers = {**ANSWERS, **(answers or {})}
        self.events: list[Event] = []
        self.output = b""

    def send(self, pieces: Iterable[bytes]) -> Conversation:
        for piece in pieces:
            self.core.receive(piece)
            while (event := self.core.next_event()) is not None:
                last = self.events[-1] if self.events else None
                if isinstance(event, events.Chunk) and isinstance(last, events.Chunk):
                    self.events[-1] = events.Chunk(last.data + event.data)
                else:
                    self.events.append(event)
                if isinstance(event, events.Spoiled) and isinstance(last, events.Chunk):
                    self.events.remove(last)  # how much of it came before the fault is a matter of where it was cut
                self.answer(event)
            self.output += self.core.take_output()
            assert self.core.buffered <= MAX_COMMAND
        return self

    def answer(self, event: Event) -> None:
        reply = getattr(event, "reply", None) or getattr(event, "refusal", None)
        if isinstance(event, events.Spoiled):
            return
        if reply is None and type(event) in self.answers:
            reply = own_reply(self.answers[type(event)], "", "word")
        assert self.core.owes is (reply is not None)
        if reply is not None:
            self.core.reply(reply)

    @property
    def shown(self) -> list[str]:
        return [show(event) for event in self.events]

    @property
    def codes(self) -> str:
        """The codes of all replies."""
        return " ".join(line[:3].decode() for line in self.output.splitlines() if line[3:4] == b" ")


def everywhere(sent: bytes, **how: object) -> Conversation:
    """Hold a conversation in every way of cutting what the client sends, and return it if all are the same."""
    whole = Conversation(**how).send([sent])  # type: ignore[arg-type]
    ways = [[sent[:cut], sent[cut:]] for cut in range(1, len(sent))]
    ways.append([bytes([byte]) for byte in sent])
    for pieces in ways:
        cut = Conversation(**how).send(pieces)  # type: ignore[arg-type]
        assert (cut.shown, cut.output, cut.core.closed) == (whole.shown, whole.output, whole.core.closed), pieces
    return whole


def lines(text: str) -> bytes:
    """Make what a client sends of lines that are divided by `|`."""
    return "".join(f"{line}\r\n" for line in text.split("|")).encode()


ENVELOPE_SHOWN = ["ehlo c.test", "mail <a@far.test>", "rcpt <u@here.test>"]
ENVELOPE = "EHLO c.test|MAIL FROM:<a@far.test>|RCPT TO:<u@here.test>"

# What the client says; what comes of it; the codes of the replies.
CONVERSATIONS = {
    "one message": (
        f"{ENVELOPE}|DATA|Subject: x||hi|.|QUIT",
        [*ENVELOPE_SHOWN, "data", "chunk Subject: x\r\n\r\nhi\r\n", "end", "bye quit"],
        "250 250 250 354 250 221",
    ),
    "two messages": (
        f"{ENVELOPE}|DATA|x|.|MAIL FROM:<>|RCPT TO:<postmaster>|DATA|..|.",
        [*ENVELOPE_SHOWN, "data", "chunk x\r\n", "end", "mail <>", "rcpt <postmaster>", "data", "chunk ..\r\n", "end"],
        "250 250 250 354 250 250 250 354 250",
    ),
    "an empty message": (
        f"{ENVELOPE}|DATA|.",
        [*ENVELOPE_SHOWN, "data", "end"],
        "250 250 250 354 250",
    ),
    "what is a command in a message is none": (
        f"{ENVELOPE}|DATA|QUIT|.|NOOP",
        [*ENVELOPE_SHOWN, "data", "chunk QUIT\r\n", "end"],
        "250 250 250 354 250 250",
    ),
    "helo, in any case, with blanks": ("heLO  c.test \t", ["helo c.test"], "250"),
    "no name": ("HELO|EHLO |MAIL FROM:<>", [], "501 501 503"),
    "an address literal": ("EHLO [192.0.2.1]", ["ehlo [192.0.2.1]"], "250"),
    "a name that is no name stays as it is": ("EHLO (x)\x00", ["ehlo (x)\x00"], "250"),
    "rset": (
        f"RSET|{ENVELOPE}|RSET|RSET|RCPT TO:<u@here.test>",
        [*ENVELOPE_SHOWN, "reset"],
        "250 250 250 250 250 250 503",
    ),
    "ehlo ends a transaction": (
        f"{ENVELOPE}|EHLO d.test|DATA",
        [*ENVELOPE_SHOWN, "reset", "ehlo d.test"],
        "250 250 250 250 503",
    ),
    "quit ends a transaction": (
        "HELO c|MAIL FROM:<>|QUIT|NOOP",
        ["helo c", "mail <>", "reset", "bye quit"],
        "250 250 221",
    ),
    "out of order": (
        "MAIL FROM:<>|RCPT TO:<u@here.test>|HELO c|RCPT TO:<u@here.test>|MAIL FROM:<>|MAIL FROM:<>|RSET|DATA",
        ["helo c", "mail <>", "reset"],
        "503 503 250 503 250 503 250 503",
    ),
    "arguments where none belong": ("RSET x|QUIT x|DATA x|STARTTLS x|NOOP x", [], "501 501 501 501 250"),
    "nothing is given away": ("VRFY root|EXPN all|HELP|HELP MAIL|AUTH PLAIN x|TURN", [], "252 502 214 214 502 502"),
    "unknown": ("FOO|X|BDAT 5 LAST|XCLIENT ADDR=192.0.2.1|MAILFROM:<>", [], "500 500 500 500 500"),
    "no starttls": ("STARTTLS", [], "502"),
    "no path": (
        "HELO c|MAIL|MAIL FROM:|MAIL FROM:a@far.test|MAIL TO:<a@far.test>|MAIL FROM:<a|MAIL FROM:<a@b@far.test>",
        ["helo c"],
        "250 501 501 501 501 501 501",
    ),
    "no recipient": (
        "HELO c|MAIL FROM:<>|RCPT|RCPT TO:|RCPT TO:u@here.test|RCPT FROM:<u@here.test>|RCPT TO:<u>",
        ["helo c", "mail <>", "rcpt <u>"],  # what is no address is the transaction's to say
        "250 250 501 501 501 501 250",
    ),
    "parameters as they came": (
        "EHLO c|MAIL FROM:<a@far.test> size=10 BODY=8bitmime RET=hdrs ENVID=Qq+3D1|"
        "RCPT TO:<u@here.test> NOTIFY=success,Failure ORCPT=rfc822;U+2Bx@Here.test",
        [
            "ehlo c",
            "mail <a@far.test> size=10 BODY=8bitmime RET=hdrs ENVID=Qq+3D1",
            "rcpt <u@here.test> NOTIFY=success,Failure ORCPT=rfc822;U+2Bx@Here.test",
        ],
        "250 250 250",
    ),
    "parameters that are not taken": (
        "EHLO c|MAIL FROM:<> AUTH=<>|MAIL FROM:<> SIZE=1001|MAIL FROM:<> SIZE=x|MAIL FROM:<>|RCPT TO:<u@here.test> X=1",
        ["ehlo c", "mail <>"],
        "250 555 552 501 250 555",
    ),
    "not ASCII, with SMTPUTF8": (
        "EHLO c|MAIL FROM:<ä@bücher.test> SMTPUTF8|RCPT TO:<ö@here.test>|RSET|MAIL FROM:<>|RCPT TO:<ö@here.test>",
        ["ehlo c", "mail <ä@bücher.test> SMTPUTF8", "rcpt <ö@here.test>", "reset", "mail <>"],
        "250 250 250 250 250 553",
    ),
    "not ASCII, without": ("EHLO c|MAIL FROM:<ä@far.test>|MAIL FROM:<a@bücher.test>", ["ehlo c"], "250 553 553"),
    "http": ("GET / HTTP/1.1|Host: x", ["foreign http"], ""),
    "http, with other words": ("post /x HTTP/1.1", ["foreign http"], ""),
    "http 2": ("PRI * HTTP/2.0", ["foreign http"], ""),
    "a header": ("Host: x", ["foreign header"], ""),
    "a header in a transaction": (
        "HELO c|MAIL FROM:<>|Subject: x|MAIL FROM:<>",
        ["helo c", "mail <>", "reset", "foreign header"],
        "250 250",
    ),
    "ssh": ("SSH-2.0-OpenSSH_9.9", ["foreign ssh"], ""),
    "a load balancer": ("PROXY TCP4 192.0.2.1 192.0.2.2 1 2", ["foreign proxy"], ""),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation(name: str) -> None:
    text, shown, codes = CONVERSATIONS[name]
    found = everywhere(lines(text))
    assert (found.shown, found.codes) == (shown, codes)


# What the client sends to the byte, and what it is told.
@pytest.mark.parametrize(
    ("sent", "shown", "codes"),
    [
        (b"NOOP\nNOOP\r\n", ["bye bare line feed"], "521"),
        (b"NO\rOP\r\n\r\nNOOP\r\r\n", [], "500 500 500"),
        (b"NOOP " + b"x" * (MAX_COMMAND - 7) + b"\r\n", [], "250"),
        (b"NOOP " + b"x" * (MAX_COMMAND - 6) + b"\r\nNOOP\r\n", [], "500 250"),
        (b"x" * (MAX_COMMAND - 2) + b"\r\n" + b"x" * 3 * MAX_COMMAND + b"\r\nNOOP\r\n", [], "500 500 250"),
        (b"x" * 3 * MAX_COMMAND + b"\nNOOP\r\n", ["bye bare line feed"], "521"),
        (b"HELO c\r\nMAIL FROM:<\xff@far.test>\r\n", ["helo c"], "250 501"),
        (b"\x16\x03\x01\x02\x00\x01", ["foreign tls"], ""),
        (b"\x80\x2e\x01\x03", ["foreign tls"], ""),
        (b"\x04\x01\x00\x19", ["foreign socks"], ""),
        (b"\x05\x01\x00", ["foreign socks"], ""),
        (b"\x03\x00\x00\x13", ["foreign rdp"], ""),
        (b"\xff\xfb\x01", ["foreign telnet"], ""),
        (b"NOOP\r\n\x00\x00", ["foreign binary"], "250"),
        (b"\x00" * (MAX_COMMAND + 1) + b"\r\n", ["foreign binary"], ""),
    ],
)
def test_bytes(sent: bytes, shown: list[str], codes: str) -> None:
    found = everywhere(sent)
    assert (found.shown, found.codes) == (shown, codes)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("|x", ["chunk \r\nx\r\n", "end"]),
        (" x", ["spoiled 554", "end 554"]),
        (". x", ["spoiled 554", "end 554"]),
        ("x|" * 334 + "x", ["spoiled 552", "end 552"]),
        ("Received: x|" * 3 + "|Received: x", ["chunk " + "Received: x\r\n" * 3 + "\r\nReceived: x\r\n", "end"]),
        ("Received: x|rEceived: x|A: b|RECEIVED: x|received: x", ["spoiled 554", "end 554"]),
        ("A: 0123456789|" * 5 + "|x", ["spoiled 552", "end 552"]),
    ],
)
def test_a_message_that_is_refused_is_taken_to_its_end(message: str, shown: list[str]) -> None:
    head = lines(f"{ENVELOPE}|DATA")
    how = {"limits": Limits(max_hops=3, max_header_size=60)}
    found = everywhere(head + lines(f"{message}|.|NOOP"), **how)
    assert found.shown[4:] == shown
    code = shown[-1][4:] or "250"
    assert found.codes == f"250 250 250 354 {code} 250"


def test_bare_line_ends_are_normalised_or_refused() -> None:
    sent = lines(f"{ENVELOPE}|DATA") + b"a\n.b\r.\r\nc\r\n.\r\n"
    found = everywhere(sent)
    assert found.shown[4:] == ["chunk a\r\n..b\r\n..\r\nc\r\n", "end normalised 2"]
    refused = everywhere(sent, limits=Limits(bare_line_ends="refuse"))
    assert refused.shown[-2:] == ["spoiled 554", "end 554"]
    assert refused.codes == "250 250 250 354 554"


# What the session answers; then what is left.
@pytest.mark.parametrize(
    ("answers", "shown", "codes"),
    [
        ({events.Mail: 450}, ["ehlo c.test", "mail <a@far.test>"], "250 450 503 503 250"),
        ({events.Data: 503}, [*ENVELOPE_SHOWN, "data", "reset"], "250 250 250 503 250"),
        ({events.Data: 450}, [*ENVELOPE_SHOWN, "data"], "250 250 250 450 250"),
        ({events.Rcpt: 421}, ENVELOPE_SHOWN, "250 250 421"),
        ({events.Data: 421}, [*ENVELOPE_SHOWN, "data"], "250 250 250 421"),
    ],
)
def test_what_the_session_answers(answers: dict[type[Event], int], shown: list[str], codes: str) -> None:
    # Line by line: a client waits for the reply to DATA.
    found = Conversation(answers=answers).send([lines(f"{ENVELOPE}|DATA"), lines("RSET")])
    assert (found.shown, found.codes) == (shown, codes)
    assert not found.core.in_transaction


@pytest.mark.parametrize(("data", "codes"), [(450, "250 250 250 450 421"), (503, "250 250 250 503 421")])
def test_a_message_that_did_not_wait_is_not_read_as_commands(data: int, codes: str) -> None:
    sent = lines(f"{ENVELOPE}|DATA|MAIL FROM:<evil@far.test>|RCPT TO:<u@here.test>|DATA|x|.")
    found = Conversation(answers={events.Data: data}).send([sent])
    assert found.codes == codes
    assert found.shown[3:] == (["data", "reset", "bye pipelining"] if data == 503 else ["data", "bye pipelining"])
    assert found.core.closed
    # Nor where the core itself refuses DATA.
    found = Conversation(answers={events.Mail: 450}).send([sent])
    assert (found.codes, found.shown[-1]) == ("250 450 503 503 421", "bye pipelining")
    # Where it is let in, it is the message.
    found = Conversation().send([sent])
    assert found.shown[4].startswith("chunk MAIL FROM:<evil")


def test_nothing_is_parsed_while_a_reply_is_owed() -> None:
    core = ServerProtocol(OFFERS, Limits())
    core.receive(lines("EHLO c|MAIL FROM:<>|RCPT TO:<u@here.test>|NOOP"))
    assert [show(event) for event in iter(core.next_event, None)] == ["ehlo c", "mail <>"]
    assert core.owes
    assert core.buffered == len(lines("RCPT TO:<u@here.test>|NOOP"))
    core.receive(lines("NOOP"))
    assert core.next_event() is None
    core.reply(Reply(250, (b"fine",)))
    assert not core.owes
    assert show(core.next_event()) == "rcpt <u@here.test>"  # type: ignore[arg-type]
    core.reply(Reply(250, (b"fine",)))
    assert core.next_event() is None
    assert core.take_output().count(b"\r\n") == 7 + 4
    assert core.take_output() == b""
    with pytest.raises(ValueError, match="owed"):
        core.reply(Reply(250, (b"fine",)))


def test_a_parting_word_closes() -> None:
    core = ServerProtocol(OFFERS, Limits())
    core.say(Reply(220, (b"mx.here.test",)))
    assert not core.closed
    core.receive(lines("NOOP|NOOP"))
    core.say(Reply(421, (b"stopping",)))
    core.receive(lines("NOOP"))
    assert core.closed
    assert (core.next_event(), core.buffered) == (None, 0)
    assert core.take_output() == b"220 mx.here.test\r\n421 stopping\r\n"


# -- what is offered --


@pytest.mark.parametrize(
    ("capabilities", "max_size", "starttls", "words"),
    [
        (None, 1000, False, "PIPELINING"),
        (None, 1000, True, "PIPELINING STARTTLS"),
        (Capabilities(), 1000, False, "PIPELINING"),
        (ALL, 1000, True, "PIPELINING SIZE:1000 8BITMIME SMTPUTF8 DSN ENHANCEDSTATUSCODES STARTTLS"),
        (Capabilities(size=500), 1000, False, "PIPELINING SIZE:500"),
        (Capabilities(size=5000), 1000, False, "PIPELINING SIZE:1000"),
        (Capabilities(size=5000), 0, False, "PIPELINING SIZE:5000"),
        (Capabilities(size=0), 0, False, "PIPELINING SIZE:0"),
    ],
)
def test_offers(capabilities: Capabilities | None, max_size: int, starttls: bool, words: str) -> None:
    found = everywhere(lines("EHLO c"), offers=Offers("mx.here.test", max_size, capabilities, starttls))
    expected = ["mx.here.test", *(word.replace(":", " ") for word in words.split())]
    assert [line[4:] for line in found.output.decode().splitlines()] == expected


@pytest.mark.parametrize("parameter", ["SIZE=1", "BODY=8BITMIME", "SMTPUTF8", "RET=FULL", "ENVID=1"])
def test_what_is_not_offered_is_not_taken(parameter: str) -> None:
    for capabilities in (None, Capabilities()):
        found = everywhere(
            lines(f"EHLO c|MAIL FROM:<> {parameter}"), offers=Offers("mx.here.test", 9, capabilities, False)
        )
        assert found.codes == "250 555"


def test_what_was_offered_counts_until_the_next_ehlo() -> None:
    offers = replace(OFFERS)
    found = Conversation(offers=offers).send([lines("EHLO c")])
    offers.capabilities = None
    found.send([lines("MAIL FROM:<> RET=FULL|RSET|EHLO c|MAIL FROM:<> RET=FULL")])
    assert found.codes == "250 250 250 250 555"
    assert found.core.offered is None


# -- STARTTLS --


def test_starttls_forgets_everything() -> None:
    offers = replace(OFFERS, starttls=True)
    found = Conversation(offers=offers, answers={events.StartTls: 220}).send([lines("EHLO c"), lines("STARTTLS")])
    assert (found.shown, found.codes) == (["ehlo c", "starttls"], "250 220")
    assert found.core.restart_after_tls() == 0
    assert found.core.hello is None
    found.send(bytes([byte]) for byte in lines("MAIL FROM:<>|EHLO d|STARTTLS"))
    assert (found.shown[2:], found.codes) == (["ehlo d"], "250 220 503 250 503")
    assert found.output.count(b"STARTTLS") == 1


def test_what_is_injected_before_tls_is_thrown_away() -> None:
    injected = lines("EHLO evil|MAIL FROM:<evil@far.test>")
    found = Conversation(offers=replace(OFFERS, starttls=True), answers={events.StartTls: 220})
    found.core.receive(lines("EHLO c|STARTTLS") + injected)
    found.core.next_event()
    found.core.next_event()
    found.core.reply(Reply(220, (b"go",)))
    found.core.receive(b"RCP")
    assert found.core.next_event() is None
    assert found.core.restart_after_tls() == len(injected) + 3
    found.send([lines("NOOP")])
    assert (found.shown, found.codes) == ([], "250 220 250")


def test_starttls_that_is_refused_or_out_of_place() -> None:
    offers = replace(OFFERS, starttls=True)
    found = everywhere(lines("EHLO c|STARTTLS|MAIL FROM:<>|STARTTLS"), offers=offers, answers={events.StartTls: 454})
    assert found.codes == "250 454 250 503"


# -- limits --


def test_errors_are_counted_until_a_message_came() -> None:
    found = everywhere(lines("|".join(["FOO"] * 12)))
    assert found.codes == " ".join(["500"] * 9 + ["421"])
    assert found.shown == ["bye errors"]
    found = Conversation().send([lines("FOO|" * 9 + f"{ENVELOPE}|DATA|x|.|" + "|".join(["FOO"] * 9))])
    assert not found.core.closed


@pytest.mark.parametrize("command", ["NOOP", "RSET", "VRFY x", "HELP", "EHLO c", "RCPT TO:<u@here.test>", "DATA"])
def test_commands_without_mail_are_counted(command: str) -> None:
    # Each by itself, as DATA wants it.
    found = Conversation(limits=Limits(max_idle_commands=5)).send([lines(command)] * 9)
    assert found.codes.split()[5:] == ["421"]
    assert found.shown[-1] == "bye idle"


def test_bad_recipients_are_no_errors() -> None:
    found = Conversation().send(
        [lines("EHLO c|MAIL FROM:<>|" + "RCPT TO:<ä@here.test>|" * 50 + "RCPT TO:<u@here.test>")]
    )
    assert found.codes == "250 250 " + "553 " * 50 + "250"


@pytest.mark.parametrize("bad", ["RCPT TO:<ä@here.test>", "RCPT TO:<", "RCPT TO:<u@here.test> X=Y"])
def test_bad_recipients_do_not_count_as_idle(bad: str) -> None:
    """They have a bound of their own, or a list of a hundred would cost the good ones their mail."""
    limits = Limits(max_idle_commands=5, max_rcpt_commands=10)
    found = Conversation(limits=limits).send([lines(ENVELOPE + f"|{bad}" * 9), lines("DATA|x|.")])
    assert found.codes.split()[:3] == ["250"] * 3
    assert found.codes.split()[-2:] == ["354", "250"]
    found = Conversation(limits=limits).send([lines(ENVELOPE + f"|{bad}" * 10)])
    assert found.codes.split()[-1] == "421"


def test_refused_senders_are_counted() -> None:
    found = Conversation(limits=Limits(max_idle_commands=5), answers={events.Mail: 450})
    found.send([lines("EHLO c|" + "|".join(["MAIL FROM:<>"] * 9))])
    assert found.codes == "250 450 450 450 450 421"


def test_recipients_are_counted() -> None:
    found = Conversation(limits=Limits(max_rcpt_commands=3)).send([lines(ENVELOPE + "|RCPT TO:<u@here.test>" * 5)])
    assert found.codes == "250 250 250 250 250 421"
    assert found.shown[-2:] == ["reset", "bye idle"]


def test_refusals_can_be_held() -> None:
    held = Conversation()
    held.core.hold_refusals = True
    held.send(bytes([byte]) for byte in lines("NOOP|FOO|VRFY x|MAIL FROM:<>|RCPT TO:<u@here.test>|QUIT"))
    assert held.shown == ["refused 500", "refused 503", "refused 503", "bye quit"]
    assert held.codes == "250 500 252 503 503 221"
    core = ServerProtocol(OFFERS, Limits())
    core.hold_refusals = True
    core.receive(lines("FOO|NOOP"))
    assert show(core.next_event()) == "refused 500"  # type: ignore[arg-type]
    assert (core.owes, core.next_event(), core.take_output()) == (True, None, b"")


# -- any input --

WORDS = [
    b"EHLO c\r\n",
    b"MAIL FROM:<a@far.test>\r\n",
    b"RCPT TO:<u@here.test>\r\n",
    b"DATA\r\n",
    b"RSET\r\n",
    b"QUIT\r\n",
]
WORDS += [
    b"\r\n.\r\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b".",
    b"\r",
    b"\n",
    b"\x00",
    b" ",
    b"x" * 70,
    b"FOO\r\n",
    b"\xc3\xa4",
    b"NOOP",
]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=4)), max_size=30).map(b"".join),
    st.lists(st.integers(0, 400), max_size=6),
)
def test_no_cut_makes_a_difference(content: bytes, cuts: list[int]) -> None:
    whole = Conversation().send([content])
    places = sorted({0, len(content), *(min(cut, len(content)) for cut in cuts)})
    cut = Conversation().send(content[start:end] for start, end in itertools.pairwise(places))
    if whole.shown[-1:] == ["bye pipelining"] or cut.shown[-1:] == ["bye pipelining"]:
        return  # the one thing that is about time
    assert (cut.output, cut.core.closed) == (whole.output, whole.core.closed)
    # A message with bare line ends may differ in the dots that transparency takes away.
    assert [unstuffed(each) for each in cut.shown] == [unstuffed(each) for each in whole.shown]


def unstuffed(shown: str) -> str:
    return ("\r\n" + shown.removeprefix("chunk ")).replace("\r\n.", "\r\n")


# -- cost --


def test_many_commands_cost_in_proportion() -> None:
    def costs(count: int) -> float:
        sent = lines("|".join(["NOOP"] * count))

        def answer() -> None:
            core = ServerProtocol(OFFERS, Limits(max_idle_commands=1 << 30))
            core.receive(sent)
            assert core.next_event() is None
            assert len(core.take_output()) == count * len(b"250 2.0.0 OK\r\n")

        return cost(answer)

    assert costs(40_000) < 40 * costs(4_000)


def test_an_idle_core_is_small() -> None:
    count = 200
    tracemalloc.start()
    try:
        before, _ignored = tracemalloc.get_traced_memory()
        cores = [ServerProtocol(OFFERS, Limits()) for _ignored in range(count)]
        for core in cores:
            core.receive(lines("EHLO client.example.net"))
            core.next_event()
            core.take_output()
        after, _ignored = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / count < 700
