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

from . import metric_table

TESTS = Path(__file__).parent
PROXY = TESTS.parent
DOCS = PROXY.parent / "docs"
NAMED_TESTS = {
    document: sorted(set(re.findall(r"(test_[a-z_0-9]+\.py)::(test_[a-z_0-9]+)", (DOCS / document).read_text())))
    for document in ("rfc6647.md", "security.md")
}


@pytest.mark.parametrize(("file", "test"), sorted({each for tests in NAMED_TESTS.values() for each in tests}))
def test_the_tests_that_tables_name_are_there(file: str, test: str) -> None:
    assert f"\ndef {test}(" in (TESTS / file).read_text()


def test_the_tables_name_tests() -> None:
    assert len(NAMED_TESTS["rfc6647.md"]) > 20
    assert len(NAMED_TESTS["security.md"]) > 60


def test_every_line_of_what_an_attacker_would_try_has_a_test() -> None:
    rows = re.findall(r"^\| (?!he tries|---).*$", (DOCS / "security.md").read_text(), re.MULTILINE)
    assert [row for row in rows if "::test_" not in row] == []
    assert len(rows) > 40


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


def test_the_table_of_metrics_is_what_the_program_tells() -> None:
    text = (DOCS / "monitoring.md").read_text()
    assert re.findall(r"^\| `(?:greylist_proxy|process)_.*", text, re.MULTILINE) == metric_table.rows()
