# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Control of a running proxy over its socket: entries count at once, in every worker; what it is, and how it does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from greylist_proxy import __version__
from greylist_proxy.news import LOOK_EVERY
from greylist_proxy.store import Action, Entry, Kind

from .admin_client import Answer, ask, control
from .command_line import CommandLine
from .peers import Proxy, Sink, Wire, wait_until
from .test_workers import WORKERS, only, pids

StartProxy = Callable[..., Proxy]
CLIENT = "127.0.0.9"


@pytest.fixture(name="start")
def _start(start_proxy: StartProxy, sink: Sink, tmp_path: Path) -> Callable[..., Proxy]:
    """Start a proxy that defers everybody for a minute, and refuses at once."""

    def start(workers: int = 1, **settings: Any) -> Proxy:
        usual: dict[str, Any] = {
            "greylist": {"delay": "60s"},
            "trap": {"tarpit": 0},
            "smtp": {"workers": workers},
            "admin": {"socket": str(tmp_path / "control.sock")},
        }
        return start_proxy(sink.port, **usual | settings)

    return start


def put(proxy: Proxy, query: str = "", **entry: str) -> Answer:
    return ask(control(proxy), f"/v1/entry{query}", "PUT", {"kind": "client", "value": CLIENT} | entry)


def show(proxy: Proxy, kind: str = "client", value: str = CLIENT) -> Any:
    answer = ask(control(proxy), f"/v1/entry?{urlencode({'kind': kind, 'value': value})}")
    assert answer.status == 200
    return answer.json


def remove(proxy: Proxy, query: str = "") -> Answer:
    return ask(control(proxy), f"/v1/entry?kind=client&value={CLIENT}{query}", "DELETE")


def reply_to(proxy: Proxy) -> bytes:
    """Return the first three octets of what that client's recipient is answered."""
    with Wire(proxy.port, source=CLIENT) as client:
        client.hello()
        assert client.ask(b"MAIL FROM:<a@far.test>").startswith(b"250 ")
        return client.ask(b"RCPT TO:<u@here.test>")[:3]


def test_an_entry_counts_when_the_answer_comes(start: StartProxy) -> None:
    proxy = start()
    assert reply_to(proxy) == b"450"
    for action, reply in (("allow", b"250"), ("block", b"550"), ("allow", b"250")):
        answer = put(proxy, action=action, note="their invoice")
        assert (answer.status, answer.json["changed"], answer.json["effective"]) == (200, True, True)
        assert reply_to(proxy) == reply
    assert remove(proxy).json["changed"]
    assert reply_to(proxy) == b"450"
    reasons = [line["reason"] for line in proxy.wait_for("decision", 5)]
    assert reasons == ["new", "allowed-client", "blocked-client", "allowed-client", "early"]
    told = [(line["state"], line["action"], line["value"]) for line in proxy.select("entry")]
    assert told == [
        ("put", "allow", CLIENT),
        ("put", "block", CLIENT),
        ("put", "allow", CLIENT),
        ("removed", "allow", CLIENT),
    ]


def test_an_entry_counts_in_every_worker_at_once(start: StartProxy) -> None:
    proxy = start(WORKERS)
    took = []
    for action, reply in (("allow", b"250"), ("block", b"550")) * 2:
        began = time.monotonic()
        assert put(proxy, action=action).json["effective"]
        took.append(time.monotonic() - began)
        for number in range(WORKERS):
            with only(proxy, number):
                assert reply_to(proxy) == reply
    # Nobody waits for the next look into the store: who did would wait nearly as long as from one look to the next, but
    # for the first time. A machine that is busy may make some of them late.
    assert min(took[1:]) < LOOK_EVERY / 2


def test_a_worker_that_hangs_is_not_waited_for_long_and_a_dead_one_not_at_all(start: StartProxy) -> None:
    proxy = start(WORKERS)
    os.kill(pids(proxy)[2], signal.SIGSTOP)
    assert put(proxy, action="allow").json["effective"] is False
    os.kill(pids(proxy)[2], signal.SIGKILL)
    proxy.wait_for("worker", state="died", number=2)
    assert put(proxy, action="block").json["effective"] is True
    proxy.wait_for("worker", WORKERS + 1, state="ready")
    with only(proxy, 2):
        assert reply_to(proxy) == b"550"
    (refused,) = proxy.wait_for("decision")
    assert refused["reason"] == "blocked-client"
    assert put(proxy, action="allow").json["effective"] is True


@pytest.mark.parametrize("way", ["PUT", "DELETE"])
def test_a_dry_run_changes_nothing(start: StartProxy, way: str) -> None:
    proxy = start()
    if way == "PUT":
        answer = put(proxy, "?dry_run=true", note="x")
        assert (answer.json["before"], answer.json["after"]["note"]) == (None, "x")
    else:
        put(proxy)
        answer = remove(proxy, "&dry_run=true")
        assert (answer.json["before"]["value"], answer.json["after"]) == (CLIENT, None)
    assert answer.json["changed"]
    assert (show(proxy)["entry"] is None) is (way == "PUT")


def test_asking_twice_is_one_change(start: StartProxy) -> None:
    proxy = start()
    first = put(proxy, expires="30d", note="x").json
    again = put(proxy, expires="30d", note="x").json
    assert (again["changed"], again["after"]) == (False, first["after"])
    assert put(proxy, expires="31d", note="x").json["changed"]
    assert remove(proxy).json["changed"]
    assert remove(proxy).json == {"changed": False, "before": None, "after": None, "effective": True}


