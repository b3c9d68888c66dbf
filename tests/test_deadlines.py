"""Deadlines: what is due at a time, in which order, and what is not due any more; pure."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poold.master.engine.deadlines import Deadline, Deadlines


class Diary:
    """Deadlines whose names are written down as they fall due."""

    def __init__(self) -> None:
        self.deadlines = Deadlines()
        self.made: dict[str, Deadline] = {}
        self.called: list[str] = []

    def at(self, when: float, name: str, *also: Callable[[], object]) -> None:
        """Have a name written down at a time, and then something done."""

        def callback() -> None:
            self.called.append(name)
            for act in also:
                act()

        self.made[name] = self.deadlines.at(when, callback)

    def cancel(self, name: str) -> None:
        """Cancel the deadline of a name."""
        self.made[name].cancel()

    def run(self, now: float) -> list[str]:
        """Do what is due, and return all names so far."""
        while (callback := self.deadlines.pop_due(now)) is not None:
            callback()
        return self.called


# When each falls due; which are cancelled; by how much all are put off; now; what is called; when the next one falls due.
CASES = {
    "nothing": ({}, "", 0, 9, "", None),
    "before its time": ({"a": 5}, "", 0, 4.999, "", 5),
    "at its time": ({"a": 5}, "", 0, 5, "a", None),
    "long after its time": ({"a": 5}, "", 0, 500, "a", None),
    "at no time of day": ({"a": -1, "b": 0}, "", 0, 0, "ab", None),
    "by time, not by order of arrival": ({"a": 3, "b": 1, "c": 2}, "", 0, 9, "bca", None),
    "of equal times the older first": ({"a": 2, "b": 2, "c": 2}, "", 0, 2, "abc", None),
    "those that are due alone": ({"a": 1, "b": 2, "c": 3}, "", 0, 2, "ab", 3),
    "cancelled": ({"a": 1}, "a", 0, 9, "", None),
    "cancelled twice": ({"a": 1, "b": 2}, "aa", 0, 9, "b", None),
    "the first of two cancelled": ({"a": 1, "b": 2}, "a", 0, 1, "", 2),
    "the last of two cancelled": ({"a": 1, "b": 2}, "b", 0, 1, "a", None),
    "all cancelled": ({"a": 1, "b": 2, "c": 3}, "cab", 0, 9, "", None),
    "put off": ({"a": 1, "b": 2}, "", 5, 6.5, "a", 7),
    "put off beyond now": ({"a": 1}, "", 5, 5, "", 6),
    "put off, and one cancelled": ({"a": 1, "b": 2}, "a", 5, 9, "b", None),
}


@pytest.mark.parametrize("case", CASES)
def test_deadlines(case: str) -> None:
    """What is due is done in its order, and what was cancelled or put off is not."""
    times, cancelled, later, now, called, following = CASES[case]
    diary = Diary()
    for name, when in times.items():
        diary.at(when, name)
    for name in cancelled:
        diary.cancel(name)
    diary.deadlines.shift(later)
    assert diary.deadlines.any_due(now) is bool(called)
    assert "".join(diary.run(now)) == called
    assert diary.deadlines.next_at() == following
    assert len(diary.deadlines) == len(times) - len(called) - len(set(cancelled))
    assert not diary.deadlines.any_due(now)


def test_one_that_is_done_may_cancel_the_next() -> None:
    """Of two that are due at the same time, the second is not done if the first cancels it."""
    diary = Diary()
    diary.at(1, "first", lambda: diary.cancel("second"))
    diary.at(1, "second")
    assert diary.run(1) == ["first"]
    assert len(diary.deadlines) == 0


def test_one_that_is_done_may_set_another() -> None:
    """What a deadline sets for now is done in the same turn, and what it sets for later is kept."""
    diary = Diary()
    diary.at(1, "first", lambda: diary.at(1, "now"), lambda: diary.at(2, "later"))
    assert diary.run(1) == ["first", "now"]
    assert diary.deadlines.next_at() == 2


def test_too_late_to_cancel() -> None:
    """Cancelling what has been done, also from within, changes nothing: neither the count nor the others."""
    diary = Diary()
    diary.at(1, "first", lambda: diary.cancel("first"))
    diary.at(2, "second")
    assert diary.run(1) == ["first"]
    diary.cancel("first")
    assert len(diary.deadlines) == 1
    assert diary.run(2) == ["first", "second"]


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=300), st.floats(0, 100))
def test_any_deadlines(entries: list[tuple[float, bool]], now: float) -> None:
    """What is due comes in order, older first, and nothing that was cancelled."""
    deadlines = Deadlines()
    called: list[int] = []
    made = [deadlines.at(at, lambda number=number: called.append(number)) for number, (at, _) in enumerate(entries)]
    for deadline, (_, cancel) in zip(made, entries, strict=True):
        if cancel:
            deadline.cancel()
            deadline.cancel()
    kept = [(at, number) for number, (at, cancel) in enumerate(entries) if not cancel]
    assert len(deadlines) == len(kept)
    assert deadlines.next_at() == (min(kept)[0] if kept else None)
    while (callback := deadlines.pop_due(now)) is not None:
        callback()
    assert called == [number for at, number in sorted(kept) if at <= now]
    assert len(deadlines) == len([at for at, _ in kept if at > now])


def test_cancelled_deadlines_do_not_pile_up() -> None:
    """A daemon that sets and forgets a deadline for each session keeps a small heap."""
    deadlines = Deadlines()
    for number in range(10_000):
        deadlines.at(1e9 + number, lambda: None).cancel()
    assert len(deadlines._heap) < 200
