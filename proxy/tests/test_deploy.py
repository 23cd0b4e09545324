# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deployments: which step leads to the wanted one, what is kept, and files on a host.

What systemd makes of the steps is tested where there is a systemd: the scenario `greylist`.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from greylist_proxy.deploy import host
from greylist_proxy.deploy.deployer import Deployer
from greylist_proxy.deploy.host import Failure, Places
from greylist_proxy.deploy.plan import (
    MAIL_SOCKET,
    NEXT,
    SERVICE,
    Deployment,
    State,
    Step,
    changed_sections,
    last_left,
    mode_of,
    next_unit,
    step,
    superfluous,
    with_mode,
)

CONFIG = """\
[smtp]
hostname = "edge.example.org"

[greylist]
delay = "5m"
mode = "enforce"

[tarpit]
seconds = 5
"""
UNITS = {
    SERVICE: "[Unit]\nRequires=greylist-proxy.socket\n\n[Service]\nExecStart=/opt/current/x --config /etc/live.toml\n"
    "Restart=always\n\n[Install]\nWantedBy=multi-user.target\n",
    "greylist-proxy.socket": "[Socket]\nListenStream=25\n",
}
LIVE = Deployment("/opt/one", CONFIG, UNITS)
WITH_TLS = replace(
    LIVE,
    units={**UNITS, SERVICE: UNITS[SERVICE].replace("Restart=", "LoadCredential=tls_key:/etc/x/tls_key\nRestart=")},
)
RUNNING = State(is_running=True)
OTHER_SOCKET = "greylist-proxy-control.socket"
WITH_CONTROL = replace(WITH_TLS, units={**WITH_TLS.units, OTHER_SOCKET: "[Socket]\nListenStream=/run/control\n"})


@pytest.mark.parametrize(
    ("live", "wanted", "state", "expected"),
    [
        pytest.param(None, LIVE, State(False, frozenset({MAIL_SOCKET})), Step.START, id="a bare host"),
        pytest.param(LIVE, LIVE, State(False), Step.START, id="it is down"),
        pytest.param(LIVE, LIVE, State(True, frozenset({MAIL_SOCKET})), Step.START, id="it listens by itself"),
        pytest.param(LIVE, LIVE, State(True, frozenset({OTHER_SOCKET})), Step.REPLACE, id="another socket is closed"),
        pytest.param(LIVE, LIVE, RUNNING, Step.NOTHING, id="all is as wanted"),
        pytest.param(LIVE, LIVE, State(True, is_stale=True), Step.HAND_OVER, id="a credential is younger"),
        pytest.param(LIVE, LIVE, State(True, is_stale=True, is_replacing=True), Step.REPLACE, id="it broke off"),
        pytest.param(LIVE, replace(LIVE, release="/opt/two"), RUNNING, Step.HAND_OVER, id="another release"),
        pytest.param(
            LIVE, replace(LIVE, units={**UNITS, SERVICE: "[Service]\n"}), RUNNING, Step.HAND_OVER, id="other limits"
        ),
        pytest.param(
            LIVE,
            replace(LIVE, units={**UNITS, "greylist-proxy.socket": "[Socket]\nListenStream=26\n"}),
            RUNNING,
            Step.REPLACE,
            id="another port",
        ),
        pytest.param(
            LIVE, replace(LIVE, config=CONFIG.replace("5m", "9m")), RUNNING, Step.RELOAD, id="what SIGHUP takes over"
        ),
        pytest.param(
            LIVE, replace(LIVE, config=CONFIG.replace("edge", "mx")), RUNNING, Step.HAND_OVER, id="what it does not"
        ),
        pytest.param(
            replace(LIVE, config="[smtp\n"), LIVE, RUNNING, Step.HAND_OVER, id="the live file was broken by hand"
        ),
        pytest.param(
            LIVE,
            replace(LIVE, units={**UNITS, "greylist-proxy-renew.path": "[Path]\n"}),
            RUNNING,
            Step.RELOAD,
            id="a unit beside it",
        ),
    ],
)
def test_the_step(live: Deployment | None, wanted: Deployment, state: State, expected: Step) -> None:
    assert step(live, wanted, state) is expected


def test_changed_sections() -> None:
    assert changed_sections(CONFIG, CONFIG + "\n# a remark\n") == set()
    assert changed_sections(CONFIG, CONFIG + "\n[dns]\ntimeout = 1\n") == {"dns"}


