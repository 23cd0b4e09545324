# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""STARTTLS: what is forgotten, what is thrown away, and what a certificate has to be."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from pathlib import Path

import pytest
from greylist_proxy.smtp.settings import SessionSettings
from greylist_proxy.smtp.tls import Tls, TlsError, server_context

from .peers import until
from .sessions import ENVELOPE, Stage, Talk, run
from .valkey_servers import CertificateFiles, make_certificate

READY = b"220 2.0.0 Ready to start TLS\r\n"


@pytest.fixture(name="files_of_mx", scope="module")
def _files_of_mx(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"), "mx", "127.0.0.1")


@pytest.fixture(name="tls_stage")
def _tls_stage(stage: Stage, files_of_mx: CertificateFiles) -> Stage:
    stage.tls = Tls(files_of_mx.certificate, files_of_mx.key)
    return stage


def trusting() -> ssl.SSLContext:
    """A client that encrypts with whomever it meets, as mail servers do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def encrypted(stage: Stage) -> Talk:
    talk = await stage.open()
    await talk.begin(b"EHLO clear.test")
    assert await talk.ask(b"STARTTLS") == READY
    await talk.start_tls(trusting())
    return talk


def test_mail_under_tls(tls_stage: Stage) -> None:
    async def dialogue() -> None:
        talk = await encrypted(tls_stage)
        # Everything is forgotten, and TLS is not offered in TLS.
        assert (await talk.ask(b"MAIL FROM:<a@far.test>")).startswith(b"503 ")
        hello = await talk.ask(b"EHLO client.test")
        assert b"PIPELINING" in hello
        assert b"STARTTLS" not in hello
        for line in (*ENVELOPE[1:], b"DATA"):
            assert (await talk.ask(line))[:1] in b"23"
        content = b"Subject: x\r\n\r\n" + b"line\r\n" * 100_000
        talk.send(content + b".\r\n")
        assert (await talk.reply()).startswith(b"250 ")
        assert (await talk.ask(b"QUIT")).startswith(b"221 ")
        assert await talk.until_end() == b""
        (transaction,) = tls_stage.transactions
        assert transaction.content == content
        assert transaction.hello.name == "client.test"
        assert transaction.visitor.tls.startswith("TLSv1.3 TLS_")
        await until(lambda: not len(tls_stage.watch))

    run(dialogue())


def test_starttls_is_offered_only_with_a_certificate(stage: Stage, files_of_mx: CertificateFiles) -> None:
    async def dialogue() -> None:
        talk = await stage.open()
        await talk.begin()
        assert b"STARTTLS" not in await talk.ask(b"EHLO client.test")
        assert (await talk.ask(b"STARTTLS")).startswith(b"502 ")
        # A reload may take it away from those who were offered it.
        stage.tls.reload(files_of_mx.certificate, files_of_mx.key)
        talk = await stage.open()
        await talk.begin()
        assert b"STARTTLS" in await talk.ask(b"EHLO client.test")
        stage.tls.reload(None, None)
        assert (await talk.ask(b"STARTTLS")).startswith(b"454 4.7.0 ")
        assert (await talk.ask(b"NOOP")).startswith(b"250 ")

    run(dialogue())


@pytest.mark.parametrize(
    "injected", [b"NOOP\r\n", b"EHLO evil.test\r\nMAIL FROM:<evil@far.test>\r\nRCPT TO:<u@here.test>\r\n"]
)
def test_commands_injected_before_the_handshake(tls_stage: Stage, injected: bytes) -> None:
    """CVE-2011-0411 and its kin: what came in clear must not be executed as if it had come under TLS."""

    async def dialogue() -> None:
        talk = await tls_stage.open()
        await talk.begin(b"EHLO clear.test")
        talk.send(b"STARTTLS\r\n" + injected)
        assert await talk.reply() == READY
        await talk.start_tls(trusting())
        assert (await talk.ask(b"RCPT TO:<v@here.test>")).startswith(b"503 ")
        assert (await talk.ask(b"EHLO client.test")).startswith(b"250-mx.test")
        assert (await talk.ask(b"DATA")).startswith(b"503 ")
        assert tls_stage.transactions == []
        (event,) = tls_stage.events("tls")
        assert (event["state"], event["bytes"]) == ("plaintext-discarded", len(injected))

    run(dialogue())


def test_commands_injected_in_a_packet_of_their_own(tls_stage: Stage) -> None:
    async def dialogue() -> None:
        talk = await tls_stage.open()
        await talk.begin(b"EHLO clear.test")
        assert await talk.ask(b"STARTTLS") == READY
        talk.send(b"MAIL FROM:<evil@far.test>\r\n")
        assert b"250 " not in await talk.until_end()
        assert tls_stage.transactions == []
        await until(lambda: tls_stage.events("tls"))
        assert tls_stage.events("tls")[0]["state"] == "failed"
        await until(lambda: not len(tls_stage.watch))
        assert tls_stage.connections.total == 0

    run(dialogue())


def test_commands_pipelined_behind_the_handshake(tls_stage: Stage) -> None:
    """They may arrive together with the end of the handshake, before the session hears of that."""

    async def dialogue() -> None:
        talk = await tls_stage.open()
        await talk.begin(b"EHLO clear.test")
        assert await talk.ask(b"STARTTLS") == READY
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusting().wrap_bio(incoming, outgoing)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        talk.send(outgoing.read())
        while True:
            incoming.write(await talk.reader.read(1 << 16))
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        client.write(b"EHLO client.test\r\nMAIL FROM:<a@far.test>\r\n")
        talk.send(outgoing.read())  # the client's Finished and its commands, in one write
        replies = b""
        while b"Sender OK" not in replies:
            incoming.write(await talk.reader.read(1 << 16))
            try:
                replies += client.read(1 << 16)
            except ssl.SSLWantReadError:
                continue
        assert replies.startswith(b"250-mx.test\r\n")

    run(dialogue())


def test_a_client_that_leaves_in_the_handshake(tls_stage: Stage) -> None:
    async def dialogue() -> None:
        for leave in (Talk.reset, lambda talk: talk.writer.close()):
            talk = await tls_stage.open()
            await talk.begin(b"EHLO clear.test")
            assert await talk.ask(b"STARTTLS") == READY
            leave(talk)
            await until(lambda: not len(tls_stage.watch))
        assert tls_stage.connections.total == 0
        await until(lambda: not tls_stage.tasks)
        assert tls_stage.events("error") == []

    run(dialogue())


def test_a_handshake_that_takes_too_long(tls_stage: Stage) -> None:
    tls_stage.settings = SessionSettings(handshake_timeout=0.3)

    async def dialogue() -> None:
        talk = await tls_stage.open()
        await talk.begin(b"EHLO clear.test")
        assert await talk.ask(b"STARTTLS") == READY
        assert await talk.until_end() == b""
        await until(lambda: tls_stage.events("tls"))
        assert tls_stage.events("tls")[0]["state"] == "failed"
        assert not len(tls_stage.watch)

    run(dialogue())


def test_a_session_that_ends_within_its_handshake_is_forgotten(tls_stage: Stage) -> None:
    """uvloop takes an aborted handshake for one that went well, and never says that the connection is lost."""
    tls_stage.settings = SessionSettings(session_timeout=0.3, handshake_timeout=60)

    async def dialogue() -> None:
        talk = await tls_stage.open()
        await talk.begin(b"EHLO clear.test")
        assert await talk.ask(b"STARTTLS") == READY
        assert await talk.until_end() == b""
        await until(lambda: not len(tls_stage.watch))
        assert tls_stage.connections.total == 0
        assert [event["state"] for event in tls_stage.events("tls")] == ["failed"]
        assert tls_stage.events("error") == []

    run(dialogue())


def test_timers_and_a_stop_under_tls(tls_stage: Stage) -> None:
    tls_stage.settings = SessionSettings(command_timeout=0.4)

    async def dialogue() -> None:
        talk = await encrypted(tls_stage)
        assert (await talk.reply()).startswith(b"421 4.4.2 ")
        assert await talk.until_end() == b""
        tls_stage.settings = dataclasses.replace(tls_stage.settings, command_timeout=10)
        talk = await encrypted(tls_stage)
        for session in tls_stage.watch:
            session.stop()
        assert (await talk.reply()).startswith(b"421 4.3.2 ")
        assert await talk.until_end() == b""
        await until(lambda: not len(tls_stage.watch))

    run(dialogue())


def test_a_commit_under_tls_outlives_its_client(tls_stage: Stage) -> None:
    release = asyncio.Event()

    async def commit() -> object:
        await release.wait()
        return tls_stage.answers["rcpt"]

    tls_stage.answers["commit"] = commit

    async def dialogue() -> None:
        talk = await encrypted(tls_stage)
        for line in (*ENVELOPE, b"DATA"):
            assert (await talk.ask(line))[:1] in b"23"
        talk.send(b"x\r\n.\r\n")
        await until(lambda: tls_stage.tasks)
        talk.reset()
        await until(lambda: not len(tls_stage.watch))
        release.set()
        await until(lambda: not tls_stage.tasks)
        assert tls_stage.transactions[0].outcomes == ["committed"]

    run(dialogue())


# -- the certificate --


def test_old_versions_renegotiation_and_compression_are_off(files_of_mx: CertificateFiles) -> None:
    context = server_context(files_of_mx.certificate, files_of_mx.key)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


def test_certificates_that_cant_be_used(files_of_mx: CertificateFiles, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other", "127.0.0.1")
    empty = tmp_path / "empty"
    empty.touch()
    missing = tmp_path / "missing"
    for certificate, key, words in (
        (missing, files_of_mx.key, f"smtp.tls_certificate: {missing}: can't be read: No such file"),
        (files_of_mx.certificate, missing, f"smtp.tls_key: {missing}: can't be read: No such file"),
        (files_of_mx.certificate, tmp_path, "Is a directory"),
        (empty, files_of_mx.key, "can't be used"),
        (files_of_mx.certificate, empty, "can't be used"),
        (files_of_mx.certificate, other.key, "can't be used: key values mismatch"),
        (files_of_mx.key, files_of_mx.certificate, "can't be used"),
    ):
        with pytest.raises(TlsError) as caught:
            Tls(certificate, key)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "PRIVATE" not in str(caught.value)


def test_a_bad_reload_keeps_the_old_certificate(files_of_mx: CertificateFiles, tmp_path: Path) -> None:
    tls = Tls(files_of_mx.certificate, files_of_mx.key)
    before = tls.context
    with pytest.raises(TlsError):
        tls.reload(tmp_path / "missing", files_of_mx.key)
    assert tls.context is before
    tls.reload(files_of_mx.certificate, files_of_mx.key)
    assert tls.context is not before
