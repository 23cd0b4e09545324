# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role names a release of the proxy by a digest of its source: no folder of it may be left out."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "proxy" / "src" / "greylist_proxy"


def test_the_digest_takes_all_of_the_source() -> None:
    variables = (ROOT / "roles/greylist_proxy/vars/main.yml").read_text()
    named = set(re.findall(r"'/src/greylist_proxy(/[a-z/]*)\*'", variables))
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    there = {f"/{path.parent.relative_to(PACKAGE)}/".replace("/./", "/") for path in files}
    assert named == there
