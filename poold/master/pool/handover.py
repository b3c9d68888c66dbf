"""Hand-over: a session and a worker come together, and the master lets go of the connection.

The master keeps its copy of the connection until the worker has acknowledged it, before its first read. A worker that dies or is
silent before that costs nobody a connection: the session goes to another worker, once more.
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

# How long a worker may be silent after a connection was sent to it.
SILENCE = 2.0
# What a descriptor on its way can fail for besides its receiver (unix(7), sendmsg(2)).
SHORTAGES = {errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}
# A connection that two workers died over is given up: it may be what kills them.
ATTEMPTS_MAX = 2

OUTCOMES = {Outcome.OK: Cause.OK, Outcome.EXIT: Cause.EXIT, Outcome.CLIENT_GONE: Cause.CLIENT_GONE}


class HandOver:
    """The sessions that wait, and the spares that wait for them."""

    def __init__(self, *, current: Current, loop: Loop, table: ChildTable, sessions: Sessions, counters: Counters, ladder: Ladder) -> None:
        self._current = current
        self._loop = loop
        self._table = table
        self._sessions = sessions
        self._counters = counters
        self._ladder = ladder
        self.waiting: deque[Session] = deque()
        self._throttle = Throttle()
        # When a connection was handed over last.
        self.last_at = 0.0
        # The youngest first: its pages are the warmest.
        self.spares: list[Child] = []

    def begin(self, accepted: Accepted) -> None:
        """Make a session of an accepted connection and give it a spare, or let it wait for one."""
        session = self._sessions.begin(accepted)
        startup = self._current.config.timeouts.startup
        session.deadline = self._loop.at(accepted.at + startup, partial(self._startup_over, session))
        log.debug("session_started", session=session.id, peer=session.peer, listener=session.listener)
        self.waiting.append(session)
        self.feed()

    def feed(self) -> None:
        """Give waiting sessions to spares, as far as there are both."""
        while self.waiting and self.spares and self._throttle.open(self._loop.clock()):
            self._give(self.waiting.popleft(), self.spares.pop())

    def _give(self, session: Session, child: Child) -> None:
        assert session.socket is not None
        assert child.channel is not None
        self._table.assign(child, session)
        try:
            channel.send_with_descriptor(child.channel, _assignment(session, int(session.socket.family)), session.socket.fileno())
        except OSError as error:
            self._not_given(session, child, error)
            return
        session.attempts += 1
        self.last_at = self._loop.clock()
        self._ladder.within(child, SILENCE, partial(self._silent, child))

    def _not_given(self, session: Session, child: Child, error: OSError) -> None:
        """Take back a connection that could not be sent; the worker never got it, so this is no attempt."""
        log.debug("handover_failed", pid=child.pid, session=session.id, errno=errno.errorcode.get(error.errno or 0))
        self.waiting.appendleft(session)
        self._table.done(child)
        if error.errno in SHORTAGES:
            # The kernel has no room for it, which is not the worker's fault.
            self.spares.append(child)
            self._hold_back()
        else:
            self._ladder.expel(child, None)

    def _silent(self, child: Child) -> None:
        """End a worker that does not acknowledge; at its reap the session goes to another one, unless it says that it served."""
        log.warning("worker_silent", pid=child.pid, session=child.session.id if child.session else None, seconds=SILENCE)
        self._ladder.expel(child, Failure.TIMEOUT)

    def _startup_over(self, session: Session) -> None:
        session.decide(Cause.TIMEOUT_STARTUP)
        if session in self.waiting:
            self.waiting.remove(session)
            self._sessions.end(session, Cause.TIMEOUT_STARTUP, now=self._loop.clock())
            return
        for child in self._table:
            if child.session is session:
                self._ladder.expel(child, Failure.TIMEOUT)

    def acknowledged(self, child: Child, number: int) -> None:
        """Take a worker's ACK of session `number`: the connection is its own now, and the channel has done its work."""
        session = self._unacknowledged(child, number)
        self._throttle.succeeded()
        self._counters.observe(HANDOVER_SECONDS, self._loop.clock() - session.accepted_at)
        self._sessions.acknowledge(session)
        if not child.leaving:
            self._ladder.relax(child)
        if self._current.config.pool.connections_per_child == 1 or session.executing:
            self._ladder.close_channel(child)

    def executing(self, child: Child, number: int) -> None:
        """Take a worker's EXEC: the end of its channel will say that the program runs, which may have to come from a slow disk."""
        session = self._unacknowledged(child, number)
        if session.executing:
            raise ProtocolError(f"session {number} is being executed already")
        session.executing = True
        self._ladder.within(child, self._current.config.timeouts.startup, partial(self._silent, child))

    def not_executed(self, child: Child, number: int, error: int) -> None:
        """Take a worker's NOEXEC: the program cannot be started, and another worker could not start it either."""
        session = self._unacknowledged(child, number)
        log.error("exec_failed", session=number, command=(self._current.config.server.command or ("",))[0], errno=error)
        session.executing = False
        session.decide(Cause.EXIT)

    def refused(self, child: Child, number: int, error: int) -> None:
        """Take a worker's NACK: the connection did not reach it, which is no attempt. Should that go on, it goes on more slowly."""
        session = self._unacknowledged(child, number)
        log.warning("handover_refused", pid=child.pid, session=number, errno=errno.errorcode.get(error))
        session.attempts -= 1
        child.session = None
        self.waiting.appendleft(session)
        self._hold_back()
        self._ladder.expel(child, Failure.EXIT)

    def _hold_back(self) -> None:
        """Hand nothing over for a while, twice as long each time until a connection is acknowledged."""
        self._throttle.failed(self._loop.clock())
        self._loop.at(self._throttle.until, lambda: None)

    def done(self, child: Child, number: int, outcome: int) -> None:
        """Take a worker's DONE: the session has ended, the worker goes on."""
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
        """End the session of a worker that is gone; return its cause, None where there was none or it goes on elsewhere."""
        self.withdraw(child)
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

    def withdraw(self, child: Child) -> None:
        """Give this child no connection any more."""
        if child in self.spares:
            self.spares.remove(child)

    def dismiss(self, cause: Cause) -> None:
        """End every session that waits."""
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
