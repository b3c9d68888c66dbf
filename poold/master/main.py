"""The master: starts the parts, turns the loop, and asks after each turn what the facts call for.

Own the parts; decide nothing that a part can decide; wait nowhere but in the loop.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping, MutableMapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from poold import __version__, sandbox
from poold.errors import ExitCode, InternalError
from poold.log import log, trace
from poold.master.change.drain import Drain
from poold.master.change.reloads import Reloads
from poold.master.change.trials import Trials
from poold.master.children.spawn import Launcher
from poold.master.clients.sessions import Accepted
from poold.master.clients.store import Store
from poold.master.current import Current
from poold.master.document.state import StateDocument
from poold.master.engine.deadlines import Callback
from poold.master.engine.loop import Loop
from poold.master.engine.signals import Inbox
from poold.master.outside.control import Answer, Reply
from poold.master.outside.manager import Manager
from poold.master.outside.views import Views
from poold.master.parts import Parts
from poold.master.upgrade import takeover
from poold.master.upgrade.snapshot import Origin
from poold.master.upgrade.upgrades import Upgrades
from poold.scoreboard import REFUSED, RELOAD_SUCCESS_AT, RELOAD_SUCCESSFUL, UPGRADES
from poold.title import set_title
from poold.words import Cause, Kind, Refusal, UpgradeResult


class Phase(StrEnum):
    """Where the master is in its own life."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


