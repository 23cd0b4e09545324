# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `docs/in-front-of.md` and `docs/cutover.md` have for copying, with the real programs that it is for.

HAProxy's part is in `test_haproxy.py`; Exchange and the Windows SMTP service are the lab's, in
`tests/integration/test_in_front_of.py`, as is what the role makes of the variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tools.documented import block, variables

from .peers import Proxy, Sink, Wire, free_port, wait_until
from .postfix_server import PostfixServer

StartProxy = Callable[..., Proxy]
StartPostfix = Callable[..., PostfixServer]
PAGE = "in-front-of.md"
PROXIES = {"192.0.2.25, 192.0.2.26": "127.0.0.1"}
CLIENT, UNWANTED = "127.9.8.7", "127.6.6.6"
FOR_BOTH = block(PAGE, "main.cf: for both")
# A rule of Postfix's own, which only holds if Postfix knows the client.
RULES = {"smtpd_client_restrictions": f"check_client_access inline:{{{UNWANTED}=REJECT}}"}


def settings(title: str, address: str, here: str) -> dict[str, Any]:
    """Return what the documentation's variables set, with this mail server."""
    found = variables(PAGE, title, {address: here})
    assert found["greylist_proxy_backend_hosts"] == [here]
    return dict(found["greylist_proxy_settings"])


def send(proxy: Proxy, source: str) -> bytes:
    """Send a message from an address, and return the reply to it, or to RCPT where that was refused."""
    with Wire(proxy.port, source=source) as client:
        client.hello()
        assert client.ask(b"MAIL FROM:<a@far.test>").startswith(b"250 ")
        reply = client.ask(b"RCPT TO:<u@here.test>")
        if reply.startswith(b"250 "):
            assert client.ask(b"DATA").startswith(b"354 ")
            reply = client.ask(b"Subject: x\r\n\r\nx\r\n.")
    return reply


def check_that_postfix_knows_the_client(proxy: Proxy, postfix: PostfixServer, sink: Sink, helo: bytes) -> None:
    """By its log, by its own Received field, and by what its own rules do."""
    for _each in range(3):
        reply = send(proxy, CLIENT)
        assert reply.startswith(b"250 2.0.0 Ok: queued as "), (proxy.select("relay"), postfix.log.read_text())
    assert b"Client host rejected: Access denied" in send(proxy, UNWANTED)
    wait_until(lambda: len(sink.mails) == 3, "Postfix to deliver")
    assert re.findall(r": client=(\S+)", postfix.log.read_text()) == [f"unknown[{CLIENT}]"] * 3
    received = re.findall(rb"^Received: from (\S+ \(.*\))", sink.mails[0].content, re.MULTILINE)
    assert received[0] == b"%b (unknown [%b])" % (helo, CLIENT.encode())
    assert received[1] == b"client.test ([%b])" % CLIENT.encode()  # the proxy's
    assert proxy.errors() == []


@pytest.fixture
def by_xclient(start_proxy: StartProxy, start_postfix: StartPostfix) -> Callable[..., tuple[Proxy, PostfixServer]]:
    """Make a Postfix that takes XCLIENT, and the proxy before it."""

    def make(**rules: str) -> tuple[Proxy, PostfixServer]:
        postfix = start_postfix(FOR_BOTH + block(PAGE, "main.cf: XCLIENT", PROXIES), **rules)
        sections = settings("variables: XCLIENT", "192.0.2.10:25", f"127.0.0.1:{postfix.port}")
        return start_proxy(postfix.port, greylist={"delay": 0}, **sections), postfix

    return make


def test_postfix_by_xclient(by_xclient: Callable[..., tuple[Proxy, PostfixServer]], sink: Sink) -> None:
    check_that_postfix_knows_the_client(*by_xclient(**RULES), sink, helo=b"client.test")


def test_postfix_counts_the_client_and_not_the_proxy(
    by_xclient: Callable[..., tuple[Proxy, PostfixServer]],
) -> None:
    proxy, _postfix = by_xclient(smtpd_client_connection_rate_limit="1")
    replies = [send(proxy, f"127.9.8.{last}")[:10] for last in (1, 2, 3, 1)]
    assert replies == [b"250 2.0.0 "] * 3 + [b"451 4.3.5 "]


@pytest.mark.parametrize("title", ["master.cf: PROXY", "master.cf: postscreen"])
def test_postfix_by_proxy(start_proxy: StartProxy, start_postfix: StartPostfix, sink: Sink, title: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    postfix = start_postfix(
        FOR_BOTH, block(PAGE, title, {"192.0.2.10:2525": address}), postscreen_greet_wait="1s", **RULES
    )
    proxy = start_proxy(
        int(address.rpartition(":")[2]),
        greylist={"delay": 0},
        **settings("variables: PROXY", "192.0.2.10:2525", address),
    )
    check_that_postfix_knows_the_client(proxy, postfix, sink, helo=b"mx.test")
    assert (f"PASS NEW [{CLIENT}]" in postfix.log.read_text()) == ("postscreen" in title)


def test_a_cutover(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    """Nobody is put off but by a forgotten domain, and an internal relay is none of greylisting's business."""
    here = {"198.51.100.0/28": "127.9.8.0/28", "[example.org, example.net]": "[here.test]"}
    found = variables("cutover.md", "variables: cutover", here)
    lists = tmp_path / "allowed-clients"
    lists.write_text("\n".join(found["greylist_proxy_allowed_clients"]) + "\n")
    sections = found["greylist_proxy_settings"]
    sections["backend"]["domains"] = found["greylist_proxy_domains"]
    sections["store"]["url"] = f"sqlite:///{tmp_path}/greylist.db"
    proxy = start_proxy(
        sink.port,
        greylist={"mode": found["greylist_proxy_mode"], "delay": "1h"},
        allow={"client_files": [str(lists)]},
        **sections,
    )
    for source in (UNWANTED, CLIENT):
        assert send(proxy, source).startswith(b"250 ")
    with Wire(proxy.port) as client:
        client.hello()
        client.ask(b"MAIL FROM:<a@far.test>")
        assert client.ask(b"RCPT TO:<u@forgotten.test>").startswith(b"450 4.7.1 ")
    decisions = proxy.wait_for("decision", 3)
    assert [(each["reason"], each.get("would")) for each in decisions] == [
        ("new", "defer"),
        ("allowed-client", None),
        ("unknown-domain", None),
    ]
