"""The table of children: pure, and the only place where a child's state changes.

Every process that poold makes is here from before it exists until it is reaped. A slot is claimed first; so an exit can never
come before its row. Transitions are data; an illegal one raises and changes nothing.
"""

import errno
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from poold.channel import Wire
from poold.errors import InternalError
from poold.master.clients.sessions import Session
from poold.master.engine.deadlines import Deadline
from poold.scoreboard import AUXILIARY_SLOTS, SLOTS
from poold.words import Cause, Failure, Kind, State

TRANSITIONS: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.SPARE, State.SERVING, State.RETIRING, State.TERMINATING, State.KILLED}),
    State.SPARE: frozenset({State.SERVING, State.RETIRING, State.TERMINATING, State.KILLED}),
    State.SERVING: frozenset({State.SPARE, State.RETIRING, State.TERMINATING, State.KILLED}),
    State.RETIRING: frozenset({State.TERMINATING, State.KILLED}),
    State.TERMINATING: frozenset({State.KILLED}),
    State.KILLED: frozenset(),
}


class NoSlotError(OSError, LookupError):
    """Every slot is taken. An OSError too: whoever makes a process goes on as where the kernel has none left, later or not at all."""

    def __init__(self, slots: int, what: str) -> None:
        super().__init__(errno.EAGAIN, f"all {slots} slots for {what} are taken")


@dataclass(slots=True, eq=False)
class Child:
    """One child of the master; a slot with no pid yet is claimed, not born.

    `failure` and `excused` are what the master decided before the exit: that it counts as failed, or that it does not.
    """

    slot: int
    incarnation: int
    kind: Kind
    generation: int
    claimed_at: float
    pid: int = 0
    state: State = State.STARTING
    ready: bool = False
    session: Session | None = None
    failure: Failure | None = None
    excused: bool = False
    # What is known of a birth: whether the mold has answered, and the pid it named (gossip, to match an exit with an order).
    mold: "Child | None" = None
    answered: bool = False
    named_pid: int = 0
    # Its exit has been seen: it is a zombie that is about to be reaped.
    exiting: bool = False
    channel: Wire | None = None
    # A worker's activity page; None for other kinds, for programs, and for workers that an older program has made.
    page: int | None = None
    deadline: Deadline | None = None

    @property
    def leaving(self) -> bool:
        """Say whether it has been told to go."""
        return self.state in (State.RETIRING, State.TERMINATING, State.KILLED)


