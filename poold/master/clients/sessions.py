"""Sessions: from accept to their one end."""

from collections.abc import Callable
from dataclasses import dataclass, field

from poold.address import Endpoint
from poold.channel import Wire
from poold.log import log
from poold.master.engine.deadlines import Deadline
from poold.scoreboard import ENDED, SESSION_SECONDS, Counters
from poold.words import Cause


@dataclass(slots=True)
class Accepted:
    """What accept() gave: who owns this owns the socket."""

    socket: Wire
    listener: str
    number: int
    peer: Endpoint
    at: float


@dataclass(slots=True, eq=False)
class Session:
    """One accepted connection. `socket` is the master's copy, None once a worker has acknowledged it.

    `cause` is set by the first who decides it; `attempts` counts the workers it was handed to.
    """

    id: int
    listener: str
    number: int
    peer: Endpoint
    accepted_at: float
    socket: Wire | None
    attempts: int = 0
    acknowledged: bool = False
    executing: bool = False
    cause: Cause | None = None
    deadline: Deadline | None = None

    def decide(self, cause: Cause) -> None:
        """Name the cause of its end, unless one has been named."""
        if self.cause is None:
            self.cause = cause

    def release(self) -> None:
        """Close the master's copy of the connection and forget its deadline."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


@dataclass(slots=True)
class Sessions:
    """The sessions that have not ended."""

    counters: Counters
    open: dict[int, Session] = field(default_factory=dict)
    last_id: int = 0
    serving: int = 0
    # Told of each end.
    on_end: Callable[[Cause], object] = lambda cause: None

    def begin(self, accepted: Accepted) -> Session:
        """Make a session of an accepted connection and own it."""
        self.last_id += 1
        session = Session(self.last_id, accepted.listener, accepted.number, accepted.peer, accepted.at, accepted.socket)
        self.open[session.id] = session
        return session

    def inherit(self, session: Session) -> None:
        """Take over a session that the program before has handed over and its worker has acknowledged."""
        session.acknowledged = True
        self.open[session.id] = session
        self.serving += 1
        self.last_id = max(self.last_id, session.id)

    def acknowledge(self, session: Session) -> None:
        """Give the connection to the worker that acknowledged it: our copy is closed."""
        session.acknowledged = True
        self.serving += 1
        session.release()

    def end(self, session: Session, cause: Cause, *, now: float, pid: int = 0, status: int | None = None) -> None:
        """End a session, once and for ever."""
        del self.open[session.id]
        session.decide(cause)
        if session.acknowledged:
            self.serving -= 1
        session.release()
        self.counters.cells[ENDED[cause]] += 1
        self.on_end(cause)
        self.counters.observe(SESSION_SECONDS, now - session.accepted_at)
        log.info(
            "session_ended",
            session=session.id,
            cause=cause,
            peer=session.peer,
            listener=session.listener,
            pid=pid or None,
            status=status,
            seconds=now - session.accepted_at,
        )
