# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The alert rules: Prometheus reads them, they speak of metrics that there are, and they ring when they shall."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from . import metric_table
from .monitoring import check_with_promtool
from .programs import needs

RULES = Path(__file__).parents[2] / "docs" / "prometheus-rules.yml"


def test_prometheus_reads_them() -> None:
    assert "12 rules found" in check_with_promtool("rules", str(RULES))


def test_they_are_about_metrics_that_there_are() -> None:
    families = {row.split("`")[1] for row in metric_table.rows()}
    named = set(re.findall(r"\b(?:greylist_proxy|process)_[a-z_]+", RULES.read_text()))
    assert len(named) >= 12
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in named} - families == set()


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    """Return a series as promtool's tests want it; `values` as `first+step x times`, one a minute."""
    words = ",".join(f'{label}="{word}"' for label, word in {"instance": "mx1", **labels}.items())
    return {"series": f"{name}{{{words}}}", "values": values}


BACKEND = "greylist_proxy_backend_state"
NEW = ("greylist_proxy_decisions_total", {"verdict": "defer", "reason": "new"})
BACK = "greylist_proxy_came_back_seconds_count"


@pytest.mark.parametrize(
    ("alert", "minutes", "told", "rings"),
    [
        ("Down", 6, [series("up", "0x10", job="greylist-proxy")], True),
        ("Down", 4, [series("up", "0x10", job="greylist-proxy")], False),
        ("Down", 6, [series("up", "0x10", job="node")], False),
        ("StoreFailing", 6, [series("greylist_proxy_store_failing", "1x10")], True),
        ("StoreFailing", 6, [series("greylist_proxy_store_failing", "0x10")], False),
        ("NoMailServer", 6, [series(BACKEND, "0x10", backend=n, state="up") for n in "12"], True),
        ("NoMailServer", 6, [series(BACKEND, f"{n}x10", backend=str(n), state="up") for n in (0, 1)], False),
        ("MailServerDown", 16, [series(BACKEND, "2x20", backend="1", state="down")], True),
        ("MailServerDown", 16, [series(BACKEND, "2x20", backend="1", state="unknown")], False),
        ("MailServerTrouble", 5, [series("greylist_proxy_relay_total", "0 0 1 1 1 1", outcome="trouble")], True),
        ("MailServerTrouble", 5, [series("greylist_proxy_relay_total", "0 0 1 1 1 1", outcome="refused")], False),
        ("NobodyComesBack", 90, [series(NEW[0], "0+10x100", **NEW[1]), series(BACK, "7x100")], True),
        ("NobodyComesBack", 90, [series(NEW[0], "0+10x100", **NEW[1]), series(BACK, "0+1x100")], False),
        ("NobodyComesBack", 90, [series(NEW[0], "0+1x20 20x80", **NEW[1]), series(BACK, "0x100")], False),
        (
            "ConnectionsNearLimit",
            11,
            [series("greylist_proxy_connections", "95x20"), series("greylist_proxy_connections_limit", "100x20")],
            True,
        ),
        (
            "FilesNearLimit",
            11,
            [
                series("process_open_fds", "95x20", job="greylist-proxy"),
                series("process_max_fds", "100x20", job="greylist-proxy"),
            ],
            True,
        ),
        (
            "Slow",
            25,
            [
                series("greylist_proxy_loop_delay_seconds_bucket", "0+10x30", le="0.25"),
                series("greylist_proxy_loop_delay_seconds_bucket", "0+60x30", le="0.5"),
                series("greylist_proxy_loop_delay_seconds_bucket", "0+60x30", le="+Inf"),
            ],
            True,
        ),
        ("WorkersEnd", 10, [series("greylist_proxy_worker_ends_total", "0+1x20")], True),
        ("Errors", 5, [series("greylist_proxy_errors_total", "0 0 1 1 1 1")], True),
        ("LogLost", 5, [series("greylist_proxy_log_lines_lost_total", "0 0 8 8 8 8")], True),
    ],
)
def test_when_they_ring(tmp_path: Path, alert: str, minutes: int, told: list[dict[str, str]], rings: bool) -> None:
    needs("promtool", packages="prometheus")
    name = f"GreylistProxy{alert}"
    # Which labels and words an alert has is not asked; that one is there, is.
    count = {
        "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)',
        "eval_time": f"{minutes}m",
    }
    test: dict[str, Any] = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": told,
                "promql_expr_test": [{**count, "exp_samples": [{"labels": "{}", "value": int(rings)}]}],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(test))  # which is YAML
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
