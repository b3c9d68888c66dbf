"""The end: who is queued is served, sessions are told and given their time, then TERM, then KILL.

    begin ─▶ DRAINING ─▶ over, or overdue ─▶ stop ─▶ STOPPING: workers, then molds ─▶ CLOSING: the exporter ─▶ STOPPED

Nothing is remembered that can be derived: the drain is over when no listener of our own is open, nobody was queued at a lent one at
the last look, and no session is left.
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
    """From the first word to stop until the last child has ended."""

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
        page: PhasePage,
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
        self._page = page
        self._deadline: Deadline | None = None

    def begin(self) -> None:
        """Stop keeping spares, tell the sessions, empty the queues."""
        seconds = self._current.config.timeouts.drain
        until = self._loop.clock() + seconds
        self._life.drain(until)
        # First: the loop turns when the time is up, whatever is raised by what follows.
        self._deadline = self._loop.at(until, self._overdue)
        self._counters.cells[DRAINING] = 1
        self._loop.call_each_with_retry([self._manager.stopping, self._page.drain, partial(self._listeners.drain, seconds=seconds)])
        log.info("draining", sessions=len(self._sessions.open), seconds=seconds)

    def over(self) -> bool:
        """Say whether there is nothing more to wait for: everybody who came has been served, or the time is up."""
        if not self._life.drains:
            return False
        served = not self._sessions.open and self._listeners.drained()
        return served or self._life.left(self._loop.clock()) == 0

    def _overdue(self) -> None:
        if self._sessions.open and self._life.drains:
            log.warning("drain_overdue", sessions=len(self._sessions.open))

    def stop(self, cause: Cause) -> None:
        """Stop accepting and end every child; sessions that are left end for this cause. Again changes nothing."""
        if self._life.stops:
            return
        told = self._life.drains
        self._life.stop(cause)
        log.info("stopping", sessions=len(self._sessions.open))
        self._counters.cells[DRAINING] = 1
        steps: list[Callback] = [] if told else [self._manager.stopping]
        if self._deadline is not None:
            steps.append(self._deadline.cancel)
        self._loop.call_each_with_retry([*steps, self._listeners.close, self._keepers[Kind.WORKER].stop])

    def advance(self) -> None:
        """Let go of one kind after the other; called in each turn of the stop. The exporter answers to the end."""
        kinds = {child.kind for child in self._table}
        if Kind.WORKER in kinds:
            return
        self._keepers[Kind.MOLD].stop()
        if kinds <= {Kind.EXPORTER, Kind.LOGGER}:
            if not self._life.closes:
                self._life.enter(Phase.CLOSING)
            self._keepers[Kind.EXPORTER].stop()
        if kinds <= {Kind.LOGGER}:
            # The last lines are written after the loop has ended.
            self._life.enter(Phase.STOPPED)
