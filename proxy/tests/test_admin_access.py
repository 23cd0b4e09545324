# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom the admin address lets in, and the files and settings that say so."""

from __future__ import annotations

from pathlib import Path

import pytest
from greylist_proxy.admin.access import Access, read_token
from greylist_proxy.admin.sockets import socket_path
from greylist_proxy.config import Config, ConfigError

TOKEN = "correct-horse-battery"


def configured(admin: dict[str, str], url: str = "sqlite:////srv/greylist/greylist.db") -> Config:
    return Config.model_validate(
        {name: {} for name in Config.model_fields}
        | {"backend": {"hosts": ["mail.test:25"], "domains": ["here.test"]}, "store": {"url": url}, "admin": admin}
    )


@pytest.mark.parametrize(
    ("authorization", "may"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN} ", True),
        ("", False),
        ("Bearer", False),
        ("Bearer ", False),
        (TOKEN, False),
        (f"Basic {TOKEN}", False),
        (f"Bearer {TOKEN[:-1]}", False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN.upper()}", False),
        ("Bearer \udcff\udcfe", False),
    ],
)
def test_a_token_lets_in_whoever_has_it(authorization: str, may: bool) -> None:
    for is_local in (True, False):
        access = Access(TOKEN, is_local=is_local)
        assert access.may(authorization) is may
        assert access.is_ours("any.name.test")  # who has the token is no page in a browser


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1:8025", True),
        ("127.0.0.1", True),
        ("[::1]:8025", True),
        ("localhost:8025", True),
        ("LOCALHOST.", True),
        ("mx.here.test", True),
        ("MX.here.test:8025", True),
        ("", False),
        ("rebound.evil.test", False),
        ("rebound.evil.test:8025", False),
        ("127.0.0.1.evil.test", False),
        ("localhost.evil.test", False),
        ("127.0.0.1:8025:1", False),
        ("user@127.0.0.1", False),
        ("::1", False),
    ],
)
def test_without_a_token_a_request_must_call_us_by_our_name(host: str, is_ours: bool) -> None:
    access = Access("", ["mx.here.test"])
    assert access.may("")
    assert access.is_ours(host) is is_ours


def test_without_a_token_nobody_else_is_let_in() -> None:
    assert not Access("", is_local=False).may("")
    assert not Access("", is_local=False).may("Bearer ")


def test_a_reload_never_takes_the_token_from_an_address_that_others_reach() -> None:
    access = Access(TOKEN, is_local=False)
    access.change_token("")
    assert access.may(f"Bearer {TOKEN}")
    assert not access.may("")
    access.change_token("another-long-token")
    assert access.may("Bearer another-long-token")
    assert not access.may(f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"short\n", "at least 16 ASCII characters"),
        (b"with a blank in the middle\n", "no spaces"),
        ("schlüssel-schlüssel\n".encode(), "ASCII"),
        (b"", "must hold the token and nothing else"),
        (b"two-lines-of-a-token\nof-a-token\n", "must hold the token and nothing else"),
        (b"\xff" * 20, "not UTF-8 text"),
        (b"x" * 5000, "must hold the token and nothing else"),
    ],
)
def test_a_token_file_that_can_not_be_meant(tmp_path: Path, content: bytes, error: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=error) as raised:
        read_token(configured({"token_file": str(path)}))
    assert raised.value.lines[0].startswith(f"admin.token_file = {path}: ")
    assert "short" not in str(raised.value)


def test_a_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert read_token(configured({"token_file": str(path)})) == TOKEN
    assert read_token(configured({})) == ""
    path.unlink()
    with pytest.raises(ConfigError, match="can't be read"):
        read_token(configured({"token_file": str(path)}))


@pytest.mark.parametrize(
    ("admin", "url", "runtime", "path"),
    [
        ({}, "sqlite:////srv/greylist/greylist.db", "", "/srv/greylist/control.sock"),
        (
            {},
            "sqlite:////srv/greylist/greylist.db",
            "/run/greylist-proxy:/run/more",
            "/run/greylist-proxy/control.sock",
        ),
        ({}, "valkey://store.test:6379/0", "", None),
        ({}, "valkey://store.test:6379/0", "/run/greylist-proxy", "/run/greylist-proxy/control.sock"),
        ({"socket": "/run/mine.sock"}, "valkey://store.test:6379/0", "/run/greylist-proxy", "/run/mine.sock"),
        ({"socket": "off"}, "sqlite:////srv/greylist/greylist.db", "/run/greylist-proxy", None),
    ],
)
def test_where_the_control_socket_is(
    admin: dict[str, str], url: str, runtime: str, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", runtime)
    assert socket_path(configured(admin, url)) == (Path(path) if path else None)
