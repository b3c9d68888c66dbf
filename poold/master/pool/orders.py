"""Orders to the mold: how many may be placed, and what becomes of each until its worker is ready or is given up."""

from functools import partial

from poold import channel
from poold.log import log
from poold.master.children.ladder import Ladder
from poold.master.children.table import Child, ChildTable
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.master.phase import Life
from poold.master.pool.activity import Activities
from poold.master.pool.births import Births
from poold.master.pool.hearing import Hearing
from poold.master.pool.molds import Molds
from poold.settings.descriptors import BIRTHS_MAX
from poold.words import Failure, Kind


class Orders:
    """Places orders, and settles those that no worker comes of."""

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        loop: Loop,
        table: ChildTable,
        ladder: Ladder,
        births: Births,
        activities: Activities,
        molds: Molds,
        hearing: Hearing,
    ) -> None:
        self._life = life
        self._current = current
        self._loop = loop
        self._table = table
        self._ladder = ladder
        self._births = births
        self._activities = activities
        self._molds = molds
        self._hearing = hearing
        # The mold that was in use when an order failed last: what is held back because of that mold is held back for no other.
        self._blamed: Child | None = None

    def left(self) -> int:
        """Return how many may be placed now: the cap, and no failure to recover from."""
        if self.held_back():
            return 0
        below_cap = self._current.config.pool.max_children - self._table.workers
        return max(0, min(below_cap, BIRTHS_MAX - len(self._births.open)))

    def possible(self) -> bool:
        """Say whether there is a mold to take orders."""
        return self._molds.in_use is not None

    def held_back(self) -> bool:
        """Say whether none may be placed because something is lacking: a mold, or the last failure is not long enough ago."""
        mold, throttle = self._molds.in_use, self._births.throttle
        if self._life.stops or mold is None:
            return True
        return throttle.delay > 0 and mold is self._blamed and not throttle.open(self._loop.clock())

    def coming(self) -> int:
        """Return how many workers are on their way that will serve: those of older settings leave as soon as they are ready."""
        return self._births.by_generation[self._current.generation]

    def place(self, count: int, *, ahead: bool) -> None:
        """Order so many workers at the most, `ahead` of any client that waits; a failure ends it, and is looked at again later."""
        for _ in range(count):
            if not self._place(ahead=ahead):
                return

    def _place(self, *, ahead: bool) -> bool:
        child = self._table.claim(Kind.WORKER, generation=self._current.generation, now=self._loop.clock())
        try:
            page = self._activities.open(child) if self._current.config.server.command is None else None
            child.channel, theirs = channel.make_pair()
        except OSError as error:
            self._hearing.forget(child)
            self._failed(error.errno or 0, "no descriptors for a page and a channel")
            return False
        try:
            self._hearing.listen(child)
            order = channel.pack_order(child.slot, child.incarnation, ahead=ahead)
            child.mold = self._molds.order(order, theirs.fileno(), page, partial(self._answered, child))
        except OSError as error:
            self._hearing.forget(child)
            # The mold has too much to read, or is about to end.
            self._failed(error.errno or 0, "the mold cannot be reached", clone=False)
            return False
        finally:
            theirs.close()
        self._births.begin(child)
        self._ladder.within(child, self._seconds_to_be_ready(), partial(self._not_ready, child))
        return True

    def _seconds_to_be_ready(self) -> float:
        # Without preload every worker imports the handler itself.
        settings = self._current.config
        return settings.timeouts.startup + (0.0 if settings.pool.preload else settings.timeouts.import_)

    def _answered(self, child: Child, answer: tuple[int, int] | None) -> None:
        """Take the mold's answer to an order, a pid and an errno; None: the mold has ended without one."""
        if answer is None:
            self._hearing.abandoned(child)
            return
        pid, number = answer
        if self._births.answered(child, pid, number):
            self._hearing.forget(child)
            self._failed(number, "the mold cannot clone", child.mold)

    def stillborn(self, child: Child) -> None:
        """Slow down after a worker that died before it was ready."""
        self._failed(0, "a worker died before it was ready", child.mold)

    def _failed(self, number: int, why: str, mold: Child | None = None, *, clone: bool = True) -> None:
        if self._molds.in_use is not self._blamed:
            # This is the first failure under another mold, and what was held back before was not for that mold's sake.
            self._births.throttle.retry()
            self._blamed = self._molds.in_use
        first = self._births.failed(self._loop.clock(), number=number, why=why, clone=clone)
        if mold is not None:
            self._molds.failing(mold, first)
        # The loop turns again once births may be tried again.
        self._loop.at(self._births.throttle.until, lambda: None)

    def _not_ready(self, child: Child) -> None:
        self._births.prove(child)
        if child.pid:
            log.warning("worker_not_ready", pid=child.pid, seconds=self._seconds_to_be_ready())
            self._ladder.expel(child, Failure.STILLBORN)
        else:
            self._hearing.forget(child)
            self._failed(0, "an ordered worker never appeared", child.mold)