def test_the_unit_that_serves_beside_it() -> None:
    text = next_unit(UNITS[SERVICE], "/opt/two", "/etc/wanted.toml", ("/opt/current", "/etc/live.toml"), ["b", "a"])
    assert text == ("[Unit]\n\n[Service]\nSockets=a b\nExecStart=/opt/two/x --config /etc/wanted.toml\nRestart=no\n\n")


@pytest.mark.parametrize("mode", ["observe", "off", "enforce"])
def test_the_mode_and_nothing_else(mode: str) -> None:
    changed = with_mode(CONFIG, mode)
    assert mode_of(changed) == mode
    assert changed == CONFIG.replace('"enforce"', f'"{mode}"')


def test_a_mode_elsewhere_is_not_meant() -> None:
    with pytest.raises(ValueError, match="no line `mode`"):
        with_mode('[greylist]\ndelay = 5\n\n[other]\nmode = "enforce"\n', "off")


@pytest.mark.parametrize(
    ("releases", "current", "removed", "before"),
    [
        ({"a": None}, "a", [], None),
        ({"a": 1.0, "b": None}, "b", [], "a"),
        ({"a": 1.0, "b": 2.0, "c": 3.0, "d": None}, "d", ["a"], "c"),
        # Gone back: what was left goes on being a place to go to.
        ({"a": 1.0, "b": 2.0, "c": 3.0}, "a", [], "c"),
        # Two that never were ready push none out.
        ({"a": 1.0, "b": 2.0, "bad": None, "worse": None, "c": None}, "c", ["bad", "worse"], "b"),
    ],
)
def test_releases(releases: dict[str, float | None], current: str, removed: list[str], before: str | None) -> None:
    assert superfluous(releases, current) == removed
    assert last_left(releases, current) == before


def test_a_deployment_as_text() -> None:
    assert Deployment.parse(CONFIG, LIVE.units_text()) == LIVE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#: greylist-proxy.service\n[Service]\n",
        "#: release /opt/one\n#: greylist-proxy.socket\n",
        "#: release /opt/one\n#: greylist-proxy.service\n#: ../../etc/passwd\nroot\n",
    ],
)
def test_what_is_no_deployment(text: str) -> None:
    with pytest.raises(ValueError, match="has a release and the unit greylist-proxy.service"):
        Deployment.parse(CONFIG, text)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    found = Places(tmp_path / "opt", tmp_path / "etc", tmp_path / "units", tmp_path / "run")
    for folder in (found.home, found.etc, found.units, found.credentials):
        folder.mkdir()
    return found


def test_saved_and_read(places: Places) -> None:
    host.save(LIVE, places.wanted)
    assert host.read(places.wanted) == LIVE
    with pytest.raises(Failure, match="Nothing was changed"):
        host.read(places.etc / "other")


def test_what_is_live(places: Places) -> None:
    assert host.read_live(places) is None
    for name, text in UNITS.items():
        host.write(places.units / name, text)
    host.write(places.units / "greylist-proxy-of-somebody-else.service", "[Service]\n")
    host.write(places.config, CONFIG)
    assert host.read_live(places) is None
    host.link(places.current, LIVE.release)
    assert host.read_live(places) == LIVE


def test_a_link_to_another_certificate_is_a_younger_credential(places: Places) -> None:
    assert host.newest_credential(places, LIVE) == 0
    for name in ("one", "two"):
        (places.home / name).write_text(name)
    live = places.home / "live"
    live.symlink_to("one")
    (places.credentials / "tls_key").symlink_to(live)
    first = host.newest_credential(places, WITH_TLS)
    assert first > 0
    host.link(live, "two")
    assert host.newest_credential(places, WITH_TLS) >= first
    assert host.newest_credential(places, WITH_TLS) >= live.lstat().st_ctime


def test_a_credential_that_leads_nowhere(places: Places) -> None:
    (places.credentials / "tls_key").symlink_to(places.home / "gone")
    with pytest.raises(Failure, match="there is no .*gone"):
        host.newest_credential(places, WITH_TLS)
    assert host.newest_credential(places, LIVE) == 0  # an older release's: nobody loads it any more


