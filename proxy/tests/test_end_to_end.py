# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real program between real clients and a real mail server: what greylisting does to mail."""

from __future__ import annotations

import itertools
import re
import signal
import smtplib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .peers import DEADLINE, SILENCE, Proxy, ScriptedPeer, Sink, Wire, wait_until

StartProxy = Callable[..., Proxy]
MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n"


def smtp(proxy: Proxy) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", proxy.port, local_hostname="client.test", timeout=DEADLINE)


def send(proxy: Proxy, sender: str, recipients: list[str], message: bytes = MESSAGE) -> dict[str, tuple[int, bytes]]:
    """Send, and return the refused recipients as smtplib does; all of them refused is no exception here."""
    with smtp(proxy) as client:
        try:
            return client.sendmail(sender, recipients, message)
        except smtplib.SMTPRecipientsRefused as refused:
            return refused.recipients  # type: ignore[no-any-return]


def retry(proxy: Proxy, sender: str, recipients: list[str], message: bytes = MESSAGE) -> None:
    """Send until nobody is refused, no sooner than the proxy said, as a queueing sender does."""
    end = time.monotonic() + DEADLINE
    while refused := send(proxy, sender, recipients, message):
        assert time.monotonic() < end
        seconds = max(int(match[1]) for code, text in refused.values() if (match := re.search(rb"in (\d+) s", text)))
        time.sleep(seconds)


def known(proxy: Proxy, sink: Sink, sender: str, recipient: str) -> None:
    """Get a triplet known, and forget about it."""
    retry(proxy, sender, [recipient])
    sink.mails.clear()


