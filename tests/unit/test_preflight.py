# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The preflight of a greylisting proxy, as tables: what was found, and what is said of it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from ansible_collections.mailops.tarpit.plugins.plugin_utils._preflight import (
    Answer,
    certificate,
    domains,
    own_store,
    relaying,
    sharing,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FOREIGN, OURS = "postmaster@relay-probe.invalid", "postmaster@example.org"
NOW = datetime.datetime(2026, 5, 17, 12, tzinfo=datetime.UTC)


def answer(code: int, recipient: str = FOREIGN, text: str = "", extensions: Iterable[str] = ()) -> Answer:
    result = {"item": ["mail01:25", recipient], "extensions": list(extensions)}
    return Answer.read(result | ({"code": code, "message": text} if code else {"msg": text}))


def said(sentences: Iterable[str]) -> str:
    return "\n".join(sentences)


@pytest.mark.parametrize(
    ("given", "forwarding", "part"),
    [
        (answer(550), "none", ""),
        (
            answer(250),
            "none",
            "accepted the foreign recipient postmaster@relay-probe.invalid: it relays for this proxy",
        ),
        (answer(454, text="4.7.1 <postmaster@relay-probe.invalid>: Relay access denied"), "none", ""),
        (answer(450, text="4.7.1 Greylisted"), "none", "answered 450 4.7.1 Greylisted for the foreign recipient"),
        (answer(452, text="4.3.1 busy"), "none", "answered 452 4.3.1 busy for the foreign recipient"),
        (answer(0, text="timed out"), "none", "mail01:25 cannot be asked from here: timed out. A proxy must reach"),
        (answer(0), "none", "cannot be asked from here: it gave no reason"),
        (answer(550, extensions=["SIZE 1", "XCLIENT NAME ADDR"]), "xclient", ""),
        (answer(550, extensions=["SIZE 1"]), "xclient", "mail01:25 offers no XCLIENT to this proxy"),
        (answer(550, extensions=["SIZE 1"]), "proxy-v2", ""),
        (
            answer(0, text="it does not take the PROXY header: 500 what"),
            "proxy-v2",
            "mail01:25 does not take the PROXY header that proxy-v2 sends: give the proxies a port",
        ),
    ],
)
def test_relaying_and_trust(given: Answer, forwarding: str, part: str) -> None:
    sentences = list(relaying(given, forwarding))
    assert len(sentences) == bool(part)
    assert part in said(sentences)


def test_a_relay_that_does_not_offer_xclient_is_two_things() -> None:
    assert len(list(relaying(answer(250), "xclient"))) == 2


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (answer(250, OURS), ""),
        (answer(0, OURS), ""),  # said once, of the foreign recipient
        (answer(550, OURS, "5.1.1 no"), "refuses postmaster@example.org (550 5.1.1 no): example.org is not one of"),
        (
            answer(454, OURS, "4.7.1 Relay access denied"),
            "refuses postmaster@example.org (454 4.7.1 Relay access denied)",
        ),
        (answer(450, OURS, "4.7.1 later"), "puts postmaster@example.org off (450 4.7.1 later)"),
    ],
)
def test_domains(given: Answer, part: str) -> None:
    sentences = list(domains(given))
    assert len(sentences) == bool(part)
    assert part in said(sentences)


@pytest.fixture(scope="module")
def issue() -> Callable[..., str]:
    """Make a certificate for these names, valid from yesterday for so many days."""
    key = ec.generate_private_key(ec.SECP256R1())

    def make(*names: str, days: float = 90, since: float = -1) -> str:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "common.example.org")])
        begin = NOW + datetime.timedelta(days=since)
        builder = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(NOW + datetime.timedelta(days=days))
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), False)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    return make