@dataclass(slots=True)
class ChildTable:
    """All children, by slot and by pid."""

    _rows: dict[int, Child] = field(default_factory=dict)
    _pids: dict[int, Child] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)
    _used: int = AUXILIARY_SLOTS
    _incarnation: int = 0
    # Born children only, by kind and state: an order to the mold is not a child.
    census: Counter[tuple[Kind, State]] = field(default_factory=Counter)
    workers: int = 0
    # Told of every change of a born child: the state it was in before, if it was; True when it is removed.
    changed: Callable[[Child, State | None, bool], object] = lambda child, before, removed: None

    def claim(self, kind: Kind, *, generation: int, now: float) -> Child:
        """Take a slot for a child that is about to be made. Raises NoSlotError when every slot is taken."""
        slot = self._free_slot(kind)
        self._incarnation = (self._incarnation + 1) & 0xFFFFFFFF
        child = Child(slot, self._incarnation, kind, generation, now)
        self._rows[slot] = child
        self.workers += kind is Kind.WORKER
        return child

    def inherit(self, child: Child) -> None:
        """Take over a born child of the program before, in its slot; before any is claimed, and `settle_slots` after the last."""
        self._rows[child.slot] = child
        self._pids[child.pid] = child
        self._incarnation = max(self._incarnation, child.incarnation)
        self.census[child.kind, child.state] += 1
        self.workers += child.kind is Kind.WORKER
        self.changed(child, None, False)

    def settle_slots(self) -> None:
        """Find out which slots are free among those that were inherited."""
        self._used = max((slot + 1 for slot in self._rows), default=0)
        self._used = max(self._used, AUXILIARY_SLOTS)
        self._free = [slot for slot in range(AUXILIARY_SLOTS, self._used) if slot not in self._rows]

    def _free_slot(self, kind: Kind) -> int:
        if kind is not Kind.WORKER:
            for slot in range(AUXILIARY_SLOTS):
                if slot not in self._rows:
                    return slot
            raise NoSlotError(AUXILIARY_SLOTS, "children that are not workers")
        if self._free:
            return heapq.heappop(self._free)
        if self._used == SLOTS:
            raise NoSlotError(SLOTS - AUXILIARY_SLOTS, "workers")
        self._used += 1
        return self._used - 1

    def born(self, child: Child, pid: int) -> None:
        """Fill in the pid of a child that the kernel has proved to exist."""
        if child.pid or pid in self._pids or pid <= 1:
            raise InternalError(f"pid {pid} cannot be that of the child in slot {child.slot}")
        child.pid = pid
        self._pids[pid] = child
        self.census[child.kind, child.state] += 1
        self.changed(child, None, False)

    def move(self, child: Child, state: State) -> None:
        """Change a child's state."""
        if state not in TRANSITIONS[child.state]:
            raise InternalError(f"a child that is {child.state} cannot become {state}")
        before, child.state = child.state, state
        if child.pid:
            self.census[child.kind, before] -= 1
            self.census[child.kind, state] += 1
            self.changed(child, before, False)

    def assign(self, child: Child, session: Session) -> None:
        """Give a spare its session."""
        if child.session is not None:
            raise InternalError(f"the worker in slot {child.slot} has a session already")
        if State.SERVING not in TRANSITIONS[child.state]:
            raise InternalError(f"a worker that is {child.state} cannot be given a session")
        child.session = session
        self.move(child, State.SERVING)

    def done(self, child: Child) -> None:
        """Let a worker that has finished one session be a spare again."""
        child.session = None
        if child.state is State.SERVING:
            self.move(child, State.SPARE)

    def remove(self, child: Child) -> None:
        """Take a child out: reaped, or never born."""
        if self._rows.pop(child.slot, None) is not child:
            raise InternalError(f"the child in slot {child.slot} has been removed before")
        if child.pid:
            del self._pids[child.pid]
            self.census[child.kind, child.state] -= 1
            self.changed(child, None, True)
        if child.kind is Kind.WORKER:
            self.workers -= 1
            heapq.heappush(self._free, child.slot)

    def by_pid(self, pid: int) -> Child | None:
        """Return the child with this pid."""
        return self._pids.get(pid)

    def at(self, slot: int, incarnation: int) -> Child | None:
        """Return the child in a slot, unless the slot has changed hands since."""
        child = self._rows.get(slot)
        return child if child is not None and child.incarnation == incarnation else None

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._rows.values()))

    def __len__(self) -> int:
        return len(self._rows)

    def check(self) -> None:
        """Raise InternalError where the table disagrees with itself."""
        census = Counter((child.kind, child.state) for child in self._rows.values() if child.pid)
        workers = sum(child.kind is Kind.WORKER for child in self._rows.values())
        if +census != +self.census or workers != self.workers:
            raise InternalError("the census disagrees with the rows")
        if {child.pid for child in self._rows.values() if child.pid} != set(self._pids):
            raise InternalError("the pids disagree with the rows")


def cause_of(session: Session, *, status: int | None, client_gone: bool) -> Cause:
    """Say why a session ended whose worker ended with this exit code (negative: signal; None: unknown)."""
    if session.cause is not None:
        return session.cause
    if status is None:
        return Cause.LOST
    if status == 0:
        return Cause.OK
    if status > 0:
        return Cause.CLIENT_GONE if client_gone else Cause.EXIT
    # A program that writes to a client that has left dies of SIGPIPE.
    return Cause.CLIENT_GONE if -status == 13 else Cause.SIGNAL


def failure_of(child: Child, *, status: int | None, cause: Cause | None) -> Failure | None:
    """Say whether a child that ended with this exit code failed, and why; `cause` is its last session's."""
    if child.failure is not None:
        return child.failure
    if child.excused or cause in (Cause.CLIENT_GONE, Cause.HANDSHAKE_ERROR, Cause.DRAINED, Cause.KILLED):
        return None
    if not child.ready:
        return Failure.STILLBORN
    if status is None:
        return Failure.UNKNOWN
    if status == 0:
        return None
    return Failure.EXIT if status > 0 else Failure.SIGNAL
