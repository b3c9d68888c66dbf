"""One mold as the master knows it: what it was started with, what it has said, and what it may say next. Pure.

A mold says HELLO, and then READY or FAILED; after READY one ANSWER for each order, in the order of the orders, because it works off one
after the other. Anything else is a broken protocol, so what a mold can make the master do is bounded by what it was asked for.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from poold.channel import MoldReport, MoldWord
from poold.errors import ProtocolError
from poold.master.children.succession import Member

# What may come after which word, but for the end.
NEXT: Mapping[MoldWord | None, frozenset[MoldWord]] = {
    None: frozenset({MoldWord.HELLO}),
    MoldWord.HELLO: frozenset({MoldWord.READY, MoldWord.FAILED}),
    MoldWord.READY: frozenset({MoldWord.ANSWER}),
    MoldWord.FAILED: frozenset(),
}
# A mold of which no worker has come at so many tries in a row, over so many seconds, is given up. Tries are spread by their own throttle.
FAILURES_MAX = 5
FAILURES_SECONDS = 1.0

# Told the mold's answer to an order, a pid and an errno of which one is 0; None, where the mold has ended without one.
Answered = Callable[[tuple[int, int] | None], object]


@dataclass(slots=True)
class Streak:
    """Failures in a row, and since when."""

    count: int = 0
    since: float = 0.0

    def failed(self, now: float, *, first: bool) -> bool:
        """Count one, the `first` since something worked or not; say whether there is no more hope."""
        if first or not self.count:
            self.count, self.since = 0, now
        self.count += 1
        return self.count >= FAILURES_MAX and now - self.since >= FAILURES_SECONDS


@dataclass(slots=True, eq=False)
class Mold(Member):
    """A mold, and what it was started with. `seconds` is how long its import may take.

    `version` is the one it says it has; a `foreign` one may have another than ours, because it is for the program that comes next.
    """

    seconds: float = 0.0
    foreign: bool = False
    version: str = ""
    # The last word it has said, but for answers: READY goes on to be it.
    said: MoldWord | None = None
    # Slot and incarnation of each order that it has not answered, the oldest first; and who waits for each of these answers.
    unanswered: deque[tuple[int, int]] = field(default_factory=deque)
    waiting: dict[tuple[int, int], Answered] = field(default_factory=dict)
    # Its orders that no worker came of.
    failures: Streak = field(default_factory=Streak)
    # Why it cannot be used, as far as anybody said.
    reason: str = ""

    def says(self, report: MoldReport) -> None:
        """Note what it says. Raises ProtocolError where that is not what may come next."""
        if report.word not in NEXT[self.said]:
            before = "nothing" if self.said is None else self.said.name
            raise ProtocolError(f"a mold that has said {before} says {report.word.name}")
        if report.word is not MoldWord.ANSWER:
            self.said = report.word
        elif not self.unanswered or self.unanswered[0] != report.answer[:2]:
            raise ProtocolError("a mold answers an order that is not its next one")
        else:
            self.unanswered.popleft()
