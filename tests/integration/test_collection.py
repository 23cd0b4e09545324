# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as it is published: built, installed into an empty path, and run from there."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest
from lab.hosts import Lab
from tools.ansible_runs import BIN, ROOT, Controller, Run, windows_inventory


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [BIN / "ansible-galaxy", "collection", "build", "--output-path", folder, ROOT],
        check=True,
        capture_output=True,
        timeout=100,
    )
    (built,) = folder.glob("mailops-tarpit-*.tar.gz")
    return built


def test_it_holds_what_users_need_and_no_more(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        names = {name.rstrip("/") for name in archive.getnames()}
    for needed in (
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "meta/runtime.yml",
        "plugins/action/win_smtp_tarpit.py",
        "playbooks/site.yml",
        "proxy/pyproject.toml",
        "proxy/requirements.txt",
        "proxy/src/greylist_proxy/__init__.py",
    ):
        assert needed in names
    top = {name.partition("/")[0] for name in names}
    assert top <= {
        *("CHANGELOG.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md"),
        *("changelogs", "docs", "meta", "playbooks", "plugins", "proxy", "roles"),
    }
    assert not [name for name in names if "__pycache__" in name or "proxy/tests" in name]


def test_its_playbook_runs_from_an_empty_path(tarball: Path, memory_lab: Lab, tmp_path: Path) -> None:
    installed = Controller(tmp_path, tmp_path / "collections")
    subprocess.run(
        [BIN / "ansible-galaxy", "collection", "install", "--offline", "-p", installed.collections, tarball],
        env=installed.environment("unused"),
        check=True,
        capture_output=True,
        timeout=100,
    )
    (host,) = memory_lab.hosts
    host.reset()
    inventory = windows_inventory(
        tmp_path, {"win01": {"ansible_host": host.address, "ansible_port": host.winrm_port}}, memory_lab.username
    )

    def site() -> Run:
        return installed.playbook(
            "mailops.tarpit.site",
            inventory,
            memory_lab.password,
            windows_tarpit_seconds=1,
            windows_tarpit_verify_port=host.smtp_port,
        )

    first = site()
    assert first.status == 0, first.printed
    assert first.last("win01", "win_smtp_tarpit")["changed"] is True
    assert site().last("win01", "win_smtp_tarpit")["changed"] is False
