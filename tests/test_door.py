"""The door's rulings and the matching of exits with births: tables of cases, without any process."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from poold.address import Endpoint
from poold.channel import Wire
from poold.errors import ProtocolError
from poold.master.children.exits import Exit
from poold.master.children.table import Child, ChildTable
from poold.master.clients.door import Door
from poold.master.clients.sessions import Accepted
from poold.master.phase import Life, Phase
from poold.master.pool.births import Births
from poold.scoreboard import FORK_FAILURES, REFUSED, SPAWNED, Counters
from poold.words import Kind, Refusal

PEER = Endpoint(2, raw=("192.0.2.1", 1), host="192.0.2.1", port=1)
NOBODY = 1 << 23  # no process can have this pid


@dataclass
class FakePool:
    """Answers what the door asks, and keeps what the door lets in."""

    acceptable: bool = True
    room: bool = True
    at_cap: bool = False
    taken: list[Accepted] = field(default_factory=list)

    def accepts(self) -> bool:
        return self.acceptable

    def has_room(self) -> bool:
        return self.room

    def full(self) -> bool:
        return self.at_cap

    def take(self, accepted: Accepted) -> None:
        self.taken.append(accepted)


@dataclass
class FakeLinger:
    """Keeps what the door refuses."""

    refused: list[tuple[Wire, bytes]] = field(default_factory=list)

    def refuse(self, wire: Wire, message: bytes) -> None:
        self.refused.append((wire, message))


def door(pool: FakePool, linger: FakeLinger, counters: Counters, phase: Phase = Phase.RUNNING) -> Door:
    """Return a door of a master in this phase."""
    life = Life()
    for step in {Phase.STARTING: [], Phase.RESTING: [Phase.RUNNING, Phase.RESTING]}.get(phase, [phase]):
        life.enter(step)
    current = SimpleNamespace(config=SimpleNamespace(pool=SimpleNamespace(refuse_message="busy\n")))
    return Door(life=life, current=current, pool=pool, linger=linger, counters=counters)  # type: ignore[arg-type] # all that is used of them


@pytest.mark.parametrize("acceptable", [False, True])
@pytest.mark.parametrize(
    ("phase", "lets_in"),
    [(Phase.STARTING, False), (Phase.RUNNING, True), (Phase.RESTING, False), (Phase.DRAINING, True), (Phase.STOPPING, False)],
)
def test_when_the_door_is_open(phase: Phase, lets_in: bool, acceptable: bool) -> None:
    """Newcomers are accepted while the master serves and the pool has an answer for one more."""
    assert door(FakePool(acceptable), FakeLinger(), Counters(), phase).is_open() is (lets_in and acceptable)


@pytest.mark.parametrize(
    ("room", "at_cap", "reason"),
    [(True, False, None), (True, True, None), (False, True, Refusal.FULL), (False, False, Refusal.NO_RESOURCES)],
)
def test_rulings(room: bool, at_cap: bool, reason: Refusal | None) -> None:
    """An accepted connection is let in, or refused and counted by its reason: one of both, never none."""
    pool, linger, counters = FakePool(room=room, at_cap=at_cap), FakeLinger(), Counters()
    left, right = socket.socketpair()
    with left, right:
        accepted = Accepted(left, "main", 0, PEER, 1.0)
        door(pool, linger, counters).enter(accepted)
        assert pool.taken == ([accepted] if reason is None else [])
        assert linger.refused == ([] if reason is None else [(left, b"busy\n")])
    assert {each: counters.cells[REFUSED[each]] for each in Refusal} == {each: int(each is reason) for each in Refusal}


# The matching of exits with births.


class Nursery:
    """Births of a table, and what can happen to them."""

    def __init__(self) -> None:
        self.table, self.counters = ChildTable(), Counters()
        self.births = Births(table=self.table, counters=self.counters)

    def order(self) -> Child:
        """Return a child that is ordered."""
        child = self.table.claim(Kind.WORKER, generation=1, now=0.0)
        self.births.begin(child)
        return child

    def exit(self, pid: int) -> None:
        """Have a process end that has no row."""
        self.births.keep_exit(Exit(pid, 0, None))


def _named(nursery: Nursery, child: Child) -> None:
    nursery.births.take_answer(child, NOBODY, 0)


def _failed(nursery: Nursery, child: Child) -> None:
    assert nursery.births.take_answer(child, 0, 11)
    nursery.births.close(child)


@pytest.mark.parametrize(
    ("happens", "matched", "strangers"),
    [
        # The mold has named the pid: the exit is this worker's.
        ([_named], True, 0),
        # Nobody has named a pid yet: the exit may be this worker's, and is kept.
        ([], False, 0),
        # The clone has failed: no order is open that the exit could belong to.
        ([_failed], False, 1),
    ],
)
def test_an_exit_is_matched_or_kept(happens: list[Callable[[Nursery, Child], None]], matched: bool, strangers: int) -> None:
    """An exit without a row belongs to the order whose pid it is, is kept while an order may be its own, and else is nobody's."""
    nursery = Nursery()
    child = nursery.order()
    nursery.exit(NOBODY)
    for act in happens:
        act(nursery, child)
    found = nursery.births.match_exits()
    assert [each for each, _ in found] == ([child] if matched else [])
    assert len(nursery.births.take_strangers()) == strangers
    assert nursery.counters.cells[SPAWNED[Kind.WORKER]] == int(matched)
    assert len(nursery.births.unclaimed) == 1 - int(matched) - strangers


def test_answers_that_come_twice_or_too_late_change_nothing() -> None:
    """Only the first answer to an order that is open counts."""
    nursery = Nursery()
    child = nursery.order()
    _named(nursery, child)
    assert not nursery.births.take_answer(child, 0, 11)
    assert child.named_pid == NOBODY
    late = nursery.order()
    nursery.births.close(late)
    assert not nursery.births.take_answer(late, 0, 11)


def test_a_pid_is_proved() -> None:
    """What the mold names, or who says BORN, is a child of ours or is not believed."""
    nursery = Nursery()
    child = nursery.order()
    nursery.births.take_answer(child, os.getppid(), 0)
    nursery.births.prove(child)
    assert not child.pid
    report = type("Report", (), {"pid": os.getppid(), "version": "", "number": 0})()
    with pytest.raises(ProtocolError):
        nursery.births.take_born(child, report)


def test_what_is_no_clone_is_not_counted_as_one() -> None:
    """A mold that cannot be reached slows births down like a failed clone, and is not counted as one."""
    nursery = Nursery()
    assert nursery.births.note_failure(1.0, number=11, why="it has too much to read", clone=False)
    assert not nursery.births.throttle.open(1.0)
    assert not any(nursery.counters.cells[cell] for cell in FORK_FAILURES.values())
    assert not nursery.births.note_failure(9.0, number=11, why="it cannot clone")
    assert nursery.counters.cells[FORK_FAILURES["EAGAIN"]] == 1
