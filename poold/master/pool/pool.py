"""The pool's policy: how many workers there are, when one is ordered, and which one has to leave.

`advance` derives the missing workers from the table and the waiting sessions, remembers nothing,
and may be called any number of times. Each connection is handed over, to an existing spare or to a
worker that is ordered because a session waits.
"""

from poold.master.children.ladder import Ladder
from poold.master.children.table import ChildTable
from poold.master.clients.sessions import Accepted
from poold.master.current import Current
from poold.master.engine.deadlines import Deadline
from poold.master.engine.loop import Loop
from poold.master.phase import Life
from poold.master.pool.births import Births
from poold.master.pool.handover import HandOver
from poold.master.pool.orders import Orders
from poold.settings.config import WhenFull
from poold.words import Kind, State

# The most workers that are ordered, or retired, in one turn. A burst must not hold the loop.
CHANGES_MAX = 16
# Seconds after a hand-over in which no spare is ordered, if there are spares left.
REFILL_DELAY = 0.002
# Seconds for which births must fail before the master reports that no worker can be born.
BARREN_AFTER = 5.0
# Seconds of holding off for each session in the crowd. `CROWD_MIN` sessions are no crowd yet, and
# at most `CROWD_MAX` more count.
HOLDOFF_EACH = 0.0001
CROWD_MIN = 2
CROWD_MAX = 32


def holdoff(waiting: int, coming: int) -> float:
    """Return for how many seconds the master sleeps before the next turn.

    `waiting` sessions have no worker yet, and `coming` workers are being born. In a crowd the mold
    and the workers need the processor. A master that acts on each report at once takes the
    processor from them each time. After a pause one turn acts on many reports together.
    """
    crowd = min(waiting, coming) - CROWD_MIN
    return HOLDOFF_EACH * min(crowd, CROWD_MAX) if crowd > 0 else 0.0


class Pool:
    """Decides how many workers there are, when one is ordered, and which one has to leave."""

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        loop: Loop,
        table: ChildTable,
        ladder: Ladder,
        births: Births,
        orders: Orders,
        handover: HandOver,
    ) -> None:
        self._life = life
        self._current = current
        self._loop = loop
        self._table = table
        self._ladder = ladder
        self._births = births
        self._orders = orders
        self._handover = handover
        self._refill: Deadline | None = None

    def take(self, accepted: Accepted) -> None:
        """Make a session of an accepted connection. The session gets a spare or the next worker."""
        self._handover.begin(accepted)

    def has_room(self) -> bool:
        """Return whether one more connection could get a worker now."""
        left = len(self._handover.spares) - len(self._handover.waiting)
        return left > 0 or left + self._orders.coming() + self._orders.allowed() > 0

    def full(self) -> bool:
        """Return whether the cap leaves no room, and not a failure.

        A waiting session without a worker on its way counts as a worker, because the session will
        need one.
        """
        unclaimed = len(self._handover.waiting) - len(self._handover.spares) - self._orders.coming()
        return self._table.workers + max(0, unclaimed) >= self._current.config.pool.max_children

    def accepts(self) -> bool:
        """Return whether to accept one more connection, which then gets a worker or is refused.

        No client is refused only because births take time. While there are free slots and as many
        births as are allowed, new clients stay in the kernel's queue.
        """
        if self.has_room():
            return True
        return self._current.config.pool.when_full is WhenFull.REFUSE and (self.full() or self._orders.held_back())

    def wants_spares(self) -> bool:
        """Return whether spares are missing that should be ordered when the loop is idle."""
        if self._missing_spares() <= 0:
            return False
        due = self._handover.last_sent_at + REFILL_DELAY
        if (self._handover.spares or self._births.open) and self._loop.clock() < due:
            # The core may belong to the worker that has just got its session. A clone now would
            # delay the worker's first answer.
            if self._refill is None:
                self._refill = self._loop.at(due, self._on_refill_due)
            return False
        return True

    def holdoff(self) -> float:
        """Return for how many seconds the loop sleeps before the next turn."""
        return holdoff(len(self._handover.waiting), self._orders.coming())

    def _on_refill_due(self) -> None:
        self._refill = None

    def _missing_spares(self) -> int:
        if not self._life.keeps_spares:
            return 0
        there = len(self._handover.spares) + self._orders.coming() - len(self._handover.waiting)
        missing = self._current.config.pool.min_spare - there
        return min(missing, self._orders.allowed()) if missing > 0 else 0

    def barren_from(self) -> float:
        """Return since when no worker can be born for a client, by the loop's clock.

        The time may be in the future. 0.0 means that a worker is there or can be born. Failures
        count only while a worker is needed.
        """
        if self._handover.spares or self._life.stops:
            return 0.0
        if not self._orders.has_mold():
            return self._loop.clock()
        needed = self._handover.waiting or (self._current.config.pool.min_spare and not self.full())
        since = self._births.throttle.since
        return since + BARREN_AFTER if since and needed else 0.0

    def usable(self) -> bool:
        """Return whether a connection would be served now, by a spare or by an ordered worker."""
        if self._current.config.pool.min_spare and self._current.config.pool.max_spare:
            return bool(self._handover.spares)
        return self._orders.has_mold()

    def advance(self) -> None:
        """Send waiting sessions to spares, order workers for the rest, retire surplus spares."""
        handover, settings = self._handover, self._current.config.pool
        if handover.waiting:
            handover.feed()
            wanted = len(handover.waiting) - len(handover.spares) - self._orders.coming()
            if wanted > 0:
                # Spares have run out. The spares for the next clients are ordered together with
                # these workers.
                wanted += settings.min_spare if self._life.keeps_spares else 0
                self._orders.place(min(wanted, self._orders.allowed(), CHANGES_MAX), ahead=False)
        # While hand-overs are held back, sessions wait although there are spares. These are no
        # surplus.
        surplus = len(handover.spares) - len(handover.waiting) - (0 if self._life.drains else settings.max_spare)
        for _ in range(min(surplus, CHANGES_MAX)):
            self._ladder.retire(handover.spares.pop(0))

    def refill(self) -> None:
        """Order the missing spares. Called when the loop is idle.

        So no session waits for the fork of another session's spare.
        """
        self._orders.place(min(self._missing_spares(), CHANGES_MAX), ahead=True)

    def nothing_pending(self) -> bool:
        """Return whether no worker is being born and no session waits for a worker."""
        return not self._births.open and not self._births.unclaimed and not self._handover.waiting

    def retire_outdated(self) -> None:
        """Ask the spares with older settings to leave."""
        for child in [child for child in self._handover.spares if child.generation != self._current.generation]:
            self._ladder.retire(child)
            self._handover.remove_spare(child)

    def stop(self) -> None:
        """End every worker.

        Spares are asked to leave. Sessions get TERM, and end with the cause of the stop. A worker
        that is being born is ended when ready.
        """
        cause = self._life.cause
        self._handover.end_waiting(cause)
        for child in self._table:
            if child.kind is not Kind.WORKER:
                continue
            if child.session is not None:
                child.session.decide(cause)
            if child.state is State.SPARE:
                self._handover.remove_spare(child)
                self._ladder.retire(child)
            elif child.pid and not child.leaving:
                child.excused = True
                self._ladder.terminate(child)

    def kill(self) -> None:
        """End every worker that is left, at once."""
        for child in self._table:
            if child.kind is Kind.WORKER and child.pid:
                child.excused = True
                self._ladder.kill(child)
