"""What the keepers of exporters, loggers and molds have in common: one child in use at a time.

start ───▶ in use ──▶ ended: started again, after a delay that grows as long as the starts fail
prepare ─▶ candidate ─▶ ready ─▶ adopted: in use, and the one before is asked to leave
           └────▶ discarded
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from poold.channel import Wire
from poold.master.children.ladder import Ladder
from poold.master.children.spawn import Launcher
from poold.master.children.table import Child, ChildTable
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.master.engine.throttle import Throttle
from poold.scoreboard import SPAWNED, Counters
from poold.words import Kind, State

# A function that is called with None when the candidate is ready, or with the reason why the
# candidate cannot be used.
Prepared = Callable[[str | None], object]


@dataclass(slots=True, eq=False)
class Member:
    """A child that a `Succession` keeps. `prepared` is set as long as the child is a candidate."""

    child: Child
    prepared: Prepared | None = None

    def report_outcome(self, reason: str | None) -> None:
        """Call `prepared` if the child is a candidate.

        `reason` is None when the candidate is ready, or why the candidate cannot be used.
        """
        if self.prepared is not None:
            self.prepared(reason)


M = TypeVar("M", bound=Member)


@dataclass(frozen=True, slots=True)
class Starter:
    """Starts children that have a channel to the master."""

    loop: Loop
    table: ChildTable
    ladder: Ladder
    counters: Counters

    def start(
        self,
        kind: Kind,
        generation: int,
        *,
        members: dict[Child, M],
        make: Callable[[Child], M],
        pair: Callable[[], tuple[Wire, Wire]],
        launch: Callable[[int], int],
        read: Callable[[M], object],
    ) -> M:
        """Start a child and return its member. Whatever is raised (OSError), nothing is left.

        `make` makes the member, which is among `members` from then on. `pair` makes the master's
        end of the channel and the child's. `launch` gets the descriptor of the child's end, starts
        the process and returns the pid. `read` is called whenever the channel is readable.
        """
        child = self.table.claim(kind, generation=generation, now=self.loop.clock())
        try:
            member = members[child] = make(child)
            child.channel, theirs = pair()
            try:
                self.loop.watch(child.channel, lambda: read(member))
                pid = launch(theirs.fileno())
            finally:
                theirs.close()
        except BaseException:
            members.pop(child, None)
            self.ladder.close_channel(child)
            self.table.remove(child)
            raise
        self.table.born(child, pid)
        self.counters.cells[SPAWNED[kind]] += 1
        return member


class Succession(ABC, Generic[M]):
    """The child in use, and a candidate that is being prepared to take its place."""

    def __init__(self, *, current: Current, launcher: Launcher, starter: Starter) -> None:
        self._current = current
        self._launcher = launcher
        self._starter = starter
        self._loop, self._table, self._ladder = starter.loop, starter.table, starter.ladder
        self._counters = starter.counters
        self._members: dict[Child, M] = {}
        self._used: M | None = None
        self._candidate: M | None = None
        self._throttle = Throttle()

    def start(self) -> None:
        """Start a child for the settings in force, if one is wanted and there is none.

        After a failure the keeper tries again later.
        """
        if self._used is not None or not self._wanted():
            return
        try:
            self._used = self._launch_current()
        except OSError as error:
            self._start_later(str(error))

    @abstractmethod
    def _wanted(self) -> bool:
        """Return whether there has to be a child of this kind."""

    @abstractmethod
    def _launch_current(self) -> M:
        """Launch a child for the settings in force. Raises OSError."""

    def _mark_ready(self, child: Child) -> None:
        """Note that a child has reported to be ready."""
        child.ready = True
        self._ladder.clear_deadline(child)
        self._table.move(child, State.SERVING)
        self._throttle.succeeded()

    @abstractmethod
    def _log_failure(self, reason: str, *, first: bool) -> None:
        """Log why there is no child in use, and that the keeper will try again.

        `first` says that this is the first failure since the last success.
        """

    def _start_later(self, reason: str) -> None:
        """Start another child later, because a start has failed or a child has ended.

        An empty `reason` has been logged already.
        """
        first = self._throttle.failed(self._loop.clock())
        if reason:
            self._log_failure(reason, first=first)
        self._loop.at(self._throttle.until, self.start)

    def discard(self) -> None:
        """Ask the candidate to leave.

        The caller of `prepare` closes what the candidate was given.
        """
        candidate, self._candidate = self._candidate, None
        self._dismiss(candidate)

    def _dismiss(self, member: M | None) -> None:
        """Ask a child that is not in use to leave."""
        if member is not None and not member.child.leaving:
            member.prepared = None
            self._ladder.retire(member.child)

    def _staying(self) -> Iterator[M]:
        """Yield the children that were not asked to leave."""
        return (member for member in list(self._members.values()) if not member.child.leaving)

    def stop(self) -> None:
        """Ask every child of this kind to leave."""
        for member in self._staying():
            self._ladder.retire(member.child)
