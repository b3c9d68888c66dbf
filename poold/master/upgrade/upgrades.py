"""Upgrades in place: the code that is on disk now takes this master's place, in the same process.

    begin ─▶ trial of the new code ─▶ its mold ready, a guard ready ─▶ quiet ─▶ exec ─▶ (poold.master.successor)
                └──────────────────────────────────┴──▶ refused         └───┴──▶ undone: everything is as it was

Everything that can fail is done before the exec, where nothing has changed yet: the new code has judged the settings and read the
state document, and its own mold has imported the handler. Quiet is when no connection is on its way from hand to hand: nobody is
accepted, every session is its worker's own, no worker is being born. Newcomers wait in the kernel's queue meanwhile.

One upgrade runs at a time. One that is asked for while a reload runs waits for its end. An upgrade ends, whatever is raised: an error of
poold's own refuses or undoes it, and one that reaches nobody here is found by a deadline.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from poold import __version__
from poold.errors import OWN_FAULT, ConfigError, Problem
from poold.log import log
from poold.master.change import trials
from poold.master.change.trials import Trials
from poold.master.children.spawn import REHEARSAL, Recipe, memory_file
from poold.master.document import state
from poold.master.document.state import MoldPart
from poold.master.engine.deadlines import Callback, Deadline
from poold.master.engine.signals import Inbox
from poold.master.parts import Parts
from poold.master.upgrade import footprint, program, snapshot
from poold.master.upgrade.guarding import Guard
from poold.master.upgrade.snapshot import Origin
from poold.scoreboard import UPGRADES
from poold.settings import file as settings
from poold.words import UpgradeResult

# How long newcomers are kept waiting for quiet before the upgrade is given up.
QUIET_SECONDS = 2.0
# How much later than its own deadline the word of a trial or a mold may come.
GRACE_SECONDS = 10.0

# Told how an upgrade ended: a document for who asked.
Told = Callable[[dict[str, Any]], object]


@dataclass(slots=True, eq=False)
class Upgrade:
    """The upgrade that runs."""

    told: Told
    verdict: dict[str, Any] = field(default_factory=dict)
    # What the trial has found on disk, and what must be there still.
    files: tuple[footprint.File, ...] = ()
    guard: Guard | None = None
    # What has yet to be ready before there can be quiet.
    awaited: set[str] = field(default_factory=set)
    # Newcomers are not let in until it ends.
    quiet: bool = False
    deadline: Deadline | None = None
    # A SIGHUP that came meanwhile is for whoever is here afterwards.
    reload: bool = False


class Upgrades:
    """Runs upgrades, one at a time."""

    def __init__(self, parts: Parts, trials: Trials, *, inbox: Inbox, origin: Origin) -> None:
        self._parts = parts
        self._trials = trials
        self._inbox = inbox
        self._origin = origin
        self._running: Upgrade | None = None
        # Who has asked for one while a reload ran.
        self._waiting: Told | None = None
        self.stopping = False
        # Says why none may begin now, "" if one may; and whether a reload runs, whose end can be waited for.
        self.hindrance: Callable[[], str] = lambda: ""
        self.reloading: Callable[[], bool] = lambda: False
        # Told that an upgrade begins, and that it has ended without another program in this one's place.
        self.on_begin: Callable[[], object] = lambda: None
        self.on_end: Callable[[], object] = lambda: None

    @property
    def running(self) -> bool:
        """Say whether one runs."""
        return self._running is not None

    @property
    def quiet(self) -> bool:
        """Say whether nobody is to be let in because of it."""
        return self._running is not None and self._running.quiet

    def asked(self, told: Told) -> None:
        """Take a `poold upgrade`, or a SIGUSR2."""
        if self.stopping:
            log.warning("upgrade_refused", reason="stopping")
            told({"ok": False, "error": "poold is stopping"})
            return
        hindrance = "another upgrade is running" if self.running else "another upgrade waits" if self._waiting else self.hindrance()
        if hindrance:
            self._count(UpgradeResult.BUSY)
            log.warning("upgrade_refused", reason=f"busy: {hindrance}")
            told({"ok": False, "error": f"busy: {hindrance}"})
        elif self.reloading():
            self._waiting = told
            log.info("upgrade_waits", reason="a reload is running")
        else:
            self._begin(told)

    def reload_ended(self) -> None:
        """Begin the upgrade that has waited for this, if there is one."""
        told, self._waiting = self._waiting, None
        if told is not None:
            self._begin(told)

    def reload_afterwards(self) -> None:
        """Take a SIGHUP that comes while an upgrade runs."""
        assert self._running is not None
        self._running.reload = True

    def _count(self, result: UpgradeResult) -> None:
        self._parts.counters.cells[UPGRADES[result]] += 1

    def _begin(self, told: Told) -> None:
        upgrade = Upgrade(told)
        self._await(upgrade, trials.TRIAL_SECONDS + GRACE_SECONDS, "the trial")
        self._running = upgrade
        self._step(upgrade, partial(self._try, upgrade))

    def _step(self, upgrade: Upgrade, step: Callback) -> None:
        """Take a step of this upgrade, if it still runs; whatever is raised ends it."""
        if upgrade is not self._running:
            return
        try:
            step()
        except ConfigError as error:
            self._fail(upgrade, error.problems)
        except OSError as error:
            self._fail(upgrade, [Problem("", str(error))])
        except Exception as error:
            self._fail(upgrade, [OWN_FAULT])
            self._parts.loop.note_error(error)

    def _within(self, upgrade: Upgrade, seconds: float, ended: Callback) -> None:
        if upgrade.deadline is not None:
            upgrade.deadline.cancel()
        upgrade.deadline = self._parts.loop.after(seconds, ended)

    def _await(self, upgrade: Upgrade, seconds: float, what: str) -> None:
        """Refuse this upgrade when its next word has not come by then: it is lost, because whoever owes it has a deadline too."""
        overdue = [Problem("", f"{what} has not been heard of for {seconds:g} s")]
        self._within(upgrade, seconds, lambda: self._fail(upgrade, overdue))

    def _try(self, upgrade: Upgrade) -> None:
        """Start the trial of the new code. Raises ConfigError, OSError."""
        log.info("upgrade_started", version=__version__)
        self.on_begin()
        path = self._origin.file
        text = settings.read_file(path) if path is not None else b""
        file = str(path) if path is not None else None
        document = state.write(snapshot.take(self._parts, self._origin, verdict={}))
        fds: dict[str, int] = {}
        try:
            fds["text"] = memory_file("text", text)
            fds["state"] = memory_file("state", document)
            launcher = self._parts.launcher
            self._trials.begin(lambda result: launcher.trial(file, module=REHEARSAL, result=result, **fds), partial(self._judged, upgrade))
        except OSError as error:
            raise ConfigError([Problem("", f"the new program cannot be tried: {error.strerror}")]) from error
        finally:
            for fd in fds.values():
                os.close(fd)

    def _judged(self, upgrade: Upgrade, verdict: dict[str, Any], problems: list[Problem]) -> None:
        """Take the trial's verdict."""
        self._step(upgrade, partial(self._prepare, upgrade, verdict, problems))

    def _prepare(self, upgrade: Upgrade, verdict: dict[str, Any], problems: list[Problem]) -> None:
        """Start the new code's mold, and the guard. The verdict is another version's, and may be anything. Raises ConfigError, OSError."""
        if problems:
            raise ConfigError(problems)
        upgrade.verdict = verdict
        if "files" not in verdict:
            log.debug("upgrade_unchecked", what="whether a file changes before the end", reason="the trial's version lists none")
        upgrade.files = footprint.read(verdict.get("files", []))
        for warning in verdict["warnings"]:
            log.warning("settings_warning", message=warning)
        recipe = Recipe(**verdict["mold"])
        self._await(upgrade, recipe.seconds + GRACE_SECONDS, "the new mold or the guard")
        upgrade.awaited = {"mold", "guard"}
        upgrade.guard = Guard(self._parts, self._trials, partial(self._prepared, upgrade, "guard"))
        molds, generation = self._parts.molds, self._parts.current.generation + 1
        try:
            molds.prepare_foreign(recipe, generation, partial(self._prepared, upgrade, "mold"))
        except OSError as error:
            raise ConfigError([Problem("", f"the new program's mold cannot be started: {error.strerror}")]) from error

    def _prepared(self, upgrade: Upgrade, what: str, reason: str | None) -> None:
        """Take the news that the new mold or the guard is ready, or that it never will be or is no more."""
        if reason is not None:
            problem = Problem("server.handler" if what == "mold" else "", reason)
            self._step(upgrade, partial(self._fail, upgrade, [problem]))
            return
        upgrade.awaited.discard(what)
        if not upgrade.awaited:
            self._step(upgrade, partial(self._rest, upgrade))

    def _rest(self, upgrade: Upgrade) -> None:
        """Let nobody in until there is quiet. Raises ConfigError."""
        # Before anybody waits for it.
        self._look(upgrade)
        self._within(upgrade, QUIET_SECONDS, partial(self._restless, upgrade))
        upgrade.quiet = True
        self._parts.pool.resting = True

    def _look(self, upgrade: Upgrade) -> None:
        """Make sure that what was tried is what is on disk. Raises ConfigError."""
        path = footprint.changed(upgrade.files)
        if path is not None:
            raise ConfigError([Problem("", f"{path} has changed since it was tried; ask again when nothing is being installed")])

    def _restless(self, upgrade: Upgrade) -> None:
        waiting = len(self._parts.sessions.open) - self._parts.sessions.serving
        self._fail(upgrade, [Problem("", f"{waiting} sessions are without a worker after {QUIET_SECONDS:g} s of waiting")])

    def advance(self) -> None:
        """Go on once there is quiet: the next program begins here, and this call does not return."""
        upgrade, parts = self._running, self._parts
        if upgrade is None or not upgrade.quiet or not parts.pool.quiet() or len(parts.sessions.open) != parts.sessions.serving:
            return
        self._step(upgrade, partial(self._become, upgrade))

    def _become(self, upgrade: Upgrade) -> NoReturn:
        """Be the next program. Raises ConfigError, OSError; whatever is raised, nothing has changed."""
        parts, mold, guard = self._parts, self._parts.molds.candidate, upgrade.guard
        assert mold is not None
        assert guard is not None
        taken = snapshot.take(parts, self._origin, verdict=upgrade.verdict, mold=MoldPart(mold.child.pid, mold.version))
        document, fds = state.write(taken), taken.descriptors()
        watched = guard.watch()
        self._look(upgrade)
        try:
            self._inbox.hold(*([signal.SIGHUP] if upgrade.reload else []))
            parts.reaper.tracees.release_all()
            with parts.launcher.streams.lent():
                program.replace(document, fds, self._origin.environ, guard=watched, log_format=parts.current.config.log.format)
        except OSError as error:
            raise ConfigError([Problem("", f"the new program cannot be executed: {error.strerror}")]) from error
        finally:
            self._inbox.release()

    def _fail(self, upgrade: Upgrade, problems: list[Problem]) -> None:
        """Give up what was made; everything is as it was. It is refused before there is quiet, and undone from then on."""
        if upgrade is not self._running:
            return
        reasons = [str(problem) for problem in problems]
        if upgrade.quiet:
            result, document = UpgradeResult.UNDONE, {"ok": False, "error": f"undone: {'; '.join(reasons)}"}
        else:
            file = str(self._origin.file or "built-in defaults")
            result, document = UpgradeResult.REFUSED, {"ok": False, "error": "refused", "file": file, "problems": reasons}
        self._running = None
        self._parts.pool.resting = False
        steps: list[Callback] = [partial(self._count, result), self._parts.molds.discard]
        if upgrade.deadline is not None:
            steps.append(upgrade.deadline.cancel)
        if upgrade.guard is not None:
            steps.append(upgrade.guard.dismiss)
        steps += [partial(_say, result, reason) for reason in reasons]
        steps += [partial(upgrade.told, document), self.on_end]
        if upgrade.reload:
            steps.append(partial(self._inbox.note, signal.SIGHUP))
        self._parts.loop.each(steps)

    def stop(self) -> None:
        """Refuse what runs or waits, and begin nothing any more."""
        self.stopping = True
        told, self._waiting = self._waiting, None
        if told is not None:
            self._parts.loop.guarded(partial(self.asked, told))
        if self._running is not None:
            self._fail(self._running, [Problem("", "poold is stopping")])


def _say(result: UpgradeResult, reason: str) -> None:
    if result is UpgradeResult.UNDONE:
        log.error("upgrade_undone", reason=reason)
    else:
        log.error("upgrade_refused", reason=reason)
