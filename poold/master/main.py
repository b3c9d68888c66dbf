"""The master: starts the parts, turns the loop, and asks after each turn what the facts call for.

Own the parts; decide nothing that a part can decide; wait nowhere but in the loop.
"""

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
        """Take the settings and the file they come from, signals that are noted already, and the path of the control socket.

        `passed` are names and numbers of descriptors from the service manager, whose other variables are removed from `environ`;
        `origin` is the environment as it was before, for the program of an upgrade. `inherited` is what the program before has
        left, where this one is that, and `guard` the descriptor whose end tells that this one has come as far as its loop. Nothing is
        opened, started or told here; `launcher` makes what starts processes. Raises ConfigError for a descriptor that is of no use.
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
        self._exit_code = ExitCode.OK

    def run(self) -> ExitCode:
        """Serve until told to stop; return the exit status. Raises ConfigError when a socket cannot be opened."""
        if self._inherited is not None:
            # Outside: where this fails nothing is closed in order, and the service manager keeps the listeners for the next start.
            self.take_over(self._inherited)
        try:
            if self._life.phase is Phase.STARTING:
                self._start()
            while self.turn():
                pass
        finally:
            self.close()
        return self._exit_code

    def turn(self) -> bool:
        """Wait for something to happen, and act on it; say whether there is more to wait for."""
        try:
            self._loop.guarded(self._loop.turn)
            self._loop.guarded(self._advance)
        except InternalError as error:
            self._give_up(error)
        return self._life.phase is not Phase.STOPPED

    def close(self) -> None:
        """Close every socket, remove the socket files that are its own, and let the last lines out."""
        try:
            self._loop.surely([self._parts.close, self._log_stopped, self._parts.loggers.close])
        except InternalError:
            # Every step has been taken, and there is nothing left to give up.
            self._exit_code = ExitCode.INTERNAL

    def _log_stopped(self) -> None:
        if self._life.phase is Phase.STOPPED:
            log.info("stopped", exit_status=int(self._exit_code))

    @property
    def errors(self) -> int:
        """How many errors of poold's own there have been."""
        return self._loop.errors

    @property
    def exit_code(self) -> ExitCode:
        """The exit status, as far as it is known."""
        return self._exit_code

    def _start(self) -> None:
        parts = self._parts
        log.info("starting", version=__version__, pid=os.getpid(), generation=parts.current.generation)
        sandbox.adopt_orphans()
        parts.open()
        parts.start()
        parts.reloads.note_success()
        self._publish()

    def take_over(self, before: StateDocument) -> None:
        """Go on where the program before has stopped."""
        parts = self._parts
        sandbox.adopt_orphans()
        takeover.adopt(parts.owners, before)
        self._loop.resume(parts.counters.cells[LOOP_ERRORS])
        parts.start()
        self._life.enter(Phase.RUNNING)
        answer = parts.upgrades.report_applied(before.version)
        parts.reloads.note_success()
        # From here on signals are taken; those that came meanwhile come now.
        self._inbox.open()
        self._inbox.note(signal.SIGCHLD)
        if self._guard is not None:
            self._loop.after(0, partial(os.close, self._guard))
        parts.views.show_ready()
        self._inherited = None
        # An exporter that is not answered in time shows what is there: it must not be less than before.
        parts.gauges.measure()
        self._publish()
        parts.control.answer_inherited(Answer(answer))

    def _on_signals(self, signals: set[int]) -> None:
        """Act on each that has come, whatever is raised by another."""
        acts: list[tuple[set[int], Callback]] = [
            ({signal.SIGCHLD}, self._parts.reaper.reap),
            ({signal.SIGHUP}, self._on_hup),
            ({signal.SIGUSR2}, partial(self._parts.upgrades.request, lambda document: None)),
            ({signal.SIGTERM, signal.SIGINT}, self._on_term),
            ({signal.SIGQUIT}, partial(self._parts.drain.stop, Cause.KILLED)),
        ]
        self._loop.each(act for numbers, act in acts if numbers & signals)

    def _on_hup(self) -> None:
        if self._parts.upgrades.running:
            self._parts.upgrades.reload_afterwards()
        else:
            self._parts.control.renew()
            self._parts.reloads.request_by_signal()

    def _on_term(self) -> None:
        """Drain; a second time: stop now; once more: at once."""
        if not self._life.ends:
            self._parts.drain.begin()
        elif not self._life.stops:
            self._parts.drain.stop(Cause.KILLED)
        else:
            log.warning("stopping_at_once")
            self._parts.pool.kill()

    def _advance(self) -> None:
        """Do what the facts ask for now; called after each turn, and as often as one likes."""
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
        unsettled = parts.listeners.look()
        # A queue that was found empty just now may have been the last thing to wait for.
        self._loop.eager = unsettled or parts.drain.is_over() or parts.pool.wants_spares()
        self._loop.holdoff = parts.pool.holdoff()
        self._publish()
        parts.upgrades.advance()

    def _ready(self) -> None:
        self._life.enter(Phase.RUNNING)
        log.info("ready", seconds=time.monotonic() - self._parts.started_at)
        self._parts.views.show_ready()

    def _fail(self, code: ExitCode) -> None:
        """End in order, with this exit status."""
        self._exit_code = code
        self._parts.drain.stop(Cause.KILLED)

    def _give_up(self, error: InternalError) -> None:
        """End in order after an error of our own that does not go away; the service manager starts another master."""
        log.error("giving_up", error=str(error), traceback=trace(error))
        # The next master gets the listeners from the store.
        self._parts.store.leave()
        if self._exit_code is ExitCode.INTERNAL:
            os._exit(ExitCode.INTERNAL)
        # What is raised on the way is one of the errors for which it is given up.
        with contextlib.suppress(InternalError):
            self._fail(ExitCode.INTERNAL)

    def _publish(self) -> None:
        """Make visible what has become of the turn: title, status line, gauges, answers to the exporter."""
        parts = self._parts
        parts.views.show()
        if parts.exporters.asked():
            parts.measure()
        parts.gauges.publish()
        parts.exporters.answer()

    def _reload(self, request: dict[str, Any], reply: Reply) -> None:
        parts = self._parts
        parts.control.renew()
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
