"""Reloads: the new settings are judged, then everything new is prepared, then all is applied.

The master reads the file once, and a trial judges these bytes. Then the master opens and starts
everything new. Nothing has changed until the commit, which cannot fail. Any earlier fault leaves
the old settings in force.

    request ─▶ trial ─▶ plan ─▶ listeners opened ─▶ mold ready, exporter ready ─▶ commit
                └────────┴───────────────┴───────────────────┴──▶ refused: undo the preparations

One reload runs at a time. A SIGHUP that comes meanwhile is remembered, because the file may have
been edited since the first read. A second `poold reload` gets the answer that a reload is running.

Each reload ends. An error of poold's own refuses the reload. If an answer is lost inside poold, a
deadline refuses the reload. The steps of the commit are taken one by one, so that an error in one
leaves out none of the others.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from poold.errors import ConfigError, Problem
from poold.log import log
from poold.master import descriptors
from poold.master.change.plan import Plan, plan
from poold.master.change.running import GRACE_SECONDS, Change, Changes, OnEnd
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
from poold.master.engine.deadlines import Callback
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


@dataclass(slots=True, eq=False)
class Reload(Change):
    """The reload that runs."""

    dry: bool = False
    next: Current | None = None
    plan: Plan | None = None
    opened: dict[str, list[Opened]] = field(default_factory=dict)
    metrics: Opened | None = None
    # The answer to the request, once the reload is applied and cannot be undone.
    answer: dict[str, Any] | None = None


class Reloads(Changes[Reload]):
    """Runs reloads, one at a time."""

    _KEYS: ClassVar[Mapping[str, str]] = {"mold": "server.handler", "exporter": "metrics.listen"}

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
        super().__init__(life=life, loop=loop)
        self._current = current
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
        self._again = False

    def request_by_signal(self) -> None:
        """Take a SIGHUP."""
        if self._life.ends:
            log.warning("reload_refused", reason="stopping")
        elif self._running is not None:
            self._again = True
        else:
            self._run(Reload(lambda document: None))

    def request(self, on_end: OnEnd, *, dry: bool, upgrading: bool) -> None:
        """Take a `poold reload`. While a reload or an upgrade (`upgrading`) runs, poold is busy."""
        if self._life.ends:
            on_end({"ok": False, "error": "poold is stopping"})
        elif upgrading or self._running is not None:
            self._count_result(ReloadResult.BUSY)
            on_end({"ok": False, "error": f"busy: {'another reload' if self._running is not None else 'an upgrade'} is running"})
        else:
            self._run(Reload(on_end, dry=dry))

    def _count_result(self, result: ReloadResult) -> None:
        self._counters.cells[RELOADS[result]] += 1

    def _start_trial(self, reload: Reload) -> None:
        """Start the trial of the file as the file is now. Raises ConfigError, OSError."""
        log.info("reload_started", file=self._file or "built-in defaults", dry_run=reload.dry or None)
        if not reload.dry:
            self._manager.reloading()
        given = memory_file("text", settings.read_file(self._file) if self._file is not None else b"")
        name = str(self._file) if self._file else None
        try:
            self._trials.begin(lambda result: self._launcher.trial(name, text=given, result=result), partial(self._on_verdict, reload))
        except OSError as error:
            raise ConfigError([Problem("", f"the trial cannot be started: {error.strerror}")]) from error
        finally:
            os.close(given)

    def _prepare(self, reload: Reload, verdict: dict[str, Any]) -> None:
        """Find out what the reload changes, and begin. Raises ConfigError, OSError."""
        new = self._parse_settings(verdict)
        for warning in new.warnings:
            log.warning("settings_warning", message=warning)
        steps = reload.plan = plan(self._current.config, new.config, lost=frozenset(self._listeners.unreachable()))
        problems = [*steps.problems, *self._find_problems(steps)]
        if problems:
            raise ConfigError(problems)
        if reload.dry:
            self._finish(reload, {"ok": True, "dry_run": True, **steps.describe(sessions=len(self._sessions.open))})
            return
        reload.next = new
        self._open_new(reload, steps, new)

    def _open_new(self, reload: Reload, steps: Plan, new: Current) -> None:
        """Open and start everything new. Raises ConfigError, OSError."""
        config, old = new.config, self._current
        descriptors.raise_limit(config)
        for listener in steps.opened:
            reload.opened[listener.name] = sockets.open_listener(listener, self._passed)
        reload.awaited = {"mold"}
        # After an upgrade the listener may be missing, if the previous program has lost the socket.
        anew = steps.metrics_moved or self._exporters.listener is None
        if config.metrics.listen is not None and (anew or new.people.helper != old.people.helper or config.log != old.config.log):
            reload.metrics = sockets.open_metrics(config.metrics.listen) if anew else self._exporters.listener
            reload.awaited.add("exporter")
        self._fail_after(reload, max(config.timeouts.import_, exporters.STARTUP) + GRACE_SECONDS, "the new mold or exporter")
        # Mold and exporter come last. Nothing else can fail any more, and both report later.
        self._molds.prepare(new, partial(self._on_prepared, reload, "mold"))
        if "exporter" in reload.awaited and reload.metrics is not None:
            self._exporters.prepare(new, reload.metrics, partial(self._on_prepared, reload, "exporter"))

    def _parse_settings(self, verdict: dict[str, Any]) -> Current:
        """Return a verdict's settings. Raises ConfigError if another version wrote the verdict."""
        try:
            config, people, warnings = of_document(verdict["settings"]), People(**verdict["people"]), tuple(map(str, verdict["warnings"]))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            # The trial runs the code that is on disk now, and that may be a newer version.
            hint = 'the settings were judged by another poold than this master, which is installed by now; run "poold upgrade"'
            raise ConfigError([Problem("", hint)]) from error
        return Current(config, people, self._current.generation + 1, warnings)

    def _find_problems(self, steps: Plan) -> Iterator[Problem]:
        """Yield the problems that show before anything is opened. A dry run tells them, too."""
        for listener in steps.opened:
            reason = sockets.not_passed(listener.address, self._passed)
            if reason:
                yield Problem(f"listener {listener.address} address", reason)
        try:
            self._counters.reserve(listener.name for listener in steps.new.listeners)
        except LookupError as error:
            yield Problem("listener.name", str(error))

    def _complete(self, reload: Reload) -> None:
        """Apply the reload. Each step is taken, whatever another step raises."""
        plan, new = reload.plan, reload.next
        assert plan is not None
        assert new is not None
        answer = {"ok": True, "generation": new.generation, **plan.describe(sessions=len(self._sessions.open))}
        steps: list[Callback] = [*self._commit_steps(reload, plan, new), partial(self._report_applied, new, plan)]
        steps.append(partial(self._finish, reload, answer))
        # Nothing has changed so far.
        self._current.replace(new)
        reload.answer = answer
        self._loop.call_each_with_retry(steps)

    def _commit_steps(self, reload: Reload, plan: Plan, new: Current) -> list[Callback]:
        """Return the independent steps that put the settings in force. Each may be taken twice."""
        config = new.config
        steps: list[Callback] = [
            partial(log.configure, format=config.log.format, level=config.log.level),
            self._loggers.configure,
            self._molds.adopt,
            self._pool.retire_outdated,
        ]
        if reload.metrics is not None or config.metrics.listen is None:
            steps.append(partial(self._exporters.adopt, reload.metrics))
        steps += [partial(self._listeners.change, after) for _, after in plan.kept]
        steps += [partial(self._listeners.dismiss, listener) for listener in plan.closed]
        steps += [
            partial(self._listeners.add, opened, listener) for listener in plan.opened for opened in reload.opened.get(listener.name, ())
        ]
        return steps

    def _report_applied(self, new: Current, plan: Plan) -> None:
        self.note_success()
        self._count_result(ReloadResult.APPLIED)
        log.info("reload_applied", generation=new.generation, changes="; ".join(plan.changes) or None)

    def _fail(self, reload: Reload, problems: list[Problem]) -> None:
        """Give up what was prepared. The old settings stay in force."""
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
        steps += [partial(self._report_refused, reload, lines), partial(self._finish, reload, document)]
        self._loop.call_each(steps)

    def _report_refused(self, reload: Reload, lines: list[str]) -> None:
        if not reload.dry:
            self._counters.cells[RELOAD_SUCCESSFUL] = 0
            self._count_result(ReloadResult.REFUSED)
        for line in lines:
            log.error("reload_refused", reason=line)

    def _finish(self, reload: Reload, document: dict[str, Any]) -> None:
        """Allow the next reload, and send the answer."""
        self._running = None
        again, self._again = self._again, False
        steps: list[Callback] = [partial(reload.on_end, document)]
        if reload.deadline is not None:
            steps.append(reload.deadline.cancel)
        if not reload.dry and not self._life.ends:
            steps.append(self._manager.ready_again)
        if again and not self._life.ends:
            # The signal is handled in the next turn. An upgrade that has waited for this reload
            # comes first.
            steps.append(partial(self._inbox.note, signal.SIGHUP))
        self._loop.call_each(steps)

    def note_success(self) -> None:
        """Show that the file's settings are in force: after a reload, a start or an upgrade."""
        cells = self._counters.cells
        cells[RELOAD_SUCCESSFUL] = 1
        cells[RELOAD_SUCCESS_AT] = int(self._wall_clock() * 1_000_000)

    def advance(self) -> None:
        """Refuse the running reload once the master has begun to end. Called in each turn."""
        if self._running is not None and self._life.ends:
            self._fail(self._running, [Problem("", "poold is stopping")])
