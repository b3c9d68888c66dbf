"""The master: starts the parts, and turns the loop, in which alone a serving master waits."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from poold import __version__, sandbox
from poold.errors import ExitCode, InternalError
from poold.log import log, trace
from poold.master.children.spawn import Launcher
from poold.master.current import Current
from poold.master.engine.deadlines import Callback
from poold.master.engine.loop import Loop
from poold.master.engine.signals import Inbox
from poold.master.outside.control import Answer, Reply
from poold.master.parts import Parts
from poold.master.phase import Phase
from poold.master.upgrade import takeover
from poold.master.upgrade.state import StateDocument
from poold.scoreboard import LOOP_ERRORS
from poold.words import Cause


class Master:
    """The one process that owns listening sockets, signals and the child table."""

    def __init__(
        self,
        current: Current,
        *,
        inbox: Inbox,
        passed: Iterable[tuple[str, int]],
        file: Path | None,
        control: str,
        environ: MutableMapping[str, str],
        origin: Mapping[str, str],
        inherited: StateDocument | None = None,
        guard: int | None = None,
        launcher: type[Launcher] = Launcher,
    ) -> None:
        """Build the parts. Nothing is opened, started or logged here. Raises ConfigError.

        `inbox` is noting signals already. `passed` has names and numbers of usable descriptors from
        the service manager. The manager's other variables are removed from `environ`, but stay in
        `origin`, the environment of an upgrade. `file` holds the settings. The control socket is at
        `control`. After an upgrade `inherited` is the previous program's document. The end of
        `guard` tells that the loop turns. `launcher` starts processes.
        """
        self._inbox = inbox
        self._inherited = inherited
        self._guard = guard
        self._loop = Loop(self._inbox, self._on_signals, lambda: self._parts.pool.refill())  # noqa: PLW0108 -- the parts are built below
        verbs = {"reload": self._reload, "upgrade": self._upgrade, "stop": self._stop}
        self._parts = Parts(
            current,
            loop=self._loop,
            inbox=inbox,
            verbs=verbs,
            passed=passed,
            file=file,
            control=control,
            environ=environ,
            origin=origin,
            inherited=inherited,
            launcher=launcher,
        )
        self._life = self._parts.life
        self._exit_status = ExitCode.OK

    def run(self) -> ExitCode:
        """Serve, and return the exit status. Raises ConfigError if a socket cannot be opened."""
        if self._inherited is not None:
            # Not in `try`: a failure must leave the listeners open in the service manager.
            self.take_over(self._inherited)
        try:
            if self._life.phase is Phase.STARTING:
                self._start()
            while self.turn():
                pass
        finally:
            self.close()
        return self._exit_status

    def turn(self) -> bool:
        """Wait for events and act on them. Return whether the master goes on."""
        try:
            self._loop.call_guarded(self._loop.turn)
            self._loop.call_guarded(self._advance)
        except InternalError as error:
            self._give_up(error)
        return self._life.phase is not Phase.STOPPED

    def close(self) -> None:
        """Close every socket, remove the master's socket files, and write the last log lines."""
        try:
            self._loop.call_each_with_retry([self._parts.close, self._log_stopped, self._parts.loggers.close])
        except InternalError:
            # Every step has been taken, and nothing is left to give up.
            self._exit_status = ExitCode.INTERNAL

    def _log_stopped(self) -> None:
        if self._life.phase is Phase.STOPPED:
            log.info("stopped", exit_status=int(self._exit_status))

    @property
    def errors(self) -> int:
        """The number of errors of poold's own so far."""
        return self._loop.errors

    @property
    def exit_status(self) -> ExitCode:
        """The exit status, as far as known."""
        return self._exit_status

    def _start(self) -> None:
        parts = self._parts
        log.info("starting", version=__version__, pid=os.getpid(), generation=parts.current.generation)
        sandbox.adopt_orphans()
        parts.open()
        parts.start()
        parts.reloads.note_success()
        self._publish()

    def take_over(self, before: StateDocument) -> None:
        """Go on from the document of the previous program."""
        parts = self._parts
        sandbox.adopt_orphans()
        takeover.restore_all(parts.owners, before)
        self._loop.resume(parts.counters.cells[LOOP_ERRORS])
        parts.start()
        self._life.enter(Phase.RUNNING)
        answer = parts.upgrades.report_applied(before.version)
        parts.reloads.note_success()
        # Signals are taken from here on, also those that have come meanwhile.
        self._inbox.open()
        self._inbox.note(signal.SIGCHLD)
        if self._guard is not None:
            self._loop.after(0, partial(os.close, self._guard))
        parts.views.show_ready()
        self._inherited = None
        # An exporter without a timely answer shows these, which must not be lower than before.
        parts.gauges.measure()
        self._publish()
        parts.control.answer_inherited(Answer(answer))

    def _on_signals(self, signals: set[int]) -> None:
        """Act on each signal that has come, whatever another signal's action raises."""
        acts: list[tuple[set[int], Callback]] = [
            ({signal.SIGCHLD}, self._parts.reaper.reap),
            ({signal.SIGHUP}, self._on_hup),
            ({signal.SIGUSR2}, partial(self._parts.upgrades.request, lambda document: None)),
            ({signal.SIGTERM, signal.SIGINT}, self._on_term),
            ({signal.SIGQUIT}, partial(self._parts.drain.stop, Cause.KILLED)),
        ]
        self._loop.call_each(act for numbers, act in acts if numbers & signals)

    def _on_hup(self) -> None:
        if self._parts.upgrades.running:
            self._parts.upgrades.reload_afterwards()
        else:
            self._loop.call_guarded(self._parts.control.renew)
            self._parts.reloads.request_by_signal()

    def _on_term(self) -> None:
        """Begin the drain. The second time: stop now. After that: kill the workers at once."""
        if not self._life.ends:
            self._parts.drain.begin()
        elif not self._life.stops:
            self._parts.drain.stop(Cause.KILLED)
        else:
            log.warning("stopping_at_once")
            self._parts.pool.kill()

    def _advance(self) -> None:
        """Act on the state of all parts. Called after each turn, and may be called at any time."""
        parts, life = self._parts, self._life
        parts.reaper.match()
        if life.phase is Phase.STARTING and parts.pool.usable():
            self._ready()
        if parts.molds.failed_start and not life.stops:
            log.error("start_failed", reason=parts.molds.failed_start)
            self._fail(ExitCode.FAILED)
        parts.reloads.advance()
        if parts.drain.is_over():
            parts.drain.stop(Cause.DRAINED)
        if life.stops:
            parts.drain.advance()
        else:
            parts.pool.advance()
        parts.listeners.gate(parts.door.is_open())
        unsettled = parts.listeners.empty_queues()
        # If a queue was just found empty, the drain may be over.
        self._loop.eager = unsettled or parts.drain.is_over() or parts.pool.wants_spares()
        self._loop.holdoff = parts.pool.holdoff()
        self._publish()
        parts.upgrades.advance()

    def _ready(self) -> None:
        self._life.enter(Phase.RUNNING)
        log.info("ready", seconds=time.monotonic() - self._parts.started_at)
        self._parts.views.show_ready()

    def _fail(self, status: ExitCode) -> None:
        """End in order, with this exit status."""
        self._exit_status = status
        self._parts.drain.stop(Cause.KILLED)

    def _give_up(self, error: InternalError) -> None:
        """End in order after a lasting error of poold's own. The service manager starts anew."""
        log.error("giving_up", error=str(error), traceback=trace(error))
        # The next master gets the listeners from the service manager's store.
        self._parts.store.leave()
        if self._exit_status is ExitCode.INTERNAL:
            os._exit(ExitCode.INTERNAL)
        # An error on the way counts among the errors that have led here.
        with contextlib.suppress(InternalError):
            self._fail(ExitCode.INTERNAL)

    def _publish(self) -> None:
        """Show the result of the turn: title, status line, gauges, answers to the exporter."""
        parts = self._parts
        parts.views.show()
        if parts.exporters.answer_due():
            parts.measure()
        parts.gauges.publish()
        parts.exporters.answer()

    def _reload(self, request: dict[str, Any], reply: Reply) -> None:
        parts = self._parts
        self._loop.call_guarded(parts.control.renew)
        dry, upgrading = bool(request.get("dry_run")), parts.upgrades.running
        parts.reloads.request(lambda document: reply(Answer(document)), dry=dry, upgrading=upgrading)

    def _upgrade(self, request: dict[str, Any], reply: Reply) -> None:
        self._parts.upgrades.request(lambda document: reply(Answer(document)))

    def _stop(self, request: dict[str, Any], reply: Reply) -> None:
        reply(Answer({"ok": True, "pid": os.getpid()}))
        if request.get("now"):
            self._parts.drain.stop(Cause.KILLED)
        elif not self._life.ends:
            self._parts.drain.begin()
