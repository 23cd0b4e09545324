# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of others that a test needs, and may be missing on a developer's machine."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def needs(*programs: str, packages: str) -> None:
    """Skip where a program is missing; where everything must run, fail. `packages` are Debian's."""
    missing = [program for program in programs if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"missing: {', '.join(missing)}")
    if missing:
        pytest.skip(f"missing: {', '.join(missing)} (Debian: {packages})")


def check_with_promtool(what: str, text: bytes = b"", *arguments: str) -> str:
    """Let promtool check `metrics` (from its standard input) or `rules` (files), and return what it said."""
    needs("promtool", packages="prometheus")
    command = ["promtool", "check", what, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said
