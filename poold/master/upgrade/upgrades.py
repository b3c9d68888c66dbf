"""Upgrades: the master's process replaces its own program with the code that is on disk now.

    request ─▶ trial of the new code ─▶ its mold ready, a guard ready ─▶ RESTING ─▶ exec
                └───────────────────────────────┴──▶ refused               └─────────┴──▶ undone

All that can fail is done before the exec, while nothing has changed. The trial of the new code
judges the settings and reads the state document. The new code's mold imports the handler. After the
exec `poold.master.successor` runs.

The exec waits until no connection is being handed over. In the phase RESTING no client is accepted,
and new clients wait in the kernel's queue. The exec follows when every session has its worker and
no worker is being born.

One upgrade runs at a time. A request during a reload waits for the end of the reload. Each upgrade
ends: an error of poold's own refuses or undoes the upgrade. If a message is lost inside poold, a
deadline does so.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NoReturn

from poold import __version__
from poold.errors import ConfigError, Problem
from poold.log import log
from poold.master.change.reloads import Reloads
from poold.master.change.running import GRACE_SECONDS, Change, Changes, OnEnd
from poold.master.change.trials import Trials
from poold.master.children.ladder import Ladder
from poold.master.children.spawn import REHEARSAL, Launcher, Recipe, memory_file
from poold.master.children.tracees import Tracees
from poold.master.clients.sessions import Sessions
from poold.master.current import Current
from poold.master.document.part import Owner
from poold.master.engine.deadlines import Callback
from poold.master.engine.loop import Loop
from poold.master.engine.signals import Inbox
from poold.master.outside.manager import Manager
from poold.master.phase import Life, Phase
from poold.master.pool.molds import Molds
from poold.master.pool.pool import Pool
from poold.master.upgrade import footprint, program, state
from poold.master.upgrade.guarding import Guard
from poold.master.upgrade.state import Origin, SettingsPart, StateDocument
from poold.scoreboard import UPGRADES, Counters
from poold.settings import file as settings
from poold.words import UpgradeResult

# Seconds in RESTING, while clients wait, after which the upgrade is given up.
RESTING_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Upgrade(Change):
    """The upgrade that runs."""

    verdict: dict[str, Any] = field(default_factory=dict)
    # The files that the trial has found on disk, and that must still be there at the exec.
    files: tuple[footprint.FileState, ...] = ()
    guard: Guard | None = None
    # Whether the upgrade has entered RESTING.
    rested: bool = False
    # Whether a SIGHUP has come meanwhile. The program that runs afterwards handles the signal.
    reload: bool = False


class Upgrades(Changes[Upgrade]):
    """Runs upgrades, one at a time."""

    _KEYS: ClassVar[Mapping[str, str]] = {"mold": "server.handler", "guard": ""}

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        loop: Loop,
        inbox: Inbox,
        ladder: Ladder,
        counters: Counters,
        launcher: Launcher,
        trials: Trials,
        tracees: Tracees,
        manager: Manager,
        sessions: Sessions,
        pool: Pool,
        molds: Molds,
        reloads: Reloads,
        origin: Origin,
        owners: Sequence[Owner[Any]],
    ) -> None:
        """Take the neighbours. `owners` are the owners of the parts of the state document."""
        super().__init__(life=life, loop=loop)
        self._current = current
        self._inbox = inbox
        self._ladder = ladder
        self._counters = counters
        self._launcher = launcher
        self._trials = trials
        self._tracees = tracees
        self._manager = manager
        self._sessions = sessions
        self._pool = pool
        self._molds = molds
        self._reloads = reloads
        self._origin = origin
        self._owners = owners
        # The callback of a request that waits for the end of a reload.
        self._postponed: OnEnd | None = None

    def request(self, on_end: OnEnd) -> None:
        """Take a `poold upgrade`, or a SIGUSR2."""
        if self._life.ends:
            log.warning("upgrade_refused", reason="stopping")
            on_end({"ok": False, "error": "poold is stopping"})
        elif reason := self._why_not_now():
            self._count_result(UpgradeResult.BUSY)
            log.warning("upgrade_refused", reason=f"busy: {reason}")
            on_end({"ok": False, "error": f"busy: {reason}"})
        elif self._reloads.running:
            self._postponed = on_end
            log.info("upgrade_waits", reason="a reload is running")
        else:
            self._run(Upgrade(on_end))

    def _why_not_now(self) -> str:
        if self.running:
            return "another upgrade is running"
        if self._postponed is not None:
            return "another upgrade waits"
        return "poold is not ready yet" if self._life.phase is Phase.STARTING else ""

    def report_applied(self, before: str) -> dict[str, Any]:
        """Count and log that this program has replaced version `before`. Return the answer."""
        self._count_result(UpgradeResult.APPLIED)
        sessions, generation = len(self._sessions.open), self._current.generation
        log.info("upgrade_applied", before=before, version=__version__, generation=generation, sessions=sessions)
        return {"ok": True, "from": before, "version": __version__, "generation": generation, "sessions": sessions}

    def reload_afterwards(self) -> None:
        """Take a SIGHUP that comes while an upgrade runs."""
        assert self._running is not None
        self._running.reload = True

    def _count_result(self, result: UpgradeResult) -> None:
        self._counters.cells[UPGRADES[result]] += 1

    def _start_trial(self, upgrade: Upgrade) -> None:
        """Start the trial of the new code. Raises ConfigError, OSError."""
        log.info("upgrade_started", version=__version__)
        self._manager.reloading()
        path = self._origin.file
        text = settings.read_file(path) if path is not None else b""
        file = str(path) if path is not None else None
        document = state.write(self._make_document({}))
        fds: dict[str, int] = {}
        try:
            fds["text"] = memory_file("text", text)
            fds["state"] = memory_file("state", document)
            self._trials.begin(
                lambda result: self._launcher.trial(file, module=REHEARSAL, result=result, **fds), partial(self._on_verdict, upgrade)
            )
        except OSError as error:
            raise ConfigError([Problem("", f"the new program cannot be tried: {error.strerror}")]) from error
        finally:
            for fd in fds.values():
                os.close(fd)

    def _prepare(self, upgrade: Upgrade, verdict: dict[str, Any]) -> None:
        """Start the new code's mold and the guard. Raises ConfigError, OSError."""
        # The verdict comes from another version and may hold anything.
        upgrade.verdict = verdict
        if "files" not in verdict:
            log.debug("upgrade_unchecked", what="whether a file changes before the end", reason="the trial's version lists none")
        upgrade.files = footprint.read(verdict.get("files", []))
        for warning in verdict["warnings"]:
            log.warning("settings_warning", message=warning)
        recipe = Recipe(**verdict["mold"])
        self._fail_after(upgrade, recipe.seconds + GRACE_SECONDS, "the new mold or the guard")
        upgrade.awaited = {"mold", "guard"}
        upgrade.guard = Guard(
            current=self._current,
            loop=self._loop,
            ladder=self._ladder,
            launcher=self._launcher,
            trials=self._trials,
            on_ready=partial(self._on_prepared, upgrade, "guard"),
        )
        try:
            self._molds.prepare_foreign(recipe, self._current.generation + 1, partial(self._on_prepared, upgrade, "mold"))
        except OSError as error:
            raise ConfigError([Problem("", f"the new program's mold cannot be started: {error.strerror}")]) from error

    def _complete(self, upgrade: Upgrade) -> None:
        """Stop accepting clients until the exec. Raises ConfigError."""
        # The check comes before any client has to wait.
        self._check_files(upgrade)
        self._set_deadline(upgrade, RESTING_SECONDS, partial(self._give_up_resting, upgrade))
        self._life.enter(Phase.RESTING)
        upgrade.rested = True

    def _check_files(self, upgrade: Upgrade) -> None:
        """Raise ConfigError if a file that was tried is not on disk any more."""
        path = footprint.changed(upgrade.files)
        if path is not None:
            raise ConfigError([Problem("", f"{path} has changed since it was tried; ask again when nothing is being installed")])

    def _give_up_resting(self, upgrade: Upgrade) -> None:
        waiting = len(self._sessions.open) - self._sessions.serving
        self._fail(upgrade, [Problem("", f"{waiting} sessions are without a worker after {RESTING_SECONDS:g} s of waiting")])

    def advance(self) -> None:
        """Go on if the facts allow. Called in each turn. Does not return if the exec succeeds."""
        if self._life.ends:
            self._refuse_all()
        elif self._postponed is not None and not self._reloads.running:
            on_end, self._postponed = self._postponed, None
            self._run(Upgrade(on_end))
        elif self._running is not None and self._life.phase is Phase.RESTING and self._no_hand_over_open():
            self._run_step(self._running, partial(self._execute, self._running))

    def _no_hand_over_open(self) -> bool:
        """Return whether every session has its worker and no worker is being born."""
        return self._pool.nothing_pending() and len(self._sessions.open) == self._sessions.serving

    def _make_document(self, verdict: Mapping[str, Any]) -> StateDocument:
        return state.collect(SettingsPart.of(self._current, verdict), self._owners)

    def _execute(self, upgrade: Upgrade) -> NoReturn:
        """Become the next program. Raises ConfigError, OSError, and nothing has changed then."""
        guard = upgrade.guard
        assert guard is not None
        found = self._make_document(upgrade.verdict)
        document, fds = state.write(found), found.named_descriptors()
        watched = guard.watch()
        self._check_files(upgrade)
        try:
            self._inbox.hold(*([signal.SIGHUP] if upgrade.reload else []))
            self._tracees.release_all()
            with self._launcher.streams.bypass_logger():
                program.exec_successor(document, fds, self._origin.environ, guard=watched, log_format=self._current.config.log.format)
        except OSError as error:
            raise ConfigError([Problem("", f"the new program cannot be executed: {error.strerror}")]) from error
        finally:
            self._inbox.release()

    def _fail(self, upgrade: Upgrade, problems: list[Problem]) -> None:
        """Give up what was prepared. The upgrade is undone once in RESTING, and refused before."""
        if upgrade is not self._running:
            return
        reasons = [str(problem) for problem in problems]
        if upgrade.rested:
            result, document = UpgradeResult.UNDONE, {"ok": False, "error": f"undone: {'; '.join(reasons)}"}
        else:
            file = str(self._origin.file or "built-in defaults")
            result, document = UpgradeResult.REFUSED, {"ok": False, "error": "refused", "file": file, "problems": reasons}
        self._running = None
        if self._life.phase is Phase.RESTING:
            self._life.enter(Phase.RUNNING)
        steps: list[Callback] = [partial(self._count_result, result), self._molds.discard]
        if upgrade.deadline is not None:
            steps.append(upgrade.deadline.cancel)
        if upgrade.guard is not None:
            steps.append(upgrade.guard.dismiss)
        steps += [partial(_log_failure, result, reason) for reason in reasons]
        steps.append(partial(upgrade.on_end, document))
        if not self._life.ends:
            steps.append(self._manager.ready_again)
        if upgrade.reload:
            steps.append(partial(self._inbox.note, signal.SIGHUP))
        self._loop.call_each(steps)

    def _refuse_all(self) -> None:
        """Refuse the upgrade that runs or waits, because the master has begun to end."""
        on_end, self._postponed = self._postponed, None
        if on_end is not None:
            self._loop.call_guarded(partial(self.request, on_end))
        if self._running is not None:
            self._fail(self._running, [Problem("", "poold is stopping")])


def _log_failure(result: UpgradeResult, reason: str) -> None:
    if result is UpgradeResult.UNDONE:
        log.error("upgrade_undone", reason=reason)
    else:
        log.error("upgrade_refused", reason=reason)
