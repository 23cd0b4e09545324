# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads /metrics as Prometheus does, and lets its own tool check things."""

from __future__ import annotations

import subprocess

from prometheus_client.parser import text_string_to_metric_families

from .admin_client import address, ask
from .peers import Proxy
from .programs import needs

Values = dict[tuple[str, ...], float]


def by_labels(text: bytes) -> Values:
    """Return the values by name and label words, which are in the order of the labels' names."""
    return {
        (sample.name, *(word for _label, word in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def scrape(proxy: Proxy) -> Values:
    """Ask a running proxy; the program's prefix is left out of the names."""
    answer = ask(address(proxy), "/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    values = by_labels(answer.body)
    return {(name.removeprefix("greylist_proxy_"), *words): value for (name, *words), value in values.items()}


def check_with_promtool(what: str, *arguments: str, text: bytes = b"") -> str:
    """Let promtool check `metrics` (a text) or `rules` (files), and return what it said."""
    needs("promtool", packages="prometheus")
    command = ["promtool", "check", what, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said
