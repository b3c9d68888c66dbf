"""The hand-over: brings a session and a worker together, and sends the connection to the worker.

The worker acknowledges the connection before its first read, and the master keeps its own copy
until then. If the worker dies or is silent before that, no client loses its connection. The session
goes to another worker, once.
"""

import errno
from collections import deque
from functools import partial

from poold import channel
from poold.channel import Assignment, Outcome
from poold.errors import ProtocolError
from poold.log import log
from poold.master.children.ladder import Ladder
from poold.master.children.table import Child, ChildTable, cause_of
from poold.master.clients.sessions import Accepted, Session, Sessions
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.master.engine.throttle import Throttle
from poold.scoreboard import HANDOVER_SECONDS, Counters
from poold.words import Cause, Failure, State

# Seconds in which a worker must acknowledge a connection.
ACK_SECONDS = 2.0
# The errors of sending a descriptor that are not the receiver's fault (unix(7), sendmsg(2)).
SHORTAGES = {errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}
# How often a connection is given to a worker. The connection itself may be what kills workers.
ATTEMPTS_MAX = 2

OUTCOMES = {Outcome.OK: Cause.OK, Outcome.EXIT: Cause.EXIT, Outcome.CLIENT_GONE: Cause.CLIENT_GONE}


class HandOver:
    """The sessions that wait for a worker, and the spares that wait for a session."""

    def __init__(self, *, current: Current, loop: Loop, table: ChildTable, sessions: Sessions, counters: Counters, ladder: Ladder) -> None:
        self._current = current
        self._loop = loop
        self._table = table
        self._sessions = sessions
        self._counters = counters
        self._ladder = ladder
        self.waiting: deque[Session] = deque()
        self._throttle = Throttle()
        # When a connection was last sent to a worker, by the loop's clock.
        self.last_sent_at = 0.0
        # The last spare is the youngest and is used first: its pages are the most likely to be
        # cached.
        self.spares: list[Child] = []

    def begin(self, accepted: Accepted) -> None:
        """Make a session of an accepted connection. The session gets a spare, or waits for one."""
        session = self._sessions.begin(accepted)
        startup = self._current.config.timeouts.startup
        session.deadline = self._loop.at(accepted.at + startup, partial(self._on_startup_timeout, session))
        log.debug("session_started", session=session.id, peer=session.peer, listener=session.listener)
        self.waiting.append(session)
        self.feed()

    def feed(self) -> None:
        """Send waiting sessions to spares, as long as there are both."""
        while self.waiting and self.spares and self._throttle.open(self._loop.clock()):
            self._send_session(self.waiting.popleft(), self.spares.pop())

    def _send_session(self, session: Session, child: Child) -> None:
        assert session.socket is not None
        assert child.channel is not None
        self._table.assign(child, session)
        try:
            channel.send_with_descriptor(child.channel, _assignment(session, int(session.socket.family)), session.socket.fileno())
        except OSError as error:
            self._take_back(session, child, error)
            return
        session.attempts += 1
        self.last_sent_at = self._loop.clock()
        self._ladder.set_deadline(child, ACK_SECONDS, partial(self._end_silent_worker, child))

    def _take_back(self, session: Session, child: Child, error: OSError) -> None:
        """Put back a session that could not be sent to a worker.

        The worker never got the connection, so this does not count as an attempt.
        """
        log.debug("handover_failed", pid=child.pid, session=session.id, errno=errno.errorcode.get(error.errno or 0))
        self.waiting.appendleft(session)
        self._table.done(child)
        if error.errno in SHORTAGES:
            # The kernel is short of room for the descriptor. The worker is not at fault.
            self.spares.append(child)
            self._hold_back()
        else:
            self._ladder.expel(child, None)

    def _end_silent_worker(self, child: Child) -> None:
        """End a worker that does not acknowledge.

        When the worker is reaped, the session goes to another worker, unless a last report says
        that the session was served.
        """
        log.warning("worker_silent", pid=child.pid, session=child.session.id if child.session else None, seconds=ACK_SECONDS)
        self._ladder.expel(child, Failure.TIMEOUT)

    def _on_startup_timeout(self, session: Session) -> None:
        session.decide(Cause.TIMEOUT_STARTUP)
        if session in self.waiting:
            self.waiting.remove(session)
            self._sessions.end(session, Cause.TIMEOUT_STARTUP, now=self._loop.clock())
            return
        for child in self._table:
            if child.session is session:
                self._ladder.expel(child, Failure.TIMEOUT)

    def take_ack(self, child: Child, number: int) -> None:
        """Take a worker's ACK of session `number`: the connection belongs to the worker now.

        The channel is closed if neither side needs the channel any more.
        """
        session = self._unacknowledged(child, number)
        self._throttle.succeeded()
        self._counters.observe(HANDOVER_SECONDS, self._loop.clock() - session.accepted_at)
        self._sessions.acknowledge(session)
        if not child.leaving:
            self._ladder.clear_deadline(child)
        if self._current.config.pool.connections_per_child == 1 or session.executing:
            self._ladder.close_channel(child)

    def take_exec(self, child: Child, number: int) -> None:
        """Take a worker's EXEC: the worker is about to execute the program.

        The end of the channel will say that the program runs. The program may have to come from a
        slow disk, so the worker gets more time.
        """
        session = self._unacknowledged(child, number)
        if session.executing:
            raise ProtocolError(f"session {number} is being executed already")
        session.executing = True
        self._ladder.set_deadline(child, self._current.config.timeouts.startup, partial(self._end_silent_worker, child))

    def take_noexec(self, child: Child, number: int, error: int) -> None:
        """Take a worker's NOEXEC: the program cannot be started.

        Another worker could not start the program either, so the session will end.
        """
        session = self._unacknowledged(child, number)
        log.error("exec_failed", session=number, command=(self._current.config.server.command or ("",))[0], errno=error)
        session.executing = False
        session.decide(Cause.EXIT)

    def take_nack(self, child: Child, number: int, error: int) -> None:
        """Take a worker's NACK: the connection has not reached the worker.

        This does not count as an attempt. Hand-overs become slower while NACKs go on.
        """
        session = self._unacknowledged(child, number)
        log.warning("handover_refused", pid=child.pid, session=number, errno=errno.errorcode.get(error))
        session.attempts -= 1
        child.session = None
        self.waiting.appendleft(session)
        self._hold_back()
        self._ladder.expel(child, Failure.EXIT)

    def _hold_back(self) -> None:
        """Send no connection for a while.

        The time doubles with each call until a worker acknowledges a connection.
        """
        self._throttle.failed(self._loop.clock())
        self._loop.at(self._throttle.until, lambda: None)

    def take_done(self, child: Child, number: int, outcome: int) -> None:
        """Take a worker's DONE: the session has ended, and the worker is free for the next one."""
        session = self._session(child, number)
        if not session.acknowledged or outcome not in OUTCOMES:
            raise ProtocolError(f"DONE {outcome} of session {number} before its acknowledgement")
        self._sessions.end(session, session.cause or OUTCOMES[Outcome(outcome)], now=self._loop.clock(), pid=child.pid)
        self._table.done(child)
        if child.state is State.SPARE:
            self.spares.append(child)

    def _unacknowledged(self, child: Child, number: int) -> Session:
        session = self._session(child, number)
        if session.acknowledged:
            raise ProtocolError(f"session {number} has been acknowledged")
        return session

    def _session(self, child: Child, number: int) -> Session:
        if child.session is None or child.session.id != number:
            raise ProtocolError(f"session {number} is not this worker's")
        return child.session

    def settle(self, child: Child, *, status: int | None, client_gone: bool) -> Cause | None:
        """End the session of a worker that has ended, and return the cause.

        The result is None if there was no session, or if the session goes on in another worker.
        """
        self.remove_spare(child)
        session, child.session = child.session, None
        if session is None:
            return None
        if not session.acknowledged and session.cause is None:
            if session.attempts < ATTEMPTS_MAX:
                self.waiting.appendleft(session)
                return None
            session.decide(Cause.LOST)
        cause = cause_of(session, status=status, client_gone=client_gone)
        self._sessions.end(session, cause, now=self._loop.clock(), pid=child.pid, status=status)
        return cause

    def remove_spare(self, child: Child) -> None:
        """Send no connection to this worker any more."""
        if child in self.spares:
            self.spares.remove(child)

    def end_waiting(self, cause: Cause) -> None:
        """End every session that waits for a worker."""
        while self.waiting:
            self._sessions.end(self.waiting.popleft(), cause, now=self._loop.clock())


def _assignment(session: Session, family: int) -> bytes:
    raw = session.peer.raw if isinstance(session.peer.raw, tuple) else ("", 0)
    return Assignment(
        session=session.id,
        family=family,
        host=raw[0],
        port=raw[1],
        flow=raw[2] if len(raw) > 2 else 0,
        scope=raw[3] if len(raw) > 2 else 0,
        listener=session.listener,
    ).pack()
