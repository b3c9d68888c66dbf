"""The drain: who is queued is served, sessions are told and given their time, then TERM, then KILL.

Nothing is remembered that can be derived: the drain is over when its time is up, or when no listener of our own is open, nobody was
queued at a lent one at the last look, and no session is left.
"""

from functools import partial

from poold.log import log
from poold.master.engine.deadlines import Callback, Deadline
from poold.master.parts import Parts
from poold.pages import Phase
from poold.scoreboard import DRAINING
from poold.words import Cause


class Drain:
    """From the first word to stop until the last session has ended."""

    def __init__(self, parts: Parts, phase: Phase) -> None:
        self._parts = parts
        self._phase = phase
        self._deadline: Deadline | None = None
        self.until = 0.0

    def begin(self) -> None:
        """Stop keeping spares, tell the sessions, empty the queues."""
        parts = self._parts
        seconds = parts.current.config.timeouts.drain
        self.until = parts.loop.clock() + seconds
        if self._deadline is None:
            # First: the loop turns when the time is up, whatever is raised by what follows.
            self._deadline = parts.loop.at(self.until, self._overdue)
        parts.counters.cells[DRAINING] = 1
        parts.pool.draining = True
        parts.loop.surely([self._phase.drain, partial(parts.listeners.drain, seconds=seconds)])
        log.info("draining", sessions=len(parts.sessions.open), seconds=seconds)

    def over(self) -> bool:
        """Say whether everybody who came has been served, or the time is up."""
        parts = self._parts
        in_time = self._deadline is not None and self._deadline.ahead
        return not in_time or (not parts.sessions.open and parts.listeners.drained())

    def left(self) -> float:
        """Return the seconds that sessions still have."""
        return max(0.0, self.until - self._parts.loop.clock())

    def _overdue(self) -> None:
        if self._parts.sessions.open:
            log.warning("drain_overdue", sessions=len(self._parts.sessions.open))

    def end(self, cause: Cause) -> None:
        """Stop waiting: no more is accepted, and what is left gets TERM, then KILL."""
        parts = self._parts
        steps: list[Callback] = [] if self._deadline is None else [self._deadline.cancel]
        parts.counters.cells[DRAINING] = 1
        parts.loop.surely([*steps, parts.listeners.close, partial(parts.pool.stop, cause)])
