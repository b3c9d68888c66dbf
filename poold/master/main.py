"""The master: starts the parts, turns the loop, and asks after each turn what the facts call for.

Own the parts; decide nothing that a part can decide; wait nowhere but in the loop.
"""

import os
import signal
import time
import traceback
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any

from poold import __version__, sandbox, systemd
from poold.errors import ExitCode, InternalError
from poold.log import log
from poold.master import sockets
from poold.master.control import Answer
from poold.master.loop import Loop
from poold.master.parts import Parts
from poold.master.sessions import Accepted
from poold.master.signals import Inbox
from poold.scoreboard import REFUSED, RELOAD_SUCCESS_AT, RELOAD_SUCCESSFUL
from poold.settings.schema import Config, WhenFull
from poold.title import set_title
from poold.words import Cause, Kind, Refusal


class Phase(StrEnum):
    """Where the master is in its own life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Master:
    """The one process that owns listening sockets, signals and the child table."""

    def __init__(self, config: Config, *, control_path: str, environ: MutableMapping[str, str]) -> None:
        """Take the settings, where to answer `poold status`, and the environment, from which systemd's variables are removed."""
        self._notify_address = environ.pop("NOTIFY_SOCKET", "")
        self._passed = {name: sockets.adopt(name, fd) for name, fd in systemd.listen_fds(environ)}
        self._control_path = control_path
        self._inbox = Inbox()
        self._loop = Loop(self._inbox, self._on_signals, self._on_idle)
        self._parts = Parts(config, self._loop, environ)
        self._parts.listeners.may_accept = self._may_accept
        self._parts.listeners.on_accepted = self._on_accepted
        self._parts.molds.on_failed_start = self._on_failed_start
        self._started_at = time.monotonic()
        self._phase = Phase.STARTING
        self._exit_code = ExitCode.OK
        self._title = ""

    def run(self) -> ExitCode:
        """Serve until told to stop; return the exit status. Raises ConfigError when a socket cannot be opened."""
        self._inbox.open()
        try:
            self._start()
            while self._phase is not Phase.STOPPED:
                try:
                    self._loop.turn()
                    self._loop.guarded(self._advance)
                except InternalError as error:
                    self._give_up(error)
        finally:
            self._parts.close()
        log.info("stopped", exit_status=int(self._exit_code))
        return self._exit_code

    def _start(self) -> None:
        config = self._parts.current.config
        log.info("starting", version=__version__, pid=os.getpid(), generation=self._parts.current.generation)
        sandbox.adopt_orphans()
        unused = set(self._passed) - {listener.address.name for listener in config.listeners}
        for name in sorted(unused):
            log.warning("passed_socket_unused", name=name, hint=f'add a [[listener]] with address = "systemd://{name}"')
        self._parts.open(passed=self._passed, control_path=self._control_path, verbs={"view": self._view})
        self._parts.molds.start()
        self._parts.exporters.start()
        parts = self._parts
        parts.counters.cells[RELOAD_SUCCESSFUL] = 1
        parts.counters.cells[RELOAD_SUCCESS_AT] = int(time.time() * 1_000_000)
        self._show()

    def _on_signals(self, signals: set[int]) -> None:
        if signal.SIGCHLD in signals and self._parts.reaper.reap():
            self._inbox.note(signal.SIGCHLD)
        if signal.SIGQUIT in signals:
            self._stop(Cause.KILLED)
        if signals & {signal.SIGTERM, signal.SIGINT}:
            self._stop(Cause.DRAINED)
        if signal.SIGHUP in signals:
            log.warning("reload_unsupported", hint="this version reads its settings at start only")
        if signal.SIGUSR2 in signals:
            log.warning("upgrade_unsupported", hint="this version cannot replace itself")

    def _on_idle(self) -> None:
        self._parts.pool.refill()

    def _may_accept(self) -> bool:
        if self._phase is not Phase.RUNNING:
            return False
        return self._parts.current.config.pool.when_full is WhenFull.REFUSE or self._parts.pool.room() > 0

    def _on_accepted(self, accepted: Accepted) -> None:
        """Rule on a new connection: from here on it is a session or refused, never both."""
        parts = self._parts
        if parts.pool.room() > 0:
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
        if self._phase is Phase.STOPPING:
            self._advance_stop()
        else:
            parts.pool.advance()
            if self._phase is Phase.STARTING and parts.pool.usable():
                self._ready()
        parts.listeners.gate(self._may_accept())
        self._loop.eager = parts.pool.wants_spares()
        self._show()

    def _ready(self) -> None:
        self._phase = Phase.RUNNING
        log.info("ready", seconds=time.monotonic() - self._started_at)
        systemd.notify(self._notify_address, READY=1, MAINPID=os.getpid())

    def _stop(self, cause: Cause) -> None:
        """Stop accepting and end every child; a second time: at once."""
        parts = self._parts
        if self._phase is Phase.STOPPING:
            log.warning("stopping_now")
            parts.pool.kill()
            return
        self._phase = Phase.STOPPING
        log.info("stopping", sessions=len(parts.sessions.open))
        systemd.notify(self._notify_address, STOPPING=1)
        parts.listeners.close()
        parts.molds.stopping = True
        parts.pool.stop(cause)

    def _advance_stop(self) -> None:
        """Let go of one kind after the other: the exporter answers to the end."""
        parts = self._parts
        kinds = {child.kind for child in parts.table}
        if Kind.WORKER in kinds:
            return
        parts.molds.stop()
        if kinds <= {Kind.EXPORTER}:
            parts.exporters.stop()
        if not kinds:
            self._phase = Phase.STOPPED

    def _on_failed_start(self, reason: str) -> None:
        log.error("start_failed", reason=reason)
        self._exit_code = ExitCode.FAILED
        self._stop(Cause.KILLED)

    def _give_up(self, error: InternalError) -> None:
        """End in order after an error of our own that does not go away; the service manager starts another master."""
        log.error("giving_up", error=str(error), traceback="".join(traceback.format_exception(error)))
        if self._exit_code is ExitCode.INTERNAL:
            os._exit(ExitCode.INTERNAL)
        self._exit_code = ExitCode.INTERNAL
        self._stop(Cause.KILLED)

    def _show(self) -> None:
        """Make visible what has become of the turn: title, gauges, answers to the exporter."""
        parts = self._parts
        title = f"master [{len(parts.sessions.open)}/{parts.current.config.pool.max_children}]"
        if title != self._title:
            self._title = title
            set_title(title)
        if parts.exporters.asked():
            parts.listeners.measure()
            parts.gauges.measure()
        parts.gauges.publish()
        parts.exporters.answer()

    def _view(self, request: dict[str, Any]) -> Answer:
        parts = self._parts
        document = {
            "ok": True,
            "version": __version__,
            "pid": os.getpid(),
            "phase": self._phase,
            "generation": parts.current.generation,
            "seconds": time.monotonic() - self._started_at,
            "listeners": parts.listeners.describe(),
        }
        return Answer(document, parts.memories.views)
