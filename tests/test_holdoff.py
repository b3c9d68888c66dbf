"""For how long the master leaves things alone while a crowd waits; pure."""

from hypothesis import given
from hypothesis import strategies as st

from poold.master.pool.pool import CROWD_MAX, CROWD_MIN, HOLDOFF_EACH, holdoff


@given(st.integers(0, 200), st.integers(0, 200))
def test_holdoff(waiting: int, coming: int) -> None:
    """Nobody holds off for a few, nor for workers that are not on their way, nor for long; with more of a crowd, no shorter."""
    seconds = holdoff(waiting, coming)
    if min(waiting, coming) <= CROWD_MIN:
        assert seconds == 0
    else:
        assert HOLDOFF_EACH <= seconds <= HOLDOFF_EACH * CROWD_MAX
    assert seconds <= holdoff(waiting + 1, coming + 1)
