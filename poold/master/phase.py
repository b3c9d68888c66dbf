"""The master's phase: where the master is in its life. Every part asks here; nobody keeps a flag.

    STARTING ─▶ RUNNING ◀─▶ RESTING     RESTING: an upgrade waits for quiet, nobody is let in
        │          │           │
        ├──────────┴───────────┴──▶ DRAINING    whoever came is served, sessions get their time
        └──────────┴───────────┴───────┴──────▶ STOPPING ─▶ CLOSING ─▶ STOPPED

In STOPPING workers and molds are ended. In CLOSING only the exporter and the logger are left.
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
# What operators see of phases that are a matter of the master alone.
SHOWN: Mapping[Phase, Phase] = {Phase.RESTING: Phase.RUNNING, Phase.CLOSING: Phase.STOPPING}


class Life:
    """The phase that the master is in, and what follows from that phase for its parts."""

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
        """The phase as operators see the phase."""
        return SHOWN.get(self._phase, self._phase)

    @property
    def cause(self) -> Cause:
        """The cause of every session's end that the stop brings about."""
        return self._cause

    def enter(self, phase: Phase) -> None:
        """Go on to this phase. Raises InternalError where no transition leads to this phase."""
        if phase not in TRANSITIONS[self._phase]:
            raise InternalError(f"a master that is {self._phase} cannot become {phase}")
        self._phase = phase

    def drain(self, until: float) -> None:
        """Enter DRAINING; sessions have until then, by the loop's clock."""
        self.enter(Phase.DRAINING)
        self._drained_at = until

    def left(self, now: float) -> float | None:
        """Return the seconds that a drain has left, None while there is none."""
        return max(0.0, self._drained_at - now) if self.drains else None

    def stop(self, cause: Cause) -> None:
        """Enter STOPPING; sessions that are left end for this cause."""
        self.enter(Phase.STOPPING)
        self._cause = cause

    @property
    def accepts(self) -> bool:
        """Whether newcomers are let in."""
        return self._phase in (Phase.RUNNING, Phase.DRAINING)

    @property
    def keeps_spares(self) -> bool:
        """Whether workers are ordered for clients that have not come yet."""
        return self._phase in (Phase.STARTING, Phase.RUNNING)

    @property
    def drains(self) -> bool:
        """Whether a drain is under way."""
        return self._phase is Phase.DRAINING

    @property
    def ends(self) -> bool:
        """Whether the master has begun to end: settings and program stay as they are."""
        return self._phase in (Phase.DRAINING, Phase.STOPPING, Phase.CLOSING, Phase.STOPPED)

    @property
    def stops(self) -> bool:
        """Whether children are ended: nothing is begun for clients any more."""
        return self._phase in (Phase.STOPPING, Phase.CLOSING, Phase.STOPPED)

    @property
    def closes(self) -> bool:
        """Whether even the exporter leaves."""
        return self._phase in (Phase.CLOSING, Phase.STOPPED)
