# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role installs wheels only: every Python of a distribution that it knows must find one for each locked package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tools.ansible_runs import ROOT


# Debian 12; Ubuntu 24.04 and RHEL; Debian 13; Ubuntu 26.04
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_there_is_a_wheel_of_everything(tmp_path: Path, python: str, machine: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    command += ["--ignore-installed", "--only-binary=:all:", "--require-hashes", f"--python-version={python}"]
    command += [f"--platform=manylinux{name}_{machine}" for name in ("2014", "_2_17", "_2_28")]
    command += [f"--target={tmp_path}", f"--requirement={ROOT / 'proxy/requirements.txt'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
