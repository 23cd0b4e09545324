# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make demo` does what it says, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.ansible_runs import ROOT


def test_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "dev/demo.py"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("before none, after 2", "changed", "unchanged", "450 4.7.1 Greylisted", "250 2.0.0", "byte for byte"):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []
