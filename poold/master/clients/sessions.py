"""Sessions: from accept to their one end."""

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
    """What accept() gave: who owns this owns the socket."""

    socket: Wire
    listener: str
    number: int
    peer: Endpoint
    at: float


@dataclass(frozen=True, slots=True)
class PeerPart:
    """A `poold.address.Endpoint`."""

    family: int
    host: str = ""
    port: int = 0
    path: str = ""
    pid: int = 0
    uid: int = -1
    gid: int = -1

    @classmethod
    def of(cls, peer: Endpoint) -> "PeerPart":
        """Return what crosses of an endpoint."""
        return cls(int(peer.family), peer.host, peer.port, peer.path, peer.pid, peer.uid, peer.gid)

    def endpoint(self) -> Endpoint:
        """Return the endpoint. Its raw address, which only an assignment needs, does not cross."""
        return Endpoint(self.family, raw=None, host=self.host, port=self.port, path=self.path, pid=self.pid, uid=self.uid, gid=self.gid)


@dataclass(frozen=True, slots=True)
class SessionPart:
    """A session whose worker has acknowledged it; `listener` is its listener's name."""

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
    """The last number that a session got; the sessions themselves are with their workers."""

    last_session: int

    def check(self) -> None:
        """Raise ValueError where the number cannot be."""
        check_range("a session", self.last_session, 0)


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

    def save(self) -> SessionPart:
        """Return what the next program must know of a session that is acknowledged."""
        return SessionPart(
            id=self.id,
            listener=self.listener,
            peer=PeerPart.of(self.peer),
            accepted_at=self.accepted_at,
            executing=self.executing,
            cause=self.cause,
        )

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
    failures: Failures
    open: dict[int, Session] = field(default_factory=dict)
    last_id: int = 0
    serving: int = 0

    def begin(self, accepted: Accepted) -> Session:
        """Make a session of an accepted connection and own it."""
        self.last_id += 1
        session = Session(self.last_id, accepted.listener, accepted.number, accepted.peer, accepted.at, accepted.socket)
        self.open[session.id] = session
        return session

    def save(self) -> SessionsPart:
        """Return how far sessions have been numbered."""
        return SessionsPart(last_session=self.last_id)

    def restore(self, part: SessionsPart) -> None:
        """Go on numbering where the program before has stopped."""
        self.last_id = max(self.last_id, part.last_session)

    def inherit(self, part: SessionPart) -> Session:
        """Take over a session that the program before has handed over and its worker has acknowledged."""
        number = self.counters.listener(part.listener)
        session = Session(part.id, part.listener, number, part.peer.endpoint(), part.accepted_at, None)
        session.executing, session.cause, session.acknowledged = part.executing, part.cause, True
        self.open[session.id] = session
        self.serving += 1
        self.last_id = max(self.last_id, session.id)
        return session

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
