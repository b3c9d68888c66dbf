"""One mold as the master knows this mold: what the mold has reported, and what may come next.

A mold reports HELLO, and then READY or FAILED. After READY the mold sends one ANSWER for each
order, in the sequence of the orders, because the mold works off one after the other. Anything else
breaks the protocol. So a mold cannot make the master do more than the master has asked for.

Nothing here acts on a process or a descriptor.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from poold.channel import MoldReport, MoldWord
from poold.errors import ProtocolError
from poold.master.children.succession import Member
from poold.master.document.part import Part

# The reports that may follow each report. The end of the channel may follow any.
NEXT: Mapping[MoldWord | None, frozenset[MoldWord]] = {
    None: frozenset({MoldWord.HELLO}),
    MoldWord.HELLO: frozenset({MoldWord.READY, MoldWord.FAILED}),
    MoldWord.READY: frozenset({MoldWord.ANSWER}),
    MoldWord.FAILED: frozenset(),
}
# A mold is given up after `FAILURES_MAX` failed orders in a row that span `FAILURES_SECONDS`. A
# throttle of the orders keeps the tries apart.
FAILURES_MAX = 5
FAILURES_SECONDS = 1.0

# Gets the mold's answer to an order: a pid and an errno, one of which is 0. None: the mold has
# ended without an answer.
OnAnswer = Callable[[tuple[int, int] | None], object]


@dataclass(frozen=True, slots=True)
class MoldPart:
    """The mold that was started from the new code, and the version that the mold has reported."""

    pid: int
    version: str


@dataclass(frozen=True, kw_only=True)
class MoldsPart(Part):
    """The mold that the next program goes on with."""

    mold: MoldPart | None = None


@dataclass(slots=True)
class Streak:
    """The number of failures in a row, and the time of the first one."""

    count: int = 0
    since: float = 0.0

    def failed(self, now: float, *, first: bool) -> bool:
        """Count a failure. Return whether there have been too many, for too long.

        `first` says that this failure is the first one since a success.
        """
        if first or not self.count:
            self.count, self.since = 0, now
        self.count += 1
        return self.count >= FAILURES_MAX and now - self.since >= FAILURES_SECONDS


@dataclass(slots=True, eq=False)
class Mold(Member):
    """A mold, and what the master has started this mold with.

    `seconds` is how long the import may take. `version` is the version that the mold has reported.
    A `foreign` mold is for the next program, and may have another version than the master.
    """

    seconds: float = 0.0
    foreign: bool = False
    version: str = ""
    # The last report that was no ANSWER.
    last_word: MoldWord | None = None
    # Slot and incarnation of each order without an answer, the oldest first, and the callback for
    # each.
    unanswered: deque[tuple[int, int]] = field(default_factory=deque)
    on_answers: dict[tuple[int, int], OnAnswer] = field(default_factory=dict)
    # The orders from which no worker has come.
    failures: Streak = field(default_factory=Streak)
    # Why the mold cannot be used, if that is known.
    reason: str = ""

    def note_report(self, report: MoldReport) -> None:
        """Note a report of the mold. Raises ProtocolError if this report must not come next."""
        if report.word not in NEXT[self.last_word]:
            before = "nothing" if self.last_word is None else self.last_word.name
            raise ProtocolError(f"a mold that has said {before} says {report.word.name}")
        if report.word is not MoldWord.ANSWER:
            self.last_word = report.word
        elif not self.unanswered or self.unanswered[0] != report.answer[:2]:
            raise ProtocolError("a mold answers an order that is not its next one")
        else:
            self.unanswered.popleft()
