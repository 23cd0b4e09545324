# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lab.users import NTLM_USER_FILE, Users, _NtlmUserFile


@pytest.fixture(autouse=True)
def inherited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """What the process had in the variable before; other labs of the process are not in the way."""
    file = str(tmp_path / "somebody-elses")
    monkeypatch.setenv(NTLM_USER_FILE, file)
    monkeypatch.setattr("lab.users._ntlm_file", _NtlmUserFile())
    return file


def lines() -> list[str]:
    return Path(os.environ[NTLM_USER_FILE]).read_text(encoding="utf-8").split()


def test_the_file_holds_the_labs_that_are_open(inherited: str) -> None:
    one, two = Users({"ann": "pässword"}), Users({"bob": "b", "Ann": "pässword"})
    one.open()
    path = Path(os.environ[NTLM_USER_FILE])
    assert lines() == [":ann:pässword"]
    two.open()
    assert lines() == [":Ann:pässword", ":ann:pässword", ":bob:b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    one.close()
    assert lines() == [":Ann:pässword", ":bob:b"]
    two.close()
    two.close()
    assert os.environ[NTLM_USER_FILE] == inherited
    assert not path.parent.exists()


def test_one_name_with_two_passwords_is_refused() -> None:
    one, two = Users({"ann": "a"}), Users({"ANN": "other"})
    one.open()
    with pytest.raises(ValueError, match="another lab"):
        two.open()
    assert lines() == [":ann:a"]
    one.close()


@pytest.mark.parametrize("bad", [{"": "x"}, {"x": ""}, {"a:b": "x"}, {"a": "x:y"}, {"a": "x\ny"}, {"a": "x", "A": "x"}])
def test_accounts_that_the_file_cannot_hold(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"account"):
        Users(bad)


@pytest.mark.parametrize(
    ("name", "password", "accepted"),
    [
        ("ann", "secret", True),
        ("ANN", "secret", True),
        ("ann", "Secret", False),
        ("ann", "", False),
        ("bob", "secret", False),
        ("bob", "", False),
        ("", "", False),
    ],
)
def test_passwords(name: str, password: str, accepted: bool) -> None:
    assert Users({"Ann": "secret"}).accepts(name, password) is accepted
