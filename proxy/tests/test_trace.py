# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Received field: what it says in each case, and that nothing a client says can break it."""

from __future__ import annotations

import datetime
import email.policy
import email.utils
import re
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Any

import pytest
from greylist_proxy.client import identify
from greylist_proxy.smtp.trace import received
from hypothesis import example, given, settings
from hypothesis import strategies as st

NOW = datetime.datetime(2026, 3, 1, 12, 0, 5, tzinfo=datetime.UTC).timestamp()
PLAIN: dict[str, Any] = {
    "helo": "c.test",
    "esmtp": True,
    "smtputf8": False,
    "tls": "",
    "client": identify("192.0.2.1", 24, 64),
    "names": (),
    "hostname": "mx.test",
    "ident": "X1",
    "recipient": "u@here.test",
    "now": NOW,
}


def field(**changes: Any) -> str:
    return received(**{**PLAIN, **changes}).decode()


def test_the_plain_field() -> None:
    assert field() == (
        "Received: from c.test ([192.0.2.1])\r\n"
        " by mx.test (greylist-proxy) with ESMTP id X1\r\n"
        " for <u@here.test>;\r\n"
        " Sun, 01 Mar 2026 12:00:05 +0000\r\n"
    )


def test_the_field_with_all_that_there_is() -> None:
    full = field(
        helo="MX7.far.test",
        smtputf8=True,
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
        client=identify("2001:db8::7", 24, 64),
        names=("mx1.far.test", "mx7.far.test"),
        recipient="j\u00fcrgen@b\u00fccher.test",
    )
    assert full == (
        "Received: from MX7.far.test (mx7.far.test [IPv6:2001:db8::7])\r\n"
        " (using TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n"
        " by mx.test (greylist-proxy) with UTF8SMTPS id X1\r\n"
        " for <j\u00fcrgen@b\u00fccher.test>;\r\n"
        " Sun, 01 Mar 2026 12:00:05 +0000\r\n"
    )


@pytest.mark.parametrize(
    ("esmtp", "smtputf8", "tls", "protocol"),
    [
        (False, False, "", "SMTP"),
        (False, False, "TLSv1.2 X", "SMTP"),  # HELO after STARTTLS: RFC 3848 has no word for it
        (True, False, "", "ESMTP"),
        (True, False, "TLSv1.2 X", "ESMTPS"),
        (True, True, "", "UTF8SMTP"),
        (True, True, "TLSv1.2 X", "UTF8SMTPS"),
    ],
)
def test_the_protocol(esmtp: bool, smtputf8: bool, tls: str, protocol: str) -> None:
    assert f" with {protocol} id " in field(esmtp=esmtp, smtputf8=smtputf8, tls=tls)


@pytest.mark.parametrize(
    ("helo", "names", "start"),
    [
        ("c.test", ("n.test",), "from c.test (n.test [192.0.2.1])"),
        ("B.TEST", ("a.test", "b.test"), "from B.TEST (b.test [192.0.2.1])"),
        ("[192.0.2.1]", (), "from [192.0.2.1] ([192.0.2.1])"),
        ("[IPv6:2001:db8::1]", (), "from [IPv6:2001:db8::1] ([192.0.2.1])"),
        ("a b", ("n.test",), "from unknown (n.test [192.0.2.1])"),
        ("x(y", ("evil) by x\r\n",), "from unknown ([192.0.2.1])"),
        ("", (), "from unknown ([192.0.2.1])"),
        ("b\u00fccher.test", (), "from unknown ([192.0.2.1])"),
    ],
)
def test_who_it_came_from(helo: str, names: tuple[str, ...], start: str) -> None:
    assert field(helo=helo, names=names).startswith(f"Received: {start}\r\n")


def test_for_names_one_recipient_or_nobody() -> None:
    assert "for" not in field(recipient=None)
    assert field(recipient=None).endswith(" with ESMTP id X1;\r\n Sun, 01 Mar 2026 12:00:05 +0000\r\n")
    # Without SMTPUTF8 the header has to be ASCII.
    assert "for" not in field(recipient="j\u00fcrgen@here.test")
    assert "for <postmaster>;" in field(recipient="postmaster")


def test_lines_are_folded() -> None:
    helo = ".".join(["a" * 60] * 4)
    name = ".".join(["b" * 60] * 4)
    lines = field(helo=helo, names=(name,), hostname=".".join(["c" * 60] * 3), recipient=f"{'u' * 500}@here.test")
    assert [len(line) for line in lines.split("\r\n") if len(line) > 78] == [244, 258, 183, 514]
    unfolded = re.sub(r"\r\n ", " ", lines)
    assert unfolded.startswith(f"Received: from {helo} ({name} [192.0.2.1]) by ")


@settings(deadline=None)
@given(
    helo=st.text(max_size=40),
    name=st.text(max_size=40),
    tls=st.text(max_size=40),
    smtputf8=st.booleans(),
    esmtp=st.booleans(),
)
@example("x\r\nBcc: y@z", "", "", False, True)
@example("(comment", ")", "\\)", True, True)
def test_nothing_said_can_break_the_field(helo: str, name: str, tls: str, smtputf8: bool, esmtp: bool) -> None:
    raw = received(**{**PLAIN, "helo": helo, "names": (name,), "tls": tls, "smtputf8": smtputf8, "esmtp": esmtp})
    says = raw.split()[2].decode()
    assert says in (helo, "unknown")
    assert raw.endswith(b"\r\n")
    assert all(re.fullmatch(rb"(Received:| )[\x20-\x7e]*", line) for line in raw.split(b"\r\n")[:-1])
    assert raw.count(b"(") == raw.count(b")")
    assert raw.count(b";") == 1
    message = BytesParser(policy=email.policy.default).parsebytes(raw + b"Subject: x\r\n\r\nx\r\n")
    assert isinstance(message, EmailMessage)
    assert message.keys() == ["Received", "Subject"]
    assert email.utils.parsedate_to_datetime(message["Received"].rpartition(";")[2]).timestamp() == NOW