ACCEPTING = (Phase.RUNNING, Phase.DRAINING)


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
        self._control_path = control
        self._inbox = inbox
        self._loop = Loop(self._inbox, self._on_signals, self._on_idle)
        self._manager = Manager(environ, self._loop)
        self._store = Store(self._manager.store)
        self._passed = self._store.sort(passed)
        self._inherited = inherited
        self._guard = guard
        self._started_at = time.monotonic() if inherited is None else inherited.started_at
        self._parts = Parts(current, self._loop, environ, inherited, launcher)
        self._drain = Drain(self._parts, self._parts.memories.phase)
        trials = Trials(self._parts)
        self._reloads = Reloads(self._parts, trials, file=file, passed=self._passed, wall_clock=time.time)
        self._upgrades = Upgrades(self._parts, trials, inbox=inbox, origin=Origin(file, self._started_at, self._passed, origin))
        self._parts.reaper.on_exit[Kind.TRIAL] = trials.exited
        self._phase = Phase.STARTING
        self._exit_code = ExitCode.OK
        # Sessions and cap, as the title has them.
        self._shown = (-1, 0)
        self._introduce()

    def _introduce(self) -> None:
        """Tell the parts whom to ask and whom to tell."""
        parts, manager = self._parts, self._manager
        self._verbs = {
            "view": Views(parts, self._about).view,
            "reload": self._reload,
            "upgrade": self._upgrade,
            "stop": self._asked_to_stop,
        }
        parts.listeners.may_accept = self._may_accept
        parts.listeners.on_accepted = self._on_accepted
        parts.listeners.on_open, parts.listeners.on_close = self._store.keep, self._store.drop
        parts.molds.on_failed_start = self._on_failed_start
        self._reloads.hindrance = lambda: "an upgrade is running" if self._upgrades.running else ""
        self._reloads.on_begin, self._reloads.on_end = manager.reloading, manager.ready_again
        self._reloads.on_finished = self._on_reload_finished
        self._upgrades.hindrance = lambda: "poold is not ready yet" if self._phase is Phase.STARTING else ""
        self._upgrades.reloading = lambda: self._reloads.running
        self._upgrades.on_begin, self._upgrades.on_end = manager.reloading, manager.ready_again

    def run(self) -> ExitCode:
        """Serve until told to stop; return the exit status. Raises ConfigError when a socket cannot be opened."""
        if self._inherited is not None:
            # Outside: where this fails nothing is closed in order, and the service manager keeps the listeners for the next start.
            self.take_over(self._inherited)
        try:
            if self._phase is Phase.STARTING:
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
        return self._phase is not Phase.STOPPED

    def close(self) -> None:
        """Close every socket, remove the socket files that are its own, and let the last lines out."""
        try:
            self._loop.surely([self._parts.close, self._say_stopped, self._parts.loggers.close])
        except InternalError:
            # Every step has been taken, and there is nothing left to give up.
            self._exit_code = ExitCode.INTERNAL

    def _say_stopped(self) -> None:
        if self._phase is Phase.STOPPED:
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
        config = parts.current.config
        log.info("starting", version=__version__, pid=os.getpid(), generation=parts.current.generation)
        sandbox.adopt_orphans()
        for name in sorted(set(self._passed) - {listener.address.name for listener in config.listeners}):
            log.warning("passed_socket_unused", name=name, hint=f'add a [[listener]] with address = "systemd://{name}"')
        parts.open(passed=self._passed, store=self._store, control_path=self._control_path, verbs=self._verbs)
        parts.molds.start()
        parts.exporters.start()
        self._note_settings()
        self._show()

    def _note_settings(self) -> None:
        """Show that what the file says is in force, as of now."""
        cells = self._parts.counters.cells
        cells[RELOAD_SUCCESSFUL] = 1
        cells[RELOAD_SUCCESS_AT] = int(time.time() * 1_000_000)

    def take_over(self, before: StateDocument) -> None:
        """Go on where the program before has stopped."""
        parts = self._parts
        sandbox.adopt_orphans()
        reply = takeover.adopt(parts, before, passed=self._passed, verbs=self._verbs)
        self._phase = Phase.RUNNING
        parts.counters.cells[UPGRADES[UpgradeResult.APPLIED]] += 1
        self._note_settings()
        sessions, generation = len(parts.sessions.open), parts.current.generation
        log.info("upgrade_applied", before=before.version, version=__version__, generation=generation, sessions=sessions)
        # From here on signals are taken; those that came meanwhile come now.
        self._inbox.open()
        self._inbox.note(signal.SIGCHLD)
        if self._guard is not None:
            self._loop.after(0, partial(os.close, self._guard))
        self._manager.status(self._status())
        self._manager.ready()
        self._inherited = None
        # An exporter that is not answered in time shows what is there: it must not be less than before.
        parts.gauges.measure()
        self._show()
        if reply is not None:
            told = {"ok": True, "from": before.version, "version": __version__, "generation": generation, "sessions": sessions}
            reply(Answer(told))

    def _on_signals(self, signals: set[int]) -> None:
        """Act on each that has come, whatever is raised by another."""
        acts: list[tuple[set[int], Callback]] = [
            ({signal.SIGCHLD}, self._reap),
            ({signal.SIGHUP}, self._on_hup),
            ({signal.SIGUSR2}, partial(self._upgrades.asked, lambda document: None)),
            ({signal.SIGTERM, signal.SIGINT}, self._on_term),
            ({signal.SIGQUIT}, partial(self._stop, Cause.KILLED)),
        ]
        self._loop.each(act for numbers, act in acts if numbers & signals)

    def _reap(self) -> None:
        more = True
        try:
            more = self._parts.reaper.reap()
        finally:
            # Also after an error, because no signal comes again for those who are left.
            if more:
                self._inbox.note(signal.SIGCHLD)

    def _on_hup(self) -> None:
        if self._upgrades.running:
            self._upgrades.reload_afterwards()
        else:
            self._reloads.signalled()

    def _on_reload_finished(self, again: bool) -> None:
        """Begin what has waited for it: first an upgrade, which signals that keep coming could keep out, then another reload."""
        self._upgrades.reload_ended()
        if again:
            self._inbox.note(signal.SIGHUP)

    def _on_term(self) -> None:
        """Drain; a second time: stop now; once more: at once."""
        match self._phase:
            case Phase.STARTING | Phase.RUNNING:
                self._begin_drain()
            case Phase.DRAINING:
                self._stop(Cause.KILLED)
            case Phase.STOPPING:
                log.warning("stopping_at_once")
                self._parts.pool.kill()
            case Phase.STOPPED:
                return

    def _on_idle(self) -> None:
        self._parts.pool.refill()

    def _may_accept(self) -> bool:
        return self._phase in ACCEPTING and not self._upgrades.quiet and self._parts.pool.accepts()

    def _on_accepted(self, accepted: Accepted) -> None:
        """Rule on a new connection: from here on it is a session or refused, never both."""
        parts = self._parts
        if parts.pool.has_room():
            parts.handover.begin(accepted)
            return
        reason = Refusal.FULL if parts.pool.full() else Refusal.NO_RESOURCES
        parts.counters.cells[REFUSED[reason]] += 1
        log.info("connection_refused", reason=reason, peer=accepted.peer, listener=accepted.listener)
        parts.linger.refuse(accepted.socket, parts.current.config.pool.refuse_message.encode())

    def _advance(self) -> None:
        """Do what the facts ask for now; called after each turn, and as often as one likes."""
        parts = self._parts
        parts.reaper.match()
        if self._phase is Phase.STARTING and parts.pool.usable():
            self._ready()
        if self._phase is Phase.DRAINING and self._drain.over():
            self._stop(Cause.DRAINED)
        if self._phase is Phase.STOPPING:
            self._advance_stop()
        else:
            parts.pool.advance()
        parts.listeners.gate(self._may_accept())
        unsettled = parts.listeners.look()
        # A queue that was found empty just now may have been the last thing to wait for.
        over = self._phase is Phase.DRAINING and self._drain.over()
        self._loop.eager = unsettled or over or parts.pool.wants_spares()
        self._loop.holdoff = parts.pool.holdoff()
        self._show()
        self._upgrades.advance()

    def _ready(self) -> None:
        self._phase = Phase.RUNNING
        log.info("ready", seconds=time.monotonic() - self._started_at)
        self._manager.status(self._status())
        self._manager.ready()

    def _begin_drain(self) -> None:
        self._phase = Phase.DRAINING
        self._loop.surely([self._upgrades.stop, self._reloads.stop, self._manager.stopping, self._drain.begin])

    def _stop(self, cause: Cause) -> None:
        """Stop accepting and end every child; sessions that are left end for this cause."""
        if self._phase in (Phase.STOPPING, Phase.STOPPED):
            return
        begun: list[Callback] = [self._upgrades.stop, self._reloads.stop, self._manager.stopping]
        steps = [] if self._phase is Phase.DRAINING else begun
        self._phase = Phase.STOPPING
        log.info("stopping", sessions=len(self._parts.sessions.open))
        self._parts.molds.stopping = True
        self._loop.surely([*steps, partial(self._drain.end, cause)])

    def _advance_stop(self) -> None:
        """Let go of one kind after the other: the exporter answers to the end."""
        parts = self._parts
        kinds = {child.kind for child in parts.table}
        if Kind.WORKER in kinds:
            return
        parts.molds.stop()
        if kinds <= {Kind.EXPORTER, Kind.LOGGER}:
            parts.exporters.stop()
        if kinds <= {Kind.LOGGER}:
            self._phase = Phase.STOPPED

    def _on_failed_start(self, reason: str) -> None:
        log.error("start_failed", reason=reason)
        self._exit_code = ExitCode.FAILED
        self._stop(Cause.KILLED)

    def _give_up(self, error: InternalError) -> None:
        """End in order after an error of our own that does not go away; the service manager starts another master."""
        log.error("giving_up", error=str(error), traceback=trace(error))
        # The next master gets the listeners from the store.
        self._parts.listeners.on_close = lambda opened, listener: None
        if self._exit_code is ExitCode.INTERNAL:
            os._exit(ExitCode.INTERNAL)
        self._exit_code = ExitCode.INTERNAL
        # What is raised on the way is one of the errors for which it is given up.
        with contextlib.suppress(InternalError):
            self._stop(Cause.KILLED)

    def _status(self) -> str:
        """Return how it goes, in one line."""
        parts = self._parts
        text = f"{len(parts.sessions.open)}/{parts.current.config.pool.max_children} sessions, {len(parts.handover.spares)} spares"
        if self._phase is Phase.DRAINING:
            return f"draining, {text}, {self._drain.left():.0f} s left"
        return text if self._phase is Phase.RUNNING else f"{self._phase}, {text}"

    def _show(self) -> None:
        """Make visible what has become of the turn: title, status line, gauges, answers to the exporter."""
        parts = self._parts
        shown = len(parts.sessions.open), parts.current.config.pool.max_children
        if shown != self._shown:
            self._shown = shown
            set_title(f"master [{shown[0]}/{shown[1]}]")
        if self._phase is not Phase.STARTING and self._manager.listens:
            self._manager.status(self._status())
        if parts.exporters.asked():
            parts.look()
        parts.gauges.publish()
        parts.exporters.answer()

    def _about(self) -> dict[str, Any]:
        """Return what the master says of itself on the control socket."""
        parts = self._parts
        return {
            "ok": True,
            "version": __version__,
            "pid": os.getpid(),
            "phase": self._phase,
            "generation": parts.current.generation,
            "seconds": time.monotonic() - self._started_at,
            "drain_seconds_left": self._drain.left() if self._phase is Phase.DRAINING else None,
            "listeners": parts.listeners.describe(),
            "warnings": list(parts.current.warnings),
        }

    def _reload(self, request: dict[str, Any], reply: Reply) -> None:
        self._reloads.asked(lambda document: reply(Answer(document)), dry=bool(request.get("dry_run")))

    def _upgrade(self, request: dict[str, Any], reply: Reply) -> None:
        self._upgrades.asked(lambda document: reply(Answer(document)))

    def _asked_to_stop(self, request: dict[str, Any], reply: Reply) -> None:
        reply(Answer({"ok": True, "pid": os.getpid()}))
        if request.get("now"):
            self._stop(Cause.KILLED)
        elif self._phase in (Phase.STARTING, Phase.RUNNING):
            self._begin_drain()
