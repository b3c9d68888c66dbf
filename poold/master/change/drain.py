"""The drain: who is queued is served, sessions are told and given their time, then TERM, then KILL.

Nothing is remembered that can be derived: the drain is over when no listener of our own is open, nobody was queued at a lent one at
the last look, and no session is left.
"""

from collections.abc import Callable

from poold.log import log
from poold.master.engine.deadlines import Deadline
from poold.master.parts import Parts
from poold.pages import PhasePage
from poold.scoreboard import DRAINING
from poold.words import Cause


class Drain:
    """From the first word to stop until the last session has ended."""

    def __init__(self, parts: Parts, phase: PhasePage) -> None:
        self._parts = parts
        self._phase = phase
        self._deadline: Deadline | None = None
        self.until = 0.0
        # Told when the time is up.
        self.on_overdue: Callable[[], object] = lambda: None

    def begin(self) -> None:
        """Stop keeping spares, tell the sessions, empty the queues."""
        parts = self._parts
        seconds = parts.current.config.timeouts.drain
        self.until = parts.loop.clock() + seconds
        self._phase.drain()
        parts.counters.cells[DRAINING] = 1
        parts.pool.draining = True
        parts.listeners.drain(seconds=seconds)
        self._deadline = parts.loop.at(self.until, self._overdue)
        log.info("draining", sessions=len(parts.sessions.open), seconds=seconds)

    def over(self) -> bool:
        """Say whether everybody who came has been served."""
        parts = self._parts
        return not parts.sessions.open and parts.listeners.drained()

    def left(self) -> float:
        """Return the seconds that sessions still have."""
        return max(0.0, self.until - self._parts.loop.clock())

    def _overdue(self) -> None:
        if self._parts.sessions.open:
            log.warning("drain_overdue", sessions=len(self._parts.sessions.open))
        self.on_overdue()

    def end(self, cause: Cause) -> None:
        """Stop waiting: no more is accepted, and what is left gets TERM, then KILL."""
        if self._deadline is not None:
            self._deadline.cancel()
        parts = self._parts
        parts.counters.cells[DRAINING] = 1
        parts.listeners.close()
        parts.pool.stop(cause)
