# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of others that a test needs, and may be missing on a developer's machine."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(*programs: str, packages: str) -> None:
    """Skip where a program is missing; where everything must run, fail. `packages` are Debian's."""
    missing = [program for program in programs if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"missing: {', '.join(missing)}")
    if missing:
        pytest.skip(f"missing: {', '.join(missing)} (Debian: {packages})")
