"""Reloads: judged first, prepared next, applied last, in one step that cannot fail.

The file is read once, and its bytes are judged in a process of their own; then everything new is opened and started. Until the
last step nothing has changed, and whatever goes wrong leaves it so.

    begin ─▶ trial ─▶ plan ─▶ listeners opened ─▶ mold ready, exporter ready ─▶ commit
                └────────┴──────────────┴──────────────────┴──▶ refused: what was made is given up

One reload runs at a time. One more SIGHUP is remembered, because the file may have been edited since the first was read; a second
`poold reload` is told that one is running.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from poold.errors import OWN_FAULT, ConfigError, Problem
from poold.log import log
from poold.master import descriptors, sockets
from poold.master.current import Current
from poold.master.parts import Parts
from poold.master.plan import Plan, plan
from poold.master.sockets import Opened
from poold.master.spawn import memory_file
from poold.master.trials import Trials
from poold.scoreboard import RELOAD_SUCCESS_AT, RELOAD_SUCCESSFUL, RELOADS
from poold.settings import file as settings
from poold.settings.config import People, of_document
from poold.words import ReloadResult

# How long the queue of a removed listener is served at the most, where `timeouts.drain` is not longer.
EMPTY_SECONDS = 30.0

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


class Reloads:
    """Runs reloads, one at a time."""

    def __init__(
        self,
        parts: Parts,
        trials: Trials,
        *,
        file: Path | None,
        passed: Mapping[str, list[socket.socket]],
        wall_clock: Callable[[], float],
    ) -> None:
        self._parts = parts
        self._trials = trials
        self._file = file
        self._passed = passed
        self._wall_clock = wall_clock
        self._running: Reload | None = None
        self._again = False
        self.stopping = False
        # Says why none may begin now, "" if one may.
        self.hindrance: Callable[[], str] = lambda: ""
        # Told that a reload begins, and that it has ended.
        self.on_begin: Callable[[], object] = lambda: None
        self.on_end: Callable[[], object] = lambda: None

    def signalled(self) -> None:
        """Take a SIGHUP."""
        if self.stopping:
            log.warning("reload_refused", reason="stopping")
        elif self._running is not None:
            self._again = True
        else:
            self._begin(lambda document: None, dry=False)

    def asked(self, told: Told, *, dry: bool) -> None:
        """Take a `poold reload`."""
        if self.stopping:
            told({"ok": False, "error": "poold is stopping"})
        elif hindrance := "another reload is running" if self._running is not None else self.hindrance():
            self._count(ReloadResult.BUSY)
            told({"ok": False, "error": f"busy: {hindrance}"})
        else:
            self._begin(told, dry=dry)

    @property
    def running(self) -> bool:
        """Say whether one runs."""
        return self._running is not None

    def _count(self, result: ReloadResult) -> None:
        self._parts.counters.cells[RELOADS[result]] += 1

    def _begin(self, told: Told, *, dry: bool) -> None:
        reload = self._running = Reload(told, dry)
        log.info("reload_started", file=self._file or "built-in defaults", dry_run=dry or None)
        if self._parts.control is not None:
            self._parts.control.renew()
        if not dry:
            self.on_begin()
        try:
            text = settings.read_file(self._file) if self._file is not None else b""
            self._try(reload, text)
        except ConfigError as error:
            self._refuse(reload, error.problems)
        except OSError as error:
            self._refuse(reload, [Problem("", f"the trial cannot be started: {error.strerror}")])

    def _try(self, reload: Reload, text: bytes) -> None:
        """Start the trial of these bytes. Raises OSError."""
        given = memory_file("text", text)
        name = str(self._file) if self._file else None
        try:
            self._trials.begin(lambda result: self._parts.launcher.trial(name, text=given, result=result), partial(self._judged, reload))
        finally:
            os.close(given)

    def _judged(self, reload: Reload, verdict: dict[str, Any], problems: list[Problem]) -> None:
        """Take the trial's verdict."""
        if reload is not self._running:
            return
        if problems:
            self._refuse(reload, problems)
            return
        try:
            config, people, warnings = of_document(verdict["settings"]), People(**verdict["people"]), tuple(map(str, verdict["warnings"]))
        except (LookupError, TypeError, ValueError, AttributeError):
            # The trial is of the code that is on disk by now.
            hint = 'the settings were judged by another poold than this master, which is installed by now; run "poold upgrade"'
            self._refuse(reload, [Problem("", hint)])
            return
        for warning in warnings:
            log.warning("settings_warning", message=warning)
        try:
            self._prepare(reload, Current(config, people, self._parts.current.generation + 1, warnings))
        except ConfigError as error:
            self._refuse(reload, error.problems)
        except (OSError, LookupError) as error:
            self._refuse(reload, [Problem("", str(error))])
        except Exception as error:
            self._refuse(reload, [OWN_FAULT])
            self._parts.loop.note_error(error)

    def _prepare(self, reload: Reload, new: Current) -> None:
        """Open and start everything new. Raises ConfigError, OSError, LookupError."""
        parts, config, people = self._parts, new.config, new.people
        old = parts.current
        steps = reload.plan = plan(old.config, config, lost=frozenset(parts.listeners.unreachable()))
        problems = [*steps.problems, *self._hindrances(steps)]
        if problems:
            raise ConfigError(problems)
        if reload.dry:
            self._finish(reload, {"ok": True, "dry_run": True, **steps.describe(sessions=len(parts.sessions.open))})
            return
        descriptors.raise_limit(config)
        reload.next = new
        for listener in steps.opened:
            reload.opened[listener.name] = sockets.open_listener(listener, self._passed)
        reload.awaited = {"mold"}
        if config.metrics.listen is not None and (
            steps.metrics_moved or people.helper != old.people.helper or config.log != old.config.log
        ):
            reload.metrics = sockets.open_metrics(config.metrics.listen) if steps.metrics_moved else parts.exporters.listener
            reload.awaited.add("exporter")
        # Only now, when nothing but these two can fail any more: both tell later.
        parts.molds.prepare(reload.next, partial(self._prepared, reload, "mold"))
        if "exporter" in reload.awaited and reload.metrics is not None:
            parts.exporters.prepare(reload.next, reload.metrics, partial(self._prepared, reload, "exporter"))

    def _hindrances(self, steps: Plan) -> Iterator[Problem]:
        """Yield what is known to be in the way before anything is opened, so that a dry run says it too."""
        for listener in steps.opened:
            reason = sockets.not_passed(listener.address, self._passed)
            if reason:
                yield Problem(f"listener {listener.address} address", reason)
        try:
            self._parts.counters.reserve(listener.name for listener in steps.new.listeners)
        except LookupError as error:
            yield Problem("listener.name", str(error))

    def _prepared(self, reload: Reload, what: str, reason: str | None) -> None:
        if reload is not self._running:
            return
        if reason is not None:
            self._refuse(reload, [Problem("server.handler" if what == "mold" else "metrics.listen", reason)])
            return
        reload.awaited.discard(what)
        if not reload.awaited:
            self._commit(reload)

    def _commit(self, reload: Reload) -> None:
        """Apply; nothing here may fail."""
        parts, steps, new = self._parts, reload.plan, reload.next
        assert steps is not None
        assert new is not None
        over = len(parts.sessions.open)
        parts.current.replace(new)
        log.configure(format=new.config.log.format, level=new.config.log.level)
        parts.loggers.configure()
        parts.molds.adopt()
        parts.pool.renew()
        if "exporter" not in reload.awaited and reload.metrics is not None:
            parts.exporters.adopt(reload.metrics)
        elif new.config.metrics.listen is None:
            parts.exporters.adopt(None)
        for _, after in steps.kept:
            parts.listeners.change(after)
        for listener in steps.closed:
            parts.listeners.dismiss(listener, seconds=max(new.config.timeouts.drain, EMPTY_SECONDS))
        for listener in steps.opened:
            for opened in reload.opened.pop(listener.name):
                parts.listeners.add(opened, listener)
        reload.metrics = None
        cells = parts.counters.cells
        cells[RELOAD_SUCCESSFUL] = 1
        cells[RELOAD_SUCCESS_AT] = int(self._wall_clock() * 1_000_000)
        self._count(ReloadResult.APPLIED)
        log.info("reload_applied", generation=new.generation, changes="; ".join(steps.changes) or None)
        self._finish(reload, {"ok": True, "generation": new.generation, **steps.describe(sessions=over)})

    def _refuse(self, reload: Reload, problems: list[Problem]) -> None:
        """Give up what was made; everything is as it was."""
        parts = self._parts
        parts.molds.discard()
        parts.exporters.discard()
        for opened in (each for several in reload.opened.values() for each in several):
            opened.close()
        if reload.metrics is not None and reload.metrics is not parts.exporters.listener:
            reload.metrics.close()
        if not reload.dry:
            parts.counters.cells[RELOAD_SUCCESSFUL] = 0
            self._count(ReloadResult.REFUSED)
        for problem in problems:
            log.error("reload_refused", reason=str(problem))
        lines = [str(problem) for problem in problems]
        self._finish(reload, {"ok": False, "error": "refused", "file": str(self._file or "built-in defaults"), "problems": lines})

    def _finish(self, reload: Reload, document: dict[str, Any]) -> None:
        self._running = None
        reload.told(document)
        if not reload.dry:
            self.on_end()
        if self._again and not self.stopping:
            self._again = False
            self._begin(lambda document: None, dry=False)

    def stop(self) -> None:
        """Refuse what runs and begin nothing any more."""
        self.stopping = True
        self._again = False
        if self._running is not None:
            self._refuse(self._running, [Problem("", "poold is stopping")])
