# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom our users write to: from Exchange's and Postfix's logs to entries."""

from __future__ import annotations

import csv
import io
from ipaddress import ip_network

import pytest
from greylist_proxy.learn import MAX_LINE, choose, exchange, postfix
from greylist_proxy.learn.choose import Chooser
from greylist_proxy.store import Action, Kind, Source
from hypothesis import given
from hypothesis import strategies as st

OWN = ["here.test", "here.example"]
Row = dict[str, str]


class Heard:
    """What a reader tells of: sender, recipient, what that was before."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str]] = []
        self.messages: set[str] = set()

    def __call__(self, sender: str, recipient: str, original: str, message: str) -> None:
        self.sent.append((sender, recipient, original))
        self.messages.add(message)


# -- what is learned --


def learned(
    *pairs: tuple[str, str], minimum: int = 1, freemail: tuple[str, ...] = ()
) -> tuple[list[str], dict[str, int]]:
    chooser = Chooser(OWN, minimum, freemail)
    for number, (sender, recipient) in enumerate(pairs):
        chooser.sent(sender, recipient, "", str(number))
    return [entry.value for entry in chooser.entries(1, 2)], dict(chooser.ignored)


@pytest.mark.parametrize(
    ("recipient", "value"),
    [
        ("Ann@Partner.Example", "partner.example"),
        ("ann@mail.partner.example", "mail.partner.example"),
        ("ann+tag@partner.example", "partner.example"),
        ('"ann b"@partner.example', "partner.example"),
        # strangers share these domains
        ("Ann@gmail.com", "ann@gmail.com"),
        ("ann@GMX.de", "ann@gmx.de"),
        ("ann@co.uk", "ann@co.uk"),
        ("ann@github.io", "ann@github.io"),
        ("ann@someone.github.io", "someone.github.io"),
        ("ann@partn\u0435r.example", "xn--partnr-7of.example"),  # as it was written to: not the name that it looks like
    ],
)
def test_a_domain_is_learned_and_an_address_where_strangers_share_it(recipient: str, value: str) -> None:
    assert learned(("u@here.test", recipient)) == ([value], {})


def test_more_domains_can_be_said_to_be_shared() -> None:
    assert learned(("u@here.test", "ann@isp.example"), freemail=("ISP.example",)) == (["ann@isp.example"], {})


@pytest.mark.parametrize(
    ("sender", "recipient", "reason"),
    [
        ("", "ann@partner.example", "from the null sender"),
        ("u@elsewhere.example", "ann@partner.example", "from a domain that is not ours"),
        ("u@sub.here.test", "ann@partner.example", "from a domain that is not ours"),
        ("u@xhere.test", "ann@partner.example", "from a domain that is not ours"),
        ("MAILER-DAEMON@here.test", "ann@partner.example", "from a program"),
        ("no-reply+x@here.test", "ann@partner.example", "from a program"),
        ("u@here.test", "v@Here.Example", "to ourselves"),
        ("u@here.test", "postmaster", "to a program"),
        ("u@here.test", "noreply@partner.example", "to a program"),
        ("u@here.test", "list-unsubscribe@partner.example", "to a program"),
        ("u@here.test", "ann@partner.example;bob@partner.example", "not an address"),
        ("u@here.test", "ann%gmail.com@partner.example", "not an address"),
        ("u@here.test", "ann@[192.0.2.1]", "not a domain of the public DNS"),
        ("u@here.test", "ann@host.local", "not a domain of the public DNS"),
        ("u@here.test", "ann@partner", "not a domain of the public DNS"),
        ("u@here.test", "ann@192.0.2.1", "not a domain of the public DNS"),
        ("u@here.test", "ann@partner.example\n", "not an address"),
        ("u@here.test", "ann@part\u2028ner.example", "not an address"),
        ("u@here.test", "<ann@partner.example>", "not an address"),
        ("u@here.test", "a" * 600 + "@partner.example", "not an address"),
        ("u@here.test", "", "not an address"),
        ("u", "ann@partner.example", "not an address"),
    ],
)
def test_what_is_not_learned_is_counted_by_reason(sender: str, recipient: str, reason: str) -> None:
    assert learned((sender, recipient)) == ([], {reason: 1})


def test_an_address_of_ours_that_is_forwarded_is_not_learned() -> None:
    chooser = Chooser(OWN)
    chooser.sent("u@here.test", "ann@partner.example", "sales@here.test", "1")
    assert list(chooser.entries(1, 2)) == []
    assert chooser.ignored == {"to ourselves": 1}


def test_an_entry_counts_for_the_sender_and_expires() -> None:
    chooser = Chooser(OWN)
    chooser.sent("u@here.test", "ann@partner.example", "", "1")
    (entry,) = chooser.entries(5, 7)
    assert (entry.kind, entry.action, entry.source) == (Kind.SENDER, Action.ALLOW, Source.LEARNED)
    assert (entry.created, entry.expires) == (5, 7)


def test_messages_are_counted_once_each_and_must_reach_the_minimum() -> None:
    chooser = Chooser(OWN, minimum=2)
    for message in ("1", "1", "2"):
        chooser.sent("u@here.test", "ann@often.example", "", message)
        chooser.sent("u@here.test", "ann@once.example", "", "1")
    assert [entry.value for entry in chooser.entries(1, 2)] == ["often.example"]
    assert chooser.too_few == 1


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "MAX_LEARNED", 2)
    chooser = Chooser(OWN)
    for name in ("a", "b", "c", "a"):
        chooser.sent("u@here.test", f"ann@{name}.example", "", "1")
    assert [entry.value for entry in chooser.entries(1, 2)] == ["a.example", "b.example"]
    assert chooser.is_full


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=10))
def test_no_text_harms_the_choice(sender: str, recipient: str, original: str) -> None:
    chooser = Chooser(OWN)
    for pair in (
        (sender, recipient),
        ("u@here.test", f"{recipient}@partner.example"),
        ("u@here.test", f"a@{recipient}"),
    ):
        chooser.sent(*pair, original, "1")
    for entry in chooser.entries(1, 2):
        assert entry.value.isascii()
        assert entry.value.isprintable()


# -- Exchange --

FIELDS = (
    "date-time,client-ip,client-hostname,server-ip,server-hostname,source-context,connector-id,source,event-id,"
    "internal-message-id,message-id,network-message-id,recipient-address,recipient-status,total-bytes,recipient-count,"
    "related-recipient-address,reference,message-subject,sender-address,return-path,message-info,directionality,"
    "tenant-id,original-client-ip,original-server-ip,custom-data,transport-traffic-type,log-id,schema-version"
)
COLUMNS = FIELDS.split(",")
SENT: Row = {
    "date-time": "2024-05-17T08:30:00.123Z",
    "source": "SMTP",
    "event-id": "SEND",
    "message-id": "<1@mail01.here.test>",
    "recipient-address": "ann@partner.example",
    "recipient-status": "250 2.1.5 Recipient OK",
    "message-subject": "Hello",
    "sender-address": "u@here.test",
    "return-path": "u@here.test",
    "directionality": "Originating",
}
SUBMITTED: Row = {**SENT, "source": "STOREDRIVER", "event-id": "SUBMIT", "recipient-status": ""}


def tracking(*rows: Row, columns: list[str] = COLUMNS, mark: str = "\ufeff") -> bytes:
    """A message tracking log."""
    text = io.StringIO()
    text.write(f"{mark}#Software: Microsoft Exchange Server\r\n#Version: 15.02.1544.004\r\n")
    text.write("#Log-type: Message Tracking Log\r\n#Date: 2024-05-17T08:00:00.000Z\r\n")
    text.write(f"#Fields: {','.join(columns)}\r\n")
    csv.writer(text, lineterminator="\r\n").writerows([row.get(column, "") for column in columns] for row in rows)
    return text.getvalue().encode()


def exchange_tells(*files: bytes) -> tuple[Heard, exchange.Reader]:
    heard = Heard()
    reader = exchange.Reader(heard)
    for file in files:
        reader.read(line if len(line) <= MAX_LINE else None for line in file.splitlines(keepends=True))
    return heard, reader


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, [("u@here.test", "ann@partner.example", "")]),
        ({"event-id": "SENDEXTERNAL"}, [("u@here.test", "ann@partner.example", "")]),
        (
            {"recipient-address": "a@x.example;b@x.example", "recipient-status": "250 2.1.5 OK;250 2.1.5 OK"},
            [("u@here.test", "a@x.example", ""), ("u@here.test", "b@x.example", "")],
        ),
        (
            {"recipient-address": "a@x.example;b@x.example", "recipient-status": "550 5.1.1 Unknown;250 2.1.5 OK"},
            [("u@here.test", "b@x.example", "")],
        ),
        ({"recipient-status": "250 2.1.5 OK;more"}, [("u@here.test", "ann@partner.example", "")]),
        ({"message-subject": 'a "quoted", one\r\nand a second line'}, [("u@here.test", "ann@partner.example", "")]),
        ({"message-subject": "#Fields: event-id"}, [("u@here.test", "ann@partner.example", "")]),
        # a stranger in either place, or nobody: for the choice to refuse
        ({"return-path": "<>"}, [("", "ann@partner.example", "")]),
        ({"return-path": ""}, [("", "ann@partner.example", "")]),
        ({"sender-address": "x@else.example"}, [("x@else.example", "ann@partner.example", "")]),
        ({"return-path": "x@else.example"}, [("u@here.test", "ann@partner.example", "")]),
        # not sent, not by us
        ({"directionality": "Incoming"}, []),
        ({"directionality": "Undefined"}, []),
        ({"directionality": ""}, []),
        ({"event-id": "RECEIVE"}, []),
        ({"event-id": "DELIVER", "source": "STOREDRIVER"}, []),
        ({"event-id": "FAIL"}, []),
        ({"source": "MAILBOXRULE"}, []),
    ],
)
def test_an_event_of_exchanges(changes: Row, told: list[tuple[str, str, str]]) -> None:
    heard, reader = exchange_tells(tracking({**SENT, **changes}))
    assert heard.sent == told
    assert reader.unreadable == 0


@pytest.mark.parametrize(
    ("context", "is_by_hand"),
    [
        ("MDB:1, Mailbox:2, Event:3, MessageClass:IPM.Note, CreationTime:2024, ClientType:User", True),
        ("MDB:1, MessageClass:IPM.Note.SMIME.MultipartSigned, CreationTime:2024, ClientType:OWA", True),
        ("MDB:1, MessageClass:IPM.Schedule.Meeting.Request, CreationTime:2024, ClientType:ActiveSync", True),
        ("MDB:1, MessageClass:IPM.Schedule.Meeting.Resp.Pos, CreationTime:2024, ClientType:User", False),
        ("MDB:1, MessageClass:IPM.Note.Rules.OofTemplate.Microsoft, CreationTime:2024, ClientType:User", False),
        ("MDB:1, MessageClass:REPORT.IPM.Note.IPNRN, CreationTime:2024, ClientType:User", False),
        ("MDB:1, MessageClass:IPM.Note, CreationTime:2024, ClientType:EventBasedAssistants", False),
        ("MDB:1, MessageClass:IPM.Note, CreationTime:2024, ClientType:Transport", False),
        ("", False),
    ],
)
def test_automatic_mail_is_known_by_its_submission(context: str, is_by_hand: bool) -> None:
    submission = tracking({**SUBMITTED, "source-context": context})
    heard, reader = exchange_tells(submission, tracking(SENT))
    assert bool(heard.sent) == is_by_hand
    assert (reader.messages, reader.automatic) == (1, not is_by_hand)


def test_submission_logs_are_read_first() -> None:
    names = ["/logs/MSGTRK20240517-1.LOG", "/logs/MSGTRKMD20240517-1.LOG", "/logs/msgtrkms20240517-1.log.gz", "-"]
    assert exchange.first(names) == [names[2], names[0], names[1], names[3]]


def test_columns_are_found_by_name() -> None:
    columns = list(reversed(COLUMNS))
    heard, _reader = exchange_tells(tracking(SENT, columns=columns, mark=""), tracking(SENT))
    assert heard.sent == [("u@here.test", "ann@partner.example", "")] * 2


def test_one_message_in_two_logs_is_one_message() -> None:
    heard, reader = exchange_tells(tracking(SENT), tracking(SENT))
    assert len(heard.messages) == 1
    assert reader.messages == 2


@pytest.mark.parametrize(
    ("file", "unreadable"),
    [
        (b"", 0),
        (tracking(), 0),
        (tracking().replace(b"#Fields: ", b"#Other: ") + b"a,b,c\r\n", 1),
        (tracking() + b"a,b,c\r\n", 1),
        (tracking() + b"\xff\xfe\0,b\r\n", 1),
        (tracking() + b"," * MAX_LINE + b"x\r\n", 1),
    ],
)
def test_rows_that_are_none_are_counted(file: bytes, unreadable: int) -> None:
    heard, reader = exchange_tells(file + (tracking(SENT) if file else b""))
    assert reader.unreadable == unreadable
    assert len(heard.sent) == bool(file)


def test_a_quote_that_nobody_closed_does_not_cost_the_rest() -> None:
    filler = tracking(*[{**SENT, "event-id": "RECEIVE"}] * 2000)
    heard, reader = exchange_tells(tracking() + b'2024,"open\r\n' + filler + tracking(*[SENT] * 5))
    assert len(heard.sent) == 5
    assert reader.unreadable == 1


def test_a_subject_cannot_name_the_columns() -> None:
    columns = ["message-subject", *(column for column in COLUMNS if column != "message-subject")]
    forged = "#Fields: " + ",".join(reversed(columns))
    rows = [{**SENT, "message-subject": forged}, SENT]
    heard, _reader = exchange_tells(tracking(*rows, columns=columns))
    assert heard.sent == [("u@here.test", "ann@partner.example", "")]


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([b'"', b"\r\n", b"#Fields: ", b"SEND,", b"\0"]))))
def test_no_bytes_harm_the_reader_of_exchanges(parts: list[bytes]) -> None:
    heard, _reader = exchange_tells(tracking(SENT) + b"".join(parts))
    assert heard.sent[0] == ("u@here.test", "ann@partner.example", "")


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        (b"\xef\xbb\xbf#Software: Microsoft Exchange Server\r\n", True),
        (b"#Software: Microsoft Exchange Server\r\n", True),
        (b"#Fields: date-time,client-ip\r\n", True),
        (b"#Software: Microsoft Internet Information Services 10.0\r\n", False),
        (b"May 17 08:30:00 mx postfix/smtpd[1]: connect from unknown[192.0.2.7]\n", False),
    ],
)
def test_a_log_of_exchanges_is_known_by_its_first_line(line: bytes, is_one: bool) -> None:
    assert exchange.looks_like(line) is is_one


# -- Postfix --

USER = "client=pc.here.test[192.0.2.7], sasl_method=PLAIN, sasl_username=joe"
FROM = "from=<u@here.test>, size=1234, nrcpt=1 (queue active)"
TO = (
    "to=<ann@partner.example>, relay=mx.partner.example[198.51.100.5]:25, delay=1.2, delays=0.1/0/0.6/0.5, dsn=2.0.0, "
    "status=sent (250 2.0.0 Ok: queued as 12AB)"
)
SAYS_MORE = (
    "to=<x@y.example>, relay=none, delay=1, delays=0/0/1/0, dsn=4.4.1, status=deferred (said: to=<a@b.example>, "
    "relay=x, delay=1, delays=1, dsn=2.0.0, status=sent)"
)


def maillog(*events: tuple[str, str], queue_id: str = "4F1A2B3C", stamp: str = "May 17 08:30:00") -> bytes:
    """Lines of syslog: program and text."""
    return b"".join(f"{stamp} mx postfix/{program}[123]: {queue_id}: {text}\n".encode() for program, text in events)


def postfix_tells(*files: bytes, networks: tuple[str, ...] = ()) -> tuple[Heard, postfix.Reader]:
    heard = Heard()
    reader = postfix.Reader(heard, [ip_network(network) for network in networks])
    for file in files:
        reader.read(line if len(line) <= MAX_LINE else None for line in file.splitlines(keepends=True))
    return heard, reader


TOLD = [("u@here.test", "ann@partner.example", "")]


@pytest.mark.parametrize(
    "stamp", ["May 17 08:30:00", "May  7 08:30:00", "2024-05-17T08:30:00.123456+02:00", "2024-05-17T08:30:00Z"]
)
@pytest.mark.parametrize("smtpd", ["smtpd", "submission/smtpd", "smtps/smtpd"])
@pytest.mark.parametrize("queue_id", ["4F1A2B3C", "4VfXyz1Bcdz9vRk"])
def test_a_message_of_a_users(smtpd: str, queue_id: str, stamp: str) -> None:
    events = [(smtpd, USER), ("cleanup", "message-id=<1@here.test>"), ("qmgr", FROM), ("smtp", TO), ("qmgr", "removed")]
    heard, reader = postfix_tells(maillog(*events, queue_id=queue_id, stamp=stamp))
    assert heard.sent == TOLD
    assert reader.messages == 1


def test_a_message_may_begin_in_one_file_and_end_in_the_next() -> None:
    heard, _reader = postfix_tells(maillog(("smtpd", USER), ("qmgr", FROM)), maillog(("smtp", TO)))
    assert heard.sent == TOLD


@pytest.mark.parametrize(
    ("client", "is_ours"),
    [
        (USER, True),
        ("client=unknown[2001:db8::7], sasl_method=LOGIN, sasl_username=joe@here.test", True),
        ("client=pc[192.0.2.7]:40000, sasl_method=PLAIN, sasl_username=joe", True),
        ("client=printer.here.test[10.1.2.3]", True),  # in the networks given
        ("client=printer.here.test[10.1.2.3]:40000", True),
        ("client=pc.here.test[192.0.2.7]", False),
        ("client=localhost[10.0.0.1], orig_queue_id=12AB34, orig_client=evil[198.51.100.9]", False),
        ("client=evil[192.0.2.7], sasl_sender=x, sasl_method=PLAIN, sasl_username=joe", False),
        ("client=evil, sasl_method=PLAIN, sasl_username=joe[192.0.2.7]", False),
        ("client=evil[192.0.2.7] , sasl_method=PLAIN, sasl_username=joe", False),
        ("client=evil[192.0.2.7], sasl_method=PLAIN, sasl_username=", False),
        ("reject: RCPT from evil[192.0.2.7]: helo=<client=a[10.1.2.3], sasl_method=PLAIN, sasl_username=joe>", False),
        ("client=unknown[unknown]", False),
        ("client=evil[10.1.2.3.4]", False),
    ],
)
def test_who_is_a_user(client: str, is_ours: bool) -> None:
    heard, _reader = postfix_tells(maillog(("smtpd", client), ("qmgr", FROM), ("smtp", TO)), networks=("10.0.0.0/8",))
    assert bool(heard.sent) == is_ours


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([("qmgr", FROM), ("smtp", TO.replace("dsn=2.0.0, status=sent", "dsn=4.4.1, status=deferred"))], []),
        ([("qmgr", FROM), ("smtp", TO.replace("dsn=2.0.0, status=sent", "dsn=5.1.1, status=bounced"))], []),
        ([("smtp", TO)], []),
        ([("qmgr", FROM), ("qmgr", "removed"), ("smtp", TO)], []),
        ([("qmgr", FROM), ("local", TO)], []),
        ([("qmgr", FROM.replace("u@here.test", "")), ("smtp", TO)], [("", "ann@partner.example", "")]),
        ([("qmgr", FROM), ("lmtp", TO)], TOLD),
        ([("qmgr", FROM), ("amavis/smtp", TO)], TOLD),
        ([("qmgr", FROM), ("smtp", TO.replace("delay=", "conn_use=2, delay="))], TOLD),
        (
            [("qmgr", FROM), ("smtp", TO.replace(", relay", ", orig_to=<sales@here.test>, relay"))],
            [("u@here.test", "ann@partner.example", "sales@here.test")],
        ),
        # what a remote server says
        ([("qmgr", FROM), ("smtp", SAYS_MORE)], []),
    ],
)
def test_what_became_of_a_users_message(events: list[tuple[str, str]], told: list[tuple[str, str, str]]) -> None:
    heard, _reader = postfix_tells(maillog(("smtpd", USER), *events))
    assert heard.sent == told


def test_hosts_and_ids_are_kept_apart() -> None:
    theirs = maillog(("smtpd", USER), ("qmgr", FROM)).replace(b" mx ", b" mx2 ")
    assert postfix_tells(theirs + maillog(("smtp", TO)))[0].sent == []
    assert (
        postfix_tells(maillog(("smtpd", USER), ("qmgr", FROM)), maillog(("smtp", TO), queue_id="5F1A2B"))[0].sent == []
    )


def test_messages_in_the_queue_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postfix, "MAX_QUEUED", 2)
    lines = b"".join(maillog(("smtpd", USER), ("qmgr", FROM), queue_id=f"AAAA{n:02}") for n in range(4))
    lines += b"".join(maillog(("smtp", TO), queue_id=f"AAAA{n:02}") for n in range(4))
    heard, _reader = postfix_tells(lines)
    assert len(heard.messages) == 2


def test_a_line_that_is_too_long_is_counted() -> None:
    heard, reader = postfix_tells(
        b"postfix " * MAX_LINE + b"\n" + maillog(("smtpd", USER), ("qmgr", FROM), ("smtp", TO))
    )
    assert reader.unreadable == 1
    assert heard.sent == TOLD


@given(st.lists(st.one_of(st.text(max_size=60), st.sampled_from([USER, FROM, TO, "removed", "client=", "[", "to=<"]))))
def test_no_lines_harm_the_reader_of_postfix(texts: list[str]) -> None:
    lines = maillog(*((program, text) for text in texts for program in ("smtpd", "qmgr", "smtp")), queue_id="AAAAAA")
    heard, _reader = postfix_tells(lines, maillog(("smtpd", USER), ("qmgr", FROM), ("smtp", TO)))
    assert heard.sent[-1] == TOLD[0]
