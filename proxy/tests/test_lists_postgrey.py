# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List files in postgrey's formats: what each line matches, and what damaged and hostile files do."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest
from greylist_proxy.lists import ListError, postgrey
from greylist_proxy.lists.entries import RECIPIENT, fold
from greylist_proxy.lists.postgrey import MAX_WARNINGS, Loaded

CLIENTS = r"""# clients that retry badly
example.net            # the name and what is below

/^mx-[0-9]+\.example\.org$/
192.0.2.1
198.51.100.0/24
203.0.113.77/28
10
172.16
192.168.1
2001:db8::/32
2001:DB8:F::1
::ffff:192.0.2.99
   .Leading.Example
b\u00fccher.example
"""
RECIPIENTS = r"""postmaster@
user@example.org
lists.example.org
/^info-.*@example\.com$/
"""


def loaded(tmp_path: Path, clients: str | bytes = "", recipients: str | bytes = "", traps: str | bytes = "") -> Loaded:
    paths = []
    for name, text in (("whitelist_clients", clients), ("whitelist_recipients", recipients), ("traps", traps)):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        paths.append([path])
    return postgrey.load(*paths)


def client_rule(lists: Loaded, client: str) -> str:
    try:
        match = lists.tables.networks.find(ipaddress.ip_address(client), 0)
    except ValueError:
        match = lists.tables.find_name(client, 0)
    return match.rule.removeprefix("whitelist_clients:") if match else ""


@pytest.mark.parametrize(
    ("client", "line"),
    [
        ("example.net", "2"),
        ("a.b.example.net", "2"),
        ("evil-example.net", ""),
        ("example.net.evil.example", ""),
        ("mx-1.example.org", "4"),
        ("a.mx-1.example.org", ""),
        ("192.0.2.1", "5"),
        ("192.0.2.2", ""),
        ("198.51.100.255", "6"),
        ("203.0.113.64", "7"),
        ("203.0.113.80", ""),
        ("10.255.0.1", "8"),
        ("172.16.255.1", "9"),
        ("172.17.0.1", ""),
        ("192.168.1.200", "10"),
        ("192.168.2.1", ""),
        ("2001:db8:1::1", "11"),
        ("2001:db8:f::1", "12"),
        ("192.0.2.99", "13"),
        ("leading.example", "14"),
        ("xn--bcher-kva.example", "15"),
    ],
)
def test_clients(tmp_path: Path, client: str, line: str) -> None:
    lists = loaded(tmp_path, clients=CLIENTS.replace(r"\u00fc", "\u00fc"))
    assert lists.warnings == []
    assert lists.counts == {"clients": 13, "recipients": 0, "traps": 0}
    assert client_rule(lists, client) == line


@pytest.mark.parametrize(
    ("recipient", "line"),
    [
        ("postmaster@anywhere.example", "1"),
        ("PostMaster+x@anywhere.example", "1"),
        ("user@example.org", "2"),
        ("User+Tag@Example.Org", "2"),
        ("user@sub.example.org", ""),
        ("other@example.org", ""),
        ("anybody@lists.example.org", "3"),
        ("anybody@a.lists.example.org", "3"),
        ("anybody@evil-lists.example.org", ""),
        ("info-a@example.com", "4"),
        ("info-a@example.com.evil.example", ""),
    ],
)
def test_recipients(tmp_path: Path, recipient: str, line: str) -> None:
    lists = loaded(tmp_path, recipients=RECIPIENTS)
    assert lists.warnings == []
    match = lists.tables.find_recipient(*fold(recipient), 0)
    assert (match.rule if match else "") == (f"whitelist_recipients:{line}" if line else "")


def test_traps(tmp_path: Path) -> None:
    lists = loaded(tmp_path, traps="old@example.org\nnever@\ntrap.example.org # all of it\n/^a/\n")
    assert [sentence.removeprefix(str(tmp_path)) for sentence in lists.warnings] == [
        f'/traps:4: "/^a/": allowed is {RECIPIENT}; the line does not count'
    ]
    assert lists.counts["traps"] == 3
    for recipient in ("old@example.org", "never@example.com", "x@trap.example.org", "old+x@example.org"):
        assert lists.traps.find(*fold(recipient), 0)
    assert lists.traps.find("old", "example.com", 0) is None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"/^(/", "not a regular expression that Python knows"),
        (b"/(a+)+$/", "with one repeat"),
        (b"/^half", "between two slashes"),
        (b"//", "between two slashes"),
        (b"two words", "one rule a line"),
        (b"two\twords", "one rule a line"),
        (b"*.example.net", "without *."),
        (b"300.1.2.3", "allowed is"),
        (b"192.0.2.0/64", "allowed is"),
        (b"2001:db8::/129", "allowed is"),
        (b"caf\xe9.example", "allowed is"),
        (b"a\x00b.example", "control characters"),
        (b"\x1b[2Ja.example", "control characters"),
        (b"x" * 5_000_000, "longer than 1024"),
        (b"user@example.net", "allowed is"),
    ],
)
def test_a_line_that_can_not_be_read_costs_only_itself(tmp_path: Path, line: bytes, told: str) -> None:
    lists = loaded(tmp_path, clients=b"\xef\xbb\xbfa.example\r\n" + line + b"\r\n# caf\xe9 \x00\r\nb.example")
    assert lists.counts["clients"] == 2
    assert client_rule(lists, "a.example") == "1"
    assert client_rule(lists, "b.example") == "4"
    (sentence,) = lists.warnings
    assert sentence.startswith(f"{tmp_path}/whitelist_clients:2: ")
    assert told in sentence
    assert sentence.isascii()
    assert sentence.isprintable()
    assert len(sentence) < 1000


def test_a_file_of_something_else_gives_a_bounded_number_of_warnings(tmp_path: Path) -> None:
    lists = loaded(tmp_path, clients=b"what is this\n" * 5000 + b"a.example\n")
    assert len(lists.warnings) == MAX_WARNINGS + 1
    assert lists.warnings[-1] == "list files: 4900 more lines do not count"
    assert lists.counts["clients"] == 1


def test_a_folder_stands_for_its_lists(tmp_path: Path) -> None:
    for name in (
        "whitelist_clients",
        "whitelist_clients.local",
        "whitelist_clients~",
        "whitelist_clients.bak",
        "whitelist_clients.dpkg-old",
        "whitelist_clients.dpkg-dist",
        "whitelist_recipients",
        "README",
    ):
        (tmp_path / name).write_text(f"{name.replace('_', '-').replace('~', 'x')}.example\n")
    (tmp_path / "whitelist_clients.d").mkdir()
    lists = postgrey.load([tmp_path], [tmp_path], [])
    assert lists.warnings == []
    assert lists.counts == {"clients": 2, "recipients": 1, "traps": 0}
    match = lists.tables.find_name("whitelist-clients.local.example", 0)
    assert match is not None
    assert match.rule == "whitelist_clients.local:1"


def test_files_that_can_not_be_read_are_told_all_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    missing = tmp_path / "missing"
    with pytest.raises(ListError) as caught:
        postgrey.load([missing, empty], [pipe, Path("/dev/zero")], [empty])
    assert caught.value.lines == [
        f"{missing}: can't be read: No such file or directory",
        f"{empty}: no file in this folder has a name that begins with whitelist_clients",
        f"{pipe}: not a file; allowed is a regular file",
        "/dev/zero: not a file; allowed is a regular file",
        f"{empty}: not a file; allowed is a regular file",
    ]


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(postgrey.MAX_FILE_SIZE + 1)
    with pytest.raises(ListError, match="larger than"):
        postgrey.load([large], [], [])
