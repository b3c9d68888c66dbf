"""The drain and the stop of the daemon.

    begin ─▶ DRAINING ─▶ is_over ─▶ stop ─▶ STOPPING ─▶ CLOSING ─▶ STOPPED

In the drain, queued clients are still served, and sessions get time to finish. In the stop the
master ends its children, first with TERM, then with KILL. Workers end first, then molds, and the
exporter in CLOSING.

The end of the drain is derived and not remembered. The drain is over when the master's own
listeners are closed and no session is left. The service manager's listeners must also have had no
client in the queue at the last look. Without that, the drain is over when its time is up.
"""

from collections.abc import Mapping
from functools import partial

from poold.log import log
from poold.master.children.reaper import Keeper
from poold.master.children.table import ChildTable
from poold.master.clients.listeners import Listeners
from poold.master.clients.sessions import Sessions
from poold.master.current import Current
from poold.master.engine.deadlines import Callback, Deadline
from poold.master.engine.loop import Loop
from poold.master.outside.manager import Manager
from poold.master.phase import Life, Phase
from poold.pages import PhasePage
from poold.scoreboard import DRAINING, Counters
from poold.words import Cause, Kind


class Drain:
    """The steps from the first request to stop until the last child has ended."""

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        loop: Loop,
        table: ChildTable,
        counters: Counters,
        sessions: Sessions,
        listeners: Listeners,
        manager: Manager,
        keepers: Mapping[Kind, Keeper],
        phase_page: PhasePage,
    ) -> None:
        self._life = life
        self._current = current
        self._loop = loop
        self._table = table
        self._counters = counters
        self._sessions = sessions
        self._listeners = listeners
        self._manager = manager
        self._keepers = keepers
        self._phase_page = phase_page
        self._deadline: Deadline | None = None

    def begin(self) -> None:
        """Begin the drain: tell the sessions, keep no more spares, serve the clients in queues."""
        seconds = self._current.config.timeouts.drain
        until = self._loop.clock() + seconds
        self._life.drain(until)
        # The deadline is set first, so that the drain ends even if one of the next steps fails.
        self._deadline = self._loop.at(until, self._on_deadline)
        self._counters.cells[DRAINING] = 1
        self._loop.call_each_with_retry([self._manager.stopping, self._phase_page.drain, partial(self._listeners.drain, seconds=seconds)])
        log.info("draining", sessions=len(self._sessions.open), seconds=seconds)

    def is_over(self) -> bool:
        """Return whether the drain is over: every client has been served, or the time is up."""
        if not self._life.drains:
            return False
        # By the deadline and not by the clock: the loop puts deadlines off by the time in which
        # this process was stopped, and sessions keep what they have left.
        in_time = self._deadline is not None and self._deadline.pending
        return not in_time or (not self._sessions.open and self._listeners.drained())

    def _on_deadline(self) -> None:
        if self._sessions.open and self._life.drains:
            log.warning("drain_overdue", sessions=len(self._sessions.open))

    def stop(self, cause: Cause) -> None:
        """Stop accepting and end every child. A second call changes nothing.

        The sessions that are left end with this cause.
        """
        if self._life.stops:
            return
        manager_told = self._life.drains
        self._life.stop(cause)
        log.info("stopping", sessions=len(self._sessions.open))
        self._counters.cells[DRAINING] = 1
        steps: list[Callback] = [] if manager_told else [self._manager.stopping]
        if self._deadline is not None:
            steps.append(self._deadline.cancel)
        self._loop.call_each_with_retry([*steps, self._listeners.close, self._keepers[Kind.WORKER].stop])

    def advance(self) -> None:
        """End one kind of children after the other. Called in each turn of the stop.

        The exporter answers until all workers, molds and trials have ended.
        """
        kinds = {child.kind for child in self._table}
        if Kind.WORKER in kinds:
            return
        self._keepers[Kind.MOLD].stop()
        if kinds <= {Kind.EXPORTER, Kind.LOGGER}:
            if not self._life.closes:
                self._life.enter(Phase.CLOSING)
            self._keepers[Kind.EXPORTER].stop()
        if kinds <= {Kind.LOGGER} and self._life.phase is not Phase.STOPPED:
            # The logger ends after the loop, and writes the last lines then.
            self._life.enter(Phase.STOPPED)
