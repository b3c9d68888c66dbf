"""The master's phase: one way through a life, and what follows for the parts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poold.errors import InternalError
from poold.master.phase import SHOWN, TRANSITIONS, Life, Phase
from poold.words import Cause

# Accepts, keeps spares, drains, ends, stops, closes.
FOLLOWS = {
    Phase.STARTING: (False, True, False, False, False, False),
    Phase.RUNNING: (True, True, False, False, False, False),
    Phase.RESTING: (False, False, False, False, False, False),
    Phase.DRAINING: (True, False, True, True, False, False),
    Phase.STOPPING: (False, False, False, True, True, False),
    Phase.CLOSING: (False, False, False, True, True, True),
    Phase.STOPPED: (False, False, False, True, True, True),
}


def reached(phase: Phase) -> Life:
    """Return a life that has come to this phase on a shortest way."""
    ways = [(Phase.STARTING,)]
    while all(way[-1] is not phase for way in ways):
        ways = [(*way, step) for way in ways for step in TRANSITIONS[way[-1]] if step not in way]
    life = Life()
    for step in next(way for way in ways if way[-1] is phase)[1:]:
        life.enter(step)
    return life


@pytest.mark.parametrize("phase", Phase)
def test_what_follows_from_a_phase(phase: Phase) -> None:
    """Every question that a part asks is answered by the phase alone."""
    life = reached(phase)
    assert (life.accepts, life.keeps_spares, life.drains, life.ends, life.stops, life.closes) == FOLLOWS[phase]
    assert life.shown is {Phase.RESTING: Phase.RUNNING, Phase.CLOSING: Phase.STOPPING}.get(phase, phase)
    assert life.shown not in SHOWN


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Phase, Phase)))
def test_transitions(before: Phase, after: Phase) -> None:
    """A phase is entered from where the table says, and anything else raises and changes nothing."""
    life = reached(before)
    if after in TRANSITIONS[before]:
        life.enter(after)
        assert life.phase is after
    else:
        with pytest.raises(InternalError):
            life.enter(after)
        assert life.phase is before


@given(st.lists(st.sampled_from(Phase), max_size=12))
def test_every_life_ends_in_the_same_order(steps: list[Phase]) -> None:
    """Once the end has begun there is no way back, and STOPPING, CLOSING, STOPPED come one after the other."""
    life, seen = Life(), [Phase.STARTING]
    for step in steps:
        if step in TRANSITIONS[life.phase]:
            life.enter(step)
            seen.append(step)
    order = [Phase.DRAINING, Phase.STOPPING, Phase.CLOSING, Phase.STOPPED]
    ended = [phase for phase in seen if phase in order]
    assert ended == [phase for phase in order if phase in ended]
    assert seen[len(seen) - len(ended) :] == ended


def test_a_drain_and_a_stop_say_what_for() -> None:
    """A drain has a time, and a stop a cause, which every session that is left ends for."""
    life = Life()
    assert life.left(5.0) is None
    life.drain(12.0)
    assert [life.left(now) for now in (5.0, 12.0, 13.0)] == [7.0, 0.0, 0.0]
    life.stop(Cause.DRAINED)
    assert life.left(5.0) is None
    assert life.cause is Cause.DRAINED
