"""What workers say, and how the protocol is policed: every word of a worker's is read and acted upon here.

    BORN ─▶ births      READY ─▶ a spare      ACK, NACK, EXEC, NOEXEC, DONE ─▶ hand-over      EOF ─▶ `_end_of_channel`

What a worker says is bounded, checked, and about that worker alone. A worker that says anything else is ended.
"""

from functools import partial

from poold import channel
from poold.channel import Report, WorkerWord
from poold.errors import ProtocolError
from poold.log import log
from poold.master.children.ladder import Ladder
from poold.master.children.table import Child, ChildTable
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.master.phase import Life
from poold.master.pool.activity import Activities
from poold.master.pool.births import Births
from poold.master.pool.handover import HandOver
from poold.words import Cause, Failure, State


class Hearing:
    """Listens to workers, from the first word of a birth to the end of the channel."""

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        loop: Loop,
        table: ChildTable,
        ladder: Ladder,
        births: Births,
        activities: Activities,
        handover: HandOver,
    ) -> None:
        self._life = life
        self._current = current
        self._loop = loop
        self._table = table
        self._ladder = ladder
        self._births = births
        self._activities = activities
        self._handover = handover

    def listen(self, child: Child) -> None:
        """Hear a worker from now on, whenever the worker says something. Raises OSError."""
        assert child.channel is not None
        self._loop.watch(child.channel, partial(self._hear, child))

    def read(self, child: Child) -> bool:
        """Act on what a worker says, a bounded number of words; say whether there may be more."""
        return all(self._hear(child) for _ in range(channel.MESSAGES_PER_TURN))

    def read_unborn(self) -> None:
        """Read what workers say whose pids are not known yet: one of them may have ended before its BORN was read."""
        for child in list(self._births.open.values()):
            self.read(child)

    def hear_out(self, child: Child) -> None:
        """Read what a worker whose exit was seen still has to say: a session that was served must not be served twice.

        A worker has fewer words to say than are read at one time. What its session has left behind may have the channel too, and go on.
        """
        if self.read(child):
            self._violated(child, ProtocolError(f"more than {channel.MESSAGES_PER_TURN} words at its end"))

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
        if self._outdated(child):
            self._ladder.retire(child)
        else:
            self._handover.spares.append(child)

    def _after_session(self, child: Child) -> None:
        if child.state is State.SPARE and self._outdated(child):
            self._handover.withdraw(child)
            self._ladder.retire(child)

    def _outdated(self, child: Child) -> bool:
        """Say whether no connection is given to this worker any more."""
        return self._life.stops or child.generation != self._current.generation

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

    def abandoned(self, child: Child) -> None:
        """Settle an order whose mold has ended without an answer: the kernel closes the channel of an order that was never read."""
        if child.answered or self._births.open.get(child.slot) is not child:
            return
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

    def forget(self, child: Child) -> None:
        """Give up an order of which no worker has come."""
        self._births.close(child)
        self._ladder.relax(child)
        self._ladder.close_channel(child)
        self._activities.close(child)
        self._table.remove(child)
