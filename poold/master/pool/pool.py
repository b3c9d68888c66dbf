"""The pool's policy: how many workers there are, when one more is ordered, and which one is let go.

Derive, do not remember: `advance` looks at the table and at the sessions that wait and orders what is missing; it may be called
any number of times. A connection is always handed over, to a spare that exists or to a worker that is ordered for it.
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

# Workers ordered, or retired, in one turn: a burst must not hold the loop.
CHANGES_MAX = 16
# How long after a hand-over nothing is ordered for later, while there are spares left.
REFILL_DELAY = 0.002
# Births may fail for so long before it is said that none succeeds.
BARREN_AFTER = 5.0
# For each session in the crowd: half of what a mold needs for a worker at best. And what is no crowd yet, and the most that count.
HOLDOFF_EACH = 0.0001
CROWD_MIN = 2
CROWD_MAX = 32


def holdoff(waiting: int, coming: int) -> float:
    """Return for how many seconds the master leaves what happens alone while so many sessions wait, and so many workers are on their way.

    With a crowd the mold and the workers need the processor. A master that acted on every word at once would take it from them at each,
    with a whole turn for one of many things that can be done together.
    """
    crowd = min(waiting, coming) - CROWD_MIN
    return HOLDOFF_EACH * min(crowd, CROWD_MAX) if crowd > 0 else 0.0


class Pool:
    """How many workers there are, and when one more is ordered or one is let go."""

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
        """Make a session of an accepted connection, and give a worker to the session: a spare, or the next one to be ready."""
        self._handover.begin(accepted)

    def has_room(self) -> bool:
        """Say whether one more connection could be given a worker now."""
        left = len(self._handover.spares) - len(self._handover.waiting)
        return left > 0 or left + self._orders.coming() + self._orders.left() > 0

    def full(self) -> bool:
        """Say whether it is the cap that leaves no room, and not a failure: who waits and has no worker on the way will need one too."""
        unclaimed = len(self._handover.waiting) - len(self._handover.spares) - self._orders.coming()
        return self._table.workers + max(0, unclaimed) >= self._current.config.pool.max_children

    def accepts(self) -> bool:
        """Say whether to accept one more connection: to give it a worker, or to refuse it.

        Nobody is refused for want of time alone: while there are slots, and as many births under way as may be, newcomers stay queued.
        """
        if self.has_room():
            return True
        return self._current.config.pool.when_full is WhenFull.REFUSE and (self.full() or self._orders.held_back())

    def wants_spares(self) -> bool:
        """Say whether there is something to order when nothing else is to be done."""
        if self._missing_spares() <= 0:
            return False
        due = self._handover.last_at + REFILL_DELAY
        if (self._handover.spares or self._births.open) and self._loop.clock() < due:
            # The core may be the worker's that has just been given its session: a clone now would delay its first answer.
            if self._refill is None:
                self._refill = self._loop.at(due, self._refill_due)
            return False
        return True

    def holdoff(self) -> float:
        """Return for how many seconds more is gained than lost by not looking."""
        return holdoff(len(self._handover.waiting), self._orders.coming())

    def _refill_due(self) -> None:
        self._refill = None

    def _missing_spares(self) -> int:
        if not self._life.keeps_spares:
            return 0
        there = len(self._handover.spares) + self._orders.coming() - len(self._handover.waiting)
        missing = self._current.config.pool.min_spare - there
        return min(missing, self._orders.left()) if missing > 0 else 0

    def barren_from(self) -> float:
        """Return from when on no worker can be born for whoever comes, by the loop's clock; it may lie ahead. 0.0: one can, or is there.

        Births that have failed are tried again as long as somebody needs a worker; when nobody does, nothing is known against the next.
        """
        if self._handover.spares or self._life.stops:
            return 0.0
        if not self._orders.possible():
            return self._loop.clock()
        needed = self._handover.waiting or (self._current.config.pool.min_spare and not self.full())
        since = self._births.throttle.since
        return since + BARREN_AFTER if since and needed else 0.0

    def usable(self) -> bool:
        """Say whether a connection would be served: by a spare, or by a worker that can be ordered at once."""
        if self._current.config.pool.min_spare and self._current.config.pool.max_spare:
            return bool(self._handover.spares)
        return self._orders.possible()

    def advance(self) -> None:
        """Do what the facts ask for: feed waiting sessions, order workers for the rest, retire spares that are too many."""
        handover, settings = self._handover, self._current.config.pool
        if handover.waiting:
            handover.feed()
            wanted = len(handover.waiting) - len(handover.spares) - self._orders.coming()
            if wanted > 0:
                # Spares have run out: those for the next few are ordered along.
                wanted += settings.min_spare if self._life.keeps_spares else 0
                self._orders.place(min(wanted, self._orders.left(), CHANGES_MAX), ahead=False)
        # Spares that sessions wait for, while hand-overs are held back, are nobody's surplus.
        surplus = len(handover.spares) - len(handover.waiting) - (0 if self._life.drains else settings.max_spare)
        for _ in range(min(surplus, CHANGES_MAX)):
            self._ladder.retire(handover.spares.pop(0))

    def refill(self) -> None:
        """Order the spares that are missing; called when the loop is idle, so that no session waits for the fork of another's."""
        self._orders.place(min(self._missing_spares(), CHANGES_MAX), ahead=True)

    def quiet(self) -> bool:
        """Say whether no worker is on its way and no session waits for one."""
        return not self._births.open and not self._births.unclaimed and not self._handover.waiting

    def renew(self) -> None:
        """Let the spares of older settings go."""
        for child in [child for child in self._handover.spares if child.generation != self._current.generation]:
            self._ladder.retire(child)
            self._handover.withdraw(child)

    def stop(self) -> None:
        """End every worker: spares are asked to leave, sessions get TERM and end for the stop's cause; births end as they are ready."""
        cause = self._life.cause
        self._handover.dismiss(cause)
        for child in self._table:
            if child.kind is not Kind.WORKER:
                continue
            if child.session is not None:
                child.session.decide(cause)
            if child.state is State.SPARE:
                self._handover.withdraw(child)
                self._ladder.retire(child)
            elif child.pid and not child.leaving:
                child.excused = True
                self._ladder.terminate(child)

    def kill(self) -> None:
        """End every worker that is still there, at once."""
        for child in self._table:
            if child.kind is Kind.WORKER and child.pid:
                child.excused = True
                self._ladder.kill(child)
