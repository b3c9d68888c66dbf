"""The phase of the master's life. Each part asks here, and no part remembers the phase itself.

    STARTING ─▶ RUNNING ◀─▶ RESTING     RESTING: before the exec of an upgrade
        │          │           │
        ├──────────┴───────────┴──▶ DRAINING
        └──────────┴───────────┴───────┴──────▶ STOPPING ─▶ CLOSING ─▶ STOPPED

In RESTING no client is let in, until no connection is being handed over. In DRAINING clients that
have come are served, and sessions get time to end. In STOPPING workers and molds are ended. In
CLOSING only the exporter and the logger are left.
"""

from collections.abc import Mapping
from enum import StrEnum

from poold.errors import InternalError
from poold.words import Cause


class Phase(StrEnum):
    """A phase. Its value is the word that operators see."""

    STARTING = "starting"
    RUNNING = "running"
    RESTING = "resting"
    DRAINING = "draining"
    STOPPING = "stopping"
    CLOSING = "closing"
    STOPPED = "stopped"


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.DRAINING, Phase.STOPPING}),
    Phase.RUNNING: frozenset({Phase.RESTING, Phase.DRAINING, Phase.STOPPING}),
    Phase.RESTING: frozenset({Phase.RUNNING, Phase.DRAINING, Phase.STOPPING}),
    Phase.DRAINING: frozenset({Phase.STOPPING}),
    Phase.STOPPING: frozenset({Phase.CLOSING}),
    Phase.CLOSING: frozenset({Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
}
# The phases that operators do not see, and what they see instead.
SHOWN: Mapping[Phase, Phase] = {Phase.RESTING: Phase.RUNNING, Phase.CLOSING: Phase.STOPPING}


class Life:
    """The phase of the master, and what the phase means for the parts."""

    def __init__(self) -> None:
        self._phase = Phase.STARTING
        self._cause = Cause.KILLED
        self._drained_at = 0.0

    @property
    def phase(self) -> Phase:
        """The phase."""
        return self._phase

    @property
    def shown(self) -> Phase:
        """The phase that operators see."""
        return SHOWN.get(self._phase, self._phase)

    @property
    def cause(self) -> Cause:
        """The cause with which the stop ends each session."""
        return self._cause

    def enter(self, phase: Phase) -> None:
        """Enter a phase. Raises InternalError if there is no transition to this phase."""
        if phase not in TRANSITIONS[self._phase]:
            raise InternalError(f"a master that is {self._phase} cannot become {phase}")
        self._phase = phase

    def drain(self, until: float) -> None:
        """Enter DRAINING. `until` is the deadline of the sessions, by the loop's clock."""
        self.enter(Phase.DRAINING)
        self._drained_at = until

    def left(self, now: float) -> float | None:
        """Return the seconds that are left of a drain, or None without a drain."""
        return max(0.0, self._drained_at - now) if self.drains else None

    def stop(self, cause: Cause) -> None:
        """Enter STOPPING. The sessions that are left end with this cause."""
        self.enter(Phase.STOPPING)
        self._cause = cause

    @property
    def accepts(self) -> bool:
        """Whether new clients are let in."""
        return self._phase in (Phase.RUNNING, Phase.DRAINING)

    @property
    def keeps_spares(self) -> bool:
        """Whether spares are ordered for clients that have not come yet."""
        return self._phase in (Phase.STARTING, Phase.RUNNING)

    @property
    def drains(self) -> bool:
        """Whether the master drains."""
        return self._phase is Phase.DRAINING

    @property
    def ends(self) -> bool:
        """Whether the master has begun to end, so that settings and program stay as they are."""
        return self._phase in (Phase.DRAINING, Phase.STOPPING, Phase.CLOSING, Phase.STOPPED)

    @property
    def stops(self) -> bool:
        """Whether children are being ended, so that nothing new is begun for clients."""
        return self._phase in (Phase.STOPPING, Phase.CLOSING, Phase.STOPPED)

    @property
    def closes(self) -> bool:
        """Whether the exporter leaves, too."""
        return self._phase in (Phase.CLOSING, Phase.STOPPED)
