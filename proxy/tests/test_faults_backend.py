# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backend that fails, in every way at every step: nothing is lost, and nothing is there twice without a reason.

One message at a time: first while the backend fails, then, when it works again, until it is delivered. What the
client is told meanwhile is in the table; that the books agree at the end is checked by `Ledger`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .ledger import EHLO, POLITE, TAKE_AND_CLOSE, LedgerClient, Slowly, Told
from .peers import CLOSE, SILENCE, wait_until
from .scene import MakeScene

PATIENCE = 0.6  # seconds that the program waits for the backend here
STAGES = ("connect", "EHLO", "MAIL", "RCPT", "DATA", "body", ".", "RSET", "QUIT")
FAULTS: dict[str, Any] = {
    "hangs": SILENCE,
    "closes": CLOSE,
    "4xx": b"452 4.3.1 later\r\n",
    "5xx": b"550 5.7.1 never\r\n",
    "421": b"421 4.3.2 going\r\n",
    "garbage": b"\x00\xffwhat is this\r\n",
    "100,000 lines": b"250-and more\r\n" * 100_000 + b"250 done\r\n",
    "a line without an end": b"250 " + b"x" * 1_000_000,
    "too slow": Slowly(b"250-this takes far too long\r\n250 ok\r\n", 0.2),
}
PASSED_ON = ("MAIL", "RCPT", "DATA", "body", ".")  # where a refusal is the backend's word on the mail
AFTER_THE_MAIL = ("RSET", "QUIT")  # where nobody waits for the answer


def expected(stage: str, fault: str) -> tuple[Told, bytes]:
    """Return what the client is told, and how the reply begins."""
    if stage in AFTER_THE_MAIL:
        return Told.DELIVERED, b"250 2.0.0 taken"
    if stage in PASSED_ON and fault in ("4xx", "5xx"):
        return Told.REFUSED, FAULTS[fault]
    return Told.REFUSED, b"451 4."


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_fails(make_scene: MakeScene, stage: str, fault: str) -> None:
    scene = make_scene(patience=PATIENCE)
    if stage not in ("connect", "EHLO"):
        # So that there is a connection in the pool, and the fault meets it.
        scene.deliver_new()
    scene.backend.fault = lambda step: FAULTS[fault] if step == stage else None
    number, told, answer = scene.offer()
    assert (told, answer[: len(expected(stage, fault)[1])]) == expected(stage, fault)
    scene.backend.fault = lambda step: None
    if told is not Told.DELIVERED:
        scene.deliver(number)
    scene.end()
    assert scene.ledger.unanswered.total() == 0
    if told is Told.REFUSED and (stage, fault) != (".", "closes"):
        outcomes = {each["outcome"] for each in scene.proxy.select("relay")} - {"accepted"}
        assert outcomes
        assert outcomes <= {"refused", "trouble", "failed", "unknown", "refused-here", "reset", "unreachable"}


def test_a_slow_backend_is_no_fault(make_scene: MakeScene) -> None:
    scene = make_scene(patience=10 * PATIENCE)  # a busy machine makes it slower still
    scene.backend.fault = lambda step: Slowly(POLITE[step], 0.003) if POLITE[step] else None
    number, told, _ignored = scene.offer()
    assert told is Told.DELIVERED
    scene.end()
    assert scene.ledger.taken[number]


def test_taken_and_then_gone(make_scene: MakeScene) -> None:
    scene = make_scene(patience=PATIENCE)
    scene.backend.fault = lambda step: TAKE_AND_CLOSE if step == "." else None
    number, told, answer = scene.offer()
    assert (told, answer[:6]) == (Told.REFUSED, b"451 4.")
    scene.backend.fault = lambda step: None
    scene.deliver(number)
    scene.end()
    # A duplicate, which the log explains; without its word the books would not agree.
    assert len(scene.ledger.taken[number]) == 2
    assert len(scene.proxy.select("relay", outcome="unknown")) == 1
    assert scene.ledger.mistakes([]) != []


def test_nobody_there(make_scene: MakeScene) -> None:
    scene = make_scene(patience=PATIENCE)
    scene.backend.refuse()
    number, told, answer = scene.offer()
    assert (told, answer[:6]) == (Told.REFUSED, b"451 4.")
    scene.backend.listen()
    scene.deliver(number)
    scene.backend.refuse()  # with the connections that are kept
    again, told, _ignored = scene.offer()
    assert told is Told.REFUSED
    scene.backend.listen()
    scene.deliver(again)
    scene.end()


@pytest.mark.parametrize("words", [b"", b"421 4.4.2 idle for too long\r\n", b"250 2.0.0 out of turn\r\n"])
def test_a_connection_that_ends_while_nobody_uses_it(make_scene: MakeScene, words: bytes) -> None:
    scene = make_scene(patience=PATIENCE)
    for _n in range(3):
        scene.deliver_new()
        scene.backend.hang_up(words)
        assert scene.offer()[1] is Told.DELIVERED  # on a fresh one
    scene.end()


OFFERS_TLS = EHLO.replace(b"250 DSN", b"250-DSN\r\n250 STARTTLS")
TLS_FAULTS: dict[str, Any] = {
    "hangs": SILENCE,
    "closes": CLOSE,
    "4xx": b"454 4.7.0 TLS not available\r\n",
    "5xx": b"502 5.5.1 never heard of it\r\n",
    "garbage": b"\x00\xffwhat is this\r\n",
    "no TLS after it": b"220 2.0.0 go ahead\r\n",
    "more than it should say": b"220 2.0.0 go ahead\r\n250 2.0.0 injected\r\n250 2.0.0 taken\r\n",
}


@pytest.mark.parametrize("fault", TLS_FAULTS)
@pytest.mark.parametrize("setting", ["opportunistic", "required"])
def test_starttls_fails(make_scene: MakeScene, setting: str, fault: str) -> None:
    scene = make_scene(patience=PATIENCE, backend={"starttls": setting})
    scene.backend.fault = {"EHLO": OFFERS_TLS, "STARTTLS": TLS_FAULTS[fault]}.get
    number, told, answer = scene.offer()
    if setting == "required":
        assert (told, answer[:6]) == (Told.REFUSED, b"451 4.")
        assert scene.backend.stages["MAIL"] == 0  # in clear
    else:
        assert told is Told.DELIVERED or answer[:6] == b"451 4."
    scene.backend.fault = lambda step: None
    if setting == "opportunistic":
        if told is not Told.DELIVERED:
            scene.deliver(number)
        scene.end()


def test_ever_other_faults_under_load(make_scene: MakeScene) -> None:
    """Every fourth step goes wrong in turn, with 16 clients at once."""
    scene = make_scene(patience=PATIENCE)
    faults = [*FAULTS.values(), TAKE_AND_CLOSE]
    steps = [0]

    def fault(stage: str) -> Any:
        steps[0] += 1
        which = faults[steps[0] // 11 % len(faults)]
        if steps[0] > 3000 or steps[0] % 11 or (which is TAKE_AND_CLOSE and stage != "."):
            return None
        return which

    scene.backend.fault = fault

    async def load() -> None:
        async with asyncio.TaskGroup() as group:
            for _n in range(16):
                group.create_task(one())

    async def one() -> None:
        client = LedgerClient(scene.proxy.port, scene.ledger)
        for _n in range(10):
            await client.deliver(scene.ledger.new())
        await client.leave()

    asyncio.run(load())
    wait_until(lambda: len(scene.ledger.delivered) == 160, "all")
    scene.end()