def test_deferred_early_and_delivered(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": "2s"})
    for reason in ("new", "early"):
        code, text = send(proxy, "a@far.test", ["u@here.test"])["u@here.test"]
        (decision,) = proxy.wait_for("decision", reason=reason)
        assert (code, text.decode()) == (
            450,
            f"4.7.1 Greylisted, try again in {decision['seconds_left']} seconds ({decision['id']})",
        )
        assert 1 <= decision["seconds_left"] <= 2
    assert sink.senders == [], "the mail server hears of nobody who has not passed"
    retry(proxy, "a@far.test", ["u@here.test"])
    assert send(proxy, "a@far.test", ["u@here.test"]) == {}
    proxy.wait_for("decision", reason="known")
    assert [mail.recipients for mail in sink.mails] == [["u@here.test"]] * 2
    (passed,) = proxy.select("decision", reason="retried")
    assert {key: passed[key] for key in ("verdict", "client", "network", "sender", "recipient", "seconds_left")} == {
        "verdict": "allow",
        "client": "127.0.0.1",
        "network": "127.0.0.0/24",
        "sender": "a@far.test",
        "recipient": "u@here.test",
        "seconds_left": 0,
    }
    relayed = proxy.wait_for("relay", 2, outcome="accepted")[0]
    assert relayed["code"] == 250
    assert relayed["backend"] == f"127.0.0.1:{sink.port}"
    assert relayed["bytes"] == len(sink.mails[0].content)
    assert passed["id"].startswith(relayed["id"])
    assert proxy.stop() == 0
    assert proxy.errors() == []


AWKWARD = {
    "8-bit bytes": b"Subject: \xe4\xf6\xfc \xff\x00\x1b[31m\r\n\r\n" + bytes(range(14, 256)) + b"\r\n",
    "dots at line starts": b"Subject: dots\r\n\r\n.\r\n..\r\n...x\r\n.y.\r\n",
    "starts with a dot": b".X-Odd: field\r\n\r\nbody\r\n",
    "long lines": b"Subject: long\r\n\r\n" + b"x" * 200_000 + b"\r\n" + b"." * 70_000 + b"\r\n",
    "1,000 lines": b"Subject: lines\r\n\r\n" + b"".join(b"%04d .\r\n" % number for number in range(1000)),
    "empty": b"",
    "no header": b"\r\nonly a body\r\n",
    "empty lines": b"Subject: x\r\n\r\n\r\n\r\n\r\n",
    "half a megabyte": b"Subject: x\r\n\r\n" + b"abcdefghij\r\n" * 43_691,
}


def test_messages_pass_byte_for_byte(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": 0})
    for content in AWKWARD.values():
        with Wire(proxy.port) as client:
            client.hello()
            assert client.ask(b"MAIL FROM:<a@far.test> BODY=8BITMIME").startswith(b"250 ")
            assert client.ask(b"RCPT TO:<u@here.test>") == b"250 2.1.5 u@here.test ok here\r\n"
            assert client.ask(b"DATA").startswith(b"354 ")
            stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
            client.send(stuffed + b".\r\n")
            assert client.reply() == b"250 2.0.0 Ok: queued as 4X7Z\r\n"
            assert client.ask(b"QUIT").startswith(b"221 ")
    for name, mail in zip(AWKWARD, sink.mails, strict=True):
        header, content = split_trace(mail.content)
        assert content == AWKWARD[name], name
        assert header.startswith(b"Received: from client.test ([127.0.0.1])\r\n by mx.test ")


def split_trace(content: bytes) -> tuple[bytes, bytes]:
    """Split what a backend got into our Received field and the rest."""
    match = re.match(rb"Received: .*\r\n(?:[ ].*\r\n)+", content)
    assert match is not None
    return match[0], content[match.end() :]


def test_received_field(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": 0}, smtp={"listen": ["127.0.0.1:0", "[::1]:0"]})
    with Wire(int(proxy.addresses[1].rpartition(":")[2]), "::1") as client:
        client.reply()
        client.ask(b"HELO [odd name\xff")
        for recipients in ([b"One@here.test"], [b"one@here.test", b"two@here.test"]):
            client.ask(b"MAIL FROM:<a@far.test>")
            for recipient in recipients:
                client.ask(b"RCPT TO:<%b>" % recipient)
            client.ask(b"DATA")
            client.send(MESSAGE + b".\r\n")
            assert client.reply().startswith(b"250 ")
    alone, together = [split_trace(mail.content)[0].decode() for mail in sink.mails]
    date = r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000"
    opening = r"Received: from unknown \(\[IPv6:::1\]\)\r\n by mx\.test \(greylist-proxy\) with SMTP id [0-9A-F]{12}"
    assert re.fullmatch(rf"{opening}\r\n for <One@here\.test>;\r\n {date}\r\n", alone)
    assert re.fullmatch(rf"{opening};\r\n {date}\r\n", together)


def test_the_backends_final_reply_is_the_clients(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": 0})
    for reply in (
        "250-2.0.0 first line\r\n250-\r\n250 2.0.0 last, with  blanks",
        "554 5.7.1 no\tthanks",
        "452 later",
    ):
        sink.final_reply = reply
        with Wire(proxy.port) as client:
            client.hello()
            client.ask(b"MAIL FROM:<a@far.test>")
            client.ask(b"RCPT TO:<u@here.test>")
            client.ask(b"DATA")
            client.send(MESSAGE + b".\r\n")
            assert client.reply().decode() == f"{reply}\r\n"
    proxy.wait_for("relay", outcome="refused", code=554, stage="end-of-data")
    proxy.wait_for("relay", outcome="refused", code=452, stage="end-of-data")


def test_a_triplet_is_known_by_the_final_250_only(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": "1s"})
    sink.final_reply = "452 4.3.1 full"
    end = time.monotonic() + DEADLINE
    while not proxy.select("decision", reason="retried") and time.monotonic() < end:
        with pytest.raises((smtplib.SMTPRecipientsRefused, smtplib.SMTPDataError)), smtp(proxy) as client:
            client.sendmail("a@far.test", ["u@here.test"], MESSAGE)
        time.sleep(0.3)
    sink.final_reply = "250 ok"
    assert send(proxy, "a@far.test", ["u@here.test"]) == {}
    assert send(proxy, "a@far.test", ["u@here.test"]) == {}
    proxy.wait_for("decision", reason="known")
    assert [each["reason"] for each in proxy.select("decision")][-2:] == ["retried", "known"]


def test_the_first_recipient_decides_for_the_others(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": "1s"})
    known(proxy, sink, "a@far.test", "known@here.test")
    # Each has its own reply; postmaster and unknown users neither set the verdict nor take it.
    refused = send(
        proxy, "a@far.test", ["postmaster@here.test", "nobody@away.test", "known@here.test", "new@here.test"]
    )
    assert {address: code for address, (code, _ignored) in refused.items()} == {"nobody@away.test": 550}
    assert sink.mails[0].recipients == ["postmaster@here.test", "known@here.test", "new@here.test"]
    assert [each["reason"] for each in proxy.wait_for("decision", 4)][-4:] == [
        "exempt-postmaster",
        "relay-denied",
        "known",
        "transaction",
    ]
    refused = send(proxy, "a@far.test", ["newer@here.test", "known@here.test", "abuse@here.test", "newest@here.test"])
    assert {address: code for address, (code, _ignored) in refused.items()} == {
        "newer@here.test": 450,
        "newest@here.test": 450,
    }
    assert sink.mails[1].recipients == ["known@here.test", "abuse@here.test"]
    # What took the verdict and was delivered is known by itself.
    assert send(proxy, "a@far.test", ["new@here.test"]) == {}


def test_a_recipient_that_the_backend_refuses_sets_nothing(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": "1s"})
    refused = send(proxy, "a@far.test", ["nobody@here.test"])
    wait_until(lambda: send(proxy, "a@far.test", ["nobody@here.test"])["nobody@here.test"][0] == 550, "the delay")
    refused = send(proxy, "a@far.test", ["nobody@here.test", "new@here.test"])
    assert {address: code for address, (code, _ignored) in refused.items()} == {
        "nobody@here.test": 550,
        "new@here.test": 450,
    }
    assert refused["nobody@here.test"][1] == b"5.1.1 <nobody>: no such user"
    assert sink.mails == []


@pytest.mark.parametrize("recipient", ["postmaster@here.test", "PostMaster", "abuse@HERE.test"])
def test_postmaster_and_abuse_are_never_greylisted(start_proxy: StartProxy, sink: Sink, recipient: str) -> None:
    proxy = start_proxy(sink.port)
    with smtp(proxy) as client:
        client.ehlo()
        client.mail("a@far.test")
        assert client.docmd(f"RCPT TO:<{recipient}>")[0] == 250
        assert client.data(MESSAGE)[0] == 250
    assert sink.mails[0].recipients == [recipient]
    proxy.wait_for("decision", reason="exempt-postmaster", verdict="allow", recipient=recipient)


NO_RELAY = [
    # path, reply, reason of the decision (None: no decision, the command is wrong)
    (b"<u@away.test>", b"550 5.7.1 ", "relay-denied"),
    (b"<u@sub.here.test>", b"550 5.7.1 ", "relay-denied"),
    (b"<u@[127.0.0.1]>", b"550 5.7.1 ", "relay-denied"),
    (b"<u%away.test@here.test>", b"550 5.1.3 ", "routing"),
    (b"<away.test!u@here.test>", b"550 5.1.3 ", "routing"),
    (b"<u@away.test@here.test>", b"550 5.1.3 ", "routing"),
    (b'<"u@away.test"@here.test>', b"550 5.1.3 ", "routing"),
    (b"<@here.test:u@away.test>", b"550 5.1.3 ", "routing"),
    (b"<postmaster%away.test@here.test>", b"550 5.1.3 ", "routing"),
    (b"<>", b"501 5.1.3 ", None),
    (b"<u>", b"501 5.1.3 ", None),
    (b"u@here.test", b"501 5.5.4 ", None),
    (b"<u@here.test", b"501 5.5.4 ", None),
    (b"<u@here.test> NOTIFY=NEVER", b"555 5.5.4 ", None),
    ("<ü@here.test>".encode(), b"553 5.6.7 ", None),
]


def test_no_open_relay(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": 0})
    with Wire(proxy.port) as client:
        client.hello()
        for path, reply, _ignored in NO_RELAY:
            assert client.ask(b"MAIL FROM:<a@far.test>").startswith(b"250 ")
            assert client.ask(b"RCPT TO:" + path).startswith(reply), path
            assert client.ask(b"DATA")[:4] in (b"554 ", b"503 ")
            client.ask(b"RSET")
    assert sink.senders == []
    proxy.stop()
    decisions = [(each["verdict"], each["reason"]) for each in proxy.select("decision")]
    assert decisions == [("block", reason) for _path, _reply, reason in NO_RELAY if reason]


def test_null_sender_is_deferred_at_data(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": "1s"})
    for sender in (b"", b"postmaster@far.test", b"double-bounce@far.test"):
        sink.senders.clear()
        with Wire(proxy.port) as client:
            client.hello()
            assert client.ask(b"MAIL FROM:<%b>" % sender).startswith(b"250 ")
            assert client.ask(b"RCPT TO:<nobody@here.test>") == b"550 5.1.1 <nobody>: no such user\r\n"
            assert client.ask(b"RCPT TO:<u@here.test>") == b"250 2.1.5 u@here.test ok here\r\n"
            # The transaction is owed a deferral, and has only one answer to DATA.
            assert client.ask(b"RCPT TO:<postmaster@here.test>").startswith(b"452 4.5.3 ")
            assert client.ask(b"DATA").startswith(b"450 4.7.1 Greylisted, try again in 1 seconds (")
            # The other way round.
            assert client.ask(b"MAIL FROM:<%b>" % sender).startswith(b"250 ")
            assert client.ask(b"RCPT TO:<postmaster@here.test>").startswith(b"250 ")
            assert client.ask(b"RCPT TO:<v@here.test>").startswith(b"450 4.7.1 ")
            client.ask(b"DATA")
            client.send(MESSAGE + b".\r\n")
            assert client.reply().startswith(b"250 ")
        assert set(sink.senders) == {sender.decode() or "<>"}  # aiosmtpd's name for the null sender
        assert sink.mails.pop().recipients == ["postmaster@here.test"]

    def bounces() -> bool:
        try:
            return send(proxy, "", ["u@here.test"]) == {}
        except smtplib.SMTPDataError as error:
            return error.smtp_code != 450

    wait_until(bounces, "the bounce")
    assert bounces()
    proxy.wait_for("decision", reason="known", sender="")


def test_callouts_hold_twenty_backend_connections_at_most(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": "1h"})  # all are of one network, and none is to pass
    # Five at most are one client's.
    clients = [Wire(proxy.port, source=f"127.0.9.{1 + number // 5}").hello() for number in range(21)]
    replies = []
    for client in clients:
        client.ask(b"MAIL FROM:<>")
        replies.append(client.ask(b"RCPT TO:<u@here.test>")[:10])
    assert replies == [b"250 2.1.5 "] * 20 + [b"451 4.3.2 "]
    assert len(sink.senders) == 20
    clients[0].ask(b"RSET")
    assert clients[20].ask(b"RCPT TO:<u@here.test>").startswith(b"250 ")
    # A client that just leaves gives its place back too.
    clients[1].close()
    clients[0].ask(b"MAIL FROM:<>")
    wait_until(lambda: clients[0].ask(b"RCPT TO:<u@here.test>").startswith(b"250 "), "the place")
    for client in clients:
        client.close()


def test_one_client_holds_a_quarter_of_the_backend_connections_at_most(start_proxy: StartProxy, sink: Sink) -> None:
    """Whoever a load balancer names is one client, not the load balancer; postmaster is never greylisted."""
    proxy = start_proxy(
        sink.port, backend={"max_connections": 8}, smtp={"proxy_protocol_from": ["127.0.0.1/32"], "hostname": "mx.test"}
    )

    def visitor(address: str) -> Wire:
        wire = Wire(proxy.port)
        wire.send(b"PROXY TCP4 %b 192.0.2.25 4711 25\r\n" % address.encode())
        wire.hello().ask(b"MAIL FROM:<a@far.test>")
        return wire

    def drip(address: str) -> Wire:
        wire = visitor(address)
        assert wire.ask(b"RCPT TO:<postmaster@here.test>").startswith(b"250 ")
        assert wire.ask(b"DATA").startswith(b"354 ")
        wire.send(b"S")
        return wire

    slow = [drip("192.0.2.1") for _n in range(2)]
    waiting = visitor("192.0.2.1")
    waiting.send(b"RCPT TO:<postmaster@here.test>\r\n")
    others = [drip(f"192.0.2.{number}") for number in range(2, 7)]
    with others[0] as other:
        assert other.ask(MESSAGE[1:] + b".").startswith(b"250 ")
    assert len(sink.senders) == 7, "the third of the first client has not got through"
    slow[0].close()
    assert waiting.reply().startswith(b"250 ")
    for wire in (*slow[1:], waiting, *others[1:]):
        wire.close()


def test_a_delivered_message_gives_its_place_back(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port)
    with Wire(proxy.port).hello() as client:
        for _n in range(21):
            client.ask(b"MAIL FROM:<>")
            assert client.ask(b"RCPT TO:<nobody@here.test>").startswith(b"550 ")  # a callout: one place taken
            assert client.ask(b"RCPT TO:<postmaster@here.test>").startswith(b"250 ")
            assert client.ask(b"DATA").startswith(b"354 ")
            client.send(MESSAGE + b".\r\n")
            assert client.reply().startswith(b"250 ")


def test_several_transactions_in_a_session(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": 0})
    with smtp(proxy) as client:
        client.sendmail("a@far.test", ["one@here.test"], MESSAGE)
        client.mail("b@far.test")
        client.rcpt("two@here.test")
        assert client.rset()[0] == 250
        assert client.docmd("DATA")[0] == 503
        client.sendmail("c@far.test", ["three@here.test"], MESSAGE)
        client.mail("d@far.test")
        client.ehlo()  # as RSET
        client.sendmail("e@far.test", ["four@here.test"], MESSAGE)
    assert [(mail.sender, mail.recipients) for mail in sink.mails] == [
        ("a@far.test", ["one@here.test"]),
        ("c@far.test", ["three@here.test"]),
        ("e@far.test", ["four@here.test"]),
    ]


def test_pipelined_commands(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": 0})
    with Wire(proxy.port) as client:
        client.reply()
        client.send(
            b"EHLO client.test\r\nMAIL FROM:<a@far.test>\r\nRCPT TO:<one@here.test>\r\nRCPT TO:<x@away.test>\r\n"
            b"DATA\r\n" + MESSAGE + b".\r\nMAIL FROM:<b@far.test>\r\nRCPT TO:<two@here.test>\r\nDATA\r\n"
            b"again\r\n.\r\nNOOP\r\nQUIT\r\n"
        )
        codes = [client.reply()[:3] for _n in range(11)]
        assert codes == [b"250", b"250", b"250", b"550", b"354", b"250", b"250", b"250", b"354", b"250", b"250"]
        assert client.reply().startswith(b"221 ")
        assert client.reply() == b""
    assert [split_trace(mail.content)[1] for mail in sink.mails] == [MESSAGE, b"again\r\n"]


def test_size(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": 0}, smtp={"max_message_size": "64KiB"})
    line = b"." + b"x" * 62 + b"\r\n"  # 65 octets; the dot that is added to it on the wire does not count
    fits = (b"." + line) * (65536 // len(line)) + b"y" * (65536 % len(line) - 2) + b"\r\n"
    with Wire(proxy.port) as client:
        client.reply()
        assert b"\r\n250-SIZE 65536\r\n" in client.ask(b"EHLO client.test")
        assert client.ask(b"MAIL FROM:<a@far.test> SIZE=65537").startswith(b"552 5.3.4 ")
        for content, code in ((fits, b"250 "), (fits.replace(b"y\r\n", b"yy\r\n"), b"552 "), (fits * 20, b"552 ")):
            assert client.ask(b"MAIL FROM:<a@far.test> SIZE=65536").startswith(b"250 ")
            assert client.ask(b"RCPT TO:<u@here.test>").startswith(b"250 ")
            assert client.ask(b"DATA").startswith(b"354 ")
            client.send(content + b".\r\n")
            assert client.reply().startswith(code)
    (mail,) = sink.mails
    assert len(split_trace(mail.content)[1]) == 65536
    assert mail.options == ["SIZE=65536"]
    proxy.wait_for("relay", 2, outcome="refused-here", code=552)


SMUGGLING = [
    b"Subject: x\r\n\r\nbare\nLF\r\n",
    b"Subject: x\r\n\r\nbare\rCR\r\n",
    b"Subject: x\r\n\r\n\n.\r\nMAIL FROM:<evil@far.test>\r\n",
    b"Subject: x\r\n\r\n\r\n.\nMAIL FROM:<evil@far.test>\r\n",
    b"Subject: x\r\n\r\n\n.\nMAIL FROM:<evil@far.test>\r\n",
    b"Subject: x\r\n\r\n\r\n.\rRCPT\r\n",
    b"Subject: x\r\n\r\n\r\r\n",
    b" folded: into our field\r\n\r\nx\r\n",
    b"\tfolded: into our field\r\n\r\nx\r\n",
]


def test_nothing_is_smuggled(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": 0}, smtp={"bare_line_ends": "refuse"})
    with Wire(proxy.port) as client:
        client.hello()
        for content in SMUGGLING:
            client.ask(b"MAIL FROM:<a@far.test>")
            client.ask(b"RCPT TO:<u@here.test>")
            assert client.ask(b"DATA").startswith(b"354 ")
            client.send(content + b".\r\n")
            assert client.reply().startswith(b"554 5.6.0 "), content
            # One message was sent, one answer came, and the session goes on.
            assert client.ask(b"NOOP") == b"250 2.0.0 OK\r\n"
    assert sink.mails == []


def told(proxy: Proxy, recipient: str, sender: str = "a@far.test", source: str = "") -> str:
    """Ask for a recipient in a session of its own, and return the answer."""
    with Wire(proxy.port, source=source).hello() as client:
        assert client.ask(f"MAIL FROM:<{sender}>".encode()).startswith(b"250 ")
        return client.ask(f"RCPT TO:<{recipient}>".encode()).decode()


def test_unknown_users_are_refused_by_a_file(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    file = tmp_path / "recipients"
    file.write_text("ann@here.test\n")
    proxy = start_proxy(sink.port, backend={"recipients": str(file)})
    assert told(proxy, "bob@here.test") == "550 5.1.1 No such user here\r\n"
    assert told(proxy, "Ann@here.test").startswith("450 4.7.1 ")
    assert told(proxy, "postmaster@here.test").startswith("250 ")
    proxy.wait_for("decision", verdict="block", reason="unknown-recipient", recipient="bob@here.test")

    def reload(text: str) -> dict[str, Any]:
        file.write_text(text)
        before = len(proxy.select("reload"))
        proxy.process.send_signal(signal.SIGHUP)
        return proxy.wait_for("reload", before + 1)[-1]

    assert reload("ann@here.test\nbob@here.test\n")["state"] == "done"
    assert told(proxy, "bob@here.test").startswith("450 4.7.1 ")
    failed = reload("ann@here.test\nbob\n")
    assert failed["state"] == "failed"
    assert failed["errors"][0].startswith(f'{file}:2: "bob": ')
    assert told(proxy, "bob@here.test").startswith("450 4.7.1 "), "what was there is still there"
    assert proxy.stop() == 0
    assert proxy.errors() == []


def test_unknown_users_are_refused_by_the_backend_at_once(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, backend={"verify_recipient_first": True})
    assert told(proxy, "nobody@here.test") == "550 5.1.1 <nobody>: no such user\r\n"
    for _n in range(3):
        assert told(proxy, "u@here.test").startswith("450 4.7.1 Greylisted")
    assert sink.senders == ["a@far.test"] * 2, "that somebody exists is remembered"
    retry(proxy, "a@far.test", ["u@here.test"])
    assert [mail.recipients for mail in sink.mails] == [["u@here.test"]]
    assert proxy.stop() == 0
    assert proxy.errors() == []


def test_who_tries_names_out_learns_nothing_more(
    start_proxy: StartProxy, scripted: Callable[..., ScriptedPeer]
) -> None:
    peer = scripted({"RCPT": b"550 5.1.1 unknown\r\n"})
    proxy = start_proxy(peer.port, backend={"verify_recipient_first": True})
    for number in range(5):
        assert told(proxy, f"u{number}@here.test", source="127.0.7.1") == "550 5.1.1 unknown\r\n"
    asked = peer.verbs().count("RCPT")
    for recipient in ("u5@here.test", "ann@here.test"):
        for sender in ("a@far.test", "", "postmaster@far.test"):
            reply = told(proxy, recipient, sender, source="127.0.7.1")
            assert reply == "450 4.7.1 Too many unknown users, try again later\r\n"
    assert peer.verbs().count("RCPT") == asked == 5
    assert told(proxy, "u5@here.test", source="127.0.7.2") == "550 5.1.1 unknown\r\n"
    proxy.wait_for("decision", 6, reason="harvesting", verdict="defer", client="127.0.7.1")


def test_unknown_domains_may_be_put_off(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, backend={"unknown_domain": "defer"})
    with Wire(proxy.port).hello() as client:
        client.ask(b"MAIL FROM:<a@far.test>")
        assert client.ask(b"RCPT TO:<u@away.test>").startswith(b"450 4.7.1 ")
        assert client.ask(b"RCPT TO:<u%away.test@here.test>").startswith(b"550 5.1.3 ")
        assert client.ask(b"DATA").startswith(b"450 4.7.1 ")
    proxy.wait_for("decision", reason="unknown-domain", verdict="defer")
    assert sink.senders == []


UTF8_OFFERS = b"250-peer.test\r\n250-SMTPUTF8\r\n250-DSN\r\n250 8BITMIME\r\n"


def test_internationalised_mail(start_proxy: StartProxy, scripted: Callable[..., ScriptedPeer]) -> None:
    peer = scripted({"EHLO": UTF8_OFFERS})
    proxy = start_proxy(peer.port, backend={"domains": ["xn--bcher-kva.test"]}, greylist={"delay": 0})
    with Wire(proxy.port) as client:
        client.reply()
        wait_until(lambda: b"SMTPUTF8" in client.ask(b"EHLO client.test"), "the backend to be known")
        mail = "MAIL FROM:<jürgen@far.test> SMTPUTF8 BODY=8BITMIME ENVID=aBc"
        assert client.ask(mail.encode()).startswith(b"250 ")
        rcpt = "RCPT TO:<用户@Bücher.test> NOTIFY=NEVER ORCPT=rfc822;x+40Y"
        assert client.ask(rcpt.encode()).startswith(b"250 ")
        assert client.ask("RCPT TO:<u@straße.test>".encode()).startswith(b"550 5.7.1 ")
        assert client.ask(b"DATA").startswith(b"354 ")
        client.send("Subject: Grüße\r\n\r\nx\r\n.\r\n".encode())
        assert client.reply().startswith(b"250 ")
        # Without the parameter nobody may have such an address, and there is no trace of it.
        assert client.ask(b"MAIL FROM:<a@far.test>").startswith(b"250 ")
        assert client.ask("RCPT TO:<ü@Bücher.test>".encode())[:1] == b"5"
        assert client.ask(b"RCPT TO:<u@xn--bcher-kva.test>").startswith(b"250 ")
    assert f"{mail}\r\n".encode() in peer.lines
    assert f"{rcpt}\r\n".encode() in peer.lines
    trace = split_trace(peer.messages[0])[0]
    assert b" with UTF8SMTP id " in trace
    assert " for <用户@Bücher.test>;".encode() in trace
    decision = proxy.wait_for("decision")[0]
    assert (decision["sender"], decision["recipient"]) == ("jürgen@far.test", "用户@Bücher.test")
    assert all(line.isascii() and line.rstrip("\n").isprintable() for line in proxy.raw)
    assert proxy.stop() == 0
    assert proxy.errors() == []


def test_nothing_is_broken_that_was_promised(start_proxy: StartProxy, scripted: Callable[..., ScriptedPeer]) -> None:
    """While no backend is known, the least is offered, and what would have to be relayed comes again later."""
    peer = scripted({"connect": SILENCE})
    proxy = start_proxy(peer.port, greylist={"delay": 0})
    with Wire(proxy.port) as client:
        client.reply()
        offers = client.ask(b"EHLO client.test")
        assert b"8BITMIME" not in offers
        assert b"SIZE" not in offers
        client.ask(b"MAIL FROM:<a@far.test>")
        assert client.ask(b"RCPT TO:<u@here.test>").startswith(b"451 4.")
        assert client.ask(b"DATA").startswith(b"451 ")
    proxy.wait_for("decision", reason="new", verdict="allow")


def test_logs_cannot_be_forged(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port)
    sender = '"\x7f\x1b[2J\\"} {\\"event\\": \\"x\\"}"@far.test'
    fine = '"} {\\"event\\": \\"forged\\"}"@far.test'
    with Wire(proxy.port) as client:
        client.hello()
        assert client.ask(f"MAIL FROM:<{sender}>".encode()).startswith(b"501 5.1.7")
        assert client.ask(f"MAIL FROM:<{fine}>".encode()).startswith(b"250 ")
        assert client.ask(b"RCPT TO:<u@here.test>").startswith(b"450 ")
    (decision,) = proxy.wait_for("decision")
    assert decision["sender"] == fine
    assert all(line.isascii() and line.rstrip("\n").isprintable() for line in proxy.raw)


def test_store_failures_do_not_stop_mail(start_proxy: StartProxy, sink: Sink, tmp_path: Any) -> None:
    (tmp_path / "greylist.db").mkdir()
    proxy = start_proxy(sink.port)
    assert send(proxy, "a@far.test", ["u@here.test"]) == {}
    proxy.wait_for("decision", reason="store-failed", verdict="allow")
    (failed,) = proxy.wait_for("store", state="failed")
    assert "greylist.db" in failed["error"]
    (tmp_path / "greylist.db").rmdir()
    proxy.wait_for("store", state="working")  # the housekeeping asks every second
    # What could not be written is tried again every second, too; until then nobody new is made to wait.
    strangers = (f"{number}@here.test" for number in itertools.count())

    def is_deferred() -> bool:
        recipient = next(strangers)
        return send(proxy, "a@far.test", [recipient]).get(recipient, (250, b""))[0] == 450

    wait_until(is_deferred, "a stranger to be greylisted again")
    assert proxy.stop() == 0


def test_a_damaged_store_is_set_aside(start_proxy: StartProxy, sink: Sink, tmp_path: Any) -> None:
    (tmp_path / "greylist.db").write_bytes(b"this is no database, and it is longer than a header would be" * 20)
    proxy = start_proxy(sink.port)
    assert send(proxy, "a@far.test", ["u@here.test"])["u@here.test"][0] == 450
    proxy.wait_for("store", state="damaged")
    assert len(list(tmp_path.glob("greylist.db.damaged-*"))) == 1
    assert proxy.stop() == 0


def test_store_failures_may_defer(start_proxy: StartProxy, sink: Sink, tmp_path: Any) -> None:
    proxy = start_proxy(sink.port, store={"on_failure": "defer", "url": f"sqlite:///{tmp_path}/missing/greylist.db"})
    code, text = send(proxy, "a@far.test", ["u@here.test"])["u@here.test"]
    assert (code, text[:6]) == (451, b"4.3.0 ")
    assert send(proxy, "a@far.test", ["postmaster@here.test"]) == {}
    proxy.wait_for("decision", reason="store-failed", verdict="defer")
