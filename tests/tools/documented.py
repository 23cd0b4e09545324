# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks of the documentation, which tests run: what a reader copies is what was tested."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parents[2] / "docs"
_FENCE = re.compile(r"^(?P<indent> *)```[a-z]+\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def block(document: str, title: str, here: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the fenced block of a document that begins with the comment `# title`.

    `here` has what stands in the test for what the documentation has, such as {"192.0.2.10:25": "127.0.0.1:20025"}.
    """
    blocks = (textwrap.dedent(match["text"]) for match in _FENCE.finditer((DOCS / document).read_text()))
    (text,) = (each for each in blocks if each.startswith(f"# {title}\n"))
    for theirs, ours in here.items():
        assert theirs in text, f"{document}, {title!r}, has no {theirs}"
        text = text.replace(theirs, ours)
    return text


def variables(document: str, title: str, here: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Return what such a block in YAML says."""
    return dict(yaml.safe_load(block(document, title, here)))
