"""The pool: how many workers there are, and what their words mean.

Derive, do not remember: `advance` looks at the table and at the sessions that wait and orders what is missing; it may be called
any number of times. A connection is always handed over, to a spare that exists or to a worker that is ordered for it.
"""

from collections.abc import Callable
from functools import partial

from poold import channel
from poold.channel import MoldReport, Report, Word
from poold.errors import ProtocolError
from poold.log import log
from poold.master.births import Births
from poold.master.children import Child, ChildTable
from poold.master.current import Current
from poold.master.deadlines import Deadline
from poold.master.handover import HandOver
from poold.master.ladder import Ladder
from poold.master.loop import Loop
from poold.words import Cause, Failure, Kind, State

# Orders in one turn: a burst must not hold the loop.
ORDERS_MAX = 16
# How long after a hand-over nothing is ordered for later, while there are spares left.
REFILL_DELAY = 0.002
# Births under way at one time: more would only queue up in the mold.
BIRTHS_MAX = 64


class Pool:
    """Workers, from the order on."""

    def __init__(self, *, current: Current, loop: Loop, table: ChildTable, births: Births, handover: HandOver, ladder: Ladder) -> None:
        self._current = current
        self._loop = loop
        self._table = table
        self._births = births
        self._handover = handover
        self._ladder = ladder
        # Sends an order (slot, incarnation, descriptor) to a mold and returns that mold; raises OSError. Set by the molds' keeper.
        self.send_order: Callable[[int, int, int], Child] | None = None
        # A drain has begun: sessions that come are served, and nothing is kept for later. A stop: nothing is begun any more.
        self.draining = False
        self.stopping = False
        self._refill: Deadline | None = None
        # An upgrade waits for quiet: who waits is served, and no spare is ordered.
        self.resting = False

    def _orders_left(self) -> int:
        """Return how many workers may be ordered now: the cap, and no failure to recover from."""
        if self.stopping or self.send_order is None or not self._births.throttle.open(self._loop.clock()):
            return 0
        below_cap = self._current.config.pool.max_children - self._table.workers
        return max(0, min(below_cap, BIRTHS_MAX - len(self._births.open)))

    def has_room(self) -> bool:
        """Say whether one more connection could be given a worker now."""
        left = len(self._handover.spares) - len(self._handover.waiting)
        return left > 0 or left + self._coming() + self._orders_left() > 0

    def _coming(self) -> int:
        """Return how many workers are on their way that will serve: those of older settings leave as soon as they are ready."""
        return self._births.by_generation[self._current.generation]

    def full(self) -> bool:
        """Say whether it is the cap that leaves no room, and not a failure."""
        return self._table.workers >= self._current.config.pool.max_children

    def wants_spares(self) -> bool:
        """Say whether there is something to order when nothing else is to be done."""
        if self._missing_spares() <= 0:
            return False
        rested = self._handover.last_at + REFILL_DELAY
        if self._handover.spares and self._loop.clock() < rested:
            # The core may be the worker's that has just been given its session: a clone now would delay its first answer.
            if self._refill is None:
                self._refill = self._loop.at(rested, self._rested)
            return False
        return True

    def _rested(self) -> None:
        self._refill = None

    def _missing_spares(self) -> int:
        if self.draining or self.resting:
            return 0
        there = len(self._handover.spares) + self._coming() - len(self._handover.waiting)
        return min(self._current.config.pool.min_spare - there, self._orders_left())

    def usable(self) -> bool:
        """Say whether a connection would be served: by a spare, or by a worker that can be ordered at once."""
        if self._current.config.pool.min_spare and self._current.config.pool.max_spare:
            return bool(self._handover.spares)
        return self.send_order is not None

    def advance(self) -> None:
        """Do what the facts ask for: feed waiting sessions, order workers for the rest, retire spares that are too many."""
        self._handover.feed()
        wanted = len(self._handover.waiting) - len(self._handover.spares) - self._coming()
        self._order(min(wanted, self._orders_left(), ORDERS_MAX))
        # Spares that sessions wait for, while hand-overs are held back, are nobody's surplus.
        kept = len(self._handover.waiting) + (0 if self.draining else self._current.config.pool.max_spare)
        surplus = len(self._handover.spares) - kept
        for _ in range(min(surplus, ORDERS_MAX)):
            self._ladder.retire(self._handover.spares.pop(0))

    def refill(self) -> None:
        """Order one spare that is missing; called when the loop is idle, so that no session waits for the fork of another's."""
        if self._missing_spares() > 0:
            self._order(1)

    def _order(self, count: int) -> None:
        for _ in range(count):
            if not self._order_one():
                return

    def _order_one(self) -> bool:
        now = self._loop.clock()
        assert self.send_order is not None
        child = self._table.claim(Kind.WORKER, generation=self._current.generation, now=now)
        try:
            ours, theirs = channel.pair()
        except OSError as error:
            self._table.remove(child)
            self._failed(error.errno or 0, "no descriptors for a channel")
            return False
        child.channel = ours
        try:
            self._loop.watch(ours, partial(self.read, child))
            child.mold = self.send_order(child.slot, child.incarnation, theirs.fileno())
        except OSError as error:
            self._ladder.close_channel(child)
            self._table.remove(child)
            self._failed(error.errno or 0, "the mold cannot be reached")
            return False
        finally:
            theirs.close()
        self._births.begin(child)
        timeouts, preload = self._current.config.timeouts, self._current.config.pool.preload
        self._ladder.within(child, timeouts.startup + (0 if preload else timeouts.import_), partial(self._not_ready, child))
        return True

    def answered(self, answer: MoldReport) -> None:
        """Take the mold's answer to an order."""
        child = self._births.answered(answer)
        if child is not None:
            self.forget(child)
            self._failed(answer.number, "the mold cannot clone")

    def stillborn(self) -> None:
        """Slow down after a worker that died before it was ready."""
        self._failed(0, "a worker died before it was ready")

    def _failed(self, number: int, why: str) -> None:
        self._births.failed(self._loop.clock(), number=number, why=why)
        # The loop turns again once births may be tried again.
        self._loop.at(self._births.throttle.until, lambda: None)

    def forget(self, child: Child) -> None:
        """Give back the slot of a child that was never born."""
        self._births.close(child)
        self._ladder.relax(child)
        self._ladder.close_channel(child)
        self._table.remove(child)

    def _not_ready(self, child: Child) -> None:
        self._births.prove(child)
        log.warning("worker_not_ready", pid=child.pid or None, seconds=self._loop.clock() - child.claimed_at)
        if child.pid:
            self._ladder.expel(child, Failure.STILLBORN)
        else:
            self.forget(child)
            self._failed(0, "an ordered worker never appeared")

    def read(self, child: Child) -> bool:
        """Act on what a worker says, a bounded number of words; say whether there may be more."""
        for _ in range(channel.READS_MAX):
            if child.channel is None:
                return False
            try:
                report = channel.receive_report(child.channel)
                if report is None:
                    self._end_of_channel(child)
                    return False
                self._on_report(child, report)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                # It left without reading what we sent; what it said before can still be read (unix(7)).
                continue
            except ProtocolError as error:
                self._violated(child, error)
                return False
        return True

    def hear_out(self, child: Child) -> None:
        """Read all that a worker whose exit was seen still has to say: a session that was served must not be served twice."""
        while self.read(child):
            # A zombie's channel holds a bounded number of words (socket(7), SO_SNDBUF).
            continue

    def abandoned(self, mold: Child) -> None:
        """Settle the orders of a mold that is gone: it answers no more, and the ones it never read are closed by the kernel."""
        for child in list(self._births.open.values()):
            if child.mold is mold and not child.answered:
                child.answered = True
                if child.channel is not None:
                    self.read(child)
                elif not child.pid:
                    self._unanswered(child)

    def _unanswered(self, child: Child) -> None:
        """Settle an order whose channel ended without a word: an exit that nobody claims is its worker's."""
        if self._births.unclaimed:
            child.named_pid = next(iter(self._births.unclaimed))
        else:
            self.forget(child)

    def _on_report(self, child: Child, report: Report) -> None:
        handover = self._handover
        match report.word:
            case Word.BORN:
                self._born(child, report)
            case Word.READY:
                self._ready(child)
            case Word.ACK:
                handover.acknowledged(child, report.session)
            case Word.NACK:
                handover.refused(child, report.session, report.number)
            case Word.EXEC:
                handover.executing(child, report.session)
            case Word.NOEXEC:
                handover.not_executed(child, report.session, report.number)
            case Word.DONE:
                handover.done(child, report.session, report.number)
                self._after_session(child)

    def _born(self, child: Child, report: Report) -> None:
        self._births.born(child, report)
        if report.number:
            self._ready(child)

    def _ready(self, child: Child) -> None:
        if not child.pid or child.ready:
            raise ProtocolError("READY before BORN, or twice")
        self._births.ready(child)
        if child.leaving:
            return
        self._ladder.relax(child)
        self._table.move(child, State.SPARE)
        if self.stopping or child.generation != self._current.generation:
            self._ladder.retire(child)
        else:
            self._handover.spares.append(child)

    def _after_session(self, child: Child) -> None:
        if child.state is State.SPARE and (self.stopping or child.generation != self._current.generation):
            self._handover.withdraw(child)
            self._ladder.retire(child)

    def _violated(self, child: Child, error: ProtocolError) -> None:
        """End a worker that broke the protocol; it cannot be trusted with its session any more."""
        log.error("protocol_error", pid=child.pid or None, error=str(error))
        if child.session is not None and child.session.acknowledged:
            child.session.decide(Cause.LOST)
        self._handover.withdraw(child)
        self._ladder.close_channel(child)
        if child.pid and not child.exiting:
            self._ladder.expel(child, Failure.EXIT)

    def _end_of_channel(self, child: Child) -> None:
        """Act on EOF. After EXEC it says that the program runs; otherwise the worker has gone, or has closed what it must keep."""
        self._ladder.close_channel(child)
        session = child.session
        if session is not None and session.executing and not session.acknowledged:
            self._handover.acknowledged(child, session.id)
        elif not child.pid:
            if child.answered and not child.named_pid:
                self._unanswered(child)
        elif not child.leaving and not child.exiting and not (session is not None and session.acknowledged):
            # Its exit is on its way, or it closed its channel and is of no use: the KILL makes sure. A process that is exiting
            # already keeps its own exit status.
            self._handover.withdraw(child)
            self._ladder.expel(child, None)

    def quiet(self) -> bool:
        """Say whether no worker is on its way and no session waits for one."""
        return not self._births.open and not self._births.unclaimed and not self._handover.waiting

    def inherit(self, child: Child) -> None:
        """Take over a worker of the program before: its spares leave, because their code is older than ours."""
        if child.state is State.SPARE:
            self._ladder.retire(child)
        elif child.channel is not None:
            self._loop.watch(child.channel, partial(self.read, child))

    def renew(self) -> None:
        """Let the spares of older settings go."""
        for child in [child for child in self._handover.spares if child.generation != self._current.generation]:
            self._handover.withdraw(child)
            self._ladder.retire(child)

    def stop(self, cause: Cause) -> None:
        """End every worker: spares are asked to leave, sessions get TERM and end for this cause; births end as they are ready."""
        self.stopping = True
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
