# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation says is so: the tests that it names are there, and so are settings and reasons."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from greylist_proxy.config import Config
from greylist_proxy.policy import Reason

TESTS = Path(__file__).parent
PROXY = TESTS.parent
NAMED_TESTS = re.findall(r"(test_[a-z_0-9]+\.py)::(test_[a-z_0-9]+)", (PROXY.parent / "docs/rfc6647.md").read_text())


@pytest.mark.parametrize(("file", "test"), NAMED_TESTS)
def test_the_tests_that_the_rfcs_table_names_are_there(file: str, test: str) -> None:
    assert f"\ndef {test}(" in (TESTS / file).read_text()


def test_the_rfcs_table_names_tests() -> None:
    assert len(NAMED_TESTS) > 20


def test_every_reason_is_in_the_readme() -> None:
    assert all(reason.meaning for reason in Reason)
    readme = (PROXY / "README.md").read_text()
    assert [reason for reason in Reason if f"| `{reason}` |" not in readme] == []


def test_the_readmes_configuration_has_every_setting_at_its_default() -> None:
    readme = (PROXY / "README.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    written = tomllib.loads(text)
    assert {section: list(keys) for section, keys in written.items()} == {
        name: list(field.annotation.model_fields)  # type: ignore[union-attr]
        for name, field in Config.model_fields.items()
    }
    required = {"smtp": {"hostname": "mx1.example.org"}, "backend": written["backend"]}
    empty = {name: required.get(name, {}) for name in Config.model_fields}
    assert Config.model_validate(written) == Config.model_validate(empty)
