"""The throttle: after a failure nothing is tried for a moment, which doubles; pure."""

from hypothesis import given
from hypothesis import strategies as st

from poold.master.engine.throttle import DELAY_MAX, DELAY_MIN, Throttle


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=60))
def test_throttle(steps: list[tuple[float, bool]]) -> None:
    """The delay doubles from its least to its greatest, a success takes it away, and the first failure is told from the rest."""
    throttle, now, failing = Throttle(), 0.0, False
    for wait, good in steps:
        now += wait
        if good:
            throttle.succeeded()
            assert throttle.open(now)
        else:
            before = throttle.delay
            could = throttle.open(now)
            assert throttle.failed(now) is not failing
            assert throttle.delay == (min(max(DELAY_MIN, before * 2), DELAY_MAX) if could else before)
            assert not throttle.open(now)
            assert throttle.open(now + throttle.delay)
        failing = not good
