# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real program with all that decides: pools, lists, entries, traps, modes, commands beside it, two on one store.

Clients come from addresses of their own on loopback (127.0.1.1 and so on), each /24 a network like any other.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .dns_server import DnsServer
from .peers import Proxy, Sink, Wire, closing, wait_until
from .valkey_servers import Server, single

StartProxy = Callable[..., Proxy]
MakeDns = Callable[..., DnsServer]
MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n.\r\n"
NO_DELAY = {"delay": 0}


def rcpt(proxy: Proxy, source: str, sender: str = "a@far.test", recipient: str = "u@here.test") -> str:
    """Try to deliver a mail from an address; return the answer to RCPT, or where that was 250, to the message."""
    decided = len(proxy.select("decision"))
    with Wire(proxy.port, source=source).hello() as client:
        assert client.ask(f"MAIL FROM:<{sender}>".encode()).startswith(b"250 ")
        reply = client.ask(f"RCPT TO:<{recipient}>".encode())
        if reply.startswith(b"250 "):
            assert client.ask(b"DATA").startswith(b"354 ")
            client.send(MESSAGE)
            reply = client.reply()
        client.ask(b"QUIT")
    proxy.wait_for("decision", decided + 1)
    return reply.decode()


def reason(proxy: Proxy) -> str:
    return str(proxy.select("decision")[-1]["reason"])


