"""The table of children: the only place where a child's state changes.

The table makes no system call. Every process that poold makes has a row, from before the process
exists until the process is reaped. The master claims a slot before making the process, so that no
exit can come before the row. The transitions are data. A transition that is not in the data raises
InternalError and changes nothing.
"""

import errno
import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from poold.channel import Wire
from poold.childrows import AUXILIARY_SLOTS, SLOTS
from poold.errors import InternalError
from poold.master.clients.sessions import Session, SessionPart
from poold.master.document.part import check_descriptor, check_range
from poold.master.engine.deadlines import Deadline
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
    """Every slot is taken.

    This is an OSError as well: the code that makes a process treats a full table like a kernel that
    cannot fork.
    """

    def __init__(self, slots: int, what: str) -> None:
        super().__init__(errno.EAGAIN, f"all {slots} slots for {what} are taken")


@dataclass(frozen=True, slots=True)
class ChildPart:
    """A born child in the state document.

    `channel` is the master's end, or None where that end is closed. `page` is a worker's activity
    page, or None for no page.
    """

    slot: int
    incarnation: int
    kind: Kind
    generation: int
    pid: int
    state: State
    claimed_at: float
    ready: bool = False
    excused: bool = False
    failure: Failure | None = None
    channel: int | None = None
    page: int | None = None
    session: SessionPart | None = None

    def __post_init__(self) -> None:
        first, beyond = (AUXILIARY_SLOTS, SLOTS) if self.kind is Kind.WORKER else (0, AUXILIARY_SLOTS)
        check_range(f"the slot of a {self.kind}", self.slot, first, beyond - 1)
        check_range("an incarnation", self.incarnation, 0, (1 << 32) - 1)
        check_range("a generation", self.generation, 0, (1 << 32) - 1)
        check_range("a pid", self.pid, 2, (1 << 31) - 1)
        check_range("a time", self.claimed_at, 0)
        check_descriptor(self.channel)
        check_descriptor(self.page)
        if self.session is not None and (self.kind is not Kind.WORKER or self.state in (State.STARTING, State.SPARE)):
            raise ValueError(f"a {self.kind} that is {self.state} has no session")


