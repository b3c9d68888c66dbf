"""Upgrades in place: the code that is on disk now takes this master's place, in the same process.

    begin ─▶ trial of the new code ─▶ its mold ready ─▶ quiet ─▶ exec ─▶ (poold.master.successor)
                └──────────────────────────┴──▶ refused     └───┴──▶ undone: everything is as it was

Everything that can fail is done before the exec, where nothing has changed yet: the new code has judged the settings and read the
state document, and its own mold has imported the handler. Quiet is when no connection is on its way from hand to hand: nobody is
accepted, every session is its worker's own, no worker is being born. Newcomers wait in the kernel's queue meanwhile.
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
from poold.master import program, snapshot, state
from poold.master.deadlines import Deadline
from poold.master.parts import Parts
from poold.master.signals import Inbox
from poold.master.snapshot import Origin
from poold.master.spawn import Recipe, memory_file
from poold.master.state import MoldPart
from poold.master.trials import Trials
from poold.scoreboard import UPGRADES
from poold.settings import file as settings
from poold.words import UpgradeResult

# How long newcomers are kept waiting for quiet before the upgrade is given up.
QUIET_SECONDS = 2.0
TRIAL = "poold.master.rehearsal"

# Told how an upgrade ended: a document for who asked.
Told = Callable[[dict[str, Any]], object]


@dataclass(slots=True, eq=False)
class Upgrade:
    """The upgrade that runs."""

    told: Told
    verdict: dict[str, Any] = field(default_factory=dict)
    # Its mold is ready, and newcomers are not let in until it ends.
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
        self.stopping = False
        # Says why none may begin now, "" if one may.
        self.hindrance: Callable[[], str] = lambda: ""
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
        hindrance = "another upgrade is running" if self.running else self.hindrance()
        if hindrance:
            self._count(UpgradeResult.BUSY)
            log.warning("upgrade_refused", reason=f"busy: {hindrance}")
            told({"ok": False, "error": f"busy: {hindrance}"})
            return
        self._begin(told)

    def reload_afterwards(self) -> None:
        """Take a SIGHUP that comes while an upgrade runs."""
        assert self._running is not None
        self._running.reload = True

    def _count(self, result: UpgradeResult) -> None:
        self._parts.counters.cells[UPGRADES[result]] += 1

    def _begin(self, told: Told) -> None:
        upgrade = self._running = Upgrade(told)
        log.info("upgrade_started", version=__version__)
        self.on_begin()
        try:
            file = self._origin.file
            self._try(upgrade, settings.read_file(file) if file is not None else b"")
        except ConfigError as error:
            self._refuse(upgrade, error.problems)
        except OSError as error:
            self._refuse(upgrade, [Problem("", f"the new program cannot be tried: {error.strerror}")])
        except Exception as error:
            self._refuse(upgrade, [OWN_FAULT])
            self._parts.loop.note_error(error)

    def _try(self, upgrade: Upgrade, text: bytes) -> None:
        """Start the trial of the new code. Raises OSError."""
        file = str(self._origin.file) if self._origin.file is not None else None
        document = state.write(snapshot.take(self._parts, self._origin, verdict={}))
        fds: dict[str, int] = {}
        try:
            fds["text"] = memory_file("text", text)
            fds["state"] = memory_file("state", document)
            launcher = self._parts.launcher
            self._trials.begin(lambda result: launcher.trial(file, module=TRIAL, result=result, **fds), partial(self._judged, upgrade))
        finally:
            for fd in fds.values():
                os.close(fd)

    def _judged(self, upgrade: Upgrade, verdict: dict[str, Any], problems: list[Problem]) -> None:
        """Take the trial's verdict, and start the new code's mold."""
        if upgrade is not self._running:
            return
        if problems:
            self._refuse(upgrade, problems)
            return
        upgrade.verdict = verdict
        molds, generation = self._parts.molds, self._parts.current.generation + 1
        try:
            for warning in verdict["warnings"]:
                log.warning("settings_warning", message=warning)
            molds.prepare_foreign(Recipe(**verdict["mold"]), generation, partial(self._prepared, upgrade))
        except OSError as error:
            self._refuse(upgrade, [Problem("", f"the new program's mold cannot be started: {error.strerror}")])
        except Exception as error:
            # The verdict is another version's: it may be anything.
            self._refuse(upgrade, [OWN_FAULT])
            self._parts.loop.note_error(error)

    def _prepared(self, upgrade: Upgrade, reason: str | None) -> None:
        """Take the news that the new mold is ready, or that it never will be or is no more."""
        if upgrade is not self._running:
            return
        if reason is not None:
            self._refuse(upgrade, [Problem("server.handler", reason)])
            return
        upgrade.quiet = True
        self._parts.pool.resting = True
        upgrade.deadline = self._parts.loop.after(QUIET_SECONDS, partial(self._restless, upgrade))

    def _restless(self, upgrade: Upgrade) -> None:
        waiting = len(self._parts.sessions.open) - self._parts.sessions.serving
        self._undo(upgrade, f"{waiting} sessions are without a worker after {QUIET_SECONDS:g} s of waiting")

    def advance(self) -> None:
        """Go on once there is quiet: the next program begins here, and this call does not return."""
        upgrade, parts = self._running, self._parts
        if upgrade is None or not upgrade.quiet or not parts.pool.quiet() or len(parts.sessions.open) != parts.sessions.serving:
            return
        try:
            self._become(upgrade)
        except OSError as error:
            self._undo(upgrade, f"the new program cannot be executed: {error.strerror}")
        except Exception as error:
            self._undo(upgrade, str(OWN_FAULT))
            self._parts.loop.note_error(error)

    def _become(self, upgrade: Upgrade) -> NoReturn:
        """Be the next program; whatever is raised, nothing has changed."""
        parts, mold = self._parts, self._parts.molds.candidate
        assert mold is not None
        taken = snapshot.take(parts, self._origin, verdict=upgrade.verdict, mold=MoldPart(mold.child.pid, mold.version))
        if upgrade.reload:
            self._inbox.note(signal.SIGHUP)
            upgrade.reload = False
        self._inbox.hold()
        parts.reaper.tracees.release_all()
        try:
            with parts.launcher.streams.lent():
                program.replace(state.write(taken), taken.descriptors(), self._origin.environ)
        finally:
            self._inbox.release()

    def _refuse(self, upgrade: Upgrade, problems: list[Problem]) -> None:
        for problem in problems:
            log.error("upgrade_refused", reason=str(problem))
        file = str(self._origin.file or "built-in defaults")
        document = {"ok": False, "error": "refused", "file": file, "problems": [str(problem) for problem in problems]}
        self._end(upgrade, UpgradeResult.REFUSED, document)

    def _undo(self, upgrade: Upgrade, reason: str) -> None:
        log.error("upgrade_undone", reason=reason)
        self._end(upgrade, UpgradeResult.UNDONE, {"ok": False, "error": f"undone: {reason}"})

    def _end(self, upgrade: Upgrade, result: UpgradeResult, document: dict[str, Any]) -> None:
        """Give up what was made; everything is as it was."""
        self._running = None
        if upgrade.deadline is not None:
            upgrade.deadline.cancel()
        self._parts.pool.resting = False
        self._parts.molds.discard()
        self._count(result)
        upgrade.told(document)
        self.on_end()
        if upgrade.reload:
            self._inbox.note(signal.SIGHUP)

    def stop(self) -> None:
        """Refuse what runs and begin nothing any more."""
        self.stopping = True
        if self._running is not None:
            self._refuse(self._running, [Problem("", "poold is stopping")])
