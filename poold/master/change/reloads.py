"""Reloads: judged first, prepared next, applied last, in one step that cannot fail.

The file is read once, and its bytes are judged in a process of their own; then everything new is opened and started. Until the
last step nothing has changed, and whatever goes wrong leaves it so.

    begin ─▶ trial ─▶ plan ─▶ listeners opened ─▶ mold ready, exporter ready ─▶ commit
                └────────┴──────────────┴──────────────────┴──▶ refused: what was made is given up

One reload runs at a time. One more SIGHUP is remembered, because the file may have been edited since the first was read; a second
`poold reload` is told that one is running.

A reload ends, whatever is raised: an error of poold's own on the way refuses it, and one that reaches nobody here (an answer that
was lost in a part, say) is found by a deadline. In the commit each step is made by itself, so that an error in one leaves out none
of the others.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from poold.errors import OWN_FAULT, ConfigError, Problem
from poold.log import log
from poold.master import descriptors
from poold.master.change import trials
from poold.master.change.plan import Plan, plan
from poold.master.change.trials import Trials
from poold.master.children import exporters
from poold.master.children.exporters import Exporters
from poold.master.children.loggers import Loggers
from poold.master.children.spawn import Launcher, memory_file
from poold.master.clients import sockets
from poold.master.clients.listeners import Listeners
from poold.master.clients.sessions import Sessions
from poold.master.clients.sockets import Opened
from poold.master.current import Current
from poold.master.engine.deadlines import Callback, Deadline
from poold.master.engine.loop import Loop
from poold.master.engine.signals import Inbox
from poold.master.outside.manager import Manager
from poold.master.phase import Life
from poold.master.pool.molds import Molds
from poold.master.pool.pool import Pool
from poold.scoreboard import RELOAD_SUCCESS_AT, RELOAD_SUCCESSFUL, RELOADS, Counters
from poold.settings import file as settings
from poold.settings.config import People, of_document
from poold.words import ReloadResult

# How much later than its own deadline the word of a trial, a mold or an exporter may come.
GRACE_SECONDS = 10.0

# Told how a reload ended: a document for who asked.
Told = Callable[[dict[str, Any]], object]


@dataclass(slots=True, eq=False)
class Reload:
    """The reload that runs."""

    told: Told
    dry: bool
    next: Current | None = None
    plan: Plan | None = None
    opened: dict[str, list[Opened]] = field(default_factory=dict)
    metrics: Opened | None = None
    # What has yet to be ready before it can be applied.
    awaited: set[str] = field(default_factory=set)
    deadline: Deadline | None = None
    # Once it is applied there is no way back: what whoever asked is to be told.
    answer: dict[str, Any] | None = None


class Reloads:
    """Runs reloads, one at a time."""

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        loop: Loop,
        inbox: Inbox,
        counters: Counters,
        launcher: Launcher,
        trials: Trials,
        manager: Manager,
        sessions: Sessions,
        listeners: Listeners,
        pool: Pool,
        molds: Molds,
        exporters: Exporters,
        loggers: Loggers,
        file: Path | None,
        passed: Mapping[str, list[socket.socket]],
        wall_clock: Callable[[], float],
    ) -> None:
        self._life = life
        self._current = current
        self._loop = loop
        self._inbox = inbox
        self._counters = counters
        self._launcher = launcher
        self._trials = trials
        self._manager = manager
        self._sessions = sessions
        self._listeners = listeners
        self._pool = pool
        self._molds = molds
        self._exporters = exporters
        self._loggers = loggers
        self._file = file
        self._passed = passed
        self._wall_clock = wall_clock
        self._running: Reload | None = None
        self._again = False

    def signalled(self) -> None:
        """Take a SIGHUP."""
        if self._life.ends:
            log.warning("reload_refused", reason="stopping")
        elif self._running is not None:
            self._again = True
        else:
            self._begin(lambda document: None, dry=False)

    def asked(self, told: Told, *, dry: bool, upgrading: bool) -> None:
        """Take a `poold reload`, which is told that poold is busy while a reload runs, or an upgrade (`upgrading`)."""
        if self._life.ends:
            told({"ok": False, "error": "poold is stopping"})
        elif upgrading or self._running is not None:
            self._count(ReloadResult.BUSY)
            told({"ok": False, "error": f"busy: {'an upgrade' if upgrading else 'another reload'} is running"})
        else:
            self._begin(told, dry=dry)

    @property
    def running(self) -> bool:
        """Say whether one runs."""
        return self._running is not None

    def _count(self, result: ReloadResult) -> None:
        self._counters.cells[RELOADS[result]] += 1

    def _begin(self, told: Told, *, dry: bool) -> None:
        reload = Reload(told, dry)
        self._within(reload, trials.TRIAL_SECONDS + GRACE_SECONDS, "the trial")
        self._running = reload
        self._step(reload, partial(self._try, reload))

    def _step(self, reload: Reload, step: Callback) -> None:
        """Take a step of this reload, if it still runs; whatever is raised ends it."""
        if reload is not self._running:
            return
        try:
            step()
        except ConfigError as error:
            self._refuse(reload, error.problems)
        except OSError as error:
            self._refuse(reload, [Problem("", str(error))])
        except Exception as error:
            if reload is self._running:
                self._refuse(reload, [OWN_FAULT])
            self._loop.note_error(error)

    def _within(self, reload: Reload, seconds: float, what: str) -> None:
        """Refuse this reload when its next word has not come by then: it is lost, because whoever owes it has a deadline too."""
        if reload.deadline is not None:
            reload.deadline.cancel()
        overdue = [Problem("", f"{what} has not been heard of for {seconds:g} s")]
        reload.deadline = self._loop.after(seconds, lambda: self._refuse(reload, overdue))

    def _try(self, reload: Reload) -> None:
        """Start the trial of the file as it is now. Raises ConfigError, OSError."""
        log.info("reload_started", file=self._file or "built-in defaults", dry_run=reload.dry or None)
        if not reload.dry:
            self._manager.reloading()
        given = memory_file("text", settings.read_file(self._file) if self._file is not None else b"")
        name = str(self._file) if self._file else None
        try:
            self._trials.begin(lambda result: self._launcher.trial(name, text=given, result=result), partial(self._judged, reload))
        except OSError as error:
            raise ConfigError([Problem("", f"the trial cannot be started: {error.strerror}")]) from error
        finally:
            os.close(given)

    def _judged(self, reload: Reload, verdict: dict[str, Any], problems: list[Problem]) -> None:
        """Take the trial's verdict."""
        self._step(reload, partial(self._prepare, reload, verdict, problems))

    def _prepare(self, reload: Reload, verdict: dict[str, Any], problems: list[Problem]) -> None:
        """Find out what is to be done, and begin it. Raises ConfigError, OSError."""
        if problems:
            raise ConfigError(problems)
        new = self._understood(verdict)
        for warning in new.warnings:
            log.warning("settings_warning", message=warning)
        steps = reload.plan = plan(self._current.config, new.config, lost=frozenset(self._listeners.unreachable()))
        problems = [*steps.problems, *self._hindrances(steps)]
        if problems:
            raise ConfigError(problems)
        if reload.dry:
            self._finish(reload, {"ok": True, "dry_run": True, **steps.describe(sessions=len(self._sessions.open))})
            return
        reload.next = new
        self._open(reload, steps, new)

    def _open(self, reload: Reload, steps: Plan, new: Current) -> None:
        """Open and start everything new. Raises ConfigError, OSError."""
        config, old = new.config, self._current
        descriptors.raise_limit(config)
        for listener in steps.opened:
            reload.opened[listener.name] = sockets.open_listener(listener, self._passed)
        reload.awaited = {"mold"}
        # None is open where a program has lost it on its way to the next one.
        anew = steps.metrics_moved or self._exporters.listener is None
        if config.metrics.listen is not None and (anew or new.people.helper != old.people.helper or config.log != old.config.log):
            reload.metrics = sockets.open_metrics(config.metrics.listen) if anew else self._exporters.listener
            reload.awaited.add("exporter")
        self._within(reload, max(config.timeouts.import_, exporters.STARTUP) + GRACE_SECONDS, "the new mold or exporter")
        # Only now, when nothing but these two can fail any more: both tell later.
        self._molds.prepare(new, partial(self._prepared, reload, "mold"))
        if reload.metrics is not None:
            self._exporters.prepare(new, reload.metrics, partial(self._prepared, reload, "exporter"))

    def _understood(self, verdict: dict[str, Any]) -> Current:
        """Return the settings of a verdict, to be put in force. Raises ConfigError when it is another version's."""
        try:
            config, people, warnings = of_document(verdict["settings"]), People(**verdict["people"]), tuple(map(str, verdict["warnings"]))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            # The trial is of the code that is on disk by now.
            hint = 'the settings were judged by another poold than this master, which is installed by now; run "poold upgrade"'
            raise ConfigError([Problem("", hint)]) from error
        return Current(config, people, self._current.generation + 1, warnings)

    def _hindrances(self, steps: Plan) -> Iterator[Problem]:
        """Yield what is known to be in the way before anything is opened, so that a dry run says it too."""
        for listener in steps.opened:
            reason = sockets.not_passed(listener.address, self._passed)
            if reason:
                yield Problem(f"listener {listener.address} address", reason)
        try:
            self._counters.reserve(listener.name for listener in steps.new.listeners)
        except LookupError as error:
            yield Problem("listener.name", str(error))

    def _prepared(self, reload: Reload, what: str, reason: str | None) -> None:
        """Take the news that the new mold or exporter is ready, or that it never will be or is no more."""
        if reason is not None:
            problem = Problem("server.handler" if what == "mold" else "metrics.listen", reason)
            self._step(reload, partial(self._refuse, reload, [problem]))
            return
        reload.awaited.discard(what)
        if not reload.awaited:
            self._step(reload, partial(self._commit, reload))

    def _commit(self, reload: Reload) -> None:
        """Apply: whatever is raised once the new settings are in force, every step is made."""
        plan, new = reload.plan, reload.next
        assert plan is not None
        assert new is not None
        answer = {"ok": True, "generation": new.generation, **plan.describe(sessions=len(self._sessions.open))}
        steps: list[Callback] = [*self._changes(reload, plan, new), partial(self._applied, new, plan)]
        steps.append(partial(self._finish, reload, answer))
        # Nothing has changed so far.
        self._current.replace(new)
        reload.answer = answer
        self._loop.call_each_with_retry(steps)

    def _changes(self, reload: Reload, plan: Plan, new: Current) -> list[Callback]:
        """Return the steps that put other settings in force: each independent of the others, and without effect when taken again."""
        config = new.config
        steps: list[Callback] = [
            partial(log.configure, format=config.log.format, level=config.log.level),
            self._loggers.configure,
            self._molds.adopt,
            self._pool.renew,
        ]
        if reload.metrics is not None or config.metrics.listen is None:
            steps.append(partial(self._exporters.adopt, reload.metrics))
        steps += [partial(self._listeners.change, after) for _, after in plan.kept]
        steps += [partial(self._listeners.dismiss, listener) for listener in plan.closed]
        steps += [
            partial(self._listeners.add, opened, listener) for listener in plan.opened for opened in reload.opened.get(listener.name, ())
        ]
        return steps

    def _applied(self, new: Current, plan: Plan) -> None:
        self.note_success()
        self._count(ReloadResult.APPLIED)
        log.info("reload_applied", generation=new.generation, changes="; ".join(plan.changes) or None)

    def _refuse(self, reload: Reload, problems: list[Problem]) -> None:
        """Give up what was made; everything is as it was."""
        if reload is not self._running:
            return
        if reload.answer is not None:
            self._finish(reload, reload.answer)
            return
        lines = [str(problem) for problem in problems]
        document = {"ok": False, "error": "refused", "file": str(self._file or "built-in defaults"), "problems": lines}
        steps: list[Callback] = [self._molds.discard, self._exporters.discard]
        steps += [each.close for several in reload.opened.values() for each in several]
        if reload.metrics is not None and reload.metrics is not self._exporters.listener:
            steps.append(reload.metrics.close)
        steps += [partial(self._refused, reload, lines), partial(self._finish, reload, document)]
        self._loop.call_each(steps)

    def _refused(self, reload: Reload, lines: list[str]) -> None:
        if not reload.dry:
            self._counters.cells[RELOAD_SUCCESSFUL] = 0
            self._count(ReloadResult.REFUSED)
        for line in lines:
            log.error("reload_refused", reason=line)

    def _finish(self, reload: Reload, document: dict[str, Any]) -> None:
        """Let the next one begin, and tell whoever has to know."""
        self._running = None
        again, self._again = self._again, False
        steps: list[Callback] = [partial(reload.told, document)]
        if reload.deadline is not None:
            steps.append(reload.deadline.cancel)
        if not reload.dry and not self._life.ends:
            steps.append(self._manager.ready_again)
        if again and not self._life.ends:
            # Acted on in the next turn: an upgrade that has waited for the end of this reload comes first.
            steps.append(partial(self._inbox.note, signal.SIGHUP))
        self._loop.call_each(steps)

    def note_success(self) -> None:
        """Show that what the file says is in force, as of now: also after a start and after an upgrade."""
        cells = self._counters.cells
        cells[RELOAD_SUCCESSFUL] = 1
        cells[RELOAD_SUCCESS_AT] = int(self._wall_clock() * 1_000_000)

    def advance(self) -> None:
        """Refuse what runs once the end has begun; called in each turn."""
        if self._running is not None and self._life.ends:
            self._refuse(self._running, [Problem("", "poold is stopping")])
