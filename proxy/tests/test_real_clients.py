# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that others wrote, on both sides: swaks, smtp-source, smtp-sink, Postfix that queues, openssl."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .peers import DEADLINE, Proxy, Sink, free_port, wait_until
from .postfix_server import PostfixServer
from .valkey_servers import CertificateFiles, make_certificate

StartProxy = Callable[..., Proxy]


def run(*command: str | Path, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a client, and return what came of it."""
    return subprocess.run(command, input=typed, capture_output=True, timeout=3 * DEADLINE, check=False)


def swaks(proxy: Proxy, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return run(
        *("swaks", "--server", f"127.0.0.1:{proxy.port}", "--helo", "client.test", "--from", "a@far.test"), *arguments
    )


def test_swaks_is_deferred_and_then_delivered(start_proxy: StartProxy, sink: Sink) -> None:
    proxy = start_proxy(sink.port)
    first = swaks(proxy, "--to", "u@here.test")
    assert first.returncode == 24  # swaks: no recipient was taken
    assert b"<** 450 4.7.1 Greylisted, try again in 1 seconds" in first.stdout
    wait_until(lambda: swaks(proxy, "--to", "u@here.test", "--quit-after", "RCPT").returncode == 0, "the delay")
    second = swaks(proxy, "--to", "u@here.test,v@here.test", "--body", "line\\n.dot\\n..dots", "--pipeline")
    assert second.returncode == 0
    assert b"<-  250 2.0.0 Ok: queued as 4X7Z" in second.stdout
    (mail,) = sink.mails
    assert mail.recipients == ["u@here.test", "v@here.test"]
    assert b"line\r\n.dot\r\n..dots\r\n" in mail.content
    assert swaks(proxy, "--to", "u@away.test").returncode == 24
    assert proxy.stop() == 0
    assert proxy.errors() == []


@pytest.fixture
def certificate(tmp_path: Path) -> CertificateFiles:
    """A certificate for the address that clients connect to."""
    return make_certificate(tmp_path, "mx", "127.0.0.1")


@pytest.fixture
def tls_proxy(start_proxy: StartProxy, sink: Sink, certificate: CertificateFiles) -> Proxy:
    """The program, with TLS."""
    files = {"tls_certificate": str(certificate.certificate), "tls_key": str(certificate.key)}
    return start_proxy(sink.port, greylist={"delay": 0}, smtp=files)


def test_swaks_over_tls(tls_proxy: Proxy, sink: Sink) -> None:
    sent = swaks(tls_proxy, "--to", "u@here.test", "--tls", "--pipeline")
    assert sent.returncode == 0, sent
    assert b"TLS started" in sent.stdout
    assert b" with ESMTPS id " in sink.mails[0].content
    assert tls_proxy.errors() == []


def s_client(proxy: Proxy, authority: Path, *options: str, typed: bytes) -> subprocess.CompletedProcess[bytes]:
    return run(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{proxy.port}", "-starttls", "smtp", "-ign_eof"),
        *("-name", "client.test", "-CAfile", authority, "-verify_return_error", "-verify_ip", "127.0.0.1"),
        *options,
        typed=typed,
    )


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_verifies_and_sends(tls_proxy: Proxy, sink: Sink, certificate: CertificateFiles, version: str) -> None:
    commands = ("EHLO client.test", "MAIL FROM:<a@far.test>", "RCPT TO:<u@here.test>", "DATA")
    dialogue = "\r\n".join([*commands, "Subject: x", "", "hi", ".", "QUIT", ""]).encode()
    said = s_client(tls_proxy, certificate.authority, version, "-quiet", typed=dialogue)
    assert said.returncode == 0, said
    assert b"250 2.0.0 Ok: queued as 4X7Z" in said.stdout
    assert b"STARTTLS" not in said.stdout.partition(b"250-mx.test")[2]  # what is offered after it
    assert len(sink.mails) == 1


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-ssl3"])
def test_old_versions_are_refused(tls_proxy: Proxy, certificate: CertificateFiles, version: str) -> None:
    said = s_client(tls_proxy, certificate.authority, version, "-cipher", "ALL:@SECLEVEL=0", typed=b"QUIT\r\n")
    assert said.returncode != 0
    assert b"250 " not in said.stdout.partition(b"CONNECTED")[2]


def test_renegotiation_is_off(tls_proxy: Proxy, certificate: CertificateFiles) -> None:
    # `R` on a line of its own is s_client's command for it; only TLS 1.2 has it at all.
    said = run(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{tls_proxy.port}", "-starttls", "smtp", "-tls1_2"),
        *("-legacy_renegotiation", "-CAfile", certificate.authority),
        typed=b"R\n",
    )
    assert b"RENEGOTIATING" in said.stdout + said.stderr
    assert said.returncode != 0
    assert b"no renegotiation" in said.stderr or b"handshake failure" in said.stderr, said.stderr


def test_smtp_source_to_smtp_sink(start_proxy: StartProxy, tmp_path: Path) -> None:
    """Postfix's load generator sends 300 messages to Postfix's sink, which keeps them in a file."""
    port = free_port()
    folder = tmp_path / "kept"
    folder.mkdir()
    # It will not run as root, and then may not see the folders above its own.
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    folder.chmod(0o777)
    sink = subprocess.Popen(["smtp-sink", *user, "-D", "all", f"127.0.0.1:{port}", "100"], cwd=folder)
    try:
        proxy = start_proxy(port, greylist={"delay": 0})
        for options in ((), ("-d",), ("-N",)):  # as it is; several messages a session; with a number in each sender
            sent = run(
                *("smtp-source", "-s", "10", "-m", "100", "-l", "10000", "-r", "2", *options),
                *("-f", "a@far.test", "-t", "u@here.test", f"127.0.0.1:{proxy.port}"),
            )
            assert (sent.returncode, sent.stderr) == (0, b"")
        assert proxy.stop() == 0
    finally:
        sink.terminate()
        sink.wait(DEADLINE)
    kept = b"".join(file.read_bytes() for file in folder.iterdir())
    assert len(re.findall(rb"^Received: from .* by mx\.test", kept, re.MULTILINE | re.DOTALL)) > 0
    assert kept.count(b"by mx.test (greylist-proxy)") == 300
    assert len(proxy.select("relay", outcome="accepted")) == 300
    assert proxy.errors() == []


def test_postfix_queues_and_comes_back(
    start_proxy: StartProxy, start_postfix: Callable[..., PostfixServer], sink: Sink
) -> None:
    """Postfix sends through the proxy: deferred, queued there, and delivered when it comes back."""
    proxy = start_proxy(sink.port)
    postfix = start_postfix(
        relay_transport=f"relay:[127.0.0.1]:{proxy.port}",
        queue_run_delay="1s",
        minimal_backoff_time="1s",
        maximal_backoff_time="1s",
    )
    sent = run(
        *("smtp-source", "-s", "4", "-m", "20", "-l", "5000", "-f", "a@far.test", "-t", "u@here.test"),
        f"127.0.0.1:{postfix.port}",
    )
    assert sent.returncode == 0, sent
    wait_until(lambda: len(sink.mails) >= 20, "all twenty")
    wait_until(lambda: postfix.log.read_text().count(": removed") == 20, "Postfix to be done")
    log = postfix.log.read_text()
    assert "status=deferred (host 127.0.0.1[127.0.0.1] said: 450 4.7.1 Greylisted" in log
    assert "status=bounced" not in log
    assert len(sink.mails) == 20
    assert all(b" with ESMTP id " in mail.content for mail in sink.mails)
    assert proxy.stop() == 0
