# Copyright: the mailops.tarpit contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps from one deployment to the next, and what puts them back where one fails."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from greylist_proxy.deploy import host
from greylist_proxy.deploy.host import Failure, HalfDone, Places, systemctl
from greylist_proxy.deploy.plan import (
    MAIL_SOCKET,
    NEXT,
    SERVICE,
    Deployment,
    Step,
    last_left,
    mode_of,
    next_unit,
    step,
    superfluous,
    with_mode,
)

RENEWALS = 5  # in a row, where files change again and again
REPLACING = {Step.START, Step.HAND_OVER, Step.REPLACE}


class Deployer:
    """Carries one of the commands out."""

    def __init__(self, places: Places, *, check: bool) -> None:
        self._places = places
        self._check = check

    # -- commands --

    def apply(self) -> Step:
        """Make the wanted deployment the live one."""
        wanted = host.read(self._places.wanted)
        done = self._reach(wanted, host.config_of(self._places.wanted))
        # Not where a certificate is renewed: then a run of the role may be laying a release down beside us.
        if done in REPLACING:
            self._tidy(wanted.release)
        return done

    def foresee(self, wanted: Deployment, *, has_new_credentials: bool) -> Step:
        """Tell what `apply` would do with a deployment that was not laid down: a dry run writes nothing."""
        live = host.read_live(self._places)
        if live is None:
            return Step.START
        # Where the wanted one has other credentials, its unit tells, and those of the live one may be gone by now.
        has_new_credentials = has_new_credentials or live.units[SERVICE] != wanted.units[SERVICE]
        state = host.state(self._places, live, None if has_new_credentials else live)
        return step(live, wanted, replace(state, is_stale=state.is_stale or has_new_credentials))

    def renew(self) -> Step:
        """Have the live deployment take changed credentials, if it runs: who has stopped it wants it to stay so."""
        if self._places.pending.exists():
            return self.apply()  # what is live is half of the wanted one, which has proved that it works
        live = self._need_live()
        if host.is_stopped(SERVICE) and not host.is_active(NEXT):
            return Step.NOTHING
        for _attempt in range(RENEWALS):
            seen = host.newest_credential(self._places, live)
            done, failure = Step.NOTHING, None
            try:
                done = self._reach(live, self._places.config, open_sockets=False)
            except Failure as error:
                failure = error
            # systemd does not tell us of what changes while we are at it, such as the key that belongs to it.
            if host.newest_credential(self._places, live) == seen:
                break
        if failure is not None:
            raise failure
        return done

    def rollback(self, name: str) -> Step:
        """Go back to a release that ran before, by default to the last one."""
        live, there = self._need_live(), host.releases(self._places)
        target = str(self._places.home / name) if name else last_left(there, live.release)
        if target is None or there.get(target) is None:
            known = [Path(each).name for each, left in there.items() if left is not None and each != live.release]
            raise Failure(
                f"there is no release {name or 'that ran before this one'} to go back to; known are: "
                f"{', '.join(sorted(known)) or 'none'}. Nothing was changed."
            )
        if target == live.release:
            return Step.NOTHING
        earlier = host.read(host.applied(target))
        # Who has put the fleet into observe has not asked to leave it.
        earlier = Deployment(earlier.release, with_mode(earlier.config, mode_of(live.config)), earlier.units)
        if self._check:
            return step(live, earlier, host.state(self._places, live, earlier))
        host.save(earlier, self._places.wanted)
        host.check_config(earlier, host.config_of(self._places.wanted), self._places)
        return self.apply()

    def mode(self, mode: str) -> Step:
        """Set `greylist.mode`, and nothing else; also of the other process, where a run broke off and left it."""
        live = self._need_live()
        serves_beside = host.is_active(NEXT)
        # Where a run broke off, what is written is not what runs.
        if mode_of(live.config) == mode and not (serves_beside or self._places.pending.exists()):
            return Step.NOTHING
        if self._check:
            return Step.RELOAD
        if serves_beside:
            its_config = host.config_of(self._places.wanted)
            host.write(its_config, with_mode(its_config.read_text(), mode))
            systemctl("reload", NEXT)
        if host.is_active(SERVICE):
            self._reload(live, Deployment(live.release, with_mode(live.config, mode), live.units))
        else:  # it is read at the next start
            host.write(self._places.config, with_mode(live.config, mode))
        return Step.RELOAD

    def release(self) -> str:
        """Return the name of the release that is live."""
        live = host.read_live(self._places)
        return Path(live.release).name if live else ""

    # -- ways --

    def _need_live(self) -> Deployment:
        live = host.read_live(self._places)
        if live is None:
            raise Failure("greylist-proxy is not deployed here. Nothing was changed.")
        return live

    def _reach(self, wanted: Deployment, config: Path, *, open_sockets: bool = True) -> Step:
        live = host.read_live(self._places)
        state = host.state(self._places, live, wanted)
        closed = state.closed_sockets
        if not open_sockets:  # a closed one is no matter, as long as mail comes
            state = replace(state, closed_sockets=closed & {MAIL_SOCKET})
        chosen = step(live, wanted, state)
        if chosen is Step.NOTHING:
            return chosen
        if chosen is Step.RELOAD and live is not None:
            if not self._reload(live, wanted):
                return chosen
            chosen = Step.HAND_OVER
        if live is None or chosen is Step.START:
            self._start(live, wanted)
        else:
            replace_sockets = chosen is Step.REPLACE
            self._hand_over(live, wanted, config, live.sockets().keys() - closed, replace_sockets=replace_sockets)
        return chosen

    def _start(self, live: Deployment | None, wanted: Deployment) -> None:
        with self._pending(replace_sockets=True):
            host.install(wanted, self._places)
            sockets = sorted(wanted.sockets())
            try:
                systemctl("enable", "--quiet", SERVICE)
                self._restart(wanted, replace_sockets=True)
                host.await_ready(wanted)
            except Failure as error:
                words = host.last_words(SERVICE)
                systemctl("stop", SERVICE, *sockets)
                if live is None:
                    with contextlib.suppress(Failure):
                        systemctl("disable", "--quiet", SERVICE, *sockets)  # or a reboot would open a port for nobody
                else:
                    host.install(live, self._places)
                    with contextlib.suppress(Failure):
                        systemctl("start", SERVICE)
                        self._start_others(wanted, live)
                raise Failure(f"greylist-proxy does not start: {error}. It says:\n{words}") from error
            self._start_others(live, wanted)
        self._end_next()

    def _reload(self, live: Deployment, wanted: Deployment) -> list[str]:
        """Reload, and return what the program would have a restart for. What an earlier run left undone stays so."""
        with contextlib.nullcontext() if self._places.pending.exists() else self._pending():
            try:
                host.install(wanted, self._places)
                waiting = host.reload()
            except Failure as error:
                with _half_done_by(error):
                    host.install(live, self._places)
                raise Failure(f"{error}. The old configuration stays.") from error
            self._start_others(live, wanted)
            return waiting

    def _hand_over(
        self, live: Deployment, wanted: Deployment, config: Path, sockets: Iterable[str], *, replace_sockets: bool
    ) -> None:
        """Let `next` serve on these sockets, which are open: one that is not would be opened for it."""
        places = self._places
        # Only a run that broke off leaves one; it may be the only one that serves.
        if host.is_active(NEXT):
            systemctl("start", SERVICE)
            systemctl("stop", NEXT)
        unit = next_unit(
            wanted.units[SERVICE],
            wanted.release,
            str(config),
            (str(places.current), str(places.config)),
            sockets,
        )
        places.run.mkdir(parents=True, exist_ok=True)
        host.write(places.run / NEXT, unit)
        try:
            systemctl("daemon-reload")
            self._prove(wanted)
            with self._pending(replace_sockets=replace_sockets):
                if live.release != wanted.release:
                    host.save(live, host.applied(live.release))
                try:
                    host.install(wanted, places)
                    self._restart(wanted, replace_sockets=replace_sockets)
                    host.await_ready(wanted)
                except Failure as error:
                    words = host.last_words(SERVICE)
                    with _half_done_by(error):
                        self._put_back(live, wanted, replace_sockets=replace_sockets)
                    raise Failure(
                        f"greylist-proxy does not start as a service of its own: {error}. The old release and "
                        f"configuration are back. It says:\n{words}"
                    ) from error
                self._start_others(live, wanted)
        finally:
            # Where not even the old one starts again, this is all that serves: the next run sees to it.
            if host.is_active(SERVICE):
                self._end_next()

    def _end_next(self) -> None:
        """Have `next`, if there is one, finish what it does, and remove it."""
        with contextlib.suppress(Failure):
            systemctl("stop", NEXT)
        (self._places.run / NEXT).unlink(missing_ok=True)
        with contextlib.suppress(Failure):  # whoever reloads next has systemd forget it as well
            systemctl("daemon-reload")

    def _prove(self, wanted: Deployment) -> None:
        """Start `next`. Failure: it is not ready in time, and was removed."""
        try:
            systemctl("start", NEXT)
        except Failure as error:
            words = host.last_words(NEXT)
            host.forget_failure(NEXT)
            raise Failure(
                f"{Path(wanted.release).name} is not ready ({error}). It was ended, and what ran before runs on: its "
                f"release, its configuration and its connections were not touched. It says:\n{words}"
            ) from error

    def _restart(self, after: Deployment, *, replace_sockets: bool) -> None:
        """Start the service anew on what is installed, which is `after`."""
        if not replace_sockets:
            systemctl("restart", SERVICE)
            return
        sockets = sorted(after.sockets())
        # Those that go have been stopped with their units. `next` serves on the others until nothing is under way here.
        systemctl("stop", SERVICE, *sockets)
        host.let_end(NEXT)
        host.forget_failure(SERVICE, *sockets)
        systemctl("enable", "--quiet", *sockets)
        try:
            host.start_sockets([name for name in sockets if name != MAIL_SOCKET])
        finally:  # mail does not wait for an address that others have taken
            # It comes last: its first client starts the service, and for one that runs no socket is opened.
            host.start_sockets([MAIL_SOCKET])
            systemctl("start", SERVICE)

    def _put_back(self, live: Deployment, wanted: Deployment, *, replace_sockets: bool) -> None:
        host.install(live, self._places)
        self._restart(live, replace_sockets=replace_sockets)
        self._start_others(wanted, live)

    def _start_others(self, before: Deployment | None, after: Deployment) -> None:
        """Start what looks out for new certificates. HalfDone: it does not, so the next run is to try it again."""
        for name, text in after.units.items():
            if name.endswith(".path"):
                is_same = before is not None and before.units.get(name) == text
                try:
                    systemctl("enable", "--quiet", name)
                    systemctl("start" if is_same else "restart", name)
                except Failure as error:
                    raise HalfDone(f"{error}. All else is done; the next run tries it again.") from error

    def _tidy(self, current: str) -> None:
        """Remove old releases, and the lists and secrets that no deployment names any more."""
        for name in superfluous(host.releases(self._places), current):
            shutil.rmtree(name)
        places = [host.applied(name) for name, left in host.releases(self._places).items() if left is not None]
        kept = [self._need_live(), host.read(self._places.wanted), *map(host.read, places)]
        for path in self._places.lists.glob("*"):
            if not any(str(path) in deployment.config for deployment in kept):
                path.unlink()
        for folder in (self._places.credentials, self._places.wanted_credentials):
            for path in folder.glob("*"):
                if not any(path.name in deployment.credentials() for deployment in kept):
                    path.unlink()

    @contextlib.contextmanager
    def _pending(self, *, replace_sockets: bool = False) -> Iterator[None]:
        """Leave a mark that stays where this breaks off; a failure that was dealt with is no such thing."""
        host.mark_pending(self._places, replace_sockets=replace_sockets)
        try:
            yield
        except HalfDone:
            raise
        except Failure:
            self._places.pending.unlink()
            raise
        self._places.pending.unlink()


@contextlib.contextmanager
def _half_done_by(error: Failure) -> Iterator[None]:
    """Put back what a failure has left. HalfDone: that fails, too; it tells of both."""
    try:
        yield
    except Failure as another:
        raise HalfDone(
            f"{error}. What ran before could not be put back: {another}. The next run begins the change anew."
        ) from error