@dataclass(slots=True, eq=False)
class Child:
    """One child of the master. While `pid` is 0 the slot is claimed and the child is not born.

    `failure` and `excused` are decided before the exit: the child counts as failed, or does not.
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
    # Facts about a birth: whether the mold has answered, and the pid that the mold has named. That
    # pid serves to match an exit with an order, and the master trusts the kernel alone.
    mold: "Child | None" = None
    answered: bool = False
    named_pid: int = 0
    # The reaper has seen the exit: the child is a zombie that is about to be reaped.
    exiting: bool = False
    channel: Wire | None = None
    # A worker's activity page. None for other kinds, for commands, and for workers that an older
    # program has made.
    page: int | None = None
    deadline: Deadline | None = None

    def save(self) -> ChildPart:
        """Return what the next program must know about a born child."""
        # A session that is not acknowledged is not saved. An upgrade waits for the acknowledgement
        # before making the document that the next program reads.
        session = self.session if self.session is not None and self.session.acknowledged else None
        return ChildPart(
            slot=self.slot,
            incarnation=self.incarnation,
            kind=self.kind,
            generation=self.generation,
            pid=self.pid,
            state=self.state,
            claimed_at=self.claimed_at,
            ready=self.ready,
            excused=self.excused,
            failure=self.failure,
            channel=self.channel.fileno() if self.channel is not None else None,
            page=self.page,
            session=session.save() if session is not None else None,
        )

    @property
    def leaving(self) -> bool:
        """Say whether the child has been asked or forced to leave."""
        return self.state in (State.RETIRING, State.TERMINATING, State.KILLED)


@dataclass(slots=True)
class ChildTable:
    """All children, by slot and by pid."""

    _rows: dict[int, Child] = field(default_factory=dict)
    _pids: dict[int, Child] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)
    _used: int = AUXILIARY_SLOTS
    _incarnation: int = 0
    # Born children only, by kind and state. An order to the mold is not a child.
    census: Counter[tuple[Kind, State]] = field(default_factory=Counter)
    workers: int = 0
    # Born children that have changed since `take_changes`: kinds and states, and children by slot
    # (None: removed).
    _changed_states: set[tuple[Kind, State]] = field(default_factory=set)
    _changed_children: dict[int, Child | None] = field(default_factory=dict)

    def claim(self, kind: Kind, *, generation: int, now: float) -> Child:
        """Take a slot for a child that the caller is about to make.

        Raises NoSlotError when every slot is taken.
        """
        slot = self._free_slot(kind)
        self._incarnation = (self._incarnation + 1) & 0xFFFFFFFF
        child = Child(slot, self._incarnation, kind, generation, now)
        self._rows[slot] = child
        self.workers += kind is Kind.WORKER
        return child

    def inherit(self, child: Child) -> None:
        """Put a born child of the previous program into its slot.

        The caller does this before any `claim`, and calls `settle_slots` after the last child.
        """
        self._rows[child.slot] = child
        self._pids[child.pid] = child
        self._incarnation = max(self._incarnation, child.incarnation)
        self.census[child.kind, child.state] += 1
        self.workers += child.kind is Kind.WORKER
        self._note_change(child)

    def settle_slots(self) -> None:
        """Compute which slots are free after the last inherited child."""
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
        """Fill in the pid of a child whose existence the kernel has proved."""
        if child.pid or pid in self._pids or pid <= 1:
            raise InternalError(f"pid {pid} cannot be that of the child in slot {child.slot}")
        child.pid = pid
        self._pids[pid] = child
        self.census[child.kind, child.state] += 1
        self._note_change(child)

    def move(self, child: Child, state: State) -> None:
        """Change a child's state."""
        if state not in TRANSITIONS[child.state]:
            raise InternalError(f"a child that is {child.state} cannot become {state}")
        before, child.state = child.state, state
        if child.pid:
            self.census[child.kind, before] -= 1
            self.census[child.kind, state] += 1
            self._note_change(child, before)

    def assign(self, child: Child, session: Session) -> None:
        """Give a spare its session."""
        if child.session is not None:
            raise InternalError(f"the worker in slot {child.slot} has a session already")
        if State.SERVING not in TRANSITIONS[child.state]:
            raise InternalError(f"a worker that is {child.state} cannot be given a session")
        child.session = session
        self.move(child, State.SERVING)

    def done(self, child: Child) -> None:
        """Make a worker that has finished a session a spare again."""
        child.session = None
        if child.state is State.SERVING:
            self.move(child, State.SPARE)

    def remove(self, child: Child) -> None:
        """Remove the row of a child that was reaped or never born."""
        if self._rows.pop(child.slot, None) is not child:
            raise InternalError(f"the child in slot {child.slot} has been removed before")
        if child.pid:
            del self._pids[child.pid]
            self.census[child.kind, child.state] -= 1
            self._note_change(child, removed=True)
        if child.kind is Kind.WORKER:
            self.workers -= 1
            heapq.heappush(self._free, child.slot)

    def _note_change(self, child: Child, before: State | None = None, *, removed: bool = False) -> None:
        self._changed_states.add((child.kind, child.state))
        if before is not None:
            self._changed_states.add((child.kind, before))
        self._changed_children[child.slot] = None if removed else child

    def take_changes(self) -> tuple[set[tuple[Kind, State]], dict[int, Child | None]]:
        """Return the changes since the last call.

        The result has the kinds and states whose numbers have changed, and the changed children by
        slot (None: removed).
        """
        changed_states, changed_children = self._changed_states, self._changed_children
        self._changed_states, self._changed_children = set(), {}
        return changed_states, changed_children

    def by_pid(self, pid: int) -> Child | None:
        """Return the child with this pid."""
        return self._pids.get(pid)

    def at(self, slot: int, incarnation: int) -> Child | None:
        """Return the child in a slot, or None where the slot has another incarnation by now."""
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
    """Return why a session ended whose worker ended with this exit status.

    A negative exit status is a signal, None is unknown.
    """
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
    """Return how a child with this exit status has failed, or None for no failure.

    `cause` is the cause of the end of its last session.
    """
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
