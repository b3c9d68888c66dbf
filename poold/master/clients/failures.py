"""How many sessions fail: over a limit, workers leave out why, and the master says how many there were.

A worker sees only its own session, so a limit of its own would never be reached.
"""

from poold.log import WINDOW, log
from poold.master.engine.loop import Loop
from poold.pages import PhasePage
from poold.words import Cause

# In `WINDOW` seconds. Those that fail at the same moment as the last of them still say why.
REASONS_MAX = 50


class Failures:
    """Counts sessions that end as `exit`."""

    def __init__(self, loop: Loop, phase: PhasePage) -> None:
        self._loop = loop
        self._phase = phase
        self._window_start = 0.0
        self._reasons = 0
        self._suppressed = 0
        self._hushed = False
        # An upgrade may have come in the middle.
        phase.hush(False)

    def ended(self, cause: Cause) -> None:
        """Take note of a session's end."""
        if cause is not Cause.EXIT:
            return
        if self._hushed:
            self._suppressed += 1
            return
        now = self._loop.clock()
        if now - self._window_start >= WINDOW:
            self._window_start, self._reasons = now, 0
        self._reasons += 1
        if self._reasons >= REASONS_MAX:
            self._hushed = True
            self._phase.hush(True)
            self._loop.at(self._window_start + WINDOW, self.settle)

    def settle(self) -> None:
        """Let workers say again why sessions fail, and say how many have not."""
        self._hushed, self._reasons = False, 0
        self._phase.hush(False)
        suppressed, self._suppressed = self._suppressed, 0
        if suppressed:
            log.error("handler_failed", suppressed=suppressed)
