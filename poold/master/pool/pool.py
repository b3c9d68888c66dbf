"""The pool: how many workers there are, and what their words mean.

Derive, do not remember: `advance` looks at the table and at the sessions that wait and orders what is missing; it may be called
any number of times. A connection is always handed over, to a spare that exists or to a worker that is ordered for it.
"""

from functools import partial

from poold import channel
from poold.channel import Report, WorkerWord
from poold.errors import ProtocolError
from poold.log import log
from poold.master.children.ladder import Ladder
from poold.master.children.table import Child, ChildTable
from poold.master.current import Current
from poold.master.engine.deadlines import Deadline
from poold.master.engine.loop import Loop
from poold.master.pool.births import Births
from poold.master.pool.handover import HandOver
from poold.master.pool.orders import Orders
from poold.settings.config import WhenFull
from poold.words import Cause, Failure, Kind, State

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
    """Workers, from the order on."""

    def __init__(
        self, *, current: Current, loop: Loop, table: ChildTable, births: Births, orders: Orders, handover: HandOver, ladder: Ladder
    ) -> None:
        self._current = current
        self._loop = loop
        self._table = table
        self._births = births
        self._handover = handover
        self._ladder = ladder
        self._orders = orders
        orders.on_readable = self._hear
        # A drain has begun: sessions that come are served, and nothing is kept for later. A stop: nothing is begun any more.
        self.draining = False
        self.stopping = False
        self._refill: Deadline | None = None
        # An upgrade waits for quiet: who waits is served, and no spare is ordered.
        self.resting = False

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
        if self.draining or self.resting:
            return 0
        there = len(self._handover.spares) + self._orders.coming() - len(self._handover.waiting)
        missing = self._current.config.pool.min_spare - there
        return min(missing, self._orders.left()) if missing > 0 else 0

    def barren_from(self) -> float:
        """Return from when on no worker can be born for whoever comes, by the loop's clock; it may lie ahead. 0.0: one can, or is there.

        Births that have failed are tried again as long as somebody needs a worker; when nobody does, nothing is known against the next.
        """
        if self._handover.spares or self.stopping:
            return 0.0
        if self._orders.send is None:
            return self._loop.clock()
        needed = self._handover.waiting or (self._current.config.pool.min_spare and not self.full())
        since = self._births.throttle.since
        return since + BARREN_AFTER if since and needed else 0.0

    def usable(self) -> bool:
        """Say whether a connection would be served: by a spare, or by a worker that can be ordered at once."""
        if self._current.config.pool.min_spare and self._current.config.pool.max_spare:
            return bool(self._handover.spares)
        return self._orders.send is not None

    def advance(self) -> None:
        """Do what the facts ask for: feed waiting sessions, order workers for the rest, retire spares that are too many."""
        handover, settings = self._handover, self._current.config.pool
        if handover.waiting:
            handover.feed()
            wanted = len(handover.waiting) - len(handover.spares) - self._orders.coming()
            if wanted > 0:
                # Spares have run out: those for the next few are ordered along.
                wanted += 0 if self.draining or self.resting else settings.min_spare
                self._orders.place(min(wanted, self._orders.left(), CHANGES_MAX), ahead=False)
        # Spares that sessions wait for, while hand-overs are held back, are nobody's surplus.
        surplus = len(handover.spares) - len(handover.waiting) - (0 if self.draining else settings.max_spare)
        for _ in range(min(surplus, CHANGES_MAX)):
            self._ladder.retire(handover.spares.pop(0))

    def refill(self) -> None:
        """Order the spares that are missing; called when the loop is idle, so that no session waits for the fork of another's."""
        self._orders.place(min(self._missing_spares(), CHANGES_MAX), ahead=True)

    def read(self, child: Child) -> bool:
        """Act on what a worker says, a bounded number of words; say whether there may be more."""
        return all(self._hear(child) for _ in range(channel.MESSAGES_PER_TURN))

    def _hear(self, child: Child) -> bool:
        """Act on the next word of a worker; say whether there may be one more. What is left unread, epoll reports again."""
        if child.channel is None:
            return False
        try:
            report = channel.receive_report(child.channel)
            if report is None:
                self._end_of_channel(child)
                return False
            if child.pid and report.pid != child.pid:
                # What a session has forked may have the channel, where its worker goes on to the next one.
                raise ProtocolError(f"process {report.pid} speaks on the channel of another")
            self._on_report(child, report)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            # It left without reading what we sent; what it said before can still be read (unix(7)).
            return True
        except ProtocolError as error:
            self._violated(child, error)
            return False
        return True

    def hear_out(self, child: Child) -> None:
        """Read what a worker whose exit was seen still has to say: a session that was served must not be served twice.

        A worker has fewer words to say than are read at one time. What its session has left behind may have the channel too, and go on.
        """
        if self.read(child):
            self._violated(child, ProtocolError(f"more than {channel.MESSAGES_PER_TURN} words at its end"))

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
            self._orders.forget(child)

    def _on_report(self, child: Child, report: Report) -> None:
        handover = self._handover
        match report.word:
            case WorkerWord.BORN:
                self._born(child, report)
            case WorkerWord.READY:
                self._ready(child)
            case WorkerWord.ACK:
                handover.acknowledged(child, report.session)
            case WorkerWord.NACK:
                handover.refused(child, report.session, report.number)
            case WorkerWord.EXEC:
                handover.executing(child, report.session)
            case WorkerWord.NOEXEC:
                handover.not_executed(child, report.session, report.number)
            case WorkerWord.DONE:
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
            self._loop.watch(child.channel, partial(self._hear, child))

    def renew(self) -> None:
        """Let the spares of older settings go."""
        for child in [child for child in self._handover.spares if child.generation != self._current.generation]:
            self._ladder.retire(child)
            self._handover.withdraw(child)

    def stop(self, cause: Cause) -> None:
        """End every worker: spares are asked to leave, sessions get TERM and end for this cause; births end as they are ready."""
        self.stopping = self._orders.stopping = True
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
