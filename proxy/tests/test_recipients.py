# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose mail is taken: our domains in all their forms, and the file of those that there are."""

from __future__ import annotations

from pathlib import Path as FilePath

import pytest
from greylist_proxy.lists import ListError
from greylist_proxy.policy import Reason, Verdict
from greylist_proxy.smtp.address import AddressError
from greylist_proxy.smtp.recipients import Acceptance, Recipients, screen

FILE = """\
# all of them
ann@here.test
Bob.Smith@HERE.test   # with a comment

j\u00fcrgen@b\u00fccher.test
mail#1@here.test
"with blank"@here.test
@sub.here.test
@gro\u00df.test
"""


@pytest.fixture
def file(tmp_path: FilePath) -> FilePath:
    path = tmp_path / "recipients"
    path.write_text(FILE)
    return path


def knows(file: FilePath, address: str) -> bool:
    domains = ["here.test", "xn--bcher-kva.test", "sub.here.test", "below.sub.here.test", "xn--gro-7ka.test"]
    _path, decision = screen(address, Acceptance.load(domains, file))
    assert decision is None or (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.UNKNOWN_RECIPIENT)
    return decision is None


@pytest.mark.parametrize(
    "address",
    [
        "ann@here.test",
        "ANN@Here.Test",
        "bob.smith@here.test",
        "j\u00fcrgen@b\u00fccher.test",
        "ju\u0308rgen@B\u00dcCHER.test",  # decomposed
        "J\u00dcRGEN@xn--bcher-kva.test",
        "mail#1@here.test",
        '"with blank"@here.test',
        "anybody@sub.here.test",
        "anybody@gro\u00df.test",
        # RFC 5321 section 4.5.1: they must be reachable, with a file or without.
        "postmaster@here.test",
        "Abuse@here.test",
        "PostMaster",
    ],
)
def test_who_is_in_the_file(file: FilePath, address: str) -> None:
    assert knows(file, address)


@pytest.mark.parametrize(
    "address",
    [
        "an@here.test",
        "ann+shop@here.test",  # extensions are not guessed at
        "ann@below.sub.here.test",  # nor is what is below a domain
        "bobsmith@here.test",
        "jurgen@xn--bcher-kva.test",
        "mail@here.test",
    ],
)
def test_who_is_not_in_the_file(file: FilePath, address: str) -> None:
    assert not knows(file, address)


def test_lines_that_cannot_be_read_are_errors_with_their_number(tmp_path: FilePath) -> None:
    path = tmp_path / "recipients"
    path.write_bytes(
        b"ann@here.test\n\nann\n@\n@a b\na@here.test OK\nu%x@here.test\npostmaster\n\xff@here.test\n\x1b[2J\r\n"
    )
    with pytest.raises(ListError) as caught:
        Recipients.load(path)
    lines = caught.value.lines
    numbers = [int(line.removeprefix(f"{path}:").partition(":")[0]) for line in lines]
    assert numbers == list(range(3, 11))
    assert all(line.isprintable() and line.isascii() for line in lines)
    assert lines[0].startswith(f'{path}:3: "ann": allowed is an address such as')


def test_a_file_of_something_else_names_its_first_lines_only(tmp_path: FilePath) -> None:
    path = tmp_path / "recipients"
    path.write_text("dn: cn=Ann\n" * 100)
    with pytest.raises(ListError) as caught:
        Recipients.load(path)
    assert len(caught.value.lines) == 21
    assert caught.value.lines[-1] == f"{path}: 80 more lines can't be read"


@pytest.mark.parametrize("content", ["", "# nobody\n\n"])
def test_a_file_that_names_nobody_is_an_error(tmp_path: FilePath, content: str) -> None:
    """An export that failed must not make all mail bounce."""
    path = tmp_path / "recipients"
    path.write_text(content)
    with pytest.raises(ListError, match="names nobody"):
        Recipients.load(path)


def test_files_that_are_none(tmp_path: FilePath) -> None:
    for path, words in (
        (tmp_path, "not a file"),
        (tmp_path / "missing", "not a file"),
        (FilePath("/dev/zero"), "not a file"),
    ):
        with pytest.raises(ListError, match=words):
            Acceptance.load(["here.test"], path)


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: FilePath) -> None:
    path = tmp_path / "recipients"
    path.write_bytes(b"\xef\xbb\xbfann@here.test\r\nbob@here.test\r\n")
    recipients = Recipients.load(path)
    assert len(recipients) == 2
    assert screen("ann@here.test", Acceptance(frozenset({"here.test"}), recipients))[1] is None


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("u@here.test", None),
        ("u@HERE.test", None),
        ("u@b\u00fccher.test", None),
        ("u@xn--BCHER-kva.test", None),
        ("u@stra\u00dfe.test", None),  # IDNA 2008; IDNA 2003 would make it strasse.test
        ("u@xn--strae-oqa.test", None),
        ("postmaster", None),
        ("u@strasse.test", Reason.RELAY_DENIED),
        ("u@away.test", Reason.RELAY_DENIED),
        ("u@sub.here.test", Reason.RELAY_DENIED),
        ("u@[192.0.2.1]", Reason.RELAY_DENIED),
        ("postmaster@away.test", Reason.RELAY_DENIED),
        ("u%away.test@here.test", Reason.ROUTING),
        ("away.test!u@here.test", Reason.ROUTING),
        ('"u@away.test"@here.test', Reason.ROUTING),
        ("@here.test:u@away.test", Reason.ROUTING),
    ],
)
def test_domains(address: str, reason: Reason | None) -> None:
    acceptance = Acceptance.load(["here.test", "b\u00fccher.test", "xn--strae-oqa.test"])
    _path, decision = screen(address, acceptance)
    assert (decision and decision.reason) == reason
    assert decision is None or decision.verdict is Verdict.BLOCK


def test_unknown_domains_may_be_put_off() -> None:
    acceptance = Acceptance.load(["here.test"], unknown_domain="defer")
    _path, decision = screen("u@away.test", acceptance)
    assert decision is not None
    assert (decision.verdict, decision.reason) == (Verdict.DEFER, Reason.UNKNOWN_DOMAIN)
    # Routing stays an offence.
    _path, decision = screen("u%away.test@here.test", acceptance)
    assert decision is not None
    assert decision.verdict is Verdict.BLOCK


def test_what_is_no_address_is_none() -> None:
    with pytest.raises(AddressError):
        screen("nobody", Acceptance.load(["here.test"]))
