"""The child table, causes and failures: pure decisions, for any order of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from poold.address import Endpoint
from poold.childrows import AUXILIARY_SLOTS, SLOTS, WORKERS_MAX
from poold.errors import InternalError
from poold.master.children.table import TRANSITIONS, Child, ChildTable, NoSlotError, cause_of, failure_of
from poold.master.clients.sessions import Session
from poold.words import Cause, Failure, Kind, State

PEER = Endpoint(2, raw=("192.0.2.1", 1), host="192.0.2.1", port=1)


def session(number: int = 1) -> Session:
    """Return a session without a socket."""
    return Session(number, "main", 0, PEER, 0.0, None)


class TableMachine(RuleBasedStateMachine):
    """Any sequence of claims, births, moves and removals leaves the table in agreement with itself."""

    children = Bundle("children")

    def __init__(self) -> None:
        super().__init__()
        self.table = ChildTable()
        self.living: dict[int, Child] = {}
        self.pids = 1000

    @rule(target=children, kind=st.sampled_from([Kind.WORKER, Kind.WORKER, Kind.WORKER, Kind.MOLD]))
    def claim(self, kind: Kind) -> Child:
        if kind is Kind.MOLD and sum(child.kind is Kind.MOLD for child in self.living.values()) >= AUXILIARY_SLOTS:
            with pytest.raises(NoSlotError):
                self.table.claim(kind, generation=1, now=0.0)
            kind = Kind.WORKER
        child = self.table.claim(kind, generation=1, now=0.0)
        assert child.slot not in self.living
        assert (child.slot < AUXILIARY_SLOTS) == (kind is not Kind.WORKER)
        self.living[child.slot] = child
        return child

    @rule(child=children)
    def born(self, child: Child) -> None:
        self.pids += 1
        if child.pid:
            with pytest.raises(InternalError):
                self.table.born(child, self.pids)
        elif self.living.get(child.slot) is child:
            self.table.born(child, self.pids)
            assert self.table.by_pid(self.pids) is child

    @rule(child=children, state=st.sampled_from(list(State)))
    def move(self, child: Child, state: State) -> None:
        if self.living.get(child.slot) is not child:
            return
        before = child.state
        if state in TRANSITIONS[before]:
            self.table.move(child, state)
            assert child.state is state
        else:
            with pytest.raises(InternalError):
                self.table.move(child, state)
            assert child.state is before

    @rule(child=consumes(children))
    def remove(self, child: Child) -> None:
        if self.living.get(child.slot) is not child:
            return
        self.table.remove(child)
        del self.living[child.slot]
        assert self.table.at(child.slot, child.incarnation) is None
        with pytest.raises(InternalError):
            self.table.remove(child)

    @precondition(lambda self: self.living)
    @rule()
    def old_names_do_not_fit(self) -> None:
        for child in self.living.values():
            assert self.table.at(child.slot, child.incarnation) is child
            assert self.table.at(child.slot, child.incarnation - 1) is None

    @invariant()
    def agrees(self) -> None:
        self.table.check()
        assert len(self.table) == len(self.living)
        assert self.table.workers == sum(child.kind is Kind.WORKER for child in self.living.values())
        assert all(count >= 0 for count in self.table.census.values())


TestTable = TableMachine.TestCase


def test_slots_are_dense() -> None:
    """A freed slot is used again before a new one, the lowest first, so that rows stay together."""
    table = ChildTable()
    children = [table.claim(Kind.WORKER, generation=1, now=0.0) for _ in range(10)]
    for child in (children[7], children[2]):
        table.remove(child)
    assert table.claim(Kind.WORKER, generation=1, now=0.0).slot == children[2].slot
    assert table.claim(Kind.WORKER, generation=1, now=0.0).slot == children[7].slot
    assert max(child.slot for child in table) < SLOTS


AUXILIARY = [kind for kind in Kind if kind is not Kind.WORKER]


@pytest.mark.parametrize("kind", AUXILIARY)
def test_no_slot_for_a_child_that_is_no_worker(kind: Kind) -> None:
    """With every slot for molds, exporters, trials and loggers in use one more is refused, with a reason; workers do not feel it."""
    table = ChildTable()
    children = [table.claim(AUXILIARY[number % len(AUXILIARY)], generation=1, now=0.0) for number in range(AUXILIARY_SLOTS)]
    for expected in (LookupError, OSError):
        with pytest.raises(expected, match=f"all {AUXILIARY_SLOTS} slots for children that are not workers are taken"):
            table.claim(kind, generation=1, now=0.0)
    assert len(table) == AUXILIARY_SLOTS
    assert table.claim(Kind.WORKER, generation=1, now=0.0).slot == AUXILIARY_SLOTS
    table.remove(children[3])
    assert table.claim(kind, generation=1, now=0.0).slot == children[3].slot
    table.check()


def test_no_slot_for_a_worker() -> None:
    """With every slot for workers in use one more is refused, and a mold is not."""
    table = ChildTable()
    for _ in range(WORKERS_MAX):
        table.claim(Kind.WORKER, generation=1, now=0.0)
    with pytest.raises(NoSlotError, match=f"all {WORKERS_MAX} slots for workers are taken"):
        table.claim(Kind.WORKER, generation=1, now=0.0)
    assert table.claim(Kind.MOLD, generation=1, now=0.0).slot < AUXILIARY_SLOTS


def test_a_worker_has_one_session_at_a_time() -> None:
    """A second session for the same worker is refused, and a leaving one gets none."""
    table = ChildTable()
    child = table.claim(Kind.WORKER, generation=1, now=0.0)
    table.born(child, 4242)
    table.move(child, State.SPARE)
    table.assign(child, session())
    with pytest.raises(InternalError):
        table.assign(child, session(2))
    table.done(child)
    assert child.state is State.SPARE
    table.move(child, State.RETIRING)
    with pytest.raises(InternalError):
        table.assign(child, session(3))
    assert child.session is None


@pytest.mark.parametrize(
    ("decided", "status", "gone", "cause"),
    [
        (None, 0, False, Cause.OK),
        (None, 3, False, Cause.EXIT),
        (None, 3, True, Cause.CLIENT_GONE),
        (None, -11, False, Cause.SIGNAL),
        (None, -9, True, Cause.SIGNAL),
        (None, -13, False, Cause.CLIENT_GONE),
        (None, None, False, Cause.LOST),
        (Cause.DRAINED, -15, False, Cause.DRAINED),
        (Cause.DRAINED, 0, False, Cause.DRAINED),
        (Cause.TIMEOUT_STARTUP, -9, False, Cause.TIMEOUT_STARTUP),
    ],
)
def test_cause(decided: Cause | None, status: int | None, gone: bool, cause: Cause) -> None:
    """The first decision wins, the master's own before what the kernel reports."""
    ended = session()
    ended.cause = decided
    assert cause_of(ended, status=status, client_gone=gone) is cause


@given(
    status=st.none() | st.integers(-64, 255),
    cause=st.none() | st.sampled_from(Cause),
    ready=st.booleans(),
    excused=st.booleans(),
    failure=st.none() | st.sampled_from(Failure),
)
def test_failure(status: int | None, cause: Cause | None, ready: bool, excused: bool, failure: Failure | None) -> None:
    """A child fails for at most one reason; one that was told to go, or whose client went, did not fail."""
    child = Child(16, 1, Kind.WORKER, 1, 0.0, ready=ready, excused=excused, failure=failure)
    found = failure_of(child, status=status, cause=cause)
    if failure is not None:
        assert found is failure
    elif excused or cause in (Cause.CLIENT_GONE, Cause.DRAINED, Cause.KILLED, Cause.HANDSHAKE_ERROR):
        assert found is None
    elif not ready:
        assert found is Failure.STILLBORN
    else:
        assert found is {None: Failure.UNKNOWN, 0: None}.get(status, Failure.EXIT if (status or 0) > 0 else Failure.SIGNAL)