def command(proxy: Proxy, *words: str, status: int = 0) -> str:
    """Run a command of the program beside the server, and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "greylist_proxy", *words, "--config", str(proxy.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def explain(proxy: Proxy, client: str, sender: str = "a@far.test", recipient: str = "u@here.test") -> dict[str, Any]:
    words = ("explain", "--client", client, "--sender", sender, "--recipient", recipient, "--json")
    answer: dict[str, Any] = json.loads(command(proxy, *words))
    return answer


# -- pools --


def test_a_pool_that_retries_from_ever_other_networks_passes_at_its_second_attempt(
    start_proxy: StartProxy, sink: Sink, make_dns: MakeDns
) -> None:
    dns = make_dns("pool.test TXT v=spf1 ip4:127.0.0.0/20 -all")
    proxy = start_proxy(sink.port, greylist={"client_key": "spf", "delay": "1s"}, dns={"servers": [str(dns.endpoint)]})
    networks = [f"127.0.{number}.9" for number in range(1, 16)]
    assert rcpt(proxy, networks[0], "a@pool.test").startswith("450 ")
    time.sleep(1)  # the delay is what is tested
    for source in networks[1:]:
        assert rcpt(proxy, source, "a@pool.test").startswith("250 ")
        assert proxy.select("decision")[-1]["key"] == "spf:pool.test"
    # Who the domain does not vouch for is a stranger, whatever he calls himself.
    assert rcpt(proxy, "127.1.1.9", "a@pool.test").startswith("450 ")
    assert (reason(proxy), proxy.select("decision")[-1]["key"]) == ("new", "127.1.1.0/24")
    assert proxy.stop() == 0
    assert proxy.errors() == []


def test_a_dns_that_fails_costs_nobody_his_delay(start_proxy: StartProxy, sink: Sink, make_dns: MakeDns) -> None:
    dns = make_dns("pool.test TXT v=spf1 ip4:127.0.0.0/20 -all")
    proxy = start_proxy(
        sink.port,
        greylist={"client_key": "spf", "delay": "1s"},
        dns={"servers": [str(dns.endpoint)], "timeout": 0.2},
    )
    assert rcpt(proxy, "127.0.1.9", "a@pool.test").startswith("450 ")
    dns.misbehave("other.test", "drop")
    assert rcpt(proxy, "127.0.1.9", "a@other.test").startswith("450 ")  # answered, in spite of it
    time.sleep(1)
    assert rcpt(proxy, "127.0.1.9", "a@other.test").startswith("250 ")  # by its network
    assert rcpt(proxy, "127.0.2.9", "a@pool.test").startswith("250 ")


# -- lists and entries --


def test_postgreys_lists_and_the_dns(start_proxy: StartProxy, sink: Sink, make_dns: MakeDns, tmp_path: Path) -> None:
    dns = make_dns(
        """
        1.3.0.127.in-addr.arpa PTR mail.friend.test
        mail.friend.test A 127.0.3.1
        1.4.0.127.in-addr.arpa PTR mail.friend.test
        partner.test TXT v=spf1 ip4:127.0.5.1 -all
        1.6.0.127.list.test A 127.0.0.2
        1.7.0.127.list.test A 127.0.0.9
        """
    )
    lists = tmp_path / "postgrey"
    lists.mkdir()
    (lists / "whitelist_clients").write_text("# ours\nfriend.test\n127.0.2\n/^mx\\d+\\.pattern\\.test$/\n")
    (lists / "whitelist_clients.local").write_text("127.0.9.0/25\n")
    (lists / "whitelist_recipients").write_text("fast@\n")
    proxy = start_proxy(
        sink.port,
        greylist={"client_key": "spf"},
        dns={"servers": [str(dns.endpoint)]},
        allow={
            "client_files": [str(lists)],
            "recipient_files": [str(lists)],
            "dns_lists": ["list.test=127.0.0.[2..3]"],
        },
    )
    command(proxy, "entries", "add", "sender", "partner.test")
    command(proxy, "entries", "add", "client", "127.0.8.1", "--action", "block")
    wait_until(lambda: rcpt(proxy, "127.0.8.1").startswith("550 5.7.1 Blocked"), "the entries to count")
    for source, sender, recipient, answer, why in (
        ("127.0.2.200", "a@far.test", "u@here.test", "250 ", "allowed-client"),
        ("127.0.9.1", "a@far.test", "u@here.test", "250 ", "allowed-client"),
        ("127.0.9.200", "a@far.test", "u@here.test", "450 ", "new"),
        ("127.0.3.1", "a@far.test", "u@here.test", "250 ", "allowed-name"),
        ("127.0.4.1", "a@far.test", "u@here.test", "450 ", "new"),  # anybody can claim a name
        ("127.0.5.1", "a@partner.test", "u@here.test", "250 ", "allowed-sender-domain"),
        ("127.0.5.2", "a@partner.test", "u@here.test", "450 ", "new"),  # and a sender
        ("127.0.10.1", "a@far.test", "fast+now@here.test", "250 ", "allowed-recipient"),
        ("127.0.6.1", "a@far.test", "u@here.test", "250 ", "dns-allowed"),
        ("127.0.7.1", "a@far.test", "u@here.test", "450 ", "new"),
        ("127.0.8.1", "a@far.test", "postmaster@here.test", "250 ", "exempt-postmaster"),
    ):
        assert rcpt(proxy, source, sender, recipient).startswith(answer), (source, sender, recipient)
        assert reason(proxy) == why, (source, sender, recipient)
    command(proxy, "entries", "remove", "client", "127.0.8.1")
    wait_until(lambda: not rcpt(proxy, "127.0.8.1").startswith("550 "), "the block to be gone")
    assert proxy.stop() == 0
    assert proxy.errors() == []


def test_who_mails_a_trap_is_held_off_and_slowed_down(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    traps = tmp_path / "traps"
    traps.write_text("trap@here.test\n")
    proxy = start_proxy(
        sink.port, greylist=NO_DELAY, trap={"recipient_files": [str(traps)], "block": "1h", "tarpit": "1s"}
    )
    rcpt(proxy, "127.0.1.1")  # a client that has delivered something is no stranger
    proxy.wait_for("relay", outcome="accepted")
    start = time.monotonic()
    assert rcpt(proxy, "127.0.2.2", recipient="trap@here.test").startswith("450 4.7.1 Too much unwanted mail")
    assert time.monotonic() - start >= 1
    (sprung,) = proxy.wait_for("trap", client="127.0.2.2", recipient="trap@here.test")
    assert rcpt(proxy, "127.0.2.2").startswith("450 4.7.1 Too much unwanted mail")
    assert reason(proxy) == "trapped-client"
    assert rcpt(proxy, "127.0.2.3").startswith("250 "), "only that address is blocked"
    # The log says how to undo it.
    assert sprung["undo"] == "greylist-proxy entries remove client 127.0.2.2"
    command(proxy, *sprung["undo"].split()[1:])
    wait_until(lambda: rcpt(proxy, "127.0.2.2").startswith("250 "), "the block to be gone")
    # The null sender springs no trap: that is what bounces of forged mail look like.
    rcpt(proxy, "127.0.4.4", "", "trap@here.test")
    assert len(proxy.select("trap")) == 1
    assert proxy.stop() == 0


# -- modes and settings --


def test_observe_lets_everything_pass_and_says_what_would_be(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"mode": "observe", "delay": "1s"})
    for number in range(2):
        assert rcpt(proxy, "127.0.1.1").startswith("250 ")
        decision = proxy.wait_for("decision", number + 1)[-1]
        assert (decision["verdict"], decision["would"]) == ("allow", "defer")
    time.sleep(1)
    assert rcpt(proxy, "127.0.1.1").startswith("250 ")
    assert reason(proxy) == "retried"
    wait_until(lambda: rcpt(proxy, "127.0.1.1") and reason(proxy) == "known", "it to be known")
    assert "would" not in proxy.select("decision")[-1]
    assert proxy.stop() == 0


def test_off_asks_nothing(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    proxy = start_proxy(sink.port, greylist={"mode": "off"})
    assert rcpt(proxy, "127.0.1.1").startswith("250 ")
    assert reason(proxy) == "off"
    assert rcpt(proxy, "127.0.1.1", recipient="u@elsewhere.test").startswith("550 5.7.1 ")
    assert proxy.stop() == 0


def test_a_client_that_passes_is_exempt(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"auto_allow_after": 1, "delay": "1s"})
    assert rcpt(proxy, "127.0.1.1").startswith("450 ")
    time.sleep(1)
    assert rcpt(proxy, "127.0.1.1").startswith("250 ")
    assert rcpt(proxy, "127.0.1.1", "b@far.test", "v@here.test").startswith("250 ")
    assert reason(proxy) == "auto-allowed"
    assert rcpt(proxy, "127.0.1.2", "b@far.test", "v@here.test").startswith("450 "), "never its network"


def test_the_reply_is_a_setting(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"reply": "Bitte in {seconds} s noch einmal, siehe {id}"})
    reply = rcpt(proxy, "127.0.1.1")
    (decision,) = proxy.wait_for("decision")
    assert reply == f"450 4.7.1 Bitte in 1 s noch einmal, siehe {decision['id']}\r\n"


def test_nobody_logs_in_here(start_proxy: StartProxy, sink: Sink) -> None:
    """Authenticated sessions must not be greylisted (RFC 6647 section 5): there are none."""
    proxy = start_proxy(sink.port)
    with Wire(proxy.port) as client:
        client.reply()
        assert b"AUTH" not in client.ask(b"EHLO client.test")
        assert client.ask(b"AUTH PLAIN AGEAYg==").startswith(b"502 ")


def test_a_reload_takes_all_over_or_nothing(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> None:
    clients = tmp_path / "whitelist_clients"
    clients.write_text("127.0.1.1\n")
    proxy = start_proxy(sink.port, allow={"client_files": [str(clients)]})
    assert rcpt(proxy, "127.0.1.1").startswith("250 ")
    good = proxy.config.read_text()

    def reload(text: str) -> dict[str, Any]:
        proxy.config.write_text(text)
        before = len(proxy.select("reload"))
        proxy.process.send_signal(signal.SIGHUP)
        return proxy.wait_for("reload", before + 1)[-1]

    broken = reload(good.replace('delay = "1s"', 'delay = "soon"'))
    assert broken["state"] == "failed"
    assert "greylist.delay" in broken["errors"][0]
    clients.write_text("127.0.2.2\n")
    gone = reload(good.replace("whitelist_clients", "no-such-list"))
    assert gone["state"] == "failed"
    assert "no-such-list" in gone["errors"][0]
    assert rcpt(proxy, "127.0.1.1").startswith("250 "), "what was there is still there"
    done = reload(good.replace('delay = "1s"', 'delay = "7s"').replace("127.0.0.1:0", "127.0.0.2:0"))
    assert (done["state"], done["after_restart"]) == ("done", ["smtp.listen"])
    assert rcpt(proxy, "127.0.2.2").startswith("250 ")
    assert rcpt(proxy, "127.0.1.1").startswith("450 4.7.1 Greylisted, try again in 7 seconds")
    assert proxy.stop() == 0
    assert proxy.errors() == []


# -- questions --


def test_explain_says_what_happens_and_changes_nothing(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": "1h"})
    fields = ("verdict", "reason", "client", "network", "sender", "recipient", "seconds_left", "id")
    for _n in range(2):
        first = explain(proxy, "127.0.1.1")
        assert (first["verdict"], first["reason"], first["seconds_left"]) == ("defer", "new", 3600)
    reply = rcpt(proxy, "127.0.1.1")
    (decision,) = proxy.wait_for("decision")
    wait_until(lambda: explain(proxy, "127.0.1.1")["decisions"], "the decision to be kept")
    second = explain(proxy, "127.0.1.1")
    assert (second["verdict"], second["reason"]) == ("defer", "early")
    assert 3500 < second["seconds_left"] <= 3600
    assert second["id"] == decision["id"]
    assert second["id"] in reply
    assert set(fields) <= set(second)
    assert [triplet["state"] for triplet in second["triplets"]] == ["pending"]
    assert explain(proxy, "127.0.1.1", recipient="u@elsewhere.test")["reason"] == "relay-denied"
    assert explain(proxy, "127.0.1.1", recipient="postmaster@here.test")["reason"] == "exempt-postmaster"
    known = proxy.config.with_name("recipients")
    known.write_text("u@here.test\n")
    text = proxy.config.read_text()
    proxy.config.write_text(text.replace("[backend]\n", f"[backend]\nrecipients = {json.dumps(str(known))}\n"))
    assert explain(proxy, "127.0.1.1", recipient="v@here.test")["reason"] == "unknown-recipient"
    assert explain(proxy, "127.0.1.1")["reason"] == "early"
    proxy.config.write_text(text)
    # "Let it in now", by the command that explain itself names.
    words = command(proxy, "explain", "--client", "127.0.1.1", "--sender", "a@far.test", "--recipient", "u@here.test")
    (line,) = [line for line in words.splitlines() if line.startswith("to let it in now: ")]
    command(proxy, *line.removeprefix("to let it in now: greylist-proxy ").split(" --config ")[0].split())
    wait_until(lambda: rcpt(proxy, "127.0.1.1").startswith("250 "), "the entry to count")
    assert decision["id"] in command(proxy, "decisions", "--id", decision["id"])
    assert "127.0.1.0/24" in command(proxy, "triplets", "list")
    assert json.loads(command(proxy, "stats", "--json"))
    for wrong in (("--client", "nobody"), ("--recipient", "a b@here.test")):
        words_for = {"--client": "127.0.1.1", "--sender": "a@far.test", "--recipient": "u@here.test"} | dict([wrong])
        command(proxy, "explain", *(word for pair in words_for.items() for word in pair), status=2)


# -- crashes and shared stores --


def test_what_the_client_was_told_survives_a_kill(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port, greylist={"delay": "1s"})
    assert rcpt(proxy, "127.0.1.1").startswith("450 ")
    time.sleep(1)
    assert rcpt(proxy, "127.0.1.1").startswith("250 ")
    proxy.kill()  # at once after the 250
    proxy.start()
    assert explain(proxy, "127.0.1.1")["reason"] == "known"


@pytest.fixture
def server(tmp_path: Path) -> Any:
    folder = tmp_path / "valkey"
    folder.mkdir()
    with single(folder) as running:
        yield running


def test_two_proxies_on_one_server(start_proxy: StartProxy, sink: Sink, server: Server, tmp_path: Path) -> None:
    store = {"url": f"valkey://{server.endpoint}/0"}
    first = start_proxy(sink.port, store=store, greylist={"delay": "1s"})
    folder = tmp_path / "second"
    folder.mkdir()
    with closing(Proxy(folder, [sink.port], store=store, greylist={"delay": "1s"})) as second:
        second.start()
        assert rcpt(first, "127.0.1.1").startswith("450 ")
        assert rcpt(second, "127.0.1.1").startswith("450 ")
        assert reason(second) == "early"
        time.sleep(1)
        assert rcpt(second, "127.0.1.1").startswith("250 "), "a retry at the other one passes"
        assert rcpt(first, "127.0.1.1").startswith("250 ")
        assert reason(first) == "known"
        # An entry made at one counts at both.
        command(first, "entries", "add", "client", "127.0.9.9", "--action", "block")
        for proxy in (first, second):
            wait_until(lambda proxy=proxy: rcpt(proxy, "127.0.9.9").startswith("550 "), "the entry to count")
        assert second.stop() == 0
    assert first.stop() == 0
    assert first.errors() == []


@pytest.mark.parametrize(("on_failure", "answer"), [("accept", "250 "), ("defer", "451 4.3.0 ")])
def test_a_server_that_is_gone_comes_back(
    start_proxy: StartProxy, sink: Sink, server: Server, on_failure: str, answer: str
) -> None:
    store = {"url": f"valkey://{server.endpoint}/0", "on_failure": on_failure, "timeout": "1s"}
    proxy = start_proxy(sink.port, store=store)
    command(proxy, "entries", "add", "client", "127.0.9.9", "--action", "block")
    wait_until(lambda: rcpt(proxy, "127.0.9.9").startswith("550 "), "the entry to count")
    server.kill()
    assert rcpt(proxy, "127.0.1.1").startswith(answer)
    proxy.wait_for("store", state="failed")
    for number in range(20):  # nobody waits behind the one that asks
        assert rcpt(proxy, f"127.0.1.{number + 1}", recipient=f"u{number}@here.test").startswith(answer)
    assert rcpt(proxy, "127.0.9.9").startswith("550 "), "what an operator blocked stays blocked"
    server.start()  # empty: nothing was kept
    proxy.wait_for("store", state="working")
    assert rcpt(proxy, "127.0.1.1").startswith("450 ")
    assert proxy.stop() == 0
    assert proxy.errors() == []
