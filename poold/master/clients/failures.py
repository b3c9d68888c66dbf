"""Limits how many failed sessions are logged with a reason.

A worker logs why its session has failed. Above a limit, the master tells all workers to leave out
the reason, and logs how many reasons were left out. The master keeps the limit, because a worker
sees only its own session and would never reach a limit of its own.
"""

from poold.log import WINDOW, log
from poold.master.engine.loop import Loop
from poold.pages import PhasePage
from poold.words import Cause

# The most failures in `WINDOW` seconds that are logged with a reason. Sessions that fail at the
# same moment as the last of these still log a reason.
REASONS_MAX = 50


class Failures:
    """Counts sessions that end as `exit`, and sets the flag on the phase page that workers read."""

    def __init__(self, loop: Loop, phase_page: PhasePage) -> None:
        self._loop = loop
        self._phase_page = phase_page
        self._window_start = 0.0
        self._reasons = 0
        self._suppressed = 0
        self._hushed = False
        # The previous program may have set the flag before an upgrade.
        phase_page.hush(False)

    def ended(self, cause: Cause) -> None:
        """Note the end of a session."""
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
            self._phase_page.hush(True)
            self._loop.at(self._window_start + WINDOW, self.settle)

    def settle(self) -> None:
        """Let workers log reasons again, and log how many reasons were left out."""
        self._hushed, self._reasons = False, 0
        self._phase_page.hush(False)
        suppressed, self._suppressed = self._suppressed, 0
        if suppressed:
            log.error("handler_failed", suppressed=suppressed)