class Systemd:
    """Answers as systemctl does where these units are active, and keeps what it is asked to change."""

    def __init__(self, *active: str) -> None:
        self.active = set(active)
        self.changes: list[str] = []
        self.asked: Counter[str] = Counter()
        self.refused: dict[str, set[int]] = {}  # commands, and which times
        self.when: dict[str, Callable[[], object]] = {}  # what happens beside a command
        self.has_clients = False  # that connect as soon as somebody listens

    def __call__(self, *command: str, **_environment: str) -> subprocess.CompletedProcess[str]:
        program, *arguments = command
        said, asked = "", " ".join(arguments)
        self.asked[asked] += 1
        if program == "journalctl":
            said = '{"event": "reload", "state": "done"}\n'
        elif self.asked[asked] in self.refused.get(asked, ()):
            return subprocess.CompletedProcess(command, 1, said, "refused")
        elif arguments[:2] == ["show", "--property=ExecMainStartTimestampMonotonic"]:
            said = str(time.monotonic_ns() // 1000 + 1_000_000)  # after every file here was written
        elif arguments[0] == "show":
            said = "active" if arguments[-1] in self.active else "inactive"
        elif arguments != ["daemon-reload"]:
            self.changes.append(asked)
            self.when.get(asked, lambda: None)()
            if not self._change(*arguments):
                return subprocess.CompletedProcess(command, 1, said, "the service is active")
        return subprocess.CompletedProcess(command, 0, said, "")

    def _change(self, verb: str, *units: str) -> bool:
        if verb in ("start", "restart"):
            # What is started by one command starts beside each other; here the port for mail is the first.
            for unit in sorted(units, key=lambda unit: unit != MAIL_SOCKET):
                if unit.endswith(".socket") and unit not in self.active and SERVICE in self.active:
                    return False
                self.active.add(unit)
                if unit == MAIL_SOCKET and self.has_clients:
                    self.active.add(SERVICE)
        elif verb in ("kill", "stop") or (verb == "disable" and "--now" in units):
            self.active -= set(units)
        return True


@pytest.fixture
def systemd(places: Places, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Systemd]:
    """Deploy `WITH_TLS`, or another one, and let these units be active."""

    def run(*active: str, live: Deployment = WITH_TLS) -> Systemd:
        for name, text in live.units.items():
            host.write(places.units / name, text)
        host.write(places.config, CONFIG)
        host.link(places.current, live.release)
        host.save(live, places.wanted)
        (places.credentials / "tls_key").write_text("a key")
        fake = Systemd(*active)
        monkeypatch.setattr(host, "_run", fake)
        return fake

    return run


def test_who_was_stopped_is_not_started_by_a_new_certificate(places: Places, systemd: Callable[..., Systemd]) -> None:
    fake = systemd("greylist-proxy-admin.socket")
    assert Deployer(places, check=False).renew() is Step.NOTHING
    assert fake.changes == []


def test_a_dry_run_asks_for_nothing_and_foresees_what_would_be_done(
    places: Places, systemd: Callable[..., Systemd]
) -> None:
    fake = systemd(SERVICE, "greylist-proxy.socket")
    host.save(replace(LIVE, release="/opt/of-the-last-run"), places.wanted)  # a dry run lays nothing down
    deployer = Deployer(places, check=True)
    moved = replace(WITH_TLS, units={**WITH_TLS.units, "greylist-proxy.socket": "[Socket]\nListenStream=26\n"})
    more = replace(
        WITH_TLS,
        units={**UNITS, SERVICE: UNITS[SERVICE].replace("Restart=", "LoadCredential=new:/etc/x/new\nRestart=")},
    )
    for wanted, has_new_credentials, foreseen in [
        (WITH_TLS, False, Step.NOTHING),
        (WITH_TLS, True, Step.HAND_OVER),
        (more, False, Step.HAND_OVER),
        (moved, False, Step.REPLACE),
    ]:
        assert deployer.foresee(wanted, has_new_credentials=has_new_credentials) is foreseen
    assert fake.changes == []
    (places.credentials / "tls_key").unlink()
    (places.credentials / "tls_key").symlink_to(places.home / "gone")
    assert deployer.foresee(WITH_TLS, has_new_credentials=True) is Step.HAND_OVER
    assert deployer.foresee(more, has_new_credentials=False) is Step.HAND_OVER
    with pytest.raises(Failure, match="there is no"):
        deployer.foresee(WITH_TLS, has_new_credentials=False)
    places.current.unlink()
    assert deployer.foresee(WITH_TLS, has_new_credentials=False) is Step.START


def test_a_closed_socket_is_opened_while_another_process_serves(
    places: Places, systemd: Callable[..., Systemd]
) -> None:
    fake = systemd(SERVICE, MAIL_SOCKET, live=WITH_CONTROL)
    assert Deployer(places, check=True).foresee(WITH_CONTROL, has_new_credentials=False) is Step.REPLACE
    assert fake.changes == []
    next_units = []
    fake.when[f"start {NEXT}"] = lambda: next_units.append((places.run / NEXT).read_text())
    assert Deployer(places, check=False).apply() is Step.REPLACE
    assert fake.changes[0] == f"start {NEXT}"
    assert f"\nSockets={MAIL_SOCKET}\n" in next_units[0]
    assert fake.active == {SERVICE, MAIL_SOCKET, OTHER_SOCKET}
    assert Deployer(places, check=False).apply() is Step.NOTHING


def test_a_renewal_leaves_a_closed_socket_alone(places: Places, systemd: Callable[..., Systemd]) -> None:
    fake = systemd(SERVICE, MAIL_SOCKET, live=WITH_CONTROL)
    assert Deployer(places, check=False).renew() is Step.NOTHING
    assert fake.changes == []


def test_what_serves_beside_a_service_that_is_down_serves_until_that_starts(
    places: Places, systemd: Callable[..., Systemd]
) -> None:
    """A run broke off and left it; it may have minutes to wait for its clients."""
    fake = systemd(NEXT, MAIL_SOCKET)
    host.write(places.pending, "half a change")
    places.run.mkdir()
    host.write(places.run / NEXT, "[Service]\n")
    assert Deployer(places, check=False).apply() is Step.START
    assert fake.changes.index(f"start {SERVICE}") < fake.changes.index(f"stop {NEXT}")
    assert fake.active == {SERVICE, MAIL_SOCKET}
    assert not (places.run / NEXT).exists()


@pytest.mark.parametrize("running", [True, False])
def test_the_port_for_mail_is_opened_last(places: Places, systemd: Callable[..., Systemd], running: bool) -> None:
    fake = systemd(*((SERVICE, MAIL_SOCKET, OTHER_SOCKET) if running else ()), live=WITH_CONTROL)
    fake.has_clients = True
    host.save(replace(WITH_CONTROL, units={**WITH_CONTROL.units, **MOVED.units}), places.wanted)
    assert Deployer(places, check=False).apply() is (Step.REPLACE if running else Step.START)
    assert fake.active == {SERVICE, MAIL_SOCKET, OTHER_SOCKET}


def test_mail_does_not_wait_for_an_address_that_others_have_taken(
    places: Places, systemd: Callable[..., Systemd], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = systemd(SERVICE, MAIL_SOCKET, live=WITH_CONTROL)
    monkeypatch.setattr(host, "ADDRESS_PATIENCE", 0)
    fake.refused[f"start {OTHER_SOCKET}"] = set(range(100))
    with pytest.raises(Failure, match=f"start {OTHER_SOCKET}: refused"):
        Deployer(places, check=False).apply()
    assert fake.active == {SERVICE, MAIL_SOCKET}
    assert places.pending.exists()


MX = replace(WITH_TLS, config=CONFIG.replace("edge", "mx"))
MOVED = replace(WITH_TLS, units={**WITH_TLS.units, MAIL_SOCKET: "[Socket]\nListenStream=26\n"})


@pytest.mark.parametrize(
    ("wanted", "time_of_reload"),
    [
        pytest.param(replace(WITH_TLS, config=CONFIG.replace("5m", "9m")), 1, id="a reload"),
        pytest.param(MX, 2, id="a hand-over"),
        pytest.param(MOVED, 2, id="another port"),
    ],
)
def test_what_systemd_does_not_read_is_put_back(
    places: Places, systemd: Callable[..., Systemd], wanted: Deployment, time_of_reload: int
) -> None:
    fake = systemd(SERVICE, MAIL_SOCKET)
    host.save(wanted, places.wanted)
    fake.refused = {"daemon-reload": {time_of_reload}}
    with pytest.raises(Failure, match="daemon-reload: refused"):
        Deployer(places, check=False).apply()
    assert host.read_live(places) == WITH_TLS
    assert not places.pending.exists()
    assert {SERVICE, MAIL_SOCKET} <= fake.active
    assert Deployer(places, check=False).apply() is not Step.NOTHING
    assert host.read_live(places) == wanted


def test_what_could_not_be_put_back_is_begun_anew(places: Places, systemd: Callable[..., Systemd]) -> None:
    fake = systemd(SERVICE, MAIL_SOCKET)
    host.save(MX, places.wanted)
    fake.refused = {"daemon-reload": {2, 3, 4}}
    with pytest.raises(Failure, match=r"could not be put back.*begins the change anew"):
        Deployer(places, check=False).apply()
    assert places.pending.exists()
    assert Deployer(places, check=False).apply() is Step.HAND_OVER
    assert not places.pending.exists()
    assert host.read_live(places) == MX


def test_a_certificate_that_nobody_looks_out_for_is_not_forgotten(
    places: Places, systemd: Callable[..., Systemd]
) -> None:
    fake, renew = systemd(SERVICE, MAIL_SOCKET), "greylist-proxy-renew.path"
    host.save(replace(WITH_TLS, units={**WITH_TLS.units, renew: "[Path]\n"}), places.wanted)
    fake.refused = {f"restart {renew}": {1}}
    with pytest.raises(Failure, match="the next run tries it again"):
        Deployer(places, check=False).apply()
    assert renew not in fake.active
    assert Deployer(places, check=False).apply() is Step.HAND_OVER
    assert renew in fake.active
    assert Deployer(places, check=False).apply() is Step.NOTHING


def test_sockets_are_replaced_also_where_a_run_broke_off(
    places: Places, systemd: Callable[..., Systemd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their units say by then what is wanted, and the old ones are open."""
    fake = systemd(SERVICE, MAIL_SOCKET)
    host.save(MOVED, places.wanted)

    def full(_path: Path, _target: str) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(host, "link", full)
        with pytest.raises(OSError, match="no space left"):
            Deployer(places, check=False).apply()
    assert host.read_live(places) == MOVED
    fake.changes.clear()
    assert Deployer(places, check=True).foresee(MOVED, has_new_credentials=False) is Step.REPLACE
    assert Deployer(places, check=False).apply() is Step.REPLACE
    assert f"stop {SERVICE} {MAIL_SOCKET}" in fake.changes
    assert f"start {MAIL_SOCKET}" in fake.changes
    assert Deployer(places, check=False).apply() is Step.NOTHING


def test_the_mode_of_one_that_runs(places: Places, systemd: Callable[..., Systemd]) -> None:
    fake = systemd(SERVICE)
    deployer = Deployer(places, check=False)
    assert deployer.mode("enforce") is Step.NOTHING
    assert deployer.mode("observe") is Step.RELOAD
    assert fake.changes == [f"reload {SERVICE}"]
    assert mode_of(places.config.read_text()) == "observe"
    assert not places.pending.exists()


def test_the_mode_counts_where_a_run_broke_off(places: Places, systemd: Callable[..., Systemd]) -> None:
    """What is written may never have been read; and the rest of that run is still to be done."""
    fake = systemd(SERVICE, NEXT)
    host.write(places.config, with_mode(CONFIG, "observe"))
    host.write(places.pending, "half a change")
    assert Deployer(places, check=True).mode("observe") is Step.RELOAD
    assert fake.changes == []
    assert Deployer(places, check=False).mode("observe") is Step.RELOAD
    assert fake.changes == [f"reload {NEXT}", f"reload {SERVICE}"]
    assert mode_of(host.config_of(places.wanted).read_text()) == "observe"
    assert places.pending.exists()


def test_the_mode_of_one_that_is_down_counts_from_its_start_on(places: Places, systemd: Callable[..., Systemd]) -> None:
    fake = systemd()
    assert Deployer(places, check=False).mode("observe") is Step.RELOAD
    assert fake.changes == []
    assert mode_of(places.config.read_text()) == "observe"


def test_installed_releases(places: Places) -> None:
    for name in ("whole", "left", "half"):
        (places.home / name).mkdir()
    for name in ("whole", "left"):
        (places.home / name / "installed").touch()
    host.save(LIVE, host.applied(str(places.home / "left")))
    host.link(places.current, str(places.home / "left"))
    found = host.releases(places)
    assert found.keys() == {str(places.home / "whole"), str(places.home / "left")}
    assert found[str(places.home / "whole")] is None
    assert found[str(places.home / "left")] is not None
