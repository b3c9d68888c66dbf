"""Reads what workers report, acts on each report, and ends a worker that breaks the protocol.

    BORN ─▶ births                              READY ─▶ a spare
    ACK, NACK, EXEC, NOEXEC, DONE ─▶ hand-over  EOF ─▶ `_end_of_channel`

A worker's reports are bounded and checked, and concern that worker alone. A worker that sends
anything else is ended.
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
    """Reads the reports of workers, from BORN to the end of the channel."""

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
        """Read this worker's reports from now on, whenever one comes. Raises OSError."""
        assert child.channel is not None
        self._loop.watch(child.channel, partial(self._read_report, child))

    def read_reports(self, child: Child) -> bool:
        """Act on a bounded number of a worker's reports. Return whether there may be more."""
        return all(self._read_report(child) for _ in range(channel.MESSAGES_PER_TURN))

    def read_unborn(self) -> None:
        """Read the reports of all workers without a known pid.

        One of these workers may have ended before the master has read its BORN.
        """
        for child in list(self._births.open.values()):
            self.read_reports(child)

    def hear_out(self, child: Child) -> None:
        """Read the last reports of a worker that is about to be reaped.

        A session that was served must not be served again by another worker. A worker has fewer
        reports to send than the master reads at one time. A process that the session has left
        behind may have the channel, too, and may send without end.
        """
        if self.read_reports(child):
            self._end_violator(child, ProtocolError(f"more than {channel.MESSAGES_PER_TURN} words at its end"))

    def _read_report(self, child: Child) -> bool:
        """Act on the next report of a worker. Return whether there may be one more.

        epoll reports again what is left unread.
        """
        if child.channel is None:
            return False
        try:
            report = channel.receive_report(child.channel)
            if report is None:
                self._end_of_channel(child)
                return False
            if child.pid and report.pid != child.pid:
                # A process that a session has forked may have the channel, if the worker serves
                # several sessions.
                raise ProtocolError(f"process {report.pid} speaks on the channel of another")
            self._on_report(child, report)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            # The worker has ended without reading what the master sent. What the worker sent before
            # can still be read (unix(7)).
            return True
        except ProtocolError as error:
            self._end_violator(child, error)
            return False
        return True

    def _on_report(self, child: Child, report: Report) -> None:
        handover = self._handover
        match report.word:
            case WorkerWord.BORN:
                self._on_born(child, report)
            case WorkerWord.READY:
                self._on_ready(child)
            case WorkerWord.ACK:
                handover.take_ack(child, report.session)
            case WorkerWord.NACK:
                handover.take_nack(child, report.session, report.number)
            case WorkerWord.EXEC:
                handover.take_exec(child, report.session)
            case WorkerWord.NOEXEC:
                handover.take_noexec(child, report.session, report.number)
            case WorkerWord.DONE:
                handover.take_done(child, report.session, report.number)
                self._retire_if_outdated(child)

    def _on_born(self, child: Child, report: Report) -> None:
        self._births.take_born(child, report)
        if report.number:
            self._on_ready(child)

    def _on_ready(self, child: Child) -> None:
        if not child.pid or child.ready:
            raise ProtocolError("READY before BORN, or twice")
        self._births.take_ready(child)
        if child.leaving:
            return
        self._ladder.clear_deadline(child)
        self._table.move(child, State.SPARE)
        if self._is_outdated(child):
            self._ladder.retire(child)
        else:
            self._handover.spares.append(child)

    def _retire_if_outdated(self, child: Child) -> None:
        if child.state is State.SPARE and self._is_outdated(child):
            self._handover.remove_spare(child)
            self._ladder.retire(child)

    def _is_outdated(self, child: Child) -> bool:
        """Return whether this worker gets no connection any more."""
        return self._life.stops or child.generation != self._current.generation

    def _end_violator(self, child: Child, error: ProtocolError) -> None:
        """End a worker that has broken the protocol.

        The master does not trust such a worker with its session any more.
        """
        log.error("protocol_error", pid=child.pid or None, error=str(error))
        if child.session is not None and child.session.acknowledged:
            child.session.decide(Cause.LOST)
        self._handover.remove_spare(child)
        self._ladder.close_channel(child)
        if child.pid and not child.exiting:
            self._ladder.expel(child, Failure.EXIT)

    def _end_of_channel(self, child: Child) -> None:
        """Act on the end of a worker's channel.

        After EXEC the end says that the program runs. Otherwise the worker has ended, or has closed
        the channel too early.
        """
        self._ladder.close_channel(child)
        session = child.session
        if session is not None and session.executing and not session.acknowledged:
            self._handover.take_ack(child, session.id)
        elif not child.pid:
            if child.answered and not child.named_pid:
                self._settle_missing_worker(child)
        elif not child.leaving and not child.exiting and not (session is not None and session.acknowledged):
            # Either the worker's exit follows, or the worker has closed its channel and cannot be
            # used. The KILL makes sure. A process that is exiting already keeps its own exit
            # status.
            self._handover.remove_spare(child)
            self._ladder.expel(child, None)

    def on_mold_ended(self, child: Child) -> None:
        """Settle an order that the mold has not answered before its end.

        The kernel closes the worker's end of the channel if the mold has never read the order.
        """
        if child.answered or self._births.open.get(child.slot) is not child:
            return
        child.answered = True
        if child.channel is not None:
            self.read_reports(child)
        elif not child.pid:
            self._settle_missing_worker(child)

    def _settle_missing_worker(self, child: Child) -> None:
        """Settle an order that is given up because its channel has ended without a report.

        If there is an exit that belongs to no row, that exit is taken for the worker's.
        """
        if self._births.unclaimed:
            child.named_pid = next(iter(self._births.unclaimed))
        else:
            self.forget(child)

    def forget(self, child: Child) -> None:
        """Give up an order from which no worker has come."""
        self._births.close(child)
        self._ladder.clear_deadline(child)
        self._ladder.close_channel(child)
        self._activities.close(child)
        self._table.remove(child)
