"""Orders to the mold: how many are allowed, and what becomes of each until its worker is ready."""

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
    """Places orders, and settles those from which no worker comes."""

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
        # The mold that was in use when an order last failed. Orders are held back for this mold
        # only.
        self._blamed_mold: Child | None = None

    def allowed(self) -> int:
        """Return how many orders are allowed now, by the cap and by the last failure."""
        if self.held_back():
            return 0
        below_cap = self._current.config.pool.max_children - self._table.workers
        return max(0, min(below_cap, BIRTHS_MAX - len(self._births.open)))

    def has_mold(self) -> bool:
        """Return whether there is a mold that takes orders."""
        return self._molds.in_use is not None

    def held_back(self) -> bool:
        """Return whether no order is allowed: without a mold, or too soon after a failure."""
        mold, throttle = self._molds.in_use, self._births.throttle
        if self._life.stops or mold is None:
            return True
        return throttle.delay > 0 and mold is self._blamed_mold and not throttle.open(self._loop.clock())

    def coming(self) -> int:
        """Return how many workers are being born for the settings in force.

        Workers with older settings leave as soon as they are ready, and do not count.
        """
        return self._births.by_generation[self._current.generation]

    def place(self, count: int, *, ahead: bool) -> None:
        """Place at most `count` orders. `ahead` says that no client waits for these workers.

        The first failure ends the call. A later turn tries again.
        """
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
            self._slow_down(error.errno or 0, "no descriptors for a page and a channel")
            return False
        try:
            self._hearing.listen(child)
            order = channel.pack_order(child.slot, child.incarnation, ahead=ahead)
            child.mold = self._molds.order(order, theirs.fileno(), page, partial(self._on_answer, child))
        except OSError as error:
            self._hearing.forget(child)
            # The mold has too much to read, or is about to end.
            self._slow_down(error.errno or 0, "the mold cannot be reached", clone=False)
            return False
        finally:
            theirs.close()
        self._births.begin(child)
        self._ladder.set_deadline(child, self._seconds_to_be_ready(), partial(self._on_not_ready, child))
        return True

    def _seconds_to_be_ready(self) -> float:
        # Without preload every worker imports the handler.
        settings = self._current.config
        return settings.timeouts.startup + (0.0 if settings.pool.preload else settings.timeouts.import_)

    def _on_answer(self, child: Child, answer: tuple[int, int] | None) -> None:
        """Take the mold's answer, a pid and an errno.

        `answer` is None if the mold ended without an answer.
        """
        if answer is None:
            self._hearing.on_mold_ended(child)
            return
        pid, number = answer
        if self._births.take_answer(child, pid, number):
            self._hearing.forget(child)
            self._slow_down(number, "the mold cannot clone", child.mold)

    def note_stillborn(self, child: Child) -> None:
        """Slow down after a worker that has died before READY."""
        self._slow_down(0, "a worker died before it was ready", child.mold)

    def _slow_down(self, number: int, why: str, mold: Child | None = None, *, clone: bool = True) -> None:
        if self._molds.in_use is not self._blamed_mold:
            # This is the first failure with this mold. Orders were held back because of another
            # mold.
            self._births.throttle.retry()
            self._blamed_mold = self._molds.in_use
        first = self._births.note_failure(self._loop.clock(), number=number, why=why, clone=clone)
        if mold is not None:
            self._molds.note_failure(mold, first)
        # The loop must turn when orders are allowed again.
        self._loop.at(self._births.throttle.until, lambda: None)

    def _on_not_ready(self, child: Child) -> None:
        self._births.prove(child)
        if child.pid:
            log.warning("worker_not_ready", pid=child.pid, seconds=self._seconds_to_be_ready())
            self._ladder.expel(child, Failure.STILLBORN)
        else:
            self._hearing.forget(child)
            self._slow_down(0, "an ordered worker never appeared", child.mold)
