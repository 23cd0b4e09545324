# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import NamedTuple, cast

import pytest
import spnego

from lab.sealing import KERBEROS_PROTOCOL, PROTOCOL, SealError, is_sealed, protocol_of, seal, unseal


class Wrapped(NamedTuple):
    header: bytes
    data: bytes
    padding_length: int


class Reverser:
    """A security context of sorts: turns the text around and signs with its length."""

    negotiated_protocol = "ntlm"

    def wrap_winrm(self, data: bytes) -> Wrapped:
        return Wrapped(b"sig%d" % len(data), data[::-1], 0)

    def unwrap_winrm(self, header: bytes, data: bytes) -> bytes:
        if header != b"sig%d" % len(data):
            raise ValueError("bad signature")
        return data[::-1]


CONTEXT = cast(spnego.ContextProxy, Reverser())


@pytest.mark.parametrize(
    "clear",
    [b"<x/>", b"", b"--Encrypted Boundary--\r\n"[::-1], b"\r\n" * 9, bytes(range(256)) * 400],
    ids=["text", "empty", "a boundary inside", "line ends", "100 kB"],
)
def test_what_was_sealed_can_be_unsealed(clear: bytes) -> None:
    content_type, body = seal(CONTEXT, clear)
    assert is_sealed(content_type)
    assert f'protocol="{PROTOCOL}"' in content_type
    assert unseal(CONTEXT, body) == clear


def test_white_space_after_the_dashes_is_tolerated() -> None:
    body = seal(CONTEXT, b"<x/>")[1].replace(b"--Encrypted Boundary", b"-- Encrypted Boundary")
    assert unseal(CONTEXT, body) == b"<x/>"


GOOD = seal(CONTEXT, b"<x/>")[1]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<x/>",
        GOOD[:-10],
        b"x" + GOOD,
        GOOD.replace(b"SPNEGO", b"CredSSP"),
        GOOD.replace(b"Length=4", b"Length=3"),
        GOOD.replace(b"Length=4", b"Length=-4"),
        GOOD.replace(b"Length=4", b"Length=" + b"9" * 5000),
        GOOD.replace(b"sig4", b"sig5"),
        GOOD.replace(b"\x04\0\0\0", b"\xff\xff\xff\xff"),
        GOOD.replace(b"\x04\0\0\0sig4>/x<", b"\x04\0"),
        GOOD.replace(b"application/octet-stream", b"text/plain"),
    ],
)
def test_what_is_broken_is_refused(body: bytes) -> None:
    with pytest.raises(SealError):
        unseal(CONTEXT, body)


@pytest.mark.parametrize(
    ("content_type", "sealed"),
    [
        ('Multipart/Encrypted;protocol="x"', True),
        ("application/soap+xml;charset=UTF-8", False),
        ("multipart/encryptedx", False),
        ("", False),
    ],
)
def test_content_types(content_type: str, sealed: bool) -> None:
    assert is_sealed(content_type) is sealed


class Ticket(Reverser):
    """One that Kerberos made."""

    negotiated_protocol = "kerberos"


@pytest.mark.parametrize("protocol", [PROTOCOL, KERBEROS_PROTOCOL])
def test_after_kerberos_there_are_two_names_for_the_same(protocol: str) -> None:
    context = cast("spnego.ContextProxy", Ticket())
    content_type, body = seal(context, b"<x/>", protocol)
    assert protocol_of(context, content_type) == protocol
    assert unseal(context, body, content_type) == b"<x/>"
    other = PROTOCOL if protocol == KERBEROS_PROTOCOL else KERBEROS_PROTOCOL
    with pytest.raises(SealError):
        unseal(context, body, f'multipart/encrypted;protocol="{other}"')


def test_ntlm_is_not_kerberos() -> None:
    content_type, body = seal(CONTEXT, b"<x/>", KERBEROS_PROTOCOL)
    with pytest.raises(SealError, match="Kerberos"):
        unseal(CONTEXT, body, content_type)