def test_values_are_kept_in_one_form(start: StartProxy) -> None:
    proxy = start()
    assert show(proxy, "sender", "@Partner.Example") == {"kind": "sender", "value": "partner.example", "entry": None}
    assert put(proxy, kind="sender", value="Partner.EXAMPLE.").json["after"]["value"] == "partner.example"
    assert show(proxy, "sender", "@Partner.Example")["entry"]["value"] == "partner.example"


def test_what_can_not_be_meant_is_told(start: StartProxy) -> None:
    proxy = start()
    where = control(proxy)
    for body in (b"", b"{", b"\xff", b"[" * 15_000):
        answer = ask(where, "/v1/entry", "PUT", body)
        assert (answer.status, answer.json) == (400, {"error": "the body is not JSON"})
    answer = put(proxy, value="192.0.2.1/24")
    assert answer.status == 400
    assert "the network is 192.0.2.0/24" in answer.json["error"]
    for method, target in (
        ("GET", "/v1/entry"),
        ("GET", "/v1/entry?kind=planet&value=mars"),
        ("DELETE", "/v1/entry?kind=client"),
        ("DELETE", f"/v1/entry?kind=client&value={CLIENT}&dry_run=perhaps"),
    ):
        put(proxy)
        assert ask(where, target, method).status == 400
    assert show(proxy)["entry"] is not None
    assert proxy.errors() == []


def test_many_entries_are_all_listed(start: StartProxy) -> None:
    proxy = start()
    entries = [Entry(Kind.SENDER, f"s{number}@far.test", Action.ALLOW, note="x" * 400) for number in range(300)]
    CommandLine(proxy.config).fill(entries)
    answer = ask(control(proxy), "/v1/entries")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert len(set(answer.body.splitlines())) == 300


def test_what_it_is_and_how_it_does(start: StartProxy, tmp_path: Path) -> None:
    proxy = start(WORKERS, greylist={"mode": "observe"})
    put(proxy, action="block")
    put(proxy, kind="trap", value="old@here.test")
    info = ask(control(proxy), "/v1/info").json
    assert info["version"] == __version__
    assert (info["hostname"], info["mode"], info["workers"]) == ("mx.test", "observe", WORKERS)
    assert 0 <= info["uptime_seconds"] < 60
    assert info["store"] == {
        "address": f"{tmp_path}/greylist.db",
        "prefix": "greylist",
        "working": True,
        "on_failure": "accept",
    }
    (backend,) = info["backends"]
    assert backend["state"] == "up"
    counts = ask(control(proxy), "/v1/counts").json
    assert counts["store"]["entries"] == 2
    assert counts["entries"] == {"client block": 1, "trap": 1}


def test_a_store_that_fails_is_told(start: StartProxy) -> None:
    proxy = start(store={"url": "valkey://127.0.0.1:1/0", "timeout": "1s"})
    for answer in (put(proxy), remove(proxy), ask(control(proxy), "/v1/entries"), ask(control(proxy), "/v1/counts")):
        assert answer.status == 503
        assert "127.0.0.1:1" in answer.json["error"]
    assert ask(control(proxy), "/v1/info").json["store"]["working"] is False
    assert proxy.errors() == []


# -- the command line --


def test_commands_ask_the_server_that_runs(start: StartProxy) -> None:
    proxy = start()
    line = CommandLine(proxy.config)
    assert line("entries", "add", "client", CLIENT, "--note", "their invoice") == (0, f"allow client {CLIENT}\n", "")
    assert reply_to(proxy) == b"250"
    assert len(proxy.select("entry", state="put")) == 1
    replaced = line("entries", "add", "client", CLIENT, "--action", "block", "--expires", "1h")
    assert replaced.out.endswith(f"(replaced an operator's: allow client {CLIENT})\n")
    assert reply_to(proxy) == b"550"
    (shown,) = line("entries", "list", "--json").objects
    assert shown == show(proxy)["entry"]
    assert line("entries", "remove", "client", CLIENT) == (0, f"client {CLIENT} removed\n", "")
    missing = line("entries", "remove", "client", CLIENT)
    assert missing == (1, "", f"greylist-proxy: there is no entry client {CLIENT}\n")
    assert len(proxy.select("entry")) == 3
    assert proxy.stop() == 0
    # Where none runs they work on the store.
    assert line("entries", "add", "trap", "old@here.test").status == 0
    assert [each["value"] for each in line("entries", "list", "--json").objects] == ["old@here.test"]


def test_a_server_with_another_store_is_not_asked(start: StartProxy, tmp_path: Path) -> None:
    proxy = start()
    other = tmp_path / "other"
    other.mkdir()
    line = CommandLine.on(other, f"sqlite:///{other}/greylist.db")
    line.config.write_text(f'{line.config.read_text()}[admin]\nsocket = "{control(proxy)}"\n')
    assert line("entries", "add", "client", CLIENT).status == 0
    assert show(proxy)["entry"] is None
    assert len(line("entries", "list", "--json").objects) == 1


def test_a_server_that_fails_is_told(start: StartProxy) -> None:
    proxy = start(store={"url": "valkey://127.0.0.1:1/0", "timeout": "1s"})
    result = CommandLine(proxy.config)("entries", "add", "client", CLIENT)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"greylist-proxy: the server at {control(proxy)} says: ")


def test_a_socket_that_this_user_may_not_use_is_no_server(start: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = start()
    Path(control(proxy)).unlink()
    assert CommandLine(proxy.config)("entries", "add", "client", CLIENT).status == 0
    wait_until(lambda: reply_to(proxy) == b"250", "the next look into the store")
    assert proxy.select("entry") == []
