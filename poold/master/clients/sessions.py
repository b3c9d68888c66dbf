"""The sessions, each from accept to its one end."""

from dataclasses import dataclass, field

from poold.address import Endpoint
from poold.channel import Wire
from poold.log import log
from poold.master.clients.failures import Failures
from poold.master.document.part import Part, check_range
from poold.master.engine.deadlines import Deadline
from poold.scoreboard import ENDED, SESSION_SECONDS, Counters
from poold.words import Cause


@dataclass(slots=True)
class Accepted:
    """An accepted connection. The owner of this object owns the socket."""

    socket: Wire
    listener: str
    number: int
    peer: Endpoint
    at: float


@dataclass(frozen=True, slots=True)
class PeerPart:
    """A `poold.address.Endpoint` in the state document."""

    family: int
    host: str = ""
    port: int = 0
    path: str = ""
    pid: int = 0
    uid: int = -1
    gid: int = -1

    @classmethod
    def of(cls, peer: Endpoint) -> "PeerPart":
        """Return the part of an endpoint."""
        return cls(int(peer.family), peer.host, peer.port, peer.path, peer.pid, peer.uid, peer.gid)

    def endpoint(self) -> Endpoint:
        """Return the endpoint, without the raw address, which only an assignment needs."""
        return Endpoint(self.family, raw=None, host=self.host, port=self.port, path=self.path, pid=self.pid, uid=self.uid, gid=self.gid)


@dataclass(frozen=True, slots=True)
class SessionPart:
    """A session whose worker has acknowledged the session. `listener` is the listener's name."""

    id: int
    listener: str
    peer: PeerPart
    accepted_at: float
    executing: bool = False
    cause: Cause | None = None

    def __post_init__(self) -> None:
        check_range("a session", self.id, 1)
        check_range("a time", self.accepted_at, 0)


@dataclass(frozen=True, kw_only=True)
class SessionsPart(Part):
    """The id of the last session that has begun.

    The sessions themselves are in the parts of their workers.
    """

    last_session: int

    def check(self) -> None:
        """Raise ValueError where the id is impossible."""
        check_range("a session", self.last_session, 0)


@dataclass(slots=True, eq=False)
class Session:
    """One accepted connection.

    `socket` is the master's copy, and None once a worker has acknowledged the session. `cause` is
    the first cause that was decided. `attempts` counts the workers to which the session was handed
    over.
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
        """Set the cause of the session's end, unless a cause is set."""
        if self.cause is None:
            self.cause = cause

    def save(self) -> SessionPart:
        """Return what the next program must know about an acknowledged session."""
        return SessionPart(
            id=self.id,
            listener=self.listener,
            peer=PeerPart.of(self.peer),
            accepted_at=self.accepted_at,
            executing=self.executing,
            cause=self.cause,
        )

    def release(self) -> None:
        """Close the master's copy of the connection and cancel the session's deadline."""
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
    failures: Failures
    open: dict[int, Session] = field(default_factory=dict)
    last_id: int = 0
    serving: int = 0

    def begin(self, accepted: Accepted) -> Session:
        """Make a session of an accepted connection. The session owns the socket."""
        self.last_id += 1
        session = Session(self.last_id, accepted.listener, accepted.number, accepted.peer, accepted.at, accepted.socket)
        self.open[session.id] = session
        return session

    def save(self) -> SessionsPart:
        """Return the id of the last session."""
        return SessionsPart(last_session=self.last_id)

    def restore(self, part: SessionsPart) -> None:
        """Number sessions from where the previous program has stopped."""
        self.last_id = max(self.last_id, part.last_session)

    def inherit(self, part: SessionPart) -> Session:
        """Take over a session that a worker has acknowledged to the previous program."""
        number = self.counters.listener(part.listener)
        session = Session(part.id, part.listener, number, part.peer.endpoint(), part.accepted_at, None)
        session.executing, session.cause, session.acknowledged = part.executing, part.cause, True
        self.open[session.id] = session
        self.serving += 1
        self.last_id = max(self.last_id, session.id)
        return session

    def acknowledge(self, session: Session) -> None:
        """Note that a worker has acknowledged the session, and close the master's copy."""
        session.acknowledged = True
        self.serving += 1
        session.release()

    def end(self, session: Session, cause: Cause, *, now: float, pid: int = 0, status: int | None = None) -> None:
        """End a session: count the cause, and log the session's record."""
        del self.open[session.id]
        session.decide(cause)
        if session.acknowledged:
            self.serving -= 1
        session.release()
        self.counters.cells[ENDED[cause]] += 1
        self.failures.ended(cause)
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