@pytest.mark.parametrize(
    ("made", "names", "part"),
    [
        ({"names": ["mx1.example.org"]}, ["mx1.example.org"], ""),
        ({"names": ["mx1.example.org"]}, ["MX1.example.org."], ""),
        ({"names": ["a.example.org", "*.example.org"]}, ["mx1.example.org", "a.example.org"], ""),
        ({"names": ["*.example.org"]}, ["a.mx1.example.org"], "is for *.example.org, and not for a.mx1.example.org"),
        ({"names": ["*.example.org"]}, ["example.org"], "and not for example.org"),
        ({"names": []}, ["common.example.org"], "is for no name, and not for common.example.org"),
        (
            {"names": ["mx1.example.org"], "days": 13},
            ["mx1.example.org"],
            "ends on 2026-05-30 12:00 UTC, in less than 14",
        ),
        ({"names": ["mx1.example.org"], "days": -0.5}, ["mx1.example.org"], "has ended on 2026-05-17 00:00 UTC"),
        ({"names": ["mx1.example.org"], "since": 1}, ["mx1.example.org"], "valid from 2026-05-18 12:00 UTC on"),
    ],
)
def test_certificates(issue: Callable[..., str], made: dict[str, Any], names: list[str], part: str) -> None:
    pem = issue(*made.pop("names"), **made)
    sentences = list(certificate(pem + issue("authority.example"), names, 14, NOW))
    assert len(sentences) == bool(part)
    assert part in said(sentences)


def test_what_is_no_certificate() -> None:
    assert said(certificate("-----BEGIN NONSENSE-----", [], 14, NOW)).startswith("The certificate cannot be read (")


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("sqlite:////var/lib/greylist-proxy/greylist.db", "an SQLite file"),
        ("valkey://localhost:6379/0", "a server"),
        ("valkeys://user@127.0.0.1:6379/0", "a server"),
        ("valkey+cluster://[::1]:6379,127.0.0.1:6380", "a server"),
        ("valkey+sentinel://127.0.0.1:26379,kv2:26379/greylist/0", None),
        ("redis://kv1:6379/0", None),
    ],
)
def test_stores_that_nobody_can_share(url: str, own: str | None) -> None:
    assert own_store(url) == own


SHARED = "valkey://kv1:6379/0"


def proxies(**other: Any) -> dict[str, dict[str, Any]]:
    common = {"greylist_proxy_store_url": SHARED, "greylist_proxy_domains": ["example.org", "example.net"]}
    return {"mx1": dict(common), "mx2": {**common, **other}}


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (proxies(), ""),
        (proxies(greylist_proxy_domains=["example.net", "example.org"]), ""),
        (proxies(greylist_proxy_domains=["elsewhere.example"], greylist_proxy_mode="off"), ""),
        (proxies(greylist_proxy_state="absent", greylist_proxy_mode="off"), ""),
        (proxies(greylist_proxy_mode="observe"), "differ in greylist_proxy_mode:"),
        (proxies(greylist_proxy_domains=["example.org"]), "differ in greylist_proxy_domains:"),
        (
            proxies(greylist_proxy_settings={"greylist": {"delay": "5m"}, "store": {"prefix": "x", "timeout": "1s"}}),
            "differ in greylist_proxy_settings.greylist, greylist_proxy_settings.store.prefix:",
        ),
        (proxies(greylist_proxy_settings={"smtp": {"workers": 2}, "store": {"timeout": "1s"}}), ""),
        ({"mx1": {}, "mx2": {}}, ""),  # the play has set all of it
        ({"mx1": {}, "mx2": {"greylist_proxy_store_url": "sqlite:///x"}}, "differ in greylist_proxy_store_url:"),
    ],
)
def test_what_proxies_share(given: dict[str, dict[str, Any]], part: str) -> None:
    sentences = list(sharing("mx1", given, SHARED))
    assert len(sentences) == bool(part)
    assert part in said(sentences)


def test_files_are_not_shared() -> None:
    assert "the store of mx1 is an SQLite file of its own" in said(sharing("mx1", proxies(), "sqlite:///x"))
    assert list(sharing("mx1", {"mx1": {}}, "sqlite:///x")) == []
