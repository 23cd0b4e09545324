# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""dev/pytest.sh: what a test that fails once, or always, makes of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "dev" / "pytest.sh"
# A test that fails as often as its name says, and keeps count beside itself.
TESTS = """
import pathlib
import pytest

def attempt(name):
    path = pathlib.Path(__file__).with_name(name)
    times = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(times))
    return times

@pytest.fixture
def unsteady():
    assert attempt("fixture") > 1

def test_steady():
    assert attempt("steady") == 1

def test_fixture(unsteady):
    pass

@pytest.mark.parametrize("number", range({others}))
def test_fails(number):
    assert attempt(f"fails-{{number}}") > {failures}
"""


@pytest.mark.parametrize(
    ("ci", "others", "failures", "status", "unsteady"),
    [
        pytest.param("true", 2, 1, 0, ["test_fails[0]", "test_fails[1]", "test_fixture"], id="three fail once"),
        pytest.param("true", 3, 1, 1, [], id="four fail once"),
        pytest.param("true", 1, 9, 1, [], id="one fails always"),
        pytest.param("", 1, 1, 1, [], id="no CI: the first failure counts"),
    ],
)
def test_what_failed_runs_once_more(
    tmp_path: Path, ci: str, others: int, failures: int, status: int, unsteady: list[str]
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "pytest.sh").write_text(SCRIPT.read_text("utf-8"), "utf-8")
    programs = tmp_path / ".cache" / "venvs" / "some" / "bin"
    programs.mkdir(parents=True)
    program = programs / "pytest"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pytest "$@"\n')
    program.chmod(0o700)
    (tmp_path / "test_it.py").write_text(TESTS.format(others=others, failures=failures))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CI"))}
    command = ["bash", "dev/pytest.sh", "some", "-p", "xdist", "-n", "2", "--dist", "worksteal", "test_it.py"]
    env |= {"CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert run.returncode == status, run.stdout + run.stderr
    noted = tmp_path / ".cache" / "unsteady"
    names = sorted(noted.read_text().split()) if noted.exists() else []
    assert names == [f"test_it.py::{name}" for name in unsteady]
    assert ("once more" in run.stdout) == (ci == "true" and others < 3)
