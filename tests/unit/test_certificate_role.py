# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which folders the role greylist_proxy has systemd watch for a renewed certificate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tools.ansible_runs import Controller, Run, local_play

# Files, and links by what they lead to; then the folders to watch, beside the one of certificate and key.
PLACES: dict[str, tuple[dict[str, str], set[str]]] = {
    "files": ({}, set()),
    "certbot": ({"live/cert.pem": "../archive/cert1.pem", "live/key.pem": "../archive/key1.pem"}, {"archive"}),
    "absolute": ({"live/cert.pem": "{}/archive/cert1.pem", "live/key.pem": "{}/archive/key1.pem"}, {"archive"}),
    "two-links": (
        {
            "live/cert.pem": "../now/cert.pem",
            "live/key.pem": "{}/now/key.pem",
            "now/cert.pem": "{}/archive/cert1.pem",
            "now/key.pem": "../archive/key1.pem",
        },
        {"now", "archive"},
    ),
    "beside": ({"live/cert.pem": "cert-7.pem", "live/key.pem": "key-7.pem"}, set()),
    "nowhere": ({"live/cert.pem": "../gone/cert.pem", "live/key.pem": "../gone/key.pem"}, {"gone"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates").resolve()


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    hosts = {}
    for name, (links, _watched) in PLACES.items():
        for each in ("live", "now", "archive"):
            (folder / name / each).mkdir(parents=True)
        for each in ("live/cert.pem", "live/key.pem", "archive/cert1.pem", "archive/key1.pem"):
            if each not in links:
                (folder / name / each).write_text("a certificate or a key")
        for each, target in links.items():
            (folder / name / each).symlink_to(target.format(folder / name))
        hosts[name] = {
            "greylist_proxy_tls_certificate": str(folder / name / "live/cert.pem"),
            "greylist_proxy_tls_key": str(folder / name / "live/key.pem"),
        }
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    role = {"name": "mailops.tarpit.greylist_proxy", "tasks_from": "certificate", "public": True}
    tasks = [{"ansible.builtin.include_role": role}, {"ansible.builtin.debug": {"var": "_greylist_proxy_tls_folders"}}]
    playbook = folder / "play.json"
    playbook.write_text(local_play(tasks))
    (folder / "home").mkdir()
    return Controller(folder / "home").playbook(str(playbook), inventory, "no password is printed", "--forks=2")


@pytest.mark.parametrize("name", PLACES)
def test_the_folders_of_all_links_are_watched(run: Run, folder: Path, name: str) -> None:
    watched = run.last(name, "debug")["_greylist_proxy_tls_folders"]
    assert len(watched) == len(set(watched))
    assert set(watched) == {str(folder / name / each) for each in ("live", *PLACES[name][1])}
